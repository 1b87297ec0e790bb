"""The space of student sizes: choices by axis, numbered, so that candidates are arrays of numbers and nothing more."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Int

from chopjax.errors import UserError
from chopjax.models.config import ModelConfig
from chopjax.search.config import CHOICES, SearchConfig
from chopjax.sharding.rules import RULES

MULTIPLES = (128, 64, 8)  # what a width is a multiple of, the first that divides the source's
MOST = 50_000_000  # candidates; more would take minutes, and no budget needs steps that fine
CHUNK = 1 << 18  # candidates whose figures are held at once

Numbers = Int[np.ndarray, " candidates"]


@dataclasses.dataclass(frozen=True)
class Space:
    """All combinations of the choices, numbered from 0, the largest first.

    Attributes:
        choices: axis (`layers`, `embed`, `mlp`, `kv_heads`, `q_per_kv`) → its sizes, falling.
        widths: the pairs of `embed` and `mlp` that occur, as positions in their choices.
    """

    choices: Mapping[str, tuple[int, ...]]
    widths: Int[np.ndarray, "pairs 2"]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of choices of layers, pairs of widths, key/value heads, and query heads for each."""
        layers, _, _, kv_heads, q_per_kv = (len(self.choices[axis]) for axis in CHOICES)
        return layers, len(self.widths), kv_heads, q_per_kv

    def __len__(self) -> int:
        return math.prod(self.shape)

    def positions(self, numbers: Numbers) -> dict[str, Numbers]:
        """For each axis, the candidates' positions in its choices."""
        layers, widths, kv_heads, q_per_kv = np.unravel_index(numbers, self.shape)
        embed, mlp = self.widths.T
        return dict(zip(CHOICES, (layers, embed[widths], mlp[widths], kv_heads, q_per_kv), strict=True))

    def sizes(self, numbers: Numbers) -> dict[str, Numbers]:
        """For each axis, the candidates' sizes, int64."""
        found = self.positions(numbers)
        return {axis: np.asarray(self.choices[axis], np.int64)[places] for axis, places in found.items()}

    def chunks(self) -> Iterator[Numbers]:
        """All numbers in order, few enough at a time that their figures take little memory."""
        for start in range(0, len(self), CHUNK):
            yield np.arange(start, min(start + CHUNK, len(self)), dtype=np.int64)


def make_space(config: SearchConfig, source: ModelConfig, mesh: Mapping[str, int] | None = None) -> Space:
    """The space that `config` describes for students of `source`.

    Listed sizes are taken as they are. Generated ones are multiples of `config.multiple` and of the mesh axes that
    split the axis, fall no lower than the least share, and always contain the source's own. None is larger than the
    source's.

    Args:
        mesh: mesh axis → size, as `MeshConfig.shape` gives it; None for a single device.

    Raises:
        UserError: a listed size is larger than the source's, no MLP width is left, or there are too many candidates.
    """
    choices = {axis: _choices(axis, config, source, mesh or {}) for axis in CHOICES}
    if config.mlp_factor:
        pairs = _mlp_by_factor(config, source, mesh or {}, choices["embed"])
        choices["mlp"] = tuple(sorted({mlp for _, mlp in pairs}, reverse=True))
    else:
        pairs = list(itertools.product(choices["embed"], choices["mlp"]))
    places = {axis: {size: place for place, size in enumerate(choices[axis])} for axis in ("embed", "mlp")}
    widths = np.asarray([(places["embed"][embed], places["mlp"][mlp]) for embed, mlp in pairs], np.int64)
    space = Space(choices, widths)
    if len(space) > MOST:
        raise UserError(
            f"search: the space has {len(space):,} candidates, more than {MOST:,}; raise search.multiple, "
            "search.least_width or search.least_depth, or list the choices of an axis"
        )
    return space


def step(axis: str, config: SearchConfig, source: ModelConfig, mesh: Mapping[str, int]) -> int:
    """What generated sizes of a width are multiples of."""
    whole = source.sizes[axis]
    multiple = config.multiple or next((number for number in MULTIPLES if whole % number == 0), 1)
    return math.lcm(multiple, _parts(axis, whole, mesh))


def _choices(axis: str, config: SearchConfig, source: ModelConfig, mesh: Mapping[str, int]) -> tuple[int, ...]:
    """The sizes of one axis, falling."""
    whole, listed = source.sizes[axis], getattr(config, axis)
    if listed:
        if max(listed) > whole:
            raise UserError(f"search.{axis} lists {max(listed)}, but the source has {whole}; a student is no larger")
        return tuple(sorted(set(listed), reverse=True))
    share = config.least_depth if axis == "layers" else config.least_width
    # A share such as 0.3 of 10 is 3, not the 3.0000000000000004 that floats make of some.
    least = max(1, math.ceil(round(share * whole, 6)))
    if axis in ("embed", "mlp"):
        by = step(axis, config, source, mesh)
        generated = list(range(-(-least // by) * by, whole + 1, by))
    elif axis == "kv_heads":
        parts = _parts(axis, whole, mesh)
        generated = [n for n in _kv_heads(source) if n >= least and n % parts == 0]
    else:
        generated = list(range(least, whole + 1))
    return tuple(sorted({*generated, whole}, reverse=True))


def _parts(axis: str, whole: int, mesh: Mapping[str, int]) -> int:
    """Into how many parts the mesh splits an axis: 1 where it holds the source's whole, as `mesh.fallbacks` permits."""
    parts = math.prod(mesh.get(name, 1) for name in RULES.get(axis, ()))
    return parts if whole % parts == 0 else 1


def _kv_heads(source: ModelConfig) -> list[int]:
    """Numbers of key/value heads: divisors, so that groups can be merged and servers split them as before.

    With a query head for each there are many, and a group is no more than a head: then steps of the largest power of
    two that divides the number and is no more than an eighth of it.
    """
    whole = source.kv_heads
    if source.q_per_kv > 1:
        return [number for number in range(1, whole + 1) if whole % number == 0]
    by = next(power for power in (64, 32, 16, 8, 4, 2, 1) if power == 1 or (whole % power == 0 and power * 8 <= whole))
    return list(range(by, whole + 1, by))


def _mlp_by_factor(
    config: SearchConfig, source: ModelConfig, mesh: Mapping[str, int], embeds: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Pairs of widths, largest first: each factor times each `embed`, down to a multiple, up to the source's `mlp`."""
    by = step("mlp", config, source, mesh)
    found = {(embed, int(round(factor * embed, 6)) // by * by) for embed in embeds for factor in config.mlp_factor}
    pairs = sorted(((embed, mlp) for embed, mlp in found if 0 < mlp <= source.mlp), reverse=True)
    if not pairs:
        raise UserError(
            f"search.mlp_factor {config.mlp_factor} of {embeds} gives no MLP width from {by} to the source's "
            f"{source.mlp}; give other multiples"
        )
    return pairs
