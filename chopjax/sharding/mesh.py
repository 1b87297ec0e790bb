"""Meshes, and shardings on them, from the rules."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from chopjax.axes import Leaf, Sizes, unflatten
from chopjax.errors import UserError
from chopjax.models.attention import Places
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import declare
from chopjax.sharding import peers, rules, torus
from chopjax.sharding.attention import attention_on_mesh
from chopjax.sharding.rows import local_rows, share_of
from chopjax.sharding.rules import MESH_AXES, RULES, Kernel, MeshConfig, assign

__all__ = [
    "Constrain",
    "Kernel",
    "batch_sharding",
    "join_processes",
    "leaf_shardings",
    "make_mesh",
    "param_shardings",
    "place_batch",
    "replicated",
    "row_sharding",
    "spec",
]


def join_processes(config: MeshConfig) -> None:
    """Joins the processes of several hosts into one, where the config says that there are several.

    To be called before anything asks JAX for devices. JAX finds the others by itself on Cloud TPU, Slurm, Open MPI and
    Kubernetes; elsewhere `jax.distributed.initialize` is to be called before, which this respects. From then on each
    process watches the others (`sharding.peers`).

    Raises:
        UserError: JAX cannot find the others.
    """
    silent = peers.SILENT
    try:
        if config.distributed and not jax.distributed.is_initialized():
            # Longer than JAX's default, so that a process that is only slow is not taken for gone.
            silent = 90.0
            jax.distributed.initialize(heartbeat_timeout_seconds=240)
    except (ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"mesh.distributed is set, but JAX cannot join the other processes ({reason}); "
            "leave it out on a single host"
        ) from error
    peers.watch(silent)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all `MESH_AXES` over the given devices, by default all there are.

    Where there are several slices, only the axes that are to go over them cross the network between them.

    Raises:
        UserError: the sizes do not make up the devices or their slices, or do not fit the grid that they stand in.
    """
    devices = jax.devices() if devices is None else devices
    shape, types = config.shape(len(devices)), (AxisType.Auto,) * len(MESH_AXES)
    by_host = _check_slices(config, devices)
    outer = config.slices
    inner = {name: size // outer[name] for name, size in shape.items()}
    try:
        if math.prod(outer.values()) == 1:
            made = jax.make_mesh(list(shape.values()), MESH_AXES, axis_types=types, devices=devices)
            return _by_lines(made, devices)
        placed = mesh_utils.create_hybrid_device_mesh(
            list(inner.values()), list(outer.values()), devices, process_is_granule=by_host
        )
    except NotImplementedError as error:
        said = " x ".join(f"mesh.{name}={size}" for name, size in inner.items() if size > 1)
        raise UserError(
            f"{said} does not fit the grid in which the devices stand; give sizes that are products of its sides"
        ) from error
    return Mesh(placed, MESH_AXES, axis_types=types)


def _by_lines(made: Mesh, devices: Sequence[jax.Device]) -> Mesh:
    """A mesh with one axis, of which JAX may have made a ring, line by line: sums go along lines (`sharding.torus`)."""
    coords = _coords(devices)
    if max(made.shape.values()) < len(devices) or coords is None:
        return made
    placed = dict(zip(devices, coords, strict=True))
    if torus.stages([placed[device] for device in made.devices.flat]) is not None:
        return made
    ordered = np.array(sorted(devices, key=placed.__getitem__), dtype=object)
    return Mesh(ordered.reshape(made.devices.shape), made.axis_names, axis_types=made.axis_types)


def _coords(devices: Sequence[jax.Device]) -> list[tuple[int, ...]] | None:
    """Where TPUs stand; a chip may show itself as several. None for other devices, which stand nowhere."""
    if devices[0].platform != "tpu":
        return None
    return [(*device.coords, getattr(device, "core_on_chip", 0)) for device in devices]


def _check_slices(config: MeshConfig, devices: Sequence[jax.Device]) -> bool:
    """Refuses a mesh of other slices than there are; whether hosts stand in for slices, as devices know of none.

    Hosts of one TPU slice never do: its links, and not a network, join them.
    """
    wanted, tpus = math.prod(config.slices.values()), devices[0].platform == "tpu"
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if wanted == 1 and len(slices) > 1 and tpus:
        fitting = f"mesh.dcn_data={len(slices)} with a mesh.data that it divides, or mesh.dcn_fsdp={len(slices)}"
        raise UserError(f"the devices are of {len(slices)} slices; give {fitting}")
    by_host = len(slices) == 1 and not tpus
    found = len({device.process_index for device in devices}) if by_host else len(slices)
    if wanted not in (1, found):
        raise UserError(rules.other_slices(config, found, "host" if by_host else "slice"))
    return by_host


def param_shardings(config: ModelConfig, mesh: Mesh | AbstractMesh, fallbacks: Sequence[str] = ()) -> dict[str, Any]:
    """The sharding of every parameter of `config`, as the nested dict that its parameters are.

    Raises:
        UserError: a size does not divide and no fallback is permitted.
    """
    return leaf_shardings(declare(config), config.sizes, mesh, fallbacks)


def leaf_shardings(
    leaves: Mapping[str, Leaf], sizes: Sizes, mesh: Mesh | AbstractMesh, fallbacks: Sequence[str] = ()
) -> dict[str, Any]:
    """The sharding of every declared parameter, path → declaration, as a nested dict.

    Raises:
        UserError: a size does not divide and no fallback is permitted.
    """
    shardings = {}
    for path, leaf in leaves.items():
        shardings[path] = NamedSharding(mesh, spec(leaf.axes, leaf.shape(sizes), mesh.shape, fallbacks, path))
    return unflatten(shardings)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of arrays [batch, length, ...]: rows over `data` and `fsdp`, their tokens over `context`."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"], *RULES["length"]))


def row_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of arrays [batch, ...] whose rows are held whole: over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def place_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, Array]:
    """A batch on the mesh, made of this process's share of its rows (`sharding.rows.share_of`).

    Args:
        mesh: the mesh.
        batch: `tokens` [rows, length] and others: those that begin with the same two axes are split along both, the
            rest by rows alone.
    """
    share, shape = share_of(mesh), np.shape(batch["tokens"])

    def placed(rows: np.ndarray) -> Array:
        whole = (len(rows) * share.count, *rows.shape[1:])
        sharding = batch_sharding(mesh) if rows.shape[:2] == shape else row_sharding(mesh)

        def own(at: tuple[slice, ...] | None) -> np.ndarray:
            assert at is not None, "arrays with axes have a place for each"
            return local_rows(share, rows, at[0], whole[0])[(slice(None), *at[1:])]

        return jax.make_array_from_callback(whole, sharding, own)

    return {name: placed(np.asarray(rows)) for name, rows in batch.items()}


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def spec(
    names: Sequence[str | None],
    sizes: Sequence[int],
    mesh_shape: Mapping[str, int],
    fallbacks: Sequence[str] = (),
    leaf: str = "activation",
) -> PartitionSpec:
    """`rules.assign` in JAX's form.

    Raises:
        UserError: a size does not divide and no fallback is permitted.
    """
    entries, _ = assign(names, sizes, mesh_shape, fallbacks, leaf)
    return PartitionSpec(*(entry[0] if len(entry) == 1 else entry or None for entry in entries))


@functools.cache
def line_stages(mesh: Mesh | AbstractMesh, axis: str) -> Sequence[torus.Groups | None]:
    """The stages of a reduce-scatter along a mesh axis: one over all of it, where that is a line or no torus."""
    if not isinstance(mesh, Mesh):
        return (None,)
    along = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), 0).reshape(mesh.shape[axis], -1)[:, 0]
    coords = _coords(along.tolist())
    found = (torus.stages(coords) if coords else None) or ()
    return found if len(found) > 1 else (None,)


@dataclasses.dataclass(frozen=True)
class Constrain:
    """Pins activations to a mesh by the names of their axes; call it as `constrain(array, ("batch", "length"))`.

    The same rules and fallbacks as for parameters hold, so a head axis of an activation lies where the heads of its
    kernel lie. A name may be None, for an axis that is held whole.

    Attributes:
        mesh: the mesh.
        fallbacks: axes whose fallback is permitted.
        whole: axes that are held whole, whatever the rules say.
        kernel: what computes the attention of tokens that are in order (`sharding.rules.MeshConfig.attention`). Splash
            on other devices than TPUs is interpreted, which is slow.
    """

    mesh: Mesh | AbstractMesh
    fallbacks: tuple[str, ...] = ()
    kernel: Kernel = "auto"
    whole: tuple[str, ...] = ()

    def holding(self, *axes: str) -> "Constrain":
        """The same for arrays that are held whole along some axes, too."""
        return dataclasses.replace(self, whole=(*self.whole, *axes))

    def __call__(self, array: Array, names: tuple[str | None, ...]) -> Array:
        """`array`, pinned.

        Raises:
            UserError: a size does not divide and no fallback is permitted.
        """
        return jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, self.spec(array, names)))

    def spec(self, array: Array, names: tuple[str | None, ...]) -> PartitionSpec:
        """Where an array of these axes lies.

        Raises:
            UserError: a size does not divide and no fallback is permitted.
        """
        names = tuple(None if name in self.whole else name for name in names)
        return spec(names, array.shape, self.mesh.shape, self.fallbacks)

    def attention(
        self,
        q: Float[Array, "batch length kv_heads q_per_kv head_dim"],
        k: Float[Array, "batch source kv_heads head_dim"],
        v: Float[Array, "batch source kv_heads head_dim"],
        queries: Places,
        keys: Places,
        window: int | None = None,
        in_order: bool = False,
    ) -> Float[Array, "batch length kv_heads q_per_kv head_dim"]:
        """`models.attention.attention`, by a kernel that each device runs on its own rows and heads, where one serves.

        Raises:
            UserError: a size does not divide and no fallback is permitted.
        """
        return attention_on_mesh(self, q, k, v, queries, keys, window, in_order)

    def parts(self, axis: str) -> tuple[str, ...]:
        """The mesh axes that an axis of this name is split over, those of one device left out."""
        split = () if axis in self.whole else RULES[axis]
        return tuple(mesh_axis for mesh_axis in split if self.mesh.shape.get(mesh_axis, 1) > 1)

    def size(self, mesh_axes: tuple[str, ...]) -> int:
        """Number of devices along all of these mesh axes."""
        return math.prod(self.mesh.shape[axis] for axis in mesh_axes)

    def summed(
        self, gradient: Callable[[Array, Array], Array], x: Array, d_y: Array, axes: tuple[str | None, ...]
    ) -> Array:
        """A kernel's gradient, made by each device of its own tokens, then reduce-scattered as the kernel is held.

        Written out, since XLA makes an all-reduce of what it is only told to split.

        Args:
            gradient: of inputs and the gradient of outputs, both [batch, length, ...].
            x: inputs.
            d_y: gradient of outputs.
            axes: the kernel's axes.
        """
        tokens = self.parts("batch") + self.parts("length")
        split = self.parts("embed") if "embed" in axes else ()
        if not split or jax.eval_shape(gradient, x, d_y).shape[axes.index("embed")] % self.size(split):
            return self(gradient(x, d_y), axes)
        whole = tuple(axis for axis in tokens if axis not in split)

        def on_device(x: Array, d_y: Array) -> Array:
            part = self.scatter_sum(gradient(x, d_y), split, axes.index("embed"))
            return jax.lax.psum(part, whole) if whole else part

        by_device = jax.shard_map(
            on_device,
            mesh=self.mesh,
            in_specs=(PartitionSpec(self.parts("batch") or None, self.parts("length") or None),) * 2,
            out_specs=PartitionSpec(*(split if axis == "embed" else None for axis in axes)),
            axis_names=set(tokens),
            check_vma=False,
        )
        return self(by_device(x, d_y), axes)

    def scatter_sum(self, x: Array, mesh_axes: tuple[str, ...], dimension: int = 0) -> Array:
        """Sums over mesh axes, of which each device keeps its part of a dimension; for use in `manual` functions."""
        for axis in mesh_axes:
            for groups in line_stages(self.mesh, axis):
                x = jax.lax.psum_scatter(x, axis, scatter_dimension=dimension, axis_index_groups=groups, tiled=True)
        return x

    def manual(self, function: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        """`function` of each device's own part of its arguments; it calls collectives itself.

        Args:
            function: what each device does.
            inputs: for each argument the names of its axes, the leading ones; a tree's hold for all its arrays.
            outputs: likewise for what it returns.
        """

        def specs(names: Any) -> Any:
            if all(name is None or isinstance(name, str) for name in names):
                return PartitionSpec(*(self.parts(name) or None if name else None for name in names))
            return tuple(specs(inner) for inner in names)

        # What comes out whole is equal on all devices because it was summed over them, which JAX cannot always see.
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=specs(inputs), out_specs=specs(outputs), check_vma=False
        )
