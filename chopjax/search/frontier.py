"""Which candidates to try, from losses measured along one axis at a time, and the frontier of what was tried."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from chopjax.axes import Sizes
from chopjax.search.enumerate import Found
from chopjax.search.space import Space

LARGEST_SHARE = 4  # no number of layers takes more than one in so many of the places, while others have candidates


def pareto(size: Float[np.ndarray, " points"], loss: Float[np.ndarray, " points"]) -> Bool[np.ndarray, " points"]:
    """Which points no other beats: none is as small with a lower loss, or smaller with as low a loss.

    Equal points are on the frontier together. A NaN loss is never on it.
    """
    order = np.lexsort((loss, size))
    best = np.fmin.accumulate(np.where(np.isnan(loss), np.inf, loss)[order])
    before = np.concatenate([[np.inf], best[:-1]])
    sizes, losses = size[order], loss[order]
    # Of equal sizes the first has the least loss; the rest are on the frontier only if they equal it.
    starts = np.concatenate([[True], sizes[1:] != sizes[:-1]])
    first = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
    on = (losses == losses[first]) & (losses[first] < before[first])
    result = np.zeros(len(order), bool)
    result[order] = on
    return result


def probes(space: Space, source: Sizes, most: int = 4) -> dict[str, tuple[int, ...]]:
    """Sizes at which to measure the loss, one axis at a time with all others whole.

    At most `most` for each axis, evenly over its choices and with the smallest among them. The source's own size
    needs no measurement, nor does an axis that has no other.
    """
    found = {}
    for axis, sizes in space.choices.items():
        smaller = [size for size in sizes if size < source[axis]]
        places = np.unique(np.linspace(len(smaller) - 1, 0, min(most, len(smaller))).round().astype(int))
        if most == 1 or not smaller:
            places = np.arange(len(smaller))[-1:]
        found[axis] = tuple(smaller[place] for place in places)
    return {axis: sizes for axis, sizes in found.items() if sizes}


def increases(
    space: Space, source: Sizes, measured: Mapping[str, Mapping[int, float]]
) -> dict[str, Float[np.ndarray, " choices"]]:
    """The increase of the loss for every choice of every axis, linear between the sizes that were measured.

    Args:
        measured: axis → size → loss minus the source's loss, as measured with that axis cut alone. An axis without
            any is taken to cost nothing.
    """
    found = {}
    for axis, choices in space.choices.items():
        points = sorted({source[axis]: 0.0, **measured.get(axis, {})}.items())
        sizes, losses = zip(*points, strict=True)
        found[axis] = np.interp(choices, sizes, losses)
    return found


def surrogate(found: Found, increase: Mapping[str, Float[np.ndarray, " choices"]]) -> Float[np.ndarray, " candidates"]:
    """The estimated increase of each candidate's loss: the sum of what its choices cost one axis at a time.

    Cuts on several axes do interact, so this only decides which candidates are worth a measurement of their own.

    Raises:
        ValueError: an array is not as long as its axis has choices.
    """
    total = np.zeros(len(found))
    for axis, places in found.space.positions(found.numbers).items():
        if axis in increase:
            if len(increase[axis]) != len(found.space.choices[axis]):
                raise ValueError(f"{axis}: {len(increase[axis])} values for {len(found.space.choices[axis])} choices")
            total += increase[axis][places]
    return total


def select(
    found: Found, number: int, increase: Float[np.ndarray, " candidates"] | None = None
) -> Int[np.ndarray, " chosen"]:
    """The candidates to evaluate, best first, as places in `found.numbers`.

    Ranked by the least `increase`, then by the most of the primary figure, then by the space's order; without
    `increase`, by the most of the primary figure (as ModelOpt's Minitron does). Since neighbours in rank tend to be
    neighbours in size, of those that differ in `mlp` alone only the best is taken, and no number of layers takes more
    than a quarter of the places, rounded up. Places that stay free are filled in the order of rank, first without the
    rule for layers, then without either.

    Args:
        number: how many; all, where there are not as many.
        increase: as `surrogate` estimates it.
    """
    primary = -found.figures[found.primary].astype(np.float64)
    keys = (primary,) if increase is None else (primary, increase)
    order = np.lexsort(keys)
    places = {axis: array[order] for axis, array in found.space.positions(found.numbers).items()}
    others = [axis for axis in places if axis != "mlp"]
    family = np.ravel_multi_index(
        tuple(places[axis] for axis in others), tuple(len(found.space.choices[axis]) for axis in others)
    )
    best = _rank_within(family) == 0
    quota = -(-number // LARGEST_SHARE)
    within = np.zeros(len(order), bool)
    within[best] = _rank_within(places["layers"][best]) < quota
    tier = np.where(within, 0, np.where(best, 1, 2))
    chosen = np.lexsort((np.arange(len(order)), tier))[:number]
    return order[np.sort(chosen)]


def _rank_within(group: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """For each entry, how many of the same group come before it."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    starts = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(group)]
    first = np.maximum.accumulate(np.where(starts, np.arange(len(group)), 0))
    ranks = np.empty(len(group), np.int64)
    ranks[order] = np.arange(len(group)) - first
    return ranks
