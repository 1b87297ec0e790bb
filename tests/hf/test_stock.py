"""What transformers and PyTorch raise or log of a folder is a finding, and exports give none."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf.plain_checkpoints import SMALL, plain_checkpoint
from hf.tokenizers_under_test import byte_level, unigram

from chopjax.chop.plan import Plan
from chopjax.commands.chop import chop_files
from chopjax.errors import UserError
from chopjax.hf import stock
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.families import FAMILIES
from chopjax.hf.verify import verify_folder

pytest.importorskip("torch")
pytest.importorskip("transformers")

CONFIG = dataclasses.replace(SMALL, vocab=340)


def model(folder: Path, model_type: str = "llama", raw: Any = None, **files: Any) -> Path:
    """A model with a byte-level tokenizer of 331 tokens; `files` by name without `.json`."""
    config = CONFIG
    if model_type in ("qwen2", "qwen3"):
        config = dataclasses.replace(CONFIG, qkv_bias=model_type == "qwen2", qk_norm=model_type == "qwen3")
    if model_type == "nemotron":
        config = dataclasses.replace(CONFIG, norm="layer_1p", gated=False, activation="relu2")
    plain_checkpoint(folder, config, model_type)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    for name, content in ({"tokenizer": raw or byte_level(), "tokenizer_config": settings} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def findings(folder: Path, vocab: int = CONFIG.vocab) -> list[str]:
    return [str(finding) for finding in stock.findings(folder, vocab)]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_exports_load_without_a_word(model_type: str, tmp_path: Path) -> None:
    settings = {"tokenizer_class": "Qwen2Tokenizer", "unk_token": "<|turn|>", "pad_token": "<|turn|>"}
    own = {"tokenizer_config": settings} if model_type.startswith("qwen") else {}
    source = open_checkpoint(
        model(tmp_path / "model", model_type, generation_config={"eos_token_id": [1, 330], "pad_token_id": 330}, **own)
    )
    edit(source.folder, pad_token_id=330, eos_token_id=[1, 330], transformers_version="4.40.0")
    source = open_checkpoint(source.folder)
    whole = Plan(dict(source.config.sizes), {})
    layers = Plan(dict(source.config.sizes), {"layers": np.array([0, 2]), "vocab": np.arange(331)})
    words = Plan(dict(source.config.sizes), {"vocab": np.array([*range(300), 330])})
    for number, plan in enumerate((whole, layers, words)):
        chop_files(source, plan, tmp_path / str(number), 1 << 30)
        found = [str(finding) for finding in verify_folder(tmp_path / str(number))]
        extra = "<|endoftext|>"  # which Qwen's tokenizer class adds to every vocabulary
        assert [line for line in found if extra not in line] == []
        student = open_checkpoint(tmp_path / str(number))
        ours = np.ones((3, student.config.vocab), np.float32)
        assert np.isfinite(stock.difference(student, [0, 1, 2], ours))


def test_a_llama_written_as_mistral_does_not_look_old(tmp_path: Path) -> None:
    """A Mistral keeps the version of its tokenizer, by which transformers knows a faulty one."""
    for model_type, version in (("llama", "5.23.0"), ("mistral", "4.45.0")):
        source = open_checkpoint(model(tmp_path / model_type, model_type))
        edit(source.folder, transformers_version="4.45.0", _name_or_path="elsewhere")
        plan = Plan(dict(source.config.sizes), {"embed": np.arange(35)})
        chop_files(open_checkpoint(source.folder), plan, tmp_path / f"{model_type}-student", 1 << 30)
        written = json.loads((tmp_path / f"{model_type}-student" / "config.json").read_text())
        assert (written["model_type"], written["transformers_version"]) == ("mistral", version)
        assert "_name_or_path" not in written


def test_what_the_config_class_and_torch_refuse(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    assert findings(folder) == []
    edit(folder, pad_token_id=340)
    assert [line for line in findings(folder) if line.startswith("error")] == [
        "error: config.json: transformers does not build the model: Padding_idx must be within num_embeddings"
    ]
    checkpoint = open_checkpoint(folder)
    with pytest.raises(UserError) as refused:
        stock.difference(checkpoint, [0], np.ones((1, 340), np.float32))
    assert str(refused.value) == (
        f"{folder}: stock transformers does not load and run the model (Padding_idx must be within num_embeddings)"
    )
    edit(folder, pad_token_id="3")
    assert [line.partition(" for ")[0] for line in findings(folder)] == [
        "error: config.json: transformers does not read it: Validation error"
    ]


def test_a_generation_config_that_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", generation_config={"max_new_tokens": 0})
    assert findings(folder) == [
        "error: generation_config.json: transformers does not read it: "
        "`max_new_tokens` must be greater than 0, but is 0."
    ]


def test_tokens_that_transformers_adds_beyond_the_embedding(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert findings(folder) == []
    assert findings(folder, 331) == [
        "warning: tokenizer_config.json: transformers gives '[PAD]' the id 331, but the embedding has 331 rows"
    ]


def test_text_that_the_tokenizer_class_splits_otherwise_and_the_advice_works(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", raw=unigram(), tokenizer_config={"tokenizer_class": "LlamaTokenizer"})
    assert findings(folder) == [
        "warning: tokenizer_config.json: transformers reads the tokenizer as LlamaTokenizer, which splits text "
        "otherwise than tokenizer.json; set tokenizer_class to PreTrainedTokenizerFast"
    ]
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    assert findings(folder) == []


def test_chat_templates_that_are_no_jinja(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").write_text("{{ raise_exception('system first') }}")
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{% for m in messages %}")
    found = findings(folder)
    assert len(found) == 1 and found[0].startswith("error: chat template 'tools': is not valid Jinja (")
