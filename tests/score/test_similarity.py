"""Distances between hidden states by hand, and which block is nearest to nothing."""

import numpy as np
import pytest

from chopjax.errors import UserError
from chopjax.score.similarity import Kind, best_block, block_distances, block_importance, removal_distances


def sums(distance: list[list[float]]) -> dict[str, np.ndarray]:
    """Over 3 + 5 tokens and 1 + 1 rows, so that each distance is the mean."""
    mean = np.array(distance)
    tokens, rows = np.array([3.0, 5.0]), np.array([1.0, 1.0])
    of = tokens[:, None, None] * mean
    last = rows[:, None, None] * mean[::-1, ::-1]
    return {"tokens": tokens, "rows": rows, "angle": of, "last_angle": last, "cosine": tokens[:, None, None] - of}


# Four layers, five states.
DISTANCE = [
    [0.0, 0.4, 0.5, 0.6, 0.7],
    [0.4, 0.0, 0.1, 0.2, 0.5],
    [0.5, 0.1, 0.0, 0.1, 0.4],
    [0.6, 0.2, 0.1, 0.0, 0.3],
    [0.7, 0.5, 0.4, 0.3, 0.0],
]


def test_block_importance_by_hand() -> None:
    np.testing.assert_allclose(block_importance(sums(DISTANCE)), [0.4, 0.1, 0.1, 0.3], atol=1e-12)
    two = {"tokens": np.array([1.0, 1.0]), "cosine": np.array([[[1, 0.5], [0.5, 1]], [[1, -0.25], [-0.25, 1]]])}
    np.testing.assert_allclose(block_importance(two), [1 - 0.125])


@pytest.mark.parametrize("kind", ["angle", "cosine"])
def test_distances_bridged(kind: Kind) -> None:
    found = sums(DISTANCE)
    np.testing.assert_allclose(block_distances(found, kind), DISTANCE, atol=1e-12)
    np.testing.assert_allclose(removal_distances(found, 1, kind), [0.4, 0.1, 0.1, 0.3], atol=1e-12)
    np.testing.assert_allclose(removal_distances(found, 2, kind), [0.5, 0.2, 0.4], atol=1e-12)
    np.testing.assert_allclose(removal_distances(found, 4, kind), [0.7], atol=1e-12)


def test_last_tokens_are_counted_by_row() -> None:
    np.testing.assert_allclose(removal_distances(sums(DISTANCE), 3, "last_angle"), [0.5, 0.6], atol=1e-12)


def test_best_block() -> None:
    found = sums(DISTANCE)
    assert best_block(found, 2) == 1
    assert best_block(found, 2, keep_first=2) == 2
    assert best_block(found, 3) == 1
    assert best_block(found, 3, keep_last=1) == 0
    assert best_block(found, 4) == 0
    assert best_block(sums([[0.5] * 5] * 5), 2, keep_first=1) == 1  # ties go to the lowest start


def test_what_cannot_be_removed() -> None:
    found = sums(DISTANCE)
    for count in (0, 5):
        with pytest.raises(UserError, match=f"plan.remove_layers is {count}; of 4 layers give 1 to 4"):
            removal_distances(found, count)
    with pytest.raises(UserError, match="at most 2 of 4 layers can go if the first 1 and the last 1 stay"):
        best_block(found, 3, keep_first=1, keep_last=1)
    with pytest.raises(ValueError, match="one of angle, last_angle, cosine"):
        block_distances(found, "euclidean")  # type: ignore[arg-type]


def test_rounding_leaves_no_distance_of_a_state_from_itself() -> None:
    noisy = sums(DISTANCE)
    noisy["angle"] = noisy["angle"] + 1e-3 * np.eye(5)
    assert not np.diagonal(block_distances(noisy)).any()
