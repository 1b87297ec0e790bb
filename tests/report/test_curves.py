import math

import numpy as np
import pytest
from report.made_up_runs import metrics

from chopjax.report.curves import MOST_POINTS, STYLES, charts, describe, draw, series, thinned


def test_charts_of_a_distillation_run() -> None:
    found = {chart.name: chart for chart in charts(metrics(), {"teacher": 24.3, "chopped": 101.7})}
    assert list(found) == ["loss", "perplexity", "kl", "norm", "rate", "speed"]
    assert [one.label for one in found["loss"].series] == ["loss"]  # its only part is the same curve
    perplexity = found["perplexity"].series[0]
    np.testing.assert_array_equal(perplexity.x, np.arange(5) * 10 * 1024)
    assert perplexity.y[0] == pytest.approx(math.exp(4.62))
    assert found["perplexity"].references == {"teacher": 24.3, "chopped": 101.7}


def test_parts_are_drawn_beside_a_loss_that_mixes_them() -> None:
    lines = [{"step": step, "loss": 3.0, "next_token": 2.0, "kl": 1.0} for step in range(3)]
    (chart,) = charts(lines, {})
    assert [one.label for one in chart.series] == ["loss", "next token", "kl"]
    assert chart.x_label == "step"
    svg = draw(chart)
    assert all(f"var(--{name})" in svg for name in ("first", "second", "third"))
    assert svg.count("stroke-dasharray") >= 2  # curves differ without colour


def test_the_teachers_part_of_the_arithmetic_is_a_curve() -> None:
    rates = {"tflops": 3.0, "tflops_student": 2.0, "tflops_teacher": 1.0}
    (chart,) = charts([{"step": step} | rates | {"mfu": None, "mfu_student": None} for step in range(3)], {})
    assert chart.name == "arithmetic"
    assert [one.label for one in chart.series] == ["tflops", "tflops student", "tflops teacher"]


def test_references_are_drawn_and_described() -> None:
    chart = charts(metrics(), {"teacher": 24.3, "chopped": math.nan})[1]
    assert chart.references == {"teacher": 24.3}
    assert "Teacher: 24.3." in describe(chart)
    assert ">teacher 24.3</text>" in draw(chart)


def test_a_value_that_is_not_finite_is_a_gap() -> None:
    lines = [{"step": step, "loss": loss} for step, loss in enumerate([2.0, math.nan, None, "NaN", math.inf, 1.0])]
    one = series([*lines, {"step": 9}, {"loss": 4.0}], "loss", "step")
    np.testing.assert_array_equal(one.x, range(6))
    np.testing.assert_array_equal(np.isfinite(one.y), [True, False, False, False, False, True])


def test_thinning_keeps_the_mean_and_gaps() -> None:
    x = np.arange(6000.0)
    y = np.sin(x / 500)
    y[3000:3100] = math.nan
    y[5] = math.nan
    few_x, few_y = thinned(x, y)
    assert len(few_x) == MOST_POINTS
    assert np.isnan(few_y[300:310]).all() and np.isfinite(np.delete(few_y, range(300, 310))).all()
    assert few_y[0] == pytest.approx(np.delete(y[:10], 5).mean())
    assert few_x[1] == pytest.approx(14.5)


def test_every_term_is_drawn_and_activations_apart() -> None:
    parts = {"next_token": 2.0, "kl": 1.0, "reverse_kl": 1.1, "jsd": 0.2, "wsl": 0.0, "z_loss": 90.0}
    hidden = {"hidden/block_output": 0.01, "hidden/embedding_table": 5e3, "hidden/heads": 0.0}
    loss, activations = charts([{"step": step, "loss": 3.0} | parts | hidden for step in range(3)], {})
    assert [one.label for one in loss.series] == ["loss", "next token", "kl", "reverse kl", "jsd"]
    assert [one.label for one in activations.series] == ["block output", "embedding table"]
    assert draw(loss).count("stroke-dasharray") >= 4 and "jsd" in draw(loss)
    assert len(set(STYLES)) == len(STYLES)
    assert "Embedding table: from" in describe(activations) and draw(activations)
