"""What models and losses know of a mesh: an object that pins arrays by the names of their axes."""

from collections.abc import Callable
from typing import Any, Protocol

from jaxtyping import Array, Float

from chopjax.models.attention import Places, attention

# The axes of activations that are pinned in several places.
RESIDUAL = ("batch", "length", "embed")
QUERIES = ("batch", "length", "kv_heads", "q_per_kv", "head_dim")
KEYS = ("batch", "length", "kv_heads", "head_dim")


class Constrain(Protocol):
    """A mesh, seen from within a model: `chopjax.sharding.mesh.Constrain`, or `unpinned` where there is none."""

    def __call__(self, array: Array, names: tuple[str | None, ...]) -> Array:
        """`array`, its sharding pinned by the names of its axes; None for an axis that is held whole."""
        ...

    def parts(self, axis: str) -> tuple[str, ...]:
        """The mesh axes that an axis of this name is split over."""
        ...

    def size(self, mesh_axes: tuple[str, ...]) -> int:
        """Number of devices along all of these mesh axes."""
        ...

    def holding(self, *axes: str) -> "Constrain":
        """The same for arrays that are held whole along some axes, besides those that are already."""
        ...

    def manual(self, function: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        """`function` of each device's own part of its arguments; it calls collectives itself."""
        ...

    def summed(
        self, gradient: Callable[[Array, Array], Array], x: Array, d_y: Array, axes: tuple[str | None, ...]
    ) -> Array:
        """`gradient(x, d_y)` of a kernel with these axes, summed over all devices' tokens, split as it is held."""
        ...

    def scatter_sum(self, x: Array, mesh_axes: tuple[str, ...], dimension: int = 0) -> Array:
        """In a `manual` function: sums over mesh axes, of which each device keeps its part of a dimension."""
        ...

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
        """`models.attention.attention`, by whatever kernel serves: it has to be told how the mesh splits it."""
        ...


def for_length(constrain: Constrain, length: int) -> Constrain:
    """The same for rows of `length` tokens, which every device holds whole if they cannot be split evenly."""
    even = length % constrain.size(constrain.parts("length")) == 0
    return constrain if even else constrain.holding("length")


class _Unpinned:
    attention = staticmethod(attention)

    def __call__(self, array: Array, names: tuple[str | None, ...]) -> Array:
        return array

    def parts(self, axis: str) -> tuple[str, ...]:
        return ()

    def size(self, mesh_axes: tuple[str, ...]) -> int:
        return 1

    def holding(self, *axes: str) -> "_Unpinned":
        return self

    def summed(
        self, gradient: Callable[[Array, Array], Array], x: Array, d_y: Array, axes: tuple[str | None, ...]
    ) -> Array:
        return gradient(x, d_y)

    def scatter_sum(self, x: Array, mesh_axes: tuple[str, ...], dimension: int = 0) -> Array:
        return x

    def manual(self, function: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        return function


unpinned = _Unpinned()
"""The `Constrain` where there is no mesh."""
