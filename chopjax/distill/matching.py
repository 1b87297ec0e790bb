"""What of a student is held against what of its teacher: all that is known before any array exists. Without jax."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from chopjax.axes import Leaf, Role
from chopjax.distill.hidden_config import LAYER_TERMS, WIDE_TERMS, HiddenConfig
from chopjax.distill.layer_maps import Pairs, layer_pairs
from chopjax.errors import UserError
from chopjax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Matching:
    """A `HiddenConfig` applied to two models; make it with `match`.

    Attributes:
        config: the terms and their weights.
        pairs: (student layer, teacher layer), ascending in the student's; empty where no term asks for layers.
        student: the student's architecture.
        teacher: the teacher's.
        kept_embed: for each channel of the student the teacher's channel that it was; None where no plan says so.
    """

    config: HiddenConfig
    pairs: Pairs
    student: ModelConfig
    teacher: ModelConfig
    kept_embed: tuple[int, ...] | None = None

    @property
    def student_keep(self) -> dict[str, tuple[int, ...]]:
        """What `decoder.forward` is to keep of the student (`keep`)."""
        return self._keep([student for student, _ in self.pairs], self.student.layers)

    @property
    def teacher_keep(self) -> dict[str, tuple[int, ...]]:
        """What `decoder.forward` is to keep of the teacher (`keep`)."""
        return self._keep([teacher for _, teacher in self.pairs], self.teacher.layers)

    @property
    def relation_heads(self) -> int:
        """Heads in which relations are cut."""
        return self.config.relation_heads or math.gcd(self.student.kv_heads, self.teacher.kv_heads)

    def activations(self, term: str) -> tuple[str, ...]:
        """Names of the activations (`models.block`) that a term of layers compares."""
        block_output = "attention_norm" if self.config.after_norm else "block_output"
        return {
            "block_output": (block_output,),
            "mlp_input": ("mlp_norm",),
            "heads": ("heads",),
            "relation": ("q", "k", "v"),
        }[term]

    def tapped_layer(self, term: str, layer: int) -> int:
        """Where what a term compares at `layer` is found: the norm that reads a block's output is the next block's.

        For the last block it is the number of layers: the final norm.
        """
        return layer + (term == "block_output" and self.config.after_norm)

    def _keep(self, mapped: list[int], layers: int) -> dict[str, tuple[int, ...]]:
        keep = {}
        for term in self.config.terms:
            for name in self.activations(term) if term in LAYER_TERMS else ():
                tapped = {self.tapped_layer(term, layer) for layer in mapped} - {layers}
                if tapped:
                    keep[name] = tuple(sorted(tapped))
        return keep


def match(
    config: HiddenConfig, student: ModelConfig, teacher: ModelConfig, kept: Mapping[str, Any] | None = None
) -> Matching:
    """The matching of two models.

    Args:
        config: which terms, and how they are compared.
        student: the student's architecture.
        teacher: the teacher's.
        kept: `Plan.kept` of the plan that made the student out of the teacher; None without one.

    Raises:
        UserError: no layer map; heads or widths that differ where they must be equal; relation heads that do not
            divide the models' heads.
    """
    pairs: Pairs = ()
    if any(term in LAYER_TERMS for term in config.terms):
        layers = None if kept is None else [int(layer) for layer in kept.get("layers", range(teacher.layers))]
        pairs = layer_pairs(config, student.layers, teacher.layers, layers)
    channels = None
    if kept is not None and "embed" in kept:
        channels = tuple(int(channel) for channel in kept["embed"])
    matching = Matching(config, pairs, student, teacher, channels)
    _check_widths(matching)
    _check_heads(matching)
    return matching


def declare_projections(matching: Matching) -> dict[str, Leaf]:
    """The learned projections, path → declaration; none without `project` shared or per_layer.

    They are parameters beside the student's, of the sizes `projection_sizes`: `projections/shared/kernel`, or for each
    term `projections/TERM/kernel`, stacked along `mapped_layers` where the term is one of layers.
    """
    learned = matching.config.learned
    if learned and matching.config.project == "shared":
        return {"projections/shared/kernel": Leaf.parse("embed -> teacher_embed", Role.MATRIX)}
    stacks = {term: "mapped_layers | " if term in LAYER_TERMS else "" for term in learned}
    return {
        f"projections/{term}/kernel": Leaf.parse(f"{stack}embed -> teacher_embed", Role.MATRIX)
        for term, stack in stacks.items()
    }


def projection_sizes(matching: Matching) -> dict[str, int]:
    """Sizes of all axes of the student's parameters and of the projections."""
    own = {"teacher_embed": matching.teacher.embed, "mapped_layers": len(matching.pairs)}
    return {**matching.student.sizes, **own}


def _check_widths(matching: Matching) -> None:
    config, student, teacher = matching.config, matching.student.embed, matching.teacher.embed
    wide = [term for term in config.terms if term in WIDE_TERMS]
    channels = matching.kept_embed
    if channels is not None and (len(channels) != student or max(channels) >= teacher):
        raise UserError(
            f"the plan keeps {len(channels)} channels, but the student has {student} and the teacher {teacher}; "
            "set hidden.project to 'shared' or 'per_layer', and give no plan of another model"
        )
    if not wide or student == teacher or config.learned or (config.project == "gather" and channels is not None):
        return
    raise UserError(
        f"hidden.{wide[0]} compares {student} channels with the teacher's {teacher}, and hidden.project is "
        f"{config.project!r}{' without a plan that keeps channels' if config.project == 'gather' else ''}; "
        "choose 'shared' or 'per_layer'"
    )


def _check_heads(matching: Matching) -> None:
    student, teacher = matching.student, matching.teacher
    axes = ("kv_heads", "q_per_kv", "head_dim")
    if matching.config.heads and any(student.sizes[axis] != teacher.sizes[axis] for axis in axes):
        raise UserError(
            f"hidden.heads compares heads one by one, but the student has {student.q_heads} of {student.head_dim} on "
            f"{student.kv_heads} and the teacher {teacher.q_heads} of {teacher.head_dim} on {teacher.kv_heads}; set "
            "hidden.heads to 0, or cut no heads"
        )
    if not matching.config.relation:
        return
    for name, model in (("student", student), ("teacher", teacher)):
        for heads in (model.q_heads, model.kv_heads):
            if heads * model.head_dim % matching.relation_heads:
                raise UserError(
                    f"hidden.relation_heads is {matching.relation_heads}, which does not divide the {name}'s "
                    f"{heads} heads of {model.head_dim}; choose a divisor of {heads * model.head_dim}"
                )
