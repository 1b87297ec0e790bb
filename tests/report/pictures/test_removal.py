import dataclasses
import math

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from report.pictures.painted import SIZES, measured_run, painted

from chopjax.chop.plan import Plan
from chopjax.report.canvas import PRINTED
from chopjax.report.pictures.removal import blocks, describe_blocks, describe_path, path, pictures
from chopjax.report.records import Removal
from chopjax.report.run import Run

GREEDY = Removal(dense=2.0, removed=(4, 7, 3, 1), losses=(2.1, 2.3, 2.7, 3.6))


def greedy_run() -> Run:
    return dataclasses.replace(measured_run(), removal=GREEDY, search=None)


def test_the_path_names_its_layers_and_marks_those_of_the_plan() -> None:
    found = path(greedy_run())
    assert found is not None
    assert describe_path(found).endswith("from 2.00: layer 4 (2.10), layer 7 (2.30), layer 3 (2.70), layer 1 (3.60).")
    figure, spots = painted(pictures(greedy_run())[0])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "4", "7", "3", "1"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [2.0, 2.1, 2.3, 2.7, 3.6])
    planned, others = axes.collections
    np.testing.assert_array_equal(planned.get_offsets()[:, 0], [0, 1, 3])
    np.testing.assert_array_equal(others.get_offsets()[:, 0], [2, 4])
    assert planned.get_facecolor()[0].tolist() == list(to_rgba(PRINTED.first))
    assert [spot.text for spot in spots][:2] == ["no layer removed: 2.00", "layer 4, number 1: 2.10"]


def test_a_path_without_the_whole_models_loss_or_with_a_broken_one() -> None:
    run = Run("m", removal=dataclasses.replace(GREEDY, dense=math.nan, losses=(2.1, math.nan, 2.7, 3.6)))
    drawn = pictures(run)[0]
    assert "after each removal: layer 4 (2.10), layer 7 (not finite)" in drawn.description
    assert len(painted(drawn)[1]) == 4


def test_blocks_of_the_plans_length_are_marked() -> None:
    found = blocks(measured_run())
    assert found is not None and (found.count, found.planned) == (2, 3)
    assert describe_blocks(found).endswith("Lowest: 3.20 from layer 4. The plan removes those from layer 3: 3.50.")
    figure, spots = painted(pictures(measured_run())[1])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "lowest: 4–5, 3.20",
        "the plan's: 3–4, 3.50",
    ]
    assert spots[0].text == "without 0–1: 5.00"


def test_blocks_of_a_score_file() -> None:
    sums = {f"without_block/kl/{count}": np.ones((2, 10 - count)) * count for count in (3, 2, 4)}
    sums |= {"scored": np.array([2.0, 2.0])}
    plan = Plan(SIZES, {"layers": np.array([0, 1, 2, 3, 6, 7, 8])})
    found = blocks(Run("m", scores=sums, plan=plan))
    assert found is not None and (found.metric, found.count, found.planned) == ("kl", 2, 4)
    np.testing.assert_allclose(found.losses, np.full(8, 1.0))
    unplanned = blocks(Run("m", scores=sums))
    assert unplanned is not None and (unplanned.count, unplanned.planned) == (4, None)


@pytest.mark.parametrize(
    "removal", [None, Removal(), Removal(count=3, blocks=(math.nan,) * 4), Removal(removed=(1,), losses=(math.nan,))]
)
def test_nothing_to_see(removal: Removal | None) -> None:
    assert pictures(Run("m", removal=removal)) == []
