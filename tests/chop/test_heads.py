"""Which heads are merged and which are paired, against hand-made examples."""

import numpy as np
import pytest

from chopjax.axes import Leaf, Role
from chopjax.chop.edits import HeadResidual, MergeKvHeads
from chopjax.chop.heads import group_heads, head_residual, head_similarity, merged_score, neighbours
from chopjax.errors import UserError


def test_neighbours() -> None:
    assert neighbours(2, 6, 3).tolist() == [[[0, 1, 2], [3, 4, 5]]] * 2


def test_similarity_is_the_mean_cosine_of_keys_and_values() -> None:
    k = np.zeros((1, 2, 3, 1), np.float32)  # layers embed kv_heads head_dim
    k[0, :, :, 0] = [[1, 1, 0], [0, 1, 0]]
    v = np.zeros((1, 2, 3, 1), np.float32)
    v[0, :, :, 0] = [[1, -2, 1], [0, 0, 1]]
    root = np.sqrt(0.5)
    wanted = np.array([[1, (root - 1) / 2, root / 2], [(root - 1) / 2, 1, -root / 2], [root / 2, -root / 2, 0.5]])
    np.testing.assert_allclose(head_similarity(k, v)[0], wanted, atol=1e-12)  # a head of zeros is like none


def similarity(pairs: dict[tuple[int, int], float], heads: int) -> np.ndarray:
    matrix = np.eye(heads)
    for (one, other), value in pairs.items():
        matrix[one, other] = matrix[other, one] = value
    return matrix


def test_the_most_similar_are_grouped_greedily() -> None:
    first = similarity({(0, 3): 0.9, (1, 2): 0.1, (0, 1): 0.8, (2, 3): 0.7}, 4)
    second = similarity({(0, 1): 0.5}, 4)
    assert group_heads(np.stack([first, second]), 2).tolist() == [[[0, 3], [1, 2]], [[0, 1], [2, 3]]]


def test_the_next_to_join_is_nearest_to_all_members() -> None:
    matrix = similarity({(0, 5): 0.9, (0, 1): 0.8, (5, 1): -0.8, (0, 2): 0.3, (5, 2): 0.3}, 6)
    assert group_heads(matrix[None], 3).tolist() == [[[0, 2, 5], [1, 3, 4]]]


@pytest.mark.parametrize("members", [1, 4])
def test_alone_and_all_together(members: int) -> None:
    groups = group_heads(similarity({(2, 3): 0.4}, 4)[None], members)
    assert groups.tolist() == [np.arange(4).reshape(-1, members).tolist()]


def test_groups_that_do_not_come_out_even() -> None:
    with pytest.raises(UserError, match="9 heads cannot be merged in groups of 2"):
        neighbours(1, 9, 2)


def test_scores_follow_their_query_heads() -> None:
    merge = MergeKvHeads(np.array([[[0, 2], [1, 3]]]))
    assert merged_score(np.arange(8.0).reshape(1, 4, 2), merge).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]]]


def test_pairs_of_minitron() -> None:
    """L = 7, K = 5: heads ranked i = 4 and 5 pair with ranks 2K − i + 1 = 7 and 6."""
    score = np.array([[1.0, 7, 3, 6, 2, 5, 4]])  # ranked 1, 3, 5, 6, 2 | 4, 0
    edit = head_residual(score, np.array([[1, 2, 3, 5, 6]]), "minitron", "kv_heads")
    assert edit.pairs.tolist() == [[[2, 4], [6, 0]]]


def test_half_may_go_and_no_more() -> None:
    score = np.array([[4.0, 3, 2, 1]])
    assert head_residual(score, np.array([[0, 1]]), "laco").pairs.tolist() == [[[1, 2], [0, 3]]]
    with pytest.raises(UserError, match="plan.head_residual: only 1 of 4 .* keep 2 or more"):
        head_residual(score, np.array([[0]]), "laco")


def test_nothing_goes_and_nothing_is_paired() -> None:
    edit = head_residual(np.array([[[2.0, 1]]]), np.array([[[0, 1]]]), "minitron")
    assert edit.pairs.shape == (1, 1, 0, 2)
    array = np.ones((1, 3, 1, 2, 4), np.float32)
    assert edit.apply(array, Leaf.parse("layers | embed -> kv_heads q_per_kv head_dim", Role.MATRIX)) is array
    assert HeadResidual.from_json(edit.to_json()).pairs.shape == edit.pairs.shape
