"""Models are evaluated one after another."""

import json
import pathlib
import types
import weakref
from typing import Any

import pytest

from chopjax.commands import evaluate
from chopjax.commands.ends import end_tokens
from chopjax.evaluate.perplexity import Evaluation


class Params(dict):
    """Parameters of which one can tell whether they are still held."""


def test_a_models_parameters_are_gone_before_the_next_ones_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[weakref.ref[Params]] = []

    def load(checkpoint: Any) -> Params:
        assert all(earlier() is None for earlier in read)
        params = Params()
        read.append(weakref.ref(params))
        return params

    run = types.SimpleNamespace(
        student_data=types.SimpleNamespace(heldout=lambda: {"text": [1]}),
        settings=types.SimpleNamespace(evaluate=types.SimpleNamespace(prompts=(), window=0)),
        teacher="teacher",
        teacher_config=None,
        load_teacher=Params,
        load=load,
        writer=False,
    )
    cut = [types.SimpleNamespace(config=None) for _ in range(2)]
    models = {"teacher": run.teacher, "chopped": cut[0], "healed": cut[1]}
    monkeypatch.setattr(evaluate, "_models", lambda run: models)
    monkeypatch.setattr(evaluate, "heldout", lambda *arguments: Evaluation(1.0, 2.7, None, 5))
    monkeypatch.setattr(evaluate, "_accuracies", lambda *arguments: {})
    monkeypatch.setattr(evaluate, "texts", lambda *arguments: [])
    evaluate._work(run)
    assert len(read) == 2


def test_samples_end_at_every_end_that_the_student_s_files_name(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def generate(*arguments: Any) -> list[list[int]]:
        given.append(arguments[-1])
        return [[7, 8, 5]]

    tokenizer = types.SimpleNamespace(
        eos=9, adds_bos=False, encode=lambda texts: [[1]], decode=str, token_id={"<|end|>": 3}.get
    )
    run = types.SimpleNamespace(
        student=types.SimpleNamespace(folder=tmp_path),
        student_tokenizer=tokenizer,
        settings=types.SimpleNamespace(
            seed=0,
            data=types.SimpleNamespace(eos_token="<|end|>"),
            evaluate=types.SimpleNamespace(prompts=("a",), new_tokens=3, temperature=0.0),
        ),
    )
    monkeypatch.setattr(evaluate, "generate", generate)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 4}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [6, 5]}))
    assert end_tokens(run) == (3, 5, 6, 9)
    assert evaluate.texts(run, None, {}) == ["[7, 8]"] and given == [(3, 5, 6, 9)]
