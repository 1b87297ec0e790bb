"""`python -m chopjax.aot` as a person runs it, on a tiny model and a slice that is not there."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
from aot.slices import needs_libtpu

from chopjax.aot import gpus

KEPT = ("jit_step", "jit_score_sums", "jit_batch_sums")
CONFIG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "base.py"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with a config.json and no weights."""
    folder = tmp_path_factory.mktemp("source")
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def aot(source: pathlib.Path, workdir: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    given = {
        "source": source,
        "workdir": workdir,
        "plan.remove_layers": 2,
        "data.length": 128,
        "train.batch": 8,
        "train.steps": 50,
        "score.batch": 4,
        "evaluate.batch": 4,
    }
    overrides = [f"--config.{name}={value}" for name, value in given.items()]
    command = [sys.executable, "-m", "chopjax.aot", "--config", str(CONFIG), *overrides, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def report_count(said: str) -> int:
    """The student's parameters, as they are printed."""
    found = re.search(r"student ([0-9,]+) parameters", said)
    assert found is not None
    return int(found[1].replace(",", ""))


@needs_libtpu
def test_every_step_of_a_run(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    programs = tmp_path / "programs"
    keep = "--save", f"--config.compilation_cache={programs}"
    before = "--config.train.steps_before_chop=10"
    done = aot(source, tmp_path, "--topology", "v5e-4", "--step=all", "--table", before, *keep)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "v5e:2x2, 4 chips; student " in said and "8 rows of 128 tokens; bfloat16, remat full; mesh fsdp=4" in said
    assert "layers/attention/q/kernel" in said
    for words in (
        "fits: 0.",
        "optimizer",
        "all-gather",
        "TFLOP",
        "at best:",
        "to plan with:",
        "the run's own steps: 50 steps, 51.2K tokens",
        "before the chop: 10 steps, 10.2K tokens",
    ):
        assert words in said, said
    report = json.loads((tmp_path / "aot" / "aot.json").read_text())
    assert report["topology"] == "v5e:2x2"
    for step in ("train", "score", "evaluate"):
        assert report[step]["peak_bytes"] > 0 and report[step]["statistics"]["cycles"] > 0
    # Evaluation stops training for a while, whose masters and moments, 12 bytes a parameter, stay where they are.
    beside = report["evaluate"]["beside_bytes"]
    assert beside == pytest.approx(12 * report_count(said) / 4, rel=0.01)
    assert f"in training {beside / 1e9:.2f} GB of its state (masters, moments) stay beside that" in said
    # The teacher runs beside the student: more is held than in a pass without.
    assert report["train"]["at_peak"]["teacher"] > 0 and report["score"]["at_peak"]["optimizer"] == 0
    kept = [file.name.split("-")[0] for file in programs.glob("*-cache")]
    assert set(KEPT) <= set(kept) and f"compiled programs: {len(kept)} new in {programs}" in said
    # What was compiled once is read back.
    again = aot(source, tmp_path, "--topology", "v5e:2x2", "--step=score")
    assert json.loads((tmp_path / "aot" / "aot.json").read_text())["score"] == report["score"], again.stderr


@needs_libtpu
def test_the_fastest_setting_that_fits(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = aot(source, tmp_path, "--topology=v5e-4", "--fit")
    assert done.returncode == 0, done.stderr
    assert "fastest that fits: " in done.stdout
    row, *_ = json.loads((tmp_path / "aot" / "aot.json").read_text())["sweep"]
    assert row["peak_bytes"] > 0 and row["mesh.fsdp"] * row["mesh.data"] * row["mesh.tensor"] == 4


@needs_libtpu
def test_a_step_that_does_not_fit(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    large = "--config.train.batch=32768", "--config.data.length=512"
    done = aot(source, tmp_path, "--topology=v5e-4", *large)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert re.search(r"does not fit: it needs at least [0-9.]+ GB, .* takes 0.27 and leaves 16.91\n", said), said
    assert re.search(r"\n  activations +[0-9.]+\n", said) and "collectives" not in said
    assert re.search(r"would fit by estimate, [0-9.]+ GB: --config.train.accumulate=4; --fit", said)


def test_by_estimate_alone(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    more = "--config.train.steps_before_chop=10"
    done = aot(source, tmp_path / "run", "--topology=2*h100:2", "--estimate", more)
    assert done.returncode == 0, done.stderr
    for words in (
        "GB a device at the peak: fits",
        "together",
        "sent by a device in a step: ",
        "to plan with:",
        "the run's own steps: 50 steps, 51.2K tokens",
        "on top of these come 10 steps (before the chop), which train another model",
    ):
        assert words in done.stdout, done.stdout
    assert "would fit" not in done.stdout and not (tmp_path / "run").exists()


def test_what_to_change_by_estimate_alone(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    large = "--config.train.batch=32768", "--config.data.length=512"
    said = aot(source, tmp_path / "run", "--topology=v5e-4", "--estimate", *large).stdout
    assert re.search(r"by estimate [0-9.]+ of 17.18 GB a device at the peak: does not fit\n", said), said
    assert re.search(r"would fit by estimate, [0-9.]+ GB: --config.train.accumulate=4; --fit compiles such\n", said)


@pytest.mark.skipif(bool(gpus.versions()), reason="JAX's CUDA plugin is installed")
def test_gpus_without_their_compiler(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = aot(source, tmp_path, "--topology=h100:4")
    assert done.returncode == 2 and "pip install 'chopjax[cuda]'" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology=v9-4"], "topology is 'v9-4'; give a kind of TPU"),
        ([], "the following arguments are required: --topology"),
        (["--topology=v5e-64"], "train.batch is 8 and score.batch is 4 and evaluate.batch is 4, which the 64 parts of"),
        (["--topology=v5e-4", "--config.search.params=1M"], "search: sizes are not chosen yet"),
        (["--topology=v5e-4", "--config.source=nowhere"], "nowhere: no such folder"),
        (["--topology=v5e-4", "--config.mesh.tensor=3"], "do not make up the 4 devices"),
        (["--topology=v5e-4", "--save"], "--save keeps a run's own steps in compilation_cache; name a folder there"),
        (["--topology=h100:2", "--save", "--config.compilation_cache=runs"], "--save: no run on a GPU would find"),
        (["--topology=v5e-4", "--estimate", "--fit"], "--estimate compiles nothing, and is of the training step"),
        (["--topology=v5e-4", "--config.mesh.attention=cudnn"], "mesh.attention is 'cudnn', which is for NVIDIA GPUs"),
        (["--topology=v5e:4x4", "--config.mesh.dcn_data=4"], "mesh.dcn_fsdp is 4, but there is 1 slice; leave both"),
        (["--topology=v5e-4", f"--config.workdir={CONFIG}"], "base.py/aot cannot be written to (Not a directory)"),
        (["--topology=v5e-4", "--step=other"], "argument --step: invalid choice: 'other'"),
    ],
)
def test_mistakes(source: pathlib.Path, tmp_path: pathlib.Path, arguments: list[str], said: str) -> None:
    done = aot(source, tmp_path / "run", *arguments)
    assert done.returncode == 2 and said in done.stderr, done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
