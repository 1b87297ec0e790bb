"""Meshes, and shardings on them, from the rules."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from chopjax.axes import Leaf, Sizes, unflatten
from chopjax.errors import UserError
from chopjax.models.attention import Places, attention
from chopjax.models.config import ModelConfig
from chopjax.models.constrain import KEYS, QUERIES
from chopjax.models.parameters import declare
from chopjax.models.splash import splash_attention
from chopjax.sharding.rules import MESH_AXES, RULES, MeshConfig, assign

Kernel = Literal["auto", "reference", "splash"]


def join_processes(config: MeshConfig) -> None:
    """Joins the processes of several hosts into one, where the config says that there are several.

    To be called before anything asks JAX for devices. JAX finds the others by itself on Cloud TPU, Slurm, Open MPI and
    Kubernetes; elsewhere `jax.distributed.initialize` is to be called before, which this respects.

    Raises:
        UserError: JAX cannot find the others.
    """
    if not config.distributed or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"mesh.distributed is set, but JAX cannot join the other processes ({reason}); "
            "leave it out on a single host"
        ) from error


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh (data, fsdp, tensor) over the given devices, by default all there are.

    Raises:
        UserError: the sizes do not make up the devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh([shape[name] for name in MESH_AXES], MESH_AXES, axis_types=types, devices=devices)


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
    """The sharding of arrays [batch, ...]: rows over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def place_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, Array]:
    """A batch on the mesh, made of this process's consecutive share of its rows."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


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


@dataclasses.dataclass(frozen=True)
class Constrain:
    """Pins activations to a mesh by the names of their axes; call it as `constrain(array, ("batch", "length"))`.

    The same rules and fallbacks as for parameters hold, so a head axis of an activation lies where the heads of its
    kernel lie. A name may be None, for an axis that is held whole.

    Attributes:
        mesh: the mesh.
        fallbacks: axes whose fallback is permitted.
        whole: axes that are held whole, whatever the rules say.
        kernel: what computes the attention of tokens that are in order: `splash`, `reference`, or `auto` for splash
            where the mesh is of TPUs. Splash on other devices is interpreted, which is slow.
    """

    mesh: Mesh | AbstractMesh
    fallbacks: tuple[str, ...] = ()
    kernel: Kernel = "auto"
    whole: tuple[str, ...] = ()

    def holding(self, *axes: str) -> "Constrain":
        """The same for arrays that are held whole along some axes."""
        return dataclasses.replace(self, whole=axes)

    def __call__(self, array: Array, names: tuple[str | None, ...]) -> Array:
        """`array`, pinned.

        Raises:
            UserError: a size does not divide and no fallback is permitted.
        """
        names = tuple(None if name in self.whole else name for name in names)
        pinned = NamedSharding(self.mesh, spec(names, array.shape, self.mesh.shape, self.fallbacks))
        return jax.lax.with_sharding_constraint(array, pinned)

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
        on_tpu = isinstance(self.mesh, Mesh) and self.mesh.devices.flat[0].platform == "tpu"
        if not in_order or self.kernel == "reference" or (self.kernel == "auto" and not on_tpu):
            return attention(q, k, v, queries, keys, window, in_order)
        of_q, of_k, of_rows = (
            spec(names, array.shape, self.mesh.shape, self.fallbacks)
            for names, array in ((QUERIES, q), (KEYS, k), (KEYS[:2], keys.segments))
        )
        local = functools.partial(splash_attention, window=window, interpret=not on_tpu)
        # Unchecked: a Pallas call does not say over which axes its results differ.
        by_device = jax.shard_map(
            local, mesh=self.mesh, in_specs=(of_q, of_k, of_k, of_rows), out_specs=of_q, check_vma=False
        )
        return by_device(q, k, v, keys.segments)

    def parts(self, axis: str) -> tuple[str, ...]:
        """The mesh axes that an axis of this name is split over, those of one device left out."""
        split = () if axis in self.whole else RULES[axis]
        return tuple(mesh_axis for mesh_axis in split if self.mesh.shape[mesh_axis] > 1)

    def size(self, mesh_axes: tuple[str, ...]) -> int:
        """Number of devices along all of these mesh axes."""
        return math.prod(self.mesh.shape[axis] for axis in mesh_axes)

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
