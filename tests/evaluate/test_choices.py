"""Items of multiple choice, and both accuracies by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.conftest import build_tokenizer
from models.random_params import random_params

from chopjax.data.tokenize import load_tokenizer
from chopjax.errors import UserError
from chopjax.evaluate.choices import (
    ChoiceScores,
    Item,
    accuracy,
    choice_accuracy,
    choices_metric,
    load_items,
    pairs,
)
from chopjax.evaluate.requests import encode, log_likelihoods, pack
from chopjax.models.config import ModelConfig

CONFIG = ModelConfig(layers=1, embed=12, kv_heads=2, q_per_kv=1, head_dim=4, mlp=8, vocab=300, positions=64)
RECORDS: list[dict[str, Any]] = [
    {"context": "The heron stood in the", "choices": ["water", "program", "compiler"], "answer": 0},
    {"context": ["The hill wears away under the water because the water", "The hill wears away under the water because the hill"],  # noqa: E501
     "choices": ["is strong.", "is strong."], "answer": 1},
    {"context": "A compiler reads a", "choices": [" program and writes another", " fish"], "answer": 1, "id": 7},
]  # fmt: skip


def written(folder: Path, *lines: str) -> Path:
    file = folder / "items.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def items_file(tmp_path: Path) -> Path:
    return written(tmp_path, *map(json.dumps, RECORDS[:2]), "", json.dumps(RECORDS[2]))


def test_items_are_read(items_file: Path) -> None:
    items = load_items(items_file)
    assert items[0] == Item(("The heron stood in the",) * 3, ("water", "program", "compiler"), 0)
    assert items[1].contexts == tuple(RECORDS[1]["context"]) and items[1].answer == 1
    assert len(items) == 3 and load_items(items_file, limit=2) == items[:2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"line 2: not valid JSON"),
        ("[1]", "line 2: a JSON object is wanted, not list"),
        ('{"context": "a", "choices": ["b", "c"]}', "line 2: no field 'answer'"),
        ('{"context": "a", "choices": ["b"], "answer": 0}', "line 2: choices must be two or more texts"),
        ('{"context": "a", "choices": ["b", ""], "answer": 0}', "line 2: choices must be .* none of them empty"),
        ('{"context": "a", "choices": ["b", 3], "answer": 0}', "line 2: choices must be"),
        ('{"context": ["a"], "choices": ["b", "c"], "answer": 0}', "line 2: context must be a text, or a list"),
        ('{"context": "a", "choices": ["b", "c"], "answer": 2}', "line 2: answer is 2; give .* 0 to 1"),
        ('{"context": "a", "choices": ["b", "c"], "answer": true}', "line 2: answer is True"),
    ],
)
def test_bad_items_are_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_items(written(tmp_path, json.dumps(RECORDS[0]), line))


def test_files_without_items_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no item"):
        load_items(written(tmp_path, ""))
    with pytest.raises(UserError, match="cannot be read"):
        load_items(tmp_path / "missing.jsonl")


def test_delimiter_only_where_white_space_is_missing() -> None:
    item = Item(("a", "b ", "c", ""), ("x", "y", " z", "w"), 0)
    assert pairs([item]) == [("a", " x"), ("b ", "y"), ("c", " z"), ("", " w")]
    assert pairs([item], "") == [("a", "x"), ("b ", "y"), ("c", " z"), ("", "w")]


def test_accuracies_by_hand() -> None:
    items = [
        Item(("",) * 2, ("ab", "abcdefgh"), 1),  # -3 against -4; by character -1.5 against -0.5
        Item(("",) * 3, ("a", "b", "c"), 1),  # a tie of the first two goes to the first
        Item(("",) * 2, ("a", "b"), 0),  # right on both counts
        Item(("",) * 2, ("a", "b"), 0),  # NaN is never right
    ]
    found = accuracy(items, np.array([-3.0, -4, -1, -1, -2, -1, -2, -1, np.nan]))
    assert found == ChoiceScores(accuracy=0.25, accuracy_norm=0.5, items=4)


def test_metric_is_the_share_of_wrong_items(tmp_path: Path, items_file: Path) -> None:
    params, tokenizer = random_params(CONFIG), load_tokenizer(build_tokenizer(tmp_path / "tokenizer"))
    requests = encode(tokenizer, pairs(load_items(items_file)), 40)
    found = np.split(log_likelihoods(CONFIG, params, pack(requests, 2, 40), len(requests)), [3, 5])
    best = [int(likelihoods.argmax()) for likelihoods in found]
    # The most likely choices are declared right, but for the last item.
    lines = [record | {"answer": answer} for record, answer in zip(RECORDS, best, strict=True)]
    lines[-1]["answer"] = 1 - lines[-1]["answer"]
    file = written(tmp_path, *map(json.dumps, lines))
    scores = choice_accuracy(CONFIG, params, tokenizer, load_items(file), 2, 40)
    assert scores.accuracy == pytest.approx(2 / 3) and scores.items == 3
    assert choices_metric(tokenizer, file, 2, 40)(CONFIG, params) == pytest.approx(1 / 3)
    assert choices_metric(tokenizer, file, 2, 40, limit=2)(CONFIG, params) == 0
    by_character = choices_metric(tokenizer, file, 2, 40, normalised=True)(CONFIG, params)
    assert by_character == pytest.approx(1 - scores.accuracy_norm)
