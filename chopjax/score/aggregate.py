"""From summed statistics to scores of neurons, heads and channels: Minitron (arXiv 2407.14679), section 2.2, table 11.

numpy only. The statistics are those of `chopjax.score.activations`.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

# The order of the statistics of a row in the sums.
OVER_SEQUENCE = ("mean", "l2", "var")
OVER_BATCH = ("mean", "l2", "var")

Sums = Mapping[str, Float[np.ndarray, "half *rest"]]
Scores = dict[str, Float[np.ndarray, "..."]]


def activation_scores(sums: Sums, over_batch: str = "l2", over_sequence: str = "mean") -> Scores:
    """Scores, each with the shape of the axis that it ranks; higher is kept.

    First over the sequence: for each row, of the activations a of its tokens, `mean` is the mean of |a|, `l2` is
    (Σ a²)^½ and `var` the variance of the signed a. Then over the batch: of these x, one for each of the n rows,
    `mean` is Σ x / n, `l2` is (Σ x²)^½ and `var` is Σ x² / n − (Σ x / n)². The default is the choice of Minitron's
    table 11 for all widths.

    Args:
        sums: `rows`, `mlp`, `q_per_kv` and `embed`, of one pass or of several added up.
        over_batch: `mean`, `l2` or `var`.
        over_sequence: `mean`, `l2` or `var`.

    Returns:
        float64 `mlp` [layers, mlp]; `q_per_kv` [layers, kv_heads, q_per_kv]; `kv_heads` [layers, kv_heads], the L2
        norm over the query heads that share it; `embed` [embed], summed over all norms, since one order serves the
        whole network.

    Raises:
        ValueError: an aggregation that there is not.
    """
    for name, chosen, known in (("batch", over_batch, OVER_BATCH), ("sequence", over_sequence, OVER_SEQUENCE)):
        if chosen not in known:
            raise ValueError(f"over_{name} is {chosen!r}; one of {', '.join(known)}")
    statistic = OVER_SEQUENCE.index(over_sequence)
    rows = np.asarray(sums["rows"], np.float64).sum()

    def aggregated(axis: str) -> Float[np.ndarray, "*shape"]:
        total, squares = np.asarray(sums[axis], np.float64)[:, statistic].sum(axis=0)
        if over_batch == "l2":
            return np.sqrt(squares)
        mean = total / max(rows, 1)
        # Rounding may leave a little less than nothing where all rows are alike.
        return mean if over_batch == "mean" else np.maximum(squares / max(rows, 1) - mean**2, 0)

    heads = aggregated("q_per_kv")
    return {
        "mlp": aggregated("mlp"),
        "q_per_kv": heads,
        "kv_heads": np.linalg.norm(heads, axis=-1),
        "embed": aggregated("embed").sum(axis=(0, 1)),
    }


def finish(sums: Sums) -> Scores:
    """Scores by Minitron's choice: mean of the magnitude over the sequence, L2 over the batch."""
    return activation_scores(sums)
