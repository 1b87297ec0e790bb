"""How alike the hidden states between blocks are: importance of single layers, distance over contiguous blocks.

numpy only. State i is the input of block i, and the last state, number `layers`, is the output of the last block. The
statistics are those of `chopjax.score.activations`.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float

from chopjax.errors import UserError

Sums = Mapping[str, Float[np.ndarray, "half *rest"]]
Kind = Literal["angle", "last_angle", "cosine"]

# What each sum of pairs was counted in.
COUNTED = {"angle": "tokens", "last_angle": "rows", "cosine": "tokens"}


def block_importance(sums: Sums) -> Float[np.ndarray, "layers"]:
    """Block Importance of ShortGPT (arXiv 2403.03853, eq. 1): 1 − E[cos(h_i, h_{i+1})] over tokens; higher is kept."""
    return np.diagonal(block_distances(sums, "cosine"), offset=1).copy()


def block_distances(sums: Sums, kind: Kind = "angle") -> Float[np.ndarray, "states states"]:
    """Mean distance between every two hidden states, float64 and symmetric, 0 on the diagonal.

    Args:
        sums: `cosine` and `tokens`, `angle` and `tokens`, or `last_angle` and `rows`.
        kind: `angle`, the mean over tokens of arccos(cos(h_i, h_j)) / π; `last_angle`, the same over the last token of
            each row alone (Gromov et al., arXiv 2403.17887, eq. 5); `cosine`, 1 minus the mean cosine over tokens.

    Raises:
        ValueError: a kind that there is not.
    """
    if kind not in COUNTED:
        raise ValueError(f"kind is {kind!r}; one of {', '.join(COUNTED)}")
    mean = np.asarray(sums[kind], np.float64).sum(axis=0) / max(np.asarray(sums[COUNTED[kind]], np.float64).sum(), 1)
    distances = 1 - mean if kind == "cosine" else mean
    # A state's cosine with itself is 1 but for rounding, which the angle magnifies.
    np.fill_diagonal(distances, 0)
    return (distances + distances.T) / 2


def removal_distances(sums: Sums, count: int, kind: Kind = "angle") -> Float[np.ndarray, "starts"]:
    """For each start, the distance that removing `count` contiguous layers from it on would bridge.

    Layers start ... start + count − 1 go, so state `start` takes the place of state `start + count`; there are
    layers − count + 1 starts (Gromov et al., arXiv 2403.17887, eq. 6).

    Raises:
        UserError: not 1 <= count <= layers.
    """
    distances = block_distances(sums, kind)
    layers = len(distances) - 1
    if not 1 <= count <= layers:
        raise UserError(f"plan.remove_layers is {count}; of {layers} layers give 1 to {layers}")
    return np.diagonal(distances, offset=count).copy()


def best_block(sums: Sums, count: int, kind: Kind = "angle", keep_first: int = 0, keep_last: int = 0) -> int:
    """Where to begin the removal of `count` contiguous layers: the shortest distance, at the lowest start of those.

    Args:
        sums: as in `block_distances`.
        count: layers to remove.
        kind: the distance.
        keep_first: layers at the beginning that must stay.
        keep_last: layers at the end that must stay.

    Raises:
        UserError: so many layers cannot be removed.
    """
    bridged = removal_distances(sums, count, kind)
    allowed = bridged[keep_first : len(bridged) - keep_last]
    if not len(allowed):
        layers = len(bridged) + count - 1
        raise UserError(
            f"plan.remove_layers is {count}; at most {layers - keep_first - keep_last} of {layers} layers can go "
            f"if the first {keep_first} and the last {keep_last} stay"
        )
    return keep_first + int(np.argmin(allowed))
