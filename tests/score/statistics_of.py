"""The statistics of a scoring pass, in float64 and one number at a time, from activations that are given."""

from collections.abc import Sequence

import numpy as np


def moments(rows: Sequence[np.ndarray], halves: Sequence[int]) -> np.ndarray:
    """[half, sequence, moment, *units] from one array [tokens, *units] for each row."""
    sums = np.zeros((2, 3, 2, *rows[0].shape[1:]))
    for row, half in zip(rows, halves, strict=True):
        row = np.asarray(row, np.float64)
        for place, x in enumerate((np.abs(row).mean(0), np.sqrt((row**2).sum(0)), row.var(0))):
            sums[half, place] += [x, x**2]
    return sums


def sums_of(
    mlp: Sequence[np.ndarray], heads: Sequence[np.ndarray], norms: Sequence[np.ndarray], halves: Sequence[int]
) -> dict[str, np.ndarray]:
    """`rows`, `mlp`, `q_per_kv`, `embed` of rows of [tokens, layers, ...] activations."""
    return {
        "rows": np.bincount(halves, minlength=2).astype(np.float64),
        "mlp": moments(mlp, halves),
        "q_per_kv": moments([np.linalg.norm(np.asarray(row, np.float64), axis=-1) for row in heads], halves),
        "embed": moments(norms, halves),
    }
