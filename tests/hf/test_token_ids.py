"""The ids that end a text, ids outside of the vocabulary, and those that a config class assumes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf.plain_checkpoints import plain_checkpoint

from chopjax.chop.plan import Plan
from chopjax.commands.chop import chop_files
from chopjax.errors import UserError
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.families import FAMILIES
from chopjax.hf.reading import load_params
from chopjax.hf.token_ids import end_ids, named_in, padding_beyond, with_usable_padding
from chopjax.hf.verify import verify_folder
from chopjax.hf.writing import export_params


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": [1, 3]}, {"eos_token_id": 2}, {1, 3}),
        ({"eos_token_id": 4}, {"eos_token_id": [2]}, {4}),
        ({"temperature": 0.5}, {"eos_token_id": [2, 5]}, {2, 5}),
        ({"eos_token_id": None}, {"eos_token_id": 2}, {2}),
        (None, {"eos_token_id": 2}, {2}),
        (None, {"eos_token_id": -1}, set()),
        (None, {}, set()),
    ],
)
def test_ends(generation: Any, config: Any, ends: set[int], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert end_ids(tmp_path) == ends


def test_a_broken_generation_config_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match="generation_config.json: not valid JSON"):
        end_ids(tmp_path)


def test_a_padding_id_without_a_row() -> None:
    for number in (None, 0, 66, -1, -67, True):
        assert padding_beyond({"pad_token_id": number}, 67) is None
        assert with_usable_padding({"pad_token_id": number}, 67) == {"pad_token_id": number}
    for number in (67, -68):
        assert padding_beyond({"pad_token_id": number}, 67) == number
        assert with_usable_padding({"pad_token_id": number, "a": 1}, 67) == {"pad_token_id": None, "a": 1}


def test_a_padding_id_without_a_row_is_written_as_null(tmp_path: Path) -> None:
    source = open_checkpoint(padded(tmp_path / "model", {}, pad_token_id=67))
    assert [str(found) for found in verify_folder(source.folder) if found.subject == "pad_token_id"] == [
        "error: pad_token_id: is 67, but the vocabulary has 67 rows, so stock transformers does not load the model; "
        "set it to null in config.json, or to an id below 67"
    ]
    chop_files(source, Plan(dict(source.config.sizes), {"vocab": np.arange(60)}), tmp_path / "student", 1 << 30)
    export_params(tmp_path / "export", load_params(source), source.config, source)
    for folder in (tmp_path / "student", tmp_path / "export"):
        assert json.loads((folder / "config.json").read_text())["pad_token_id"] is None
        assert {found.severity for found in verify_folder(folder)} == {"warning"}


def test_the_keys_that_name_ids() -> None:
    raw = {
        "eos_token_id": [1, 2],
        "vocab_size": 9,
        "text_config": {"pad_token_id": 3},
        "sequence_bias": [[[4, 5], -1.0]],
        "suppress_tokens": [6],
    }
    assert named_in(raw, "f") == [
        ("f: eos_token_id", 1),
        ("f: eos_token_id", 2),
        ("f: sequence_bias", 4),
        ("f: sequence_bias", 5),
        ("f: suppress_tokens", 6),
        ("f: text_config", 3),
    ]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_assumed_ids_are_those_of_the_config_class(model_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(model_type)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    found = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    assert FAMILIES[model_type].token_ids == found


def padded(folder: Path, generation: dict[str, Any], **ids: Any) -> Path:
    """A model of 67 rows without a tokenizer, which names ids."""
    plain_checkpoint(folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | ids))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_ids_follow_a_cut_of_rows_that_are_no_tokens(tmp_path: Path) -> None:
    source = open_checkpoint(
        padded(tmp_path / "model", {"eos_token_id": [2, 64], "suppress_tokens": [1, 65]}, pad_token_id=64)
    )
    kept = np.array([*range(60), 64], np.int32)
    chop_files(source, Plan(dict(source.config.sizes), {"vocab": kept}), tmp_path / "student", 1 << 30)
    read = {
        name: json.loads((tmp_path / "student" / f"{name}.json").read_text())
        for name in ("config", "generation_config")
    }
    assert (read["config"]["vocab_size"], read["config"]["pad_token_id"]) == (61, 60)
    assert read["generation_config"] == {"eos_token_id": [2, 60], "suppress_tokens": [1]}
    assert [str(found) for found in verify_folder(tmp_path / "student")] == [
        "warning: tokenizer.json: the folder has no tokenizer"
    ]


@pytest.mark.parametrize(
    ("generation", "ids", "named"),
    [
        ({}, {"pad_token_id": 64}, "config.json: pad_token_id names id 64"),
        ({"eos_token_id": [2, 64]}, {}, "generation_config.json: eos_token_id names id 64"),
        ({}, {"part": {"eos_token_id": 64}}, "config.json: part: eos_token_id names id 64"),
    ],
)
def test_an_id_that_is_cut_is_refused_and_the_advice_works(
    generation: dict, ids: dict, named: str, tmp_path: Path
) -> None:
    source = open_checkpoint(padded(tmp_path / "model", generation, **ids))
    sizes = dict(source.config.sizes)
    with pytest.raises(UserError) as refused:
        chop_files(source, Plan(sizes, {"vocab": np.arange(64)}), tmp_path / "student", 1 << 30)
    assert str(refused.value) == (
        f"{named}, which the plan does not keep; set plan.vocab to 65 or more (in a plan file, add it to kept.vocab), "
        "or change the id in that file of the source"
    )
    chop_files(source, Plan(sizes, {"vocab": np.arange(65)}), tmp_path / "student", 1 << 30)
    assert {found.severity for found in verify_folder(tmp_path / "student")} == {"warning"}


def test_ids_that_the_class_assumes_are_stated_once_they_change(tmp_path: Path) -> None:
    """transformers takes 1 and 2 for the ids of a Llama that names none."""
    folder = plain_checkpoint(tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if not k.endswith("_token_id")}))
    source = open_checkpoint(folder)
    kept = np.array([0, *range(2, 60)], np.int32)
    chop_files(source, Plan(dict(source.config.sizes), {"vocab": kept}), tmp_path / "student", 1 << 30)
    written = json.loads((tmp_path / "student" / "config.json").read_text())
    assert (written["bos_token_id"], written["eos_token_id"]) == (None, 1)
