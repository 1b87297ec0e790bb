"""When one contender beats another."""

import numpy as np
import pytest

from chopjax.commands.choose import CLEARLY, _beats


def sums(*losses: float) -> np.ndarray:
    return np.asarray([[loss, 10.0] for loss in losses])


@pytest.mark.parametrize(
    ("one", "other", "clearly", "wins"),
    [
        (sums(1, 2), sums(1.1, 2), 0.0, True),
        (sums(1, 2), sums(1, 2), 0.0, False),
        (sums(1, 2, 3, 4), sums(1.1, 2.1, 3.1, 4.1), CLEARLY, True),  # by the same on every batch
        (sums(1, 2, 3, 4), sums(1.1, 1.9, 3.3, 3.8), CLEARLY, False),  # now more, now less
        (sums(1, 2, 3, 4), sums(1.1, 1.9, 3.3, 3.8), 0.0, True),
        (sums(1, np.nan), sums(9, 9), 0.0, False),
        (sums(9, 9), sums(1, np.inf), CLEARLY, True),
        (sums(0.2), sums(0.3), CLEARLY, True),  # a metric that is no loss is one number
    ],
)
def test_a_contender_beats_another(one: np.ndarray, other: np.ndarray, clearly: float, wins: bool) -> None:
    assert _beats(one, other, clearly) is wins
