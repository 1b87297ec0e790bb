"""Axis names → mesh axes: ordered rules, plain data, no jax.

The mesh has five axes. `data` holds copies of the parameters, `fsdp` splits parameters along `embed`, `context` splits
rows along their length and parameters as `fsdp` does, and `tensor` splits heads, MLP neurons and vocabulary; the rows
of a batch are split over `data` and `fsdp` together. `expert` is there for models with experts; no family has any yet.

`data` and `fsdp` may go over several slices, between which a slower network lies (`dcn_data`, `dcn_fsdp`).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from chopjax import checks
from chopjax.axes import Sizes
from chopjax.errors import UserError

MESH_AXES = ("data", "fsdp", "context", "tensor", "expert")

# In order: within one array the first rule that names a mesh axis has it.
RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "unembedded": ("fsdp", "context", "tensor"),  # the vocabulary while the loss is made (`distill.chunked`)
    "embed": ("fsdp", "context"),
}

# Where an axis does not divide and its fallback is permitted, these are tried instead; if none divides, or the array
# has none of them, the array is held whole along that axis.
FALLBACKS: Mapping[str, tuple[str, ...]] = {"kv_heads": ("q_per_kv",), "mlp": (), "vocab": (), "embed": ()}

Kernel = Literal["auto", "reference", "splash", "cudnn"]
"""What computes attention (`MeshConfig.attention`)."""

Entry = tuple[str, ...]
"""The mesh axes of one array axis: none, one, or several in order."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh's axes.

    Attributes:
        data: copies of the parameters; each works on its own rows.
        fsdp: parts of every parameter's `embed` axis; each works on its own rows too.
        tensor: parts of heads, MLP and vocabulary.
        context: parts of every row, for rows too long for one device: each works on its own tokens and asks the others
            for keys and values. Parameters are split along `embed` over these parts too.
        expert: parts of a model's experts; 1, as no supported model has any.
        dcn_data: how many slices `data` goes over, where there are several slices of TPUs (or hosts of GPUs); it is a
            part of `data`, not a factor beside it.
        dcn_fsdp: how many slices `fsdp` goes over.
        attention: what computes attention where tokens stand in order: `splash` (TPUs), `cudnn` (GPUs), `reference`
            (plain products, anywhere), or `auto` for the fastest that the devices, the dtype and the heads permit.
        fallbacks: axes that may be held whole (`kv_heads`: or split along `q_per_kv`) where they do not divide.
        distributed: whether this process is one of several, each started with the same command on its own host.

    One of the sizes may be -1: all devices that the others leave.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    context: int = 1
    expert: int = 1
    dcn_data: int = 1
    dcn_fsdp: int = 1
    attention: Kernel = "auto"
    fallbacks: tuple[str, ...] = ()
    distributed: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.fallbacks if name not in FALLBACKS]
        if unknown:
            raise UserError(f"mesh.fallbacks names {unknown[0]!r}; it may name {', '.join(FALLBACKS)}")
        checks.choices(self, "mesh")
        checks.at_least(self, "mesh", 1, "dcn_data", "dcn_fsdp")
        if self.expert != 1:
            raise UserError(f"mesh.expert is {self.expert}, but no supported model has experts to split; leave it at 1")
        sizes = {name: getattr(self, name) for name in MESH_AXES}
        for name, size in sizes.items():
            if size < 1 and size != -1:
                raise UserError(f"mesh.{name} is {size}; give a number of devices, or -1 for all that are left")
        if list(sizes.values()).count(-1) > 1:
            raise UserError("more than one of mesh.data, mesh.fsdp, mesh.context, mesh.tensor is -1; give all but one")

    @property
    def slices(self) -> dict[str, int]:
        """Mesh axis → how many slices it goes over."""
        return {name: getattr(self, f"dcn_{name}", 1) for name in MESH_AXES}

    def filled(self, devices: int) -> "MeshConfig":
        """The same on this number of devices, without a -1.

        Raises:
            UserError: as `shape`.
        """
        sizes: dict[str, Any] = self.shape(devices)
        return dataclasses.replace(self, **sizes)

    def shape(self, devices: int) -> dict[str, int]:
        """Mesh axis → size on this number of devices.

        Raises:
            UserError: the sizes do not make up the devices.
        """
        sizes = {name: getattr(self, name) for name in MESH_AXES}
        given = math.prod(size for size in sizes.values() if size != -1)
        filled = {name: devices // given if size == -1 else size for name, size in sizes.items()}
        if math.prod(filled.values()) != devices:
            said = {name: size for name, size in sizes.items() if size != 1 or name in ("data", "fsdp", "tensor")}
            text = ", ".join(f"mesh.{name}={size}" for name, size in said.items())
            raise UserError(f"{text} do not make up the {devices} devices there are; change one of them")
        for name, slices in self.slices.items():
            if filled[name] % slices:
                raise UserError(
                    f"mesh.dcn_{name} is {slices}, which does not divide mesh.{name} = {filled[name]}; change one"
                )
        return filled


def assign(
    names: Sequence[str | None],
    sizes: Sequence[int],
    mesh_shape: Mapping[str, int],
    fallbacks: Sequence[str] = (),
    leaf: str = "activation",
) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """The mesh axes of each axis of an array, and the fallbacks that were taken, in words.

    Args:
        names: the array's axes in order; None for one that is never split.
        sizes: their sizes.
        mesh_shape: mesh axis → size; 1 for those that it lacks.
        fallbacks: axes whose fallback is permitted.
        leaf: the array's name, for the message.

    Raises:
        UserError: a size does not divide and no fallback is permitted.
    """
    size_of = dict(zip(names, sizes, strict=True))
    given: dict[str | None, Entry] = {}
    taken: list[str] = []
    for name, mesh_axes in RULES.items():
        free = tuple(axis for axis in mesh_axes if axis not in _used(given) and mesh_shape.get(axis, 1) > 1)
        if name not in size_of or not free:
            continue
        parts = math.prod(mesh_shape[axis] for axis in free)
        if size_of[name] % parts == 0:
            given[name] = free
            continue
        if name not in fallbacks:
            raise UserError(_indivisible(leaf, name, size_of[name], free, parts))
        other = next((o for o in FALLBACKS[name] if size_of.get(o, 1) % parts == 0 and o in size_of), None)
        taken.append(f"{name} -> {other or 'replicated'}")
        if other:
            given[other] = free
    return tuple(given.get(name, ()) for name in names), tuple(taken)


def check(
    leaves: Mapping[str, Sequence[str]], sizes: Sizes, mesh_shape: Mapping[str, int], fallbacks: Sequence[str] = ()
) -> None:
    """Refuses a model that the mesh cannot hold; for use when a plan is made, before any array exists.

    Args:
        leaves: path → axes, as in `{path: leaf.axes for path, leaf in declare(config).items()}`.

    Raises:
        UserError: as in `assign`.
    """
    for path, axes in leaves.items():
        assign(axes, [sizes[name] for name in axes], mesh_shape, fallbacks, path)


def other_slices(mesh: MeshConfig, found: int, kind: str) -> str:
    """What is wrong with a mesh that goes over another number of slices than there are, and the mend.

    Args:
        mesh: the mesh.
        found: how many there are.
        kind: what they are called, one of them.
    """
    wanted = math.prod(mesh.slices.values())
    there = f"there is 1 {kind}; leave both at 1" if found == 1 else f"there are {found} {kind}s; make them equal"
    return f"mesh.dcn_data x mesh.dcn_fsdp is {wanted}, but {there}"


def _used(given: Mapping[str | None, Entry]) -> set[str]:
    return {axis for entry in given.values() for axis in entry}


def _indivisible(leaf: str, name: str, size: int, mesh_axes: Entry, parts: int) -> str:
    mesh = " x ".join(f"mesh.{axis}" for axis in mesh_axes)
    problem = f"{leaf}: axis {name} of size {size} cannot be split in the {parts} equal parts of {mesh}"
    if name not in FALLBACKS:
        return f"{problem}; choose a {name} size that {parts} divides"
    instead = " or split along q_per_kv" if name == "kv_heads" else ""
    return f"{problem}; change {mesh}, or permit it to be held whole{instead} with mesh.fallbacks=('{name}',)"
