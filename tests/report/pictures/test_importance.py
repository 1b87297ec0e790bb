import dataclasses
import math

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from report.pictures.painted import measured_run, painted, without

from chopjax.report.canvas import PRINTED
from chopjax.report.pictures.importance import Panel, describe, measured, picture
from chopjax.report.records import Removal
from chopjax.report.run import Run


def test_values_of_both_panels() -> None:
    run = measured_run()
    found = measured(run)
    assert found is not None and run.removal is not None
    cosine = run.scores["cosine"].sum(0) / run.scores["tokens"].sum()
    np.testing.assert_allclose(found.panels[0].values, [1 - cosine[i, i + 1] for i in range(9)], atol=1e-12)
    np.testing.assert_allclose(found.panels[1].values, np.array(run.removal.without_one) - 2.91)
    assert found.stays is not None and np.flatnonzero(~found.stays).tolist() == [3, 4]
    assert "Removed: 3–4." in describe(found)


def test_bars_are_filled_where_layers_stay() -> None:
    figure, spots = painted(picture(measured_run()))
    for axes in figure.axes:
        bars = [patch for container in axes.containers for patch in container]
        filled = [bar for bar in bars if bar.get_facecolor() == to_rgba(PRINTED.first)]
        assert len(bars) == 9
        assert sorted(round(bar.get_x() + bar.get_width() / 2) for bar in filled) == [0, 1, 2, 5, 6, 7, 8]
    assert len(spots) == 18
    assert spots[3].text.startswith("layer 3, removed. Block importance") and "layer 5, kept" in spots[5].text


def test_a_bar_beyond_the_others_is_cut_off_and_says_its_value() -> None:
    panel = Panel("x", np.array([6.7, 0.4, 0.1, 0.2, 0.1, 0.2, 0.1, 0.3, 0.2]))
    assert panel.top == 0.4
    figure, _ = painted(picture(Run("m", removal=Removal(dense=0.0, without_one=panel.values.tolist()))))
    assert [text.get_text().strip() for text in figure.axes[0].texts] == ["6.7"]
    assert figure.axes[0].get_ylim()[1] < 0.5


def test_losses_of_a_score_file_are_means_over_tokens() -> None:
    sums = {"without_one/next_token": np.array([[30.0, 20.0], [50.0, 20.0]]), "scored": np.array([4.0, 6.0])}
    sums |= {"dense/next_token": np.array([10.0, 10.0]), "without_one/kl": np.array([[1.0, 2.0], [1.0, 0.0]])}
    found = measured(Run("m", scores=sums))
    assert found is not None and found.stays is None
    np.testing.assert_allclose(found.panels[0].values, [6.0, 2.0])
    np.testing.assert_allclose(found.panels[1].values, [0.2, 0.2])


@pytest.mark.parametrize(
    "removal",
    [None, Removal(), Removal(without_one=(3.0, 4.0)), Removal(dense=1.0, without_one=(math.nan, math.nan))],
)
def test_nothing_to_see(removal: Removal | None) -> None:
    assert picture(Run("m", removal=removal)) is None


def test_values_that_are_not_finite_are_said() -> None:
    removal = Removal(dense=1.0, without_one=(math.nan, 1.5, 0.5, 1.2))
    _, spots = painted(picture(Run("m", removal=removal)))
    assert spots[0].text.endswith("not finite") and spots[2].text.endswith("-0.500")


def test_a_plan_of_another_depth_marks_nothing() -> None:
    run = measured_run()
    other = dataclasses.replace(run, plan=None)
    found, unmarked = measured(without(run, "cosine")), measured(other)
    assert found is not None and len(found.panels) == 1
    assert unmarked is not None and unmarked.stays is None
