"""Every candidate of a space against every budget."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Num

from chopjax.errors import UserError
from chopjax.models.config import ModelConfig
from chopjax.search.budget import Limit, Nearest, excess, feasible, limits
from chopjax.search.config import SearchConfig
from chopjax.search.count import SizeArrays, figures
from chopjax.search.roofline import chip_named
from chopjax.search.space import Space, make_space

Accept = Callable[[ModelConfig], Any]
"""Raises `UserError` for a student that could not be exported, as `hf.families.target_family` does for a family."""

Student = Callable[[SizeArrays], SizeArrays]
"""The sizes that models have once they are chopped to candidates' sizes."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One choice of sizes.

    Attributes:
        sizes: axis → size.
        figures: what it costs, named as in `count.figures`.
        increase: estimated increase of the loss, in nats a token; None where nothing was measured.
    """

    sizes: Mapping[str, int]
    figures: Mapping[str, float]
    increase: float | None = None

    def record(self) -> dict[str, Any]:
        """The candidate as JSON can hold it."""
        return {"sizes": dict(self.sizes), "figures": dict(self.figures), "increase": self.increase}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Candidate":
        """The inverse of `record`."""
        return cls(dict(record["sizes"]), dict(record["figures"]), record["increase"])


@dataclasses.dataclass(frozen=True)
class Found:
    """The candidates of a space that meet every budget, in the space's order.

    Attributes:
        space: the space.
        limits: the budgets that they meet.
        numbers: their numbers in the space.
        figures: what they cost.
        primary: the figure to be spent in full.
    """

    space: Space
    limits: tuple[Limit, ...]
    numbers: Int[np.ndarray, " candidates"]
    figures: Mapping[str, Num[np.ndarray, " candidates"]]
    primary: str

    def __len__(self) -> int:
        return len(self.numbers)

    def candidate(self, index: int, increase: float | None = None) -> Candidate:
        """The candidate at a place in `numbers`."""
        sizes = self.space.sizes(self.numbers[index : index + 1])
        return Candidate(
            {axis: int(array[0]) for axis, array in sizes.items()},
            {name: array[index].item() for name, array in self.figures.items()},
            increase,
        )


def find(
    config: SearchConfig,
    source: ModelConfig,
    mesh: Mapping[str, int] | None = None,
    accept: Accept | None = None,
    student: Student = lambda sizes: sizes,
) -> Found:
    """Enumerates the whole space and keeps what meets every budget.

    Args:
        config: space and budgets.
        source: the model to be made smaller.
        mesh: mesh axis → size; None for a single device.
        accept: called once for each combination of `embed`, `kv_heads` and `q_per_kv` with a config of the source's
            depth and MLP; combinations for which it raises `UserError` are left out.
        student: where what is chopped has other sizes than the candidate: merged heads, fewer words. Called with those
            that are accepted.

    Raises:
        UserError: nothing meets the budgets (names the tightest and the nearest candidate), nothing is accepted (in
            the words of `accept`), or as in `make_space`.
    """
    space = make_space(config, source, mesh)
    chip = chip_named(config.chip) if config.chip else None

    def count(sizes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return figures(source, sizes, config.context, config.sequences, chip, config.chips)

    own = count({axis: np.asarray([source.sizes[axis]]) for axis in space.choices})
    bounds = limits(config, {name: array.item() for name, array in own.items()})
    taken = accepted(space, source, accept) if accept else None
    nearest, numbers, kept = Nearest(bounds), [], []
    for chunk in space.chunks():
        if taken is not None:
            places = space.positions(chunk)
            chunk = chunk[taken[places["embed"], places["kv_heads"], places["q_per_kv"]]]
        sizes = space.sizes(chunk)
        costs = count(student(sizes))
        inside = np.flatnonzero(feasible(costs, bounds))
        if len(inside):
            numbers.append(chunk[inside])
            kept.append({name: array[inside] for name, array in costs.items()})
        elif not numbers:
            nearest.add(sizes, costs, excess(costs, bounds))
    if not numbers:
        raise nearest.error()
    merged = {name: np.concatenate([part[name] for part in kept]) for name in own}
    return Found(space, bounds, np.concatenate(numbers), merged, config.primary)


def accepted(space: Space, source: ModelConfig, accept: Accept) -> Bool[np.ndarray, "embed kv_heads q_per_kv"]:
    """Which combinations of choices `accept` takes.

    Raises:
        UserError: none; in the words of `accept`.
    """
    embeds, kv_heads, q_per_kv = (space.choices[axis] for axis in ("embed", "kv_heads", "q_per_kv"))
    taken, refusal = np.zeros((len(embeds), len(kv_heads), len(q_per_kv)), bool), None
    for place in np.ndindex(taken.shape):
        embed, kv, q = embeds[place[0]], kv_heads[place[1]], q_per_kv[place[2]]
        try:
            accept(dataclasses.replace(source, embed=embed, kv_heads=kv, q_per_kv=q))
            taken[place] = True
        except UserError as error:
            refusal = error
    if refusal and not taken.any():
        raise UserError(f"search: no combination of the choices can be exported; the last: {refusal}")
    return taken
