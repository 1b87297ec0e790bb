"""What the search tried, as plain data: candidates with their ranks, the frontier, and how sizes and costs are said."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from chopjax.report import words
from chopjax.report.records import Candidate, Search
from chopjax.search.frontier import pareto

# How sizes are named where there is little room.
SHORT = {
    "layers": "layers",
    "embed": "channels",
    "mlp": "neurons",
    "kv_heads": "KV heads",
    "q_per_kv": "queries a KV head",
    "vocab": "vocabulary",
}
# Figures that a search may be told to spend: as a label, with unit and prefixes.
COSTS = {
    "params": ("parameters", "", "kMBT"),
    "non_embedding_params": ("parameters outside the embeddings", "", "kMBT"),
    "flops": ("forward FLOPs a token", "FLOP", "kMGT"),
    "bytes": ("bytes of weights and KV cache", "B", "kMGT"),
    "kv_cache": ("bytes of KV cache", "B", "kMGT"),
    "latency": ("milliseconds a token at best", "ms", ""),
}
PARAMETERS = ("params", "parameters")


@dataclasses.dataclass(frozen=True)
class Tried:
    """The candidates as arrays, all in the order of `Search.candidates`; NaN where a figure was not measured.

    Attributes:
        cost: what the search was to spend.
        loss: before healing.
        distilled: after the short distillation.
        before: rank by `loss`, from 1; 0 where there is none.
        after: rank by `distilled`, from 1; 0 where there is none.
        frontier: whether no other candidate is as cheap with a lower loss.
    """

    cost: Float[np.ndarray, "candidates"]
    loss: Float[np.ndarray, "candidates"]
    distilled: Float[np.ndarray, "candidates"]
    before: Int[np.ndarray, "candidates"]
    after: Int[np.ndarray, "candidates"]
    frontier: Bool[np.ndarray, "candidates"]


def tried(search: Search) -> Tried:
    """The arrays of a search."""
    by_cost = search.cost not in PARAMETERS
    cost = np.array([one.cost if by_cost else one.parameters for one in search.candidates], np.float64)
    loss, distilled = (
        np.array([getattr(one, name) for one in search.candidates], np.float64) for name in ("loss", "distilled")
    )
    known = np.isfinite(cost) & np.isfinite(loss)
    frontier = np.zeros(len(cost), bool)
    if known.any():
        frontier[known] = pareto(cost[known], loss[known])
    return Tried(cost, loss, distilled, ranks(loss), ranks(distilled), frontier)


def ranks(values: Float[np.ndarray, "candidates"]) -> Int[np.ndarray, "candidates"]:
    """Ranks from 1 for the lowest, equal ones in their order; 0 for NaN."""
    order = np.argsort(values, kind="stable")[: int(np.isfinite(values).sum())]
    found = np.zeros(len(values), np.int64)
    found[order] = np.arange(1, len(order) + 1)
    return found


def differing(candidates: Sequence[Candidate]) -> list[str]:
    """The axes in which candidates differ, in the order of `SHORT`; all of theirs if there is only one candidate."""
    axes = {axis: {one.sizes.get(axis) for one in candidates} for one in candidates for axis in one.sizes}
    several = [axis for axis in axes if len(axes[axis]) > 1 or len(candidates) == 1]
    return sorted(several, key=lambda axis: list(SHORT).index(axis) if axis in SHORT else len(SHORT))


def said(sizes: Mapping[str, int], axes: Sequence[str]) -> str:
    """Sizes of these axes: "24 layers, 1,152 neurons"."""
    return ", ".join(f"{sizes[axis]:,} {SHORT.get(axis, axis)}" for axis in axes if axis in sizes)


def cost_label(name: str) -> str:
    """What a cost is called."""
    return COSTS["params" if name in PARAMETERS else name][0] if name in (*COSTS, *PARAMETERS) else name


def cost_said(name: str, value: float) -> str:
    """A cost with its unit."""
    _, unit, prefixes = COSTS.get("params" if name in PARAMETERS else name, ("", "", "kMBT"))
    return words.scaled(value, unit, prefixes) if math.isfinite(value) else words.ABSENT
