"""Which teacher layer a student layer learns from. Imports without jax."""

from collections.abc import Sequence

from chopjax.distill.hidden_config import HiddenConfig
from chopjax.errors import UserError

Pairs = tuple[tuple[int, int], ...]


def layer_pairs(config: HiddenConfig, student: int, teacher: int, kept: Sequence[int] | None) -> Pairs:
    """Pairs (student layer, teacher layer), counted from 0, ascending in the student's.

    Args:
        config: `layer_map`, `layers` and `pairs` are read.
        student: number of the student's layers.
        teacher: number of the teacher's layers.
        kept: for each student layer the teacher layer that it was; None without a plan that says so.

    Raises:
        UserError: the map needs a plan and there is none; a layer that a model does not have; a student layer twice.
    """
    found = dict(sorted(_explicit(config.pairs, student, teacher))) if config.pairs else None
    if found is None:
        found = dict(enumerate(_map(config.layer_map, student, teacher, kept)))
    taking_part = sorted(_layer("hidden.layers", layer, student, "student") for layer in config.layers) or list(found)
    if len(set(taking_part)) != len(taking_part):
        raise UserError(f"hidden.layers is {config.layers}; name each student layer once")
    unmapped = [layer for layer in taking_part if layer not in found]
    if unmapped:
        raise UserError(f"hidden.layers names student layer {unmapped[0]}, which hidden.pairs does not; add its pair")
    return tuple((layer, found[layer]) for layer in taking_part)


def uniform(student: int, teacher: int) -> list[int]:
    """The last layer to the last one, the others evenly spread: layer i to ⌊(i + 1) · teacher / student⌋ − 1."""
    return [(layer + 1) * teacher // student - 1 for layer in range(student)]


def _map(name: str, student: int, teacher: int, kept: Sequence[int] | None) -> list[int]:
    if name == "plan":
        if kept is None:
            raise UserError(
                "hidden.layer_map is 'plan' but no plan says which teacher layers the student's were; choose 'last', "
                "'uniform' or 'explicit'"
            )
        if len(kept) != student or not all(0 <= layer < teacher for layer in kept):
            raise UserError(
                f"hidden.layer_map is 'plan', but the plan's {len(kept)} layers are not those of a student of "
                f"{student} and a teacher of {teacher}; choose 'last', 'uniform' or 'explicit'"
            )
        return [int(layer) for layer in kept]
    if student > teacher:
        raise UserError(
            f"hidden.layer_map is {name!r}, but the student has {student} layers and the teacher only {teacher}; "
            "choose 'explicit'"
        )
    return uniform(student, teacher) if name == "uniform" else list(range(teacher - student, teacher))


def _explicit(pairs: Pairs, student: int, teacher: int) -> list[tuple[int, int]]:
    counted = [
        (_layer("hidden.pairs", one, student, "student"), _layer("hidden.pairs", other, teacher, "teacher"))
        for one, other in pairs
    ]
    if len({one for one, _ in counted}) != len(counted):
        raise UserError(f"hidden.pairs is {pairs}; name each student layer once")
    return counted


def _layer(field: str, layer: int, layers: int, model: str) -> int:
    if not -layers <= layer < layers:
        raise UserError(f"{field} names {model} layer {layer}; the {model} has layers {-layers}..{layers - 1}")
    return layer % layers
