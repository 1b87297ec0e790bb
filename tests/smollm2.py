"""The real model of the tests: SmolLM2-135M-Instruct as a Hugging Face folder, made once a checkout."""

import hashlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """A stock Hugging Face folder (30 layers, 9 query and 3 KV heads, bfloat16). Read only: it outlives the run."""
    import demo_model  # here, because it needs the gguf package and most tests do not

    # The tool's own digest is in the name, so that a changed tool never meets the folder that an older one made.
    digest = hashlib.sha256(Path(demo_model.__file__).read_bytes()).hexdigest()[:8]
    folder = ROOT / ".cache" / f"smollm2-135m-instruct-{digest}"
    demo_model.make_folder(folder)
    return folder
