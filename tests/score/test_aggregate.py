"""The nine aggregations by hand, and the slip that interchanges batch and sequence."""

import numpy as np
import pytest
from score.statistics_of import moments, sums_of

from chopjax.score.aggregate import OVER_BATCH, OVER_SEQUENCE, activation_scores, finish

# One neuron; a row of tokens 3, -1 and a row of tokens 2, 2, 0, 0.
ROWS = [np.array([3.0, -1.0]), np.array([2.0, 2.0, 0.0, 0.0])]
# Of each row: mean |a| = 2 and 1; (Σ a²)^½ = √10 and √8; variance of 3, -1 is 4 and of 2, 2, 0, 0 is 1.
BY_HAND = {
    ("mean", "mean"): 3 / 2,
    ("l2", "mean"): 5**0.5,
    ("var", "mean"): 1 / 4,
    ("mean", "l2"): (10**0.5 + 8**0.5) / 2,
    ("l2", "l2"): 18**0.5,
    ("var", "l2"): 9 - (10**0.5 + 8**0.5) ** 2 / 4,
    ("mean", "var"): 5 / 2,
    ("l2", "var"): 17**0.5,
    ("var", "var"): 9 / 4,
}


@pytest.mark.parametrize("halves", [[0, 1], [0, 0]])
@pytest.mark.parametrize(("over_batch", "over_sequence"), BY_HAND)
def test_every_aggregation_by_hand(over_batch: str, over_sequence: str, halves: list[int]) -> None:
    mlp = [row[:, None, None] for row in ROWS]
    heads = [np.stack([3 * row, 4 * row], axis=-1)[:, None, None, None] for row in ROWS]  # norm over head_dim: 5 |a|
    norms = [np.stack([row, 2 * row], axis=-1)[:, None, :, None] for row in ROWS]
    scores = activation_scores(sums_of(mlp, heads, norms, halves), over_batch, over_sequence)
    wanted = BY_HAND[over_batch, over_sequence]
    np.testing.assert_allclose(scores["mlp"], [[wanted]], rtol=1e-12)
    if over_sequence != "var":
        # A factor comes out once, and once more where a square remains.
        np.testing.assert_allclose(scores["q_per_kv"], [[[wanted * 5 ** (2 if over_batch == "var" else 1)]]])
    powers = (2 if over_batch == "var" else 1) * (2 if over_sequence == "var" else 1)
    np.testing.assert_allclose(scores["embed"], [wanted * (1 + 2**powers)], rtol=1e-12)


def test_heads_of_which_the_norm_varies() -> None:
    # Norms over head_dim of 5 and 10: their variance is 6.25, whatever the signs inside.
    heads = [np.array([[3.0, -4.0], [-6.0, 8.0]])[:, None, None, None]]
    sums = {"rows": np.array([1.0, 0.0]), **{name: np.zeros((2, 3, 2, 1, 1, 1)) for name in ("mlp", "embed")}}
    sums["q_per_kv"] = sums_of(heads, heads, heads, [0])["q_per_kv"]
    assert activation_scores(sums, "mean", "var")["q_per_kv"] == 6.25
    np.testing.assert_allclose(finish(sums)["q_per_kv"], 7.5)


def test_shapes_and_what_is_pooled() -> None:
    rng = np.random.default_rng(0)
    lengths, halves = (4, 7, 5), [0, 1, 0]
    sums = sums_of(
        [rng.standard_normal((n, 2, 11)) for n in lengths],
        [rng.standard_normal((n, 2, 3, 5, 4)) for n in lengths],
        [rng.standard_normal((n, 2, 2, 13)) for n in lengths],
        halves,
    )
    for over_batch in OVER_BATCH:
        for over_sequence in OVER_SEQUENCE:
            scores = activation_scores(sums, over_batch, over_sequence)
            assert {axis: score.shape for axis, score in scores.items()} == {
                "mlp": (2, 11), "q_per_kv": (2, 3, 5), "kv_heads": (2, 3), "embed": (13,),
            }  # fmt: skip
            heads = np.sqrt((scores["q_per_kv"] ** 2).sum(-1))
            np.testing.assert_allclose(scores["kv_heads"], heads, rtol=1e-12)
            assert all((score >= 0).all() for score in scores.values())


def test_batch_and_sequence_are_not_interchanged() -> None:
    # [batch, sequence, channel]: the first channel peaks at one token, the second is steady.
    x = np.zeros((4, 9, 2))
    x[:, 5, 0], x[:, :, 1] = 6, 1
    sums = {
        "rows": np.array([2.0, 2.0]),
        "q_per_kv": np.zeros((2, 3, 2, 1, 1, 1)),
        "embed": np.zeros((2, 3, 2, 1, 2, 1)),
    }
    sums["mlp"] = moments(list(x[:, :, None]), [0, 1, 0, 1])
    ours = finish(sums)["mlp"][0]
    np.testing.assert_allclose(ours, np.sqrt((np.abs(x).mean(axis=1) ** 2).sum(axis=0)))
    np.testing.assert_allclose(ours, [4 / 3, 2])
    # The mean over the first axis of a [batch, sequence, channel] tensor is a mean over the batch; the L2 that follows
    # is one over the sequence, and it ranks the other way round. With batches of one row it is the (L2, L2) below.
    slipped = np.sqrt((np.abs(x).mean(axis=0) ** 2).sum(axis=0))
    np.testing.assert_allclose(slipped, [6, 3])
    np.testing.assert_allclose(activation_scores(sums, "l2", "l2")["mlp"][0], [12, 6])


def test_rows_alike_vary_by_nothing() -> None:
    rows = [np.full((3, 1, 1), 0.1)] * 7
    sums = {
        "rows": np.array([7.0, 0.0]),
        "q_per_kv": np.zeros((2, 3, 2, 1, 1, 1)),
        "embed": np.zeros((2, 3, 2, 1, 2, 1)),
    }
    sums["mlp"] = moments(rows, [0] * 7)
    assert 0 <= activation_scores(sums, "var", "mean")["mlp"][0, 0] < 1e-15


@pytest.mark.parametrize("aggregation", [("sum", "mean"), ("l2", "max")])
def test_aggregations_that_there_are_not(aggregation: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="one of mean, l2, var"):
        activation_scores({"rows": np.ones(2)}, *aggregation)
