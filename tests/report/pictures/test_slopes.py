import pytest
from report.pictures.painted import painted
from report.pictures.test_search import CANDIDATES

from chopjax.report.canvas import PRINTED
from chopjax.report.pictures.slopes import measured, picture
from chopjax.report.records import Search
from chopjax.report.run import Run

RUN = Run("m", search=Search(CANDIDATES, chosen=3))


def test_ranks_before_and_after() -> None:
    found = measured(Search(CANDIDATES, chosen=3))
    assert found is not None
    assert (found.place.tolist(), found.before.tolist(), found.after.tolist()) == ([3, 0, 1], [3, 2, 1], [1, 2, 3])
    assert found.agreement == pytest.approx(-1)


def test_lines_run_from_rank_to_rank() -> None:
    figure, spots = painted(picture(RUN))
    lines = figure.axes[0].lines
    assert [line.get_ydata().tolist() for line in lines] == [[2, 0], [1, 1], [0, 2]]
    assert [line.get_color() == PRINTED.second for line in lines] == [True, False, False]
    assert "2.400, chosen" in [text.get_text() for text in figure.axes[0].texts]
    assert spots[0].text == "6 layers, 1,006 neurons: rank 3 → 1, loss 3.10 → 2.40"


def test_nothing_to_see_with_fewer_than_two() -> None:
    assert picture(Run("m")) is None
    assert picture(Run("m", search=Search(CANDIDATES[3:]))) is None
