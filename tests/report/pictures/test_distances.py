import dataclasses

import numpy as np
from matplotlib.patches import Rectangle
from report.pictures.painted import SIZES, measured_run, painted, without

from chopjax.chop.plan import Plan
from chopjax.report.pictures.distances import describe, measured, picture


def test_each_block_lies_at_its_first_layer_and_length() -> None:
    run = measured_run()
    found = measured(run)
    assert found is not None
    angle = run.scores["angle"].sum(0) / run.scores["tokens"].sum()
    assert found.angles.shape == (8, 9)
    for count in range(1, 9):
        for first in range(9):
            value = found.angles[count - 1, first]
            if first + count <= 9:
                np.testing.assert_allclose(value, angle[first, first + count])
            else:
                assert np.isnan(value)
    assert found.nearest[2] == min(range(7), key=lambda first: angle[first, first + 3])


def test_the_block_of_the_plan_is_marked() -> None:
    found = measured(measured_run())
    assert found is not None and found.removed == (3, 2)
    assert f"The plan removes 3–4: {found.angles[1, 3]:.3f}" in describe(found)
    figure, spots = painted(picture(measured_run()))
    (frame,) = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert frame.get_xy() == (2.5, 1.5) and (frame.get_width(), frame.get_height()) == (1, 1)
    assert len(spots) == sum(range(2, 10))
    assert any(spot.text == f"3–4: {found.angles[1, 3]:.3f}" and spot.x == (2.5, 3.5) for spot in spots)


def test_scattered_layers_are_no_block() -> None:
    plan = Plan(SIZES, {"layers": np.array([0, 2, 4, 5, 6, 7, 8])})
    found = measured(dataclasses.replace(measured_run(), plan=plan))
    assert found is not None and found.removed is None and "The plan" not in describe(found)


def test_nothing_without_angles() -> None:
    assert picture(without(measured_run(), "angle")) is None
