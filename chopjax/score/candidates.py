"""Losses of the model without some of its layers: their names in a score file, their means, and greedy removal by them.

Imports without jax: a plan is made from a score file where there is no device.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from chopjax.errors import UserError

LossMetric = Literal["next_token", "kl"]
SCORED = "scored"


class Removal(NamedTuple):
    """Layers removed one after the other.

    Attributes:
        layers: as numbered in the whole model, in the order in which they went.
        losses: the loss after each removal.
    """

    layers: tuple[int, ...]
    losses: tuple[float, ...]


def without_name(metric: str, count: int = 1) -> str:
    """Name of the losses without each layer, or without each `count` consecutive layers."""
    return f"without_one/{metric}" if count == 1 else f"without_block/{metric}/{count}"


def dense_name(metric: str) -> str:
    """Name of the loss with nothing removed."""
    return f"dense/{metric}"


def mean_losses(
    sums: Mapping[str, Float[np.ndarray, "halves *starts"]], metric: str, count: int = 1
) -> Float[np.ndarray, "starts"]:
    """Nats a token without each block of `count` layers, by its first layer, over both halves of the rows.

    For the choice of layers, one that is not finite is made +inf: a model that breaks without a layer needs it, and
    NaN would be sorted anywhere.
    """
    return as_costs(sums[without_name(metric, count)].sum(0) / sums[SCORED].sum())


def as_costs(losses: Sequence[float] | Float[np.ndarray, "places"]) -> Float[np.ndarray, "places"]:
    """float64 losses, +inf where they are not finite."""
    costs = np.asarray(losses, np.float64)
    return np.where(np.isfinite(costs), costs, math.inf)


def without_block(order: Sequence[int], start: int, count: int) -> tuple[int, ...]:
    """The layers of `order` that stay when `count` of them go from place `start` on."""
    return (*order[:start], *order[start + count :])


def one_by_one(
    layers: int,
    remove: int,
    losses: Callable[[tuple[int, ...]], Float[np.ndarray, "places"]],
    keep: Collection[int] = (),
) -> Removal:
    """Removes the layer without which the loss is lowest, has the rest scored again, and so on; ties: the lowest.

    Args:
        layers: the model has the layers 0, 1, ..., layers - 1.
        remove: number of layers that go.
        losses: for the layers that are left, ascending, the loss without each of them. Called once for each removal.
        keep: layers that must stay.

    Raises:
        UserError: fewer layers may go, or the loss is not finite whichever of them goes.
    """
    _check_counts(layers, remove, keep)
    order = tuple(range(layers))
    went: list[int] = []
    reached: list[float] = []
    for _ in range(remove):
        costs = as_costs(losses(order))
        costs[[order.index(layer) for layer in keep]] = math.inf
        place = int(np.argmin(costs))
        if not math.isfinite(costs[place]):
            raise UserError("the loss is not finite whichever layer goes; check the weights and the calibration text")
        went.append(order[place])
        reached.append(float(costs[place]))
        order = without_block(order, place, 1)
    return Removal(tuple(went), tuple(reached))


def _check_counts(layers: int, remove: int, keep: Collection[int]) -> None:
    outside = [layer for layer in keep if not 0 <= layer < layers]
    if outside:
        raise UserError(f"layer {outside[0]} is to stay, but the layers are 0 to {layers - 1}")
    most = min(layers - 1, layers - len(set(keep)))
    if not 0 <= remove <= most:
        raise UserError(f"plan.remove_layers: {remove} of {layers} layers; use 0 to {most}")
