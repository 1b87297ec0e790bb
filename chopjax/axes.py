"""Named axes: the closed vocabulary from which shapes, shardings, chops, conversion and counts all follow.

Everything here is plain data and imports without jax, so that file-to-file work starts at once.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Any

# Every name that an axis of a parameter may have; activations have `batch` and `length` besides. A leaf holds no name
# twice.
PARAMETER_AXES = ("layers", "embed", "kv_heads", "q_per_kv", "head_dim", "mlp", "vocab", "positions")

# Axes of learned projections beside a student's own parameters: the width of its teacher, and the student layers that
# are held against one of the teacher's. No model has them.
PROJECTION_AXES = ("teacher_embed", "mapped_layers")

# The axes around an axis. What is kept on an axis is one list for each index of the axes around it, so kept indices
# of `mlp` have shape [layers, kept] and those of `q_per_kv` [layers, kv_heads, kept].
AROUND: Mapping[str, tuple[str, ...]] = {
    "layers": (),
    "embed": (),
    "vocab": (),
    "kv_heads": ("layers",),
    "q_per_kv": ("layers", "kv_heads"),
    "mlp": ("layers",),
}

Sizes = Mapping[str, int]


class Role(enum.StrEnum):
    """What a parameter is for; weight decay and optimizers go by it, never by rank or by file name."""

    MATRIX = "matrix"
    BIAS = "bias"
    NORM = "norm"
    TABLE = "table"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter declared by the names of its axes: `stack | inputs -> outputs`, and its role.

    Attributes:
        stack: axes along which independent copies are stacked (`layers`).
        inputs: axes that a product with an activation contracts.
        outputs: axes that remain.
        role: what the parameter is for.
    """

    stack: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    role: Role

    @classmethod
    def parse(cls, text: str, role: Role) -> "Leaf":
        """Reads `"layers | embed -> kv_heads q_per_kv head_dim"`; without an arrow all names are outputs.

        Raises:
            ValueError: a name is outside the vocabulary or occurs twice.
        """
        stack, _, flow = text.rpartition("|")
        inputs, _, outputs = flow.rpartition("->")
        leaf = cls(tuple(stack.split()), tuple(inputs.split()), tuple(outputs.split()), role)
        unknown = [name for name in leaf.axes if name not in PARAMETER_AXES + PROJECTION_AXES]
        if unknown or len(set(leaf.axes)) != len(leaf.axes):
            raise ValueError(f"axes {text!r}: unknown {unknown} or repeated names")
        return leaf

    @property
    def axes(self) -> tuple[str, ...]:
        """All names, in the order of the array's dimensions."""
        return self.stack + self.inputs + self.outputs

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The array's shape under the given sizes."""
        return tuple(sizes[name] for name in self.axes)

    def size(self, sizes: Sizes) -> int:
        """The number of elements under the given sizes."""
        return math.prod(self.shape(sizes))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as `{"layers/mlp/up/kernel": leaf}`, in the tree's own order."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
