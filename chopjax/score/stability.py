"""How far scores depend on the calibration rows: the agreement of the rankings that two halves of them give."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from chopjax.score.aggregate import activation_scores
from chopjax.score.file import HALVES
from chopjax.score.similarity import block_importance

Sums = Mapping[str, Float[np.ndarray, "half *rest"]]
Scores = Mapping[str, Float[np.ndarray, "*around size"]]

THRESHOLD = 0.9


def split_half(sums: Sums, over_batch: str = "l2", over_sequence: str = "mean") -> dict[str, float]:
    """Axis → Spearman's rank correlation between the scores of the two halves of the calibration rows.

    Each half has half of the rows, so the ranking by all of them is steadier than the figure says.

    Args:
        sums: as in `activation_scores`; with `cosine` and `tokens`, `layers` is there too, by block importance.
        over_batch: as in `activation_scores`.
        over_sequence: as in `activation_scores`.

    Returns:
        As `agreement`; empty if a half has no rows.
    """
    if not np.asarray(sums["rows"]).all():
        return {}
    halves = []
    for half in range(HALVES):
        own = {name: np.asarray(value)[half : half + 1] for name, value in sums.items()}
        scores = activation_scores(own, over_batch, over_sequence)
        halves.append(scores | ({"layers": block_importance(own)} if "cosine" in own else {}))
    return agreement(*halves)


def agreement(first: Scores, second: Scores) -> dict[str, float]:
    """Axis → Spearman's rank correlation along the last axis, averaged over those around it, as the axis is ranked.

    An axis of which there is only one is left out, for it has no ranking.
    """
    return {
        axis: float(np.mean([spearman(a, b) for a, b in zip(_lists(score), _lists(second[axis]), strict=True)]))
        for axis, score in first.items()
        if score.shape[-1] > 1
    }


def spearman(first: Float[np.ndarray, "size"], second: Float[np.ndarray, "size"]) -> float:
    """Spearman's rank correlation, where equal values share the mean of their ranks.

    Where all values of one side are equal it is undefined: taken as 1 if those of the other are too, else as 0.
    """
    a, b = (ranks - ranks.mean() for ranks in (_ranks(first), _ranks(second)))
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def too_few(stability: Mapping[str, float], threshold: float = THRESHOLD) -> list[str]:
    """Warnings, a line for each axis whose ranking depends on the calibration rows; none if all is well.

    Args:
        stability: what `split_half` gave.
        threshold: the rank correlation below which a ranking is called unsteady.
    """
    if not stability:
        return ["one calibration row cannot tell how stable the scores are; raise score.rows"]
    return [
        f"two halves of the calibration rows rank {axis} with a correlation of {value:.2f}, below {threshold}; "
        "raise score.rows"
        for axis, value in stability.items()
        if value < threshold
    ]


def _lists(score: Float[np.ndarray, "*around size"]) -> Float[np.ndarray, "lists size"]:
    return score.reshape(-1, score.shape[-1])


def _ranks(values: Float[np.ndarray, "size"]) -> Float[np.ndarray, "size"]:
    ascending = np.sort(values)
    return (np.searchsorted(ascending, values, "left") + np.searchsorted(ascending, values, "right")) / 2
