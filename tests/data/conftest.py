"""A small real tokenizer, and text to go with it."""

import json
import pathlib
from collections.abc import Callable

import pytest
import tokenizers

SENTENCES = [
    "The heron stood in the shallow water and waited for the fish to come.",
    "Water runs down the hill, and the hill wears away under the water.",
    "A compiler reads a program and writes another that means the same.",
    "Überall dort, wo Wasser fließt, wächst etwas.",
    "def add(a, b):\n    return a + b\n",
]


def build_tokenizer(folder: pathlib.Path, *, adds_bos: bool = False, settings: dict | None = None) -> pathlib.Path:
    """Writes a byte-level BPE of 300 tokens with `<s>` (0) and `</s>` (1) as a Hugging Face folder."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES, trainer)
    if adds_bos:
        core.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder.mkdir(parents=True, exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    if settings is None:
        settings = {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """`build_tokenizer` without BOS; read only."""
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def tokenizer_with(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """`build_tokenizer` into a fresh folder, with options."""
    return lambda **options: build_tokenizer(tmp_path / "tokenizer", **options)


@pytest.fixture
def corpus(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Writes `count` different documents of uneven length as JSON lines and gives the file."""

    def write(count: int, name: str = "corpus.jsonl", start: int = 0) -> pathlib.Path:
        path = tmp_path / name
        texts = [f"{index}: " + " ".join(SENTENCES[: 1 + index % 5]) for index in range(start, start + count)]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        return path

    return write
