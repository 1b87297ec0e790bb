"""Each kind of damage is found, and named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf.plain_checkpoints import SMALL, plain_checkpoint

from chopjax.hf.card import model_card
from chopjax.hf.safetensors import read_header
from chopjax.hf.verify import verify_folder


def write_tokenizer(folder: Path, size: int) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    Tokenizer(WordLevel({f"w{n}": n for n in range(size)}, unk_token="w0")).save(str(folder / "tokenizer.json"))


def findings(folder: Path) -> set[tuple[str, str]]:
    return {(finding.severity, finding.subject) for finding in verify_folder(folder)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plain_checkpoint(tmp_path / "model")
    write_tokenizer(tmp_path / "model", 67)
    return tmp_path / "model"


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_nothing_to_say(folder: Path) -> None:
    assert verify_folder(folder) == []


def test_tokenizer_larger_than_the_embedding(folder: Path) -> None:
    write_tokenizer(folder, 68)
    assert findings(folder) == {("error", "tokenizer.json")}
    assert "ids up to 67" in str(verify_folder(folder)[0])


def test_tokenizer_that_does_not_load(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    assert findings(folder) == {("error", "tokenizer.json")}


def test_not_finite(folder: Path) -> None:
    entry = read_header(folder / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    with open(entry.file, "r+b") as stream:
        stream.seek(entry.offset + 4 * 11)
        stream.write(np.float32(np.nan).tobytes())
    assert findings(folder) == {("error", "model.layers.1.mlp.down_proj.weight")}
    assert verify_folder(folder, contents=False) == []


def test_truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1])
    assert findings(folder) == {("error", "model")}
    assert "truncated" in str(verify_folder(folder)[0])


def test_config_that_says_something_else(folder: Path) -> None:
    edit_config(folder, dtype="bfloat16", torch_dtype="bfloat16", eos_token_id=[2, 67])
    assert findings(folder) == {("warning", "dtype"), ("warning", "config.json: eos_token_id")}


def test_config_that_stock_transformers_refuses(tmp_path: Path) -> None:
    plain_checkpoint(tmp_path, replace(SMALL, embed=35), "mistral")
    edit_config(tmp_path, model_type="llama", architectures=["LlamaForCausalLM"])
    found = verify_folder(tmp_path)
    assert [finding.subject for finding in found if finding.severity == "error"] == ["config.json", "config.json"]


def test_leftover_shards(tmp_path: Path) -> None:
    plain_checkpoint(tmp_path, max_shard_bytes=9_000)
    write_tokenizer(tmp_path, 60)
    (tmp_path / "model-00099-of-00099.safetensors").write_bytes(b"")
    assert findings(tmp_path) == {("warning", "model-00099-of-00099.safetensors")}
    plain_checkpoint(tmp_path / "one")
    (tmp_path / "one" / "model.safetensors").rename(tmp_path / "model.safetensors")
    assert findings(tmp_path) == {("error", "model.safetensors"), ("warning", "model-00099-of-00099.safetensors")}


def test_card_states_source_plan_and_figures() -> None:
    smaller = replace(SMALL, layers=2, kind_of_layer=(0, 0), mlp=11)
    card = model_card(
        "owner/Model-1B",
        smaller,
        SMALL,
        plan=["layers: 1 of 3 removed (1)", "mlp: 11 of 19 kept"],
        training={"tokens": 12345678, "steps": 20},
        losses={"perplexity": 12.3456},
        notes=["exported as Mistral"],
    )
    assert card.startswith("---\n")
    for words in ("base_model: owner/Model-1B", "| layers | 3 | 2 |", "12,345,678", "12.35", "exported as Mistral"):
        assert words in card
    untrained = model_card("./folder", SMALL, SMALL)
    assert "base_model" not in untrained
    assert "Training" not in untrained
