"""What a chop does to weights besides the gather: merged key/value heads, head residuals, and the refit.

An edit is listed in the plan, with all that it needs. `MergeKvHeads` and `HeadResidual` are pure maps of weights that
are applied just before the gather along the axis they name, so their lists are numbered as those of `Plan.kept` are:
one for each *student* index of the axes around it. `Refit` needs text and runs after the gather
(`chopjax.chop.refit`). Imports without jax and takes numpy and jax arrays alike.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from chopjax import records
from chopjax.axes import AROUND, Leaf, Sizes
from chopjax.chop.indices import spread, take, whole_numbers
from chopjax.errors import UserError

SIGNS = ("minitron", "laco")
Kept = Mapping[str, Int[np.ndarray, "*around kept"]]


@dataclasses.dataclass(frozen=True)
class MergeKvHeads:
    """Key/value heads averaged in groups; all query heads stay and share the mean of what their heads were.

    So the KV cache shrinks by the number of members, no query head is lost, and multi-head attention becomes grouped.

    Attributes:
        groups: for each student layer, the heads of each group; every head is in one group. The query heads of a
            group are those of its first member, then those of its second, and so on.
    """

    groups: Int[np.ndarray, "layers groups members"]

    name: ClassVar[str] = "merge_kv_heads"

    @property
    def axis(self) -> str:
        """The axis before whose gather the edit is applied."""
        return "kv_heads"

    def sizes(self, sizes: Sizes) -> dict[str, int]:
        """Sizes after the edit."""
        _, groups, members = self.groups.shape
        return {**sizes, "kv_heads": groups, "q_per_kv": members * sizes["q_per_kv"]}

    def of_layer(self, layer: int) -> "MergeKvHeads":
        """The edit of one student layer alone."""
        return MergeKvHeads(self.groups[layer : layer + 1])

    def apply(self, array: Any, leaf: Leaf) -> Any:
        """A parameter, cut to the student's layers, after the edit: means in float32, rounded to its own dtype."""
        if "kv_heads" not in leaf.axes:
            return array
        xp, at = array.__array_namespace__(), leaf.axes.index("kv_heads")
        layers, groups, members = self.groups.shape
        array = take(array, leaf.axes, "kv_heads", self.groups.reshape(layers, -1))
        before, after = array.shape[:at], array.shape[at + 1 :]
        if "q_per_kv" in leaf.axes:  # which comes next
            return xp.reshape(array, (*before, groups, members * after[0], *after[1:]))
        parts = xp.reshape(array, (*before, groups, members, *after)).astype(np.float32)
        # In a fixed order, so that every backend makes the same bits.
        total = xp.take(parts, 0, axis=at + 1)
        for member in range(1, members):
            total = total + xp.take(parts, member, axis=at + 1)
        return (total * np.float32(1 / members)).astype(array.dtype)

    def check(self, sizes: Sizes, kept: Kept) -> None:
        """Refuses groups that do not fit a model of `sizes`.

        Raises:
            UserError: misshaped lists, a head in no group or in two, or heads that are to be dropped besides.
        """
        layers = kept["layers"].shape[-1] if "layers" in kept else sizes["layers"]
        if self.groups.ndim != 3 or self.groups.shape[0] != layers:
            raise UserError(
                f"plan.json: edits.merge_kv_heads.groups has shape {self.groups.shape}; "
                f"give a list of groups of heads for each of the {layers} kept layers"
            )
        if "kv_heads" in kept:
            raise UserError("plan.json: kept.kv_heads and merge_kv_heads exclude each other; drop heads or merge them")
        every = np.sort(self.groups.reshape(layers, -1), axis=-1)
        if every.shape[-1] != sizes["kv_heads"] or (every != np.arange(sizes["kv_heads"])).any():
            raise UserError(
                f"plan.json: edits.merge_kv_heads.groups must name every one of the {sizes['kv_heads']} heads once"
            )

    def describe(self) -> str:
        """The edit in a line."""
        _, groups, members = self.groups.shape
        return f"kv_heads {groups * members} -> {groups}: means of {members}, all query heads stay"

    def to_json(self) -> dict[str, Any]:
        """What plan.json says of it."""
        return {"edit": self.name, "groups": self.groups.tolist()}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "MergeKvHeads":
        """The inverse of `to_json`."""
        return cls(whole_numbers("edits.merge_kv_heads.groups", body["groups"]))


@dataclasses.dataclass(frozen=True)
class HeadResidual:
    """Dropped heads leave a residual in kept ones (Minitron, arXiv 2407.14679, section 2.3, after LaCo).

    Along `q_per_kv` the query projections change; along `kv_heads`, which is for multi-head attention, those of
    queries, keys and values. The output projection does not.

    Attributes:
        axis: the axis along which heads are dropped.
        sign: `minitron` is kept + (kept − dropped), as printed; `laco` is kept + (dropped − kept), as in LaCo, which
            for a single pair is the dropped head itself.
        pairs: kept and dropped head of each pair.
    """

    axis: str
    sign: str
    pairs: Int[np.ndarray, "*around pairs 2"]

    name: ClassVar[str] = "head_residual"

    def sizes(self, sizes: Sizes) -> dict[str, int]:
        """Sizes after the edit: the same."""
        return dict(sizes)

    def of_layer(self, layer: int) -> "HeadResidual":
        """The edit of one student layer alone."""
        return dataclasses.replace(self, pairs=self.pairs[layer : layer + 1])

    def apply(self, array: Any, leaf: Leaf) -> Any:
        """A parameter, cut along the axes around, after the edit: made in float32, rounded to its own dtype."""
        if self.axis not in leaf.outputs or not self.pairs.size:
            return array
        xp, at = array.__array_namespace__(), leaf.axes.index(self.axis)
        partner = np.broadcast_to(np.arange(array.shape[at], dtype=np.int32), (*self.pairs.shape[:-2], array.shape[at]))
        partner = partner.copy()
        np.put_along_axis(partner, self.pairs[..., 0], self.pairs[..., 1], axis=-1)
        paired = spread(partner != np.arange(array.shape[at]), leaf.axes, self.axis)
        kept = array.astype(np.float32)
        dropped = take(kept, leaf.axes, self.axis, partner)
        sum_ = kept + (kept - dropped if self.sign == "minitron" else dropped - kept)
        return xp.where(xp.broadcast_to(xp.asarray(paired), array.shape), sum_.astype(array.dtype), array)

    def check(self, sizes: Sizes, kept: Kept) -> None:
        """Refuses pairs that do not fit a model of `sizes` and what is kept of it.

        Raises:
            UserError: an unknown axis or sign, misshaped lists, or pairs of other than one kept and one dropped head.
        """
        if self.sign not in SIGNS:
            raise UserError(f"plan.json: edits.head_residual.sign is {self.sign!r}; choose {' or '.join(SIGNS)}")
        if self.axis != "q_per_kv" and (self.axis != "kv_heads" or sizes["q_per_kv"] > 1):
            raise UserError(
                f"plan.json: edits.head_residual.axis is {self.axis!r}; it goes along q_per_kv, "
                "or along kv_heads where one query head belongs to each"
            )
        if self.axis not in kept:
            raise UserError(f"plan.json: edits.head_residual is along {self.axis}, which is not cut; leave it out")
        if self.pairs.shape[:-2] != kept[self.axis].shape[:-1] or self.pairs.ndim < 2 or self.pairs.shape[-1] != 2:
            around = " × ".join(AROUND[self.axis])
            raise UserError(
                f"plan.json: edits.head_residual.pairs has shape {self.pairs.shape}; "
                f"give lists of [kept, dropped] for {kept[self.axis].shape[:-1]} ({around})"
            )
        heads = np.arange(sizes[self.axis])
        named = (self.pairs[..., None] == heads).sum(axis=-3)  # [*around, 2, heads]
        stays = (kept[self.axis][..., None] == heads).any(axis=-2)
        of_kept, of_dropped = named[..., 0, :], named[..., 1, :]
        if (named.sum(axis=-1) < self.pairs.shape[-2]).any() or (of_kept > stays).any() or (of_dropped > ~stays).any():
            raise UserError("plan.json: edits.head_residual.pairs must pair kept heads with dropped ones, each once")

    def describe(self) -> str:
        """The edit in a line."""
        return f"head residual along {self.axis}: {self.pairs.shape[-2]} kept of each group, sign of {self.sign}"

    def to_json(self) -> dict[str, Any]:
        """What plan.json says of it."""
        return {"edit": self.name, "axis": self.axis, "sign": self.sign, "pairs": self.pairs.tolist()}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "HeadResidual":
        """The inverse of `to_json`."""
        pairs = whole_numbers("edits.head_residual.pairs", body["pairs"])
        pairs = pairs if pairs.size else pairs.reshape(*pairs.shape, 2)
        return cls(str(body["axis"]), str(body["sign"]), pairs)


@dataclasses.dataclass(frozen=True)
class Refit:
    """Output and down projections fitted anew after the gather (`chopjax.chop.refit`), on calibration text.

    Attributes:
        ridge: pull towards the chopped weights, as a share of the mean squared input of each projection.
        rows: packed rows of calibration text.
    """

    ridge: float
    rows: int

    name: ClassVar[str] = "refit"

    @property
    def axis(self) -> None:
        """None: it is no map of weights alone, and comes after every gather."""
        return None

    def sizes(self, sizes: Sizes) -> dict[str, int]:
        """Sizes after the edit: the same."""
        return dict(sizes)

    def of_layer(self, layer: int) -> "Refit":
        """The edit of one student layer alone."""
        return self

    def apply(self, array: Any, leaf: Leaf) -> Any:
        """The parameter as it is."""
        return array

    def check(self, sizes: Sizes, kept: Kept) -> None:
        """Refuses what no fit could be made with.

        Raises:
            UserError: a ridge that is negative or not finite, or no rows.
        """
        if not (math.isfinite(self.ridge) and self.ridge >= 0) or self.rows < 1:
            raise UserError(
                f"plan.json: edits.refit has ridge {self.ridge} and {self.rows} rows; give 0 or more, and 1 or more"
            )

    def describe(self) -> str:
        """The edit in a line."""
        return f"output and down projections fitted by least squares on {self.rows} rows, ridge {self.ridge:g}"

    def to_json(self) -> dict[str, Any]:
        """What plan.json says of it."""
        return {"edit": self.name, "ridge": self.ridge, "rows": self.rows}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Refit":
        """The inverse of `to_json`."""
        given = {name: value for name, value in body.items() if name != "edit"}
        return records.shaped(given, cls, "plan.json: edits.refit", "give ridge, 0 or more, and rows, 1 or more")


Edit = MergeKvHeads | HeadResidual | Refit
# In the order in which they are applied, and listed.
KINDS: tuple[type[Edit], ...] = (MergeKvHeads, HeadResidual, Refit)


def read_edits(bodies: Any) -> tuple[Edit, ...]:
    """The edits of a plan.json.

    Raises:
        UserError: an unknown edit.
        KeyError, TypeError, ValueError: not a list of edits.
    """
    known = {kind.name: kind for kind in KINDS}
    edits: list[Edit] = []
    for body in bodies:
        if body["edit"] not in known:
            raise UserError(f"plan.json: edit {body['edit']!r} is unknown; there are {', '.join(known)}")
        edits.append(known[body["edit"]].from_json(body))
    return tuple(edits)


def check_edits(edits: tuple[Edit, ...], source: Sizes, kept: Kept) -> None:
    """Refuses edits that do not fit the model or what is kept of it; see `check` of each.

    Raises:
        UserError: says what does not fit.
    """
    kinds = [KINDS.index(type(edit)) for edit in edits]
    if sorted(set(kinds)) != kinds:
        raise UserError(f"plan.json: edits must be in the order {', '.join(kind.name for kind in KINDS)}, each once")
    sizes: Sizes = source
    for edit in edits:
        missing = [name for name in ("layers", "kv_heads", "q_per_kv") if name not in sizes]
        if missing and edit.axis:
            raise UserError(f"plan.json: source.sizes lacks {missing[0]}, which edits.{edit.name} needs")
        edit.check(sizes, kept)
        sizes = edit.sizes(sizes)
