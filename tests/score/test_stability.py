"""Rank correlation by hand, and what two halves of the rows say."""

import numpy as np
import pytest
from score.statistics_of import sums_of

from chopjax.score.stability import agreement, spearman, split_half, too_few


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 1 - 6 * 4 / (5 * 24)),
        # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, sums of squares 4.5 and 5.
        ([0, 7, 7, 9], [1, 2, 3, 4], 4.5 / np.sqrt(4.5 * 5)),
        ([3, 3, 3], [8, 8, 8], 1),
        ([3, 3, 3], [1, 2, 3], 0),
    ],
)
def test_spearman_by_hand(first: list[float], second: list[float], expected: float) -> None:
    assert spearman(np.array(first, float), np.array(second, float)) == pytest.approx(expected, abs=1e-12)


def statistics(rng: np.random.Generator, rows: int, signal: float, same: bool = False) -> dict[str, np.ndarray]:
    """Rows of noise around units of a scale of their own; `same`: each odd row repeats the even one before it."""
    shapes = [(2, 300), (2, 120, 5, 2), (2, 2, 300)]
    scales = [np.exp(signal * rng.standard_normal(shape)) for shape in shapes]
    parts = [[scale * rng.standard_normal((5, *scale.shape)) for _ in range(rows)] for scale in scales]
    if same:
        parts = [[part[row - row % 2] for row in range(rows)] for part in parts]
    sums = sums_of(*parts, [row % 2 for row in range(rows)])
    cosine = rng.uniform(0.5, 1, (1 if same else 2, 61, 61))
    return sums | {"cosine": np.broadcast_to(cosine, (2, 61, 61)), "tokens": np.ones(2)}


AXES = {"mlp", "q_per_kv", "kv_heads", "embed", "layers"}


def test_halves_that_are_alike_agree() -> None:
    found = split_half(statistics(np.random.default_rng(0), 4, 0, same=True), "var", "l2")
    assert found == dict.fromkeys(AXES, pytest.approx(1, abs=1e-12))
    assert too_few(found) == []


def test_halves_of_noise_do_not() -> None:
    found = split_half(statistics(np.random.default_rng(1), 4, 0))
    assert found.keys() == AXES
    assert all(abs(value) < 0.3 for value in found.values()), found
    lines = too_few(found)
    assert len(lines) == len(AXES) and all(line.endswith("; raise score.rows") for line in lines)
    assert f"rank mlp with a correlation of {found['mlp']:.2f}, below 0.9" in lines[0]


def test_more_rows_are_steadier() -> None:
    few, many = (split_half(statistics(np.random.default_rng(2), rows, 0.3)) for rows in (2, 32))
    assert all(few[axis] < many[axis] for axis in AXES - {"layers"})
    assert too_few({"mlp": 0.85}, threshold=0.8) == []


def test_ranked_as_the_axis_is() -> None:
    first = {"mlp": np.array([[1.0, 2, 3], [1, 2, 3]]), "kv_heads": np.array([[5.0], [4.0]])}
    second = {"mlp": np.array([[1.0, 2, 3], [3, 2, 1]]), "kv_heads": np.array([[4.0], [5.0]])}
    assert agreement(first, second) == {"mlp": 0}  # one layer agrees, one is reversed; of one head there is no order


def test_one_row_tells_nothing() -> None:
    sums = statistics(np.random.default_rng(3), 1, 0)
    assert split_half(sums) == {}
    assert too_few({}) == ["one calibration row cannot tell how stable the scores are; raise score.rows"]
