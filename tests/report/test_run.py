import dataclasses
from typing import Any

import pytest
from report.made_up_runs import full_run

from chopjax.report.figures import ModelFigures
from chopjax.report.run import Run, headline


def run(before: int = 100, after: int = 80, **more: Any) -> Run:
    models = {"teacher": ModelFigures(parameters=before), "healed": ModelFigures(parameters=after)}
    return Run("org/model", **({"models": models} | more))


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.624, "62 % of the lost log-perplexity recovered in 41k tokens"),
        (0.999, ">99 % of the lost log-perplexity recovered in 41k tokens"),
        (1.2, "all of the lost log-perplexity recovered in 41k tokens"),
        (-0.3, "none of the lost log-perplexity recovered in 41k tokens"),
    ],
)
def test_recovery_is_never_overstated(share: float, words: str) -> None:
    assert headline(run(gap_closed=share, tokens=40_960)) == f"model → 80 parameters: 20 % smaller, {words}"


def test_size_is_compared_with_the_source_and_not_with_another_teacher() -> None:
    assert headline(run(teacher="org/other")) == "model → 80 parameters"
    models = run().models | {"source": ModelFigures(parameters=160)}
    assert headline(run(teacher="org/other", models=models)) == "model → 80 parameters: 50 % smaller"
    assert headline(run(teacher="org/model")) == "model → 80 parameters: 20 % smaller"


def test_size_that_did_not_shrink() -> None:
    assert headline(run(after=100)).endswith("the same size")
    assert headline(run(after=110)).endswith("10 % larger")


def test_gap_follows_from_perplexities_unless_it_is_given() -> None:
    assert full_run().closed() == pytest.approx(0.631, abs=1e-3)
    assert dataclasses.replace(full_run(), gap_closed=0.5).closed() == 0.5


def test_trained_tokens_are_those_of_the_last_metrics_unless_given() -> None:
    lines = [{"tokens": 5}, {"tokens": 9}, {"step": 3}]
    assert Run("m", metrics=lines).trained() == 9
    assert Run("m", metrics=lines, tokens=7).trained() == 7
    assert Run("m").trained() is None
