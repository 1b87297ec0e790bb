"""The plan: which indices are kept on every axis, and why. Plain data that imports without jax."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from jaxtyping import Int

from chopjax import records
from chopjax.axes import AROUND, Sizes
from chopjax.chop.edits import Edit, check_edits, read_edits
from chopjax.chop.indices import whole_numbers
from chopjax.errors import UserError

FORMAT = 1
MOST_LAYERS = 1 << 16  # plans and pages list every layer
FIX = "make the plan again; one written by hand needs source.sizes and kept"


@dataclasses.dataclass(frozen=True)
class _Source:
    sizes: Mapping[str, Annotated[int, records.Within(1, 2**31 - 1)]]
    name: str = ""


@dataclasses.dataclass(frozen=True)
class _Body:
    """What `plan.json` holds."""

    source: _Source
    kept: Mapping[str, Any]
    reasons: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    widths_by: Mapping[str, str] = dataclasses.field(default_factory=dict)
    edits: tuple[Mapping[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to keep of a model.

    Attributes:
        source: sizes of the axes of the model that the plan cuts.
        kept: for each axis that is cut, the kept indices, counted from 0 in the source, in the order that they have
            in the student. One list for `layers`, `embed` and `vocab`; elsewhere one list for each *student* index of
            the axes around it (`chopjax.axes.AROUND`): `mlp` has shape [layers, kept].
        reasons: for each axis that is cut, how the choice was made.
        name: what the source was called.
        edits: what happens to weights besides, in the order in which it happens (`chopjax.chop.edits`). Where heads
            are merged, `kept.q_per_kv` counts in the merged groups.
        widths_by: what ranked the widths that are cut, for whoever shows those scores: `scores` is a criterion of
            `PlanConfig.widths_by`, or `dimchop`; of `activation`, `over_batch`, `over_sequence` and `iterations` say
            which. Empty where no width was ranked, or nobody said how.
    """

    source: Sizes
    kept: Mapping[str, Int[np.ndarray, "*around kept"]]
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)
    name: str = ""
    edits: tuple[Edit, ...] = ()
    widths_by: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def uncut(self) -> dict[str, int]:
        """Sizes of the axes in which `kept` counts: the source's, as the edits leave them."""
        sizes = dict(self.source)
        for edit in self.edits:
            sizes = edit.sizes(sizes)
        return sizes

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the axes of the student."""
        return {name: int(self.kept[name].shape[-1]) if name in self.kept else n for name, n in self.uncut.items()}

    @property
    def layers(self) -> list[int]:
        """For each student layer, the source layer that it was."""
        return self.kept["layers"].tolist() if "layers" in self.kept else list(range(self.source["layers"]))

    def of_layer(self, layer: int) -> "Plan":
        """The same plan for one student layer alone, as a model of one layer; `layers` itself is not cut in it."""
        kept = {
            axis: indices[layer : layer + 1] if "layers" in AROUND[axis] else indices
            for axis, indices in self.kept.items()
            if axis != "layers"
        }
        return Plan({**self.source, "layers": 1}, kept, edits=tuple(edit.of_layer(layer) for edit in self.edits))

    def to_json(self) -> str:
        """The text of `plan.json`."""
        body: dict[str, Any] = {
            "format": FORMAT,
            "source": {"name": self.name, "sizes": dict(self.source)},
            "kept": {axis: indices.tolist() for axis, indices in self.kept.items()},
            "reasons": dict(self.reasons),
        }
        if self.widths_by:
            body["widths_by"] = dict(self.widths_by)
        if self.edits:
            body["edits"] = [edit.to_json() for edit in self.edits]
        return json.dumps(body)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Plan":
        """Reads and checks what `to_json`, or a person, wrote.

        Raises:
            UserError: not a plan, or one that `check` refuses.
        """
        body = records.parse_object(text, "plan.json", FIX)
        records.check_format(body, FORMAT, "plan.json", FIX)
        found = records.shaped(body, _Body, "plan.json", FIX, extra=True)
        kept = {axis: whole_numbers(f"kept.{axis}", rows) for axis, rows in found.kept.items()}
        reasons = {axis: str(reason) for axis, reason in found.reasons.items()}
        try:
            edits = read_edits(found.edits)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(f"plan.json: edits: {error!r:.80} is not known or missing; {FIX}") from error
        if found.source.sizes.get("layers", 1) > MOST_LAYERS:
            said = f"source.sizes.layers is {found.source.sizes['layers']}, not {MOST_LAYERS} or fewer"
            raise UserError(f"plan.json: {said}; {FIX}")
        source, name, widths_by = dict(found.source.sizes), found.source.name, dict(found.widths_by)
        plan = cls(source, kept, reasons, name, edits, widths_by)
        check(plan)
        return plan


def check(plan: Plan) -> None:
    """Refuses a plan that no model could follow.

    Raises:
        UserError: an axis that cannot be cut, keeps nothing, has unequal or misshaped lists, indices out of range or
            repeated, layers out of order, a vocabulary that loses more than its end, or edits that do not fit.
    """
    check_edits(plan.edits, plan.source, plan.kept)
    uncut = plan.uncut
    for axis, indices in plan.kept.items():
        if axis not in AROUND or axis not in plan.source:
            raise UserError(f"plan.json: axis {axis!r} cannot be cut; only {', '.join(AROUND)}")
        if not indices.size:
            raise UserError(f"plan.json: kept.{axis} is empty; a model needs at least one")
        missing = [name for name in AROUND[axis] if name not in plan.source]
        if missing:
            raise UserError(f"plan.json: source.sizes lacks {missing[0]}, along which kept.{axis} has its lists")
        wanted = tuple(plan.sizes[name] for name in AROUND[axis])
        if indices.shape[:-1] != wanted:
            around = " × ".join(AROUND[axis])
            raise UserError(f"plan.json: kept.{axis} has lists for {indices.shape[:-1]}, not {wanted} ({around})")
        if indices.min() < 0 or indices.max() >= uncut[axis]:
            raise UserError(f"plan.json: kept.{axis} has an index outside 0..{uncut[axis] - 1}")
        if (np.diff(np.sort(indices, axis=-1), axis=-1) == 0).any():
            raise UserError(f"plan.json: kept.{axis} names an index twice")
    if "layers" in plan.kept and (np.diff(plan.kept["layers"]) < 0).any():
        raise UserError("plan.json: kept.layers must rise; layers cannot change places")
    if "vocab" in plan.kept and (np.diff(plan.kept["vocab"]) < 0).any():
        raise UserError("plan.json: kept.vocab must rise; the tokenizer's words keep their order")


def check_source(plan: Plan, sizes: Sizes) -> None:
    """Refuses a plan that was made for a model of other sizes.

    Raises:
        UserError: names the first axis that differs.
    """
    for axis, size in sizes.items():
        if plan.source.get(axis) != size:
            raise UserError(f"plan.json: made for {axis} = {plan.source.get(axis)}, but the source has {size}")
    unknown = [axis for axis in plan.source if axis not in sizes]
    if unknown:
        raise UserError(f"plan.json: source.sizes has {unknown[0]!r}, which is no axis; there are {', '.join(sizes)}")
