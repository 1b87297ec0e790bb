import dataclasses
import math

import numpy as np
from matplotlib.colors import to_rgba
from report.pictures.painted import measured_run, painted

from chopjax.report import records
from chopjax.report.canvas import PRINTED
from chopjax.report.pictures.cloud import picture
from chopjax.report.pictures.search import tried
from chopjax.report.run import Run


def test_points_lie_where_they_must() -> None:
    run = measured_run()
    assert run.search is not None and run.search.chosen is not None
    points = tried(run.search)
    figure, spots = painted(picture(run))
    (axes,) = figure.axes
    others = axes.collections[0].get_offsets()
    assert len(others) == (~points.frontier).sum() and len(spots) == 32
    by_colour = {line.get_color(): line for line in axes.lines}
    order = np.argsort(points.cost[points.frontier])
    np.testing.assert_array_equal(by_colour[PRINTED.first].get_xdata(), points.cost[points.frontier][order])
    ring = by_colour[PRINTED.second]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (
        points.cost[run.search.chosen],
        points.loss[run.search.chosen],
    )
    (source,) = [c for c in axes.collections if c.get_facecolor()[0].tolist() == list(to_rgba(PRINTED.third))]
    assert source.get_offsets().tolist() == [[134_515_008, 2.91]]


def test_words() -> None:
    drawn = picture(measured_run())
    assert drawn is not None
    assert drawn.reason.startswith("1,254,400 sizes enumerated, 18,302 within the budget (params 60%..95%), 32 tried")
    assert "Chosen: " in drawn.description and "after distillation" in drawn.description


def test_another_cost_and_a_far_source() -> None:
    run = measured_run()
    assert run.search is not None
    search = dataclasses.replace(run.search, cost="latency", chosen=None, budget={}, enumerated=None, feasible=None)
    figure, _ = painted(picture(dataclasses.replace(run, search=search)))
    assert figure.axes[0].get_xlabel() == "milliseconds a token at best"
    assert len(figure.axes[0].collections) == 1  # no point for the source, whose latency is not known
    far = dataclasses.replace(run.search, dense_parameters=8e9)
    assert painted(picture(dataclasses.replace(run, search=far)))[0].axes[0].get_xlim()[1] < 2e8


def test_nothing_to_see() -> None:
    assert picture(Run("m")) is None
    assert picture(Run("m", search=records.Search(()))) is None
    broken = records.Candidate({"layers": 3}, 100.0, 100.0, math.nan, 2.0)
    assert picture(Run("m", search=records.Search((broken,)))) is None
