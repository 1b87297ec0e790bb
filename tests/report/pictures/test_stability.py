import dataclasses

import numpy as np
from report.pictures.painted import measured_run, painted

from chopjax.report.pictures.stability import picture
from chopjax.report.run import Run
from chopjax.score.stability import split_half


def test_every_axis_has_its_figure() -> None:
    found = split_half(measured_run().scores)
    drawn = picture(measured_run())
    assert drawn is not None and all(f"{value:.3f}" in drawn.description for value in found.values())
    figure, _ = painted(drawn)
    assert [text.get_text() for text in figure.axes[0].texts] == [f"{value:.3f}" for value in found.values()]


def test_nothing_without_rows_in_both_halves() -> None:
    sums = {**measured_run().scores, "rows": np.array([1.0, 0.0])}
    assert picture(dataclasses.replace(measured_run(), scores=sums)) is None
    assert picture(Run("m")) is None
