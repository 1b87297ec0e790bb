"""Models are evaluated one after another."""

import types
import weakref
from typing import Any

import pytest

from chopjax.commands import evaluate
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
    monkeypatch.setattr(evaluate, "_texts", lambda *arguments: [])
    evaluate._work(run)
    assert len(read) == 2
