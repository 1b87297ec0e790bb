"""The columns of the logits that a device holds, and what is told of all of them together."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Logit of a column that is no token. Finite, so that 0 · (masked - masked) stays 0.
MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class Columns:
    """A share of the vocabulary, the shares in order of the devices along `axes`.

    Methods take arrays [token, column] of this device and agree on all devices about what they give.

    Attributes:
        axes: the mesh axes that the vocabulary is split over; none where it is held whole.
        width: columns of this device.
        tokens: number of columns of all devices that are tokens; the later ones pad.
    """

    axes: tuple[str, ...]
    width: int
    tokens: int

    @property
    def start(self) -> Int[Array, ""] | int:
        """The first of them."""
        return jax.lax.axis_index(self.axes) * self.width if self.axes else 0

    @property
    def is_token(self) -> Bool[Array, "1 column"]:
        """False where a column pads."""
        return (jnp.arange(self.width) + self.start < self.tokens)[None]

    def masked(self, logits: Float[Array, "token column"]) -> Float[Array, "token column"]:
        """Logits without those of columns that pad."""
        held = self.width * math.prod(jax.lax.axis_size(axis) for axis in self.axes)
        return jnp.where(self.is_token, logits, MASKED) if held > self.tokens else logits

    def sum(self, values: Float[Array, "token column"]) -> Float[Array, "token 1"]:
        """Over all columns of all devices."""
        return self._over(jax.lax.psum, jnp.sum(values, axis=-1, keepdims=True))

    def logsumexp(self, logits: Float[Array, "token column"]) -> Float[Array, "token 1"]:
        """log Σ exp over all columns of all devices."""
        largest = self._over(jax.lax.pmax, jnp.max(logits, axis=-1, keepdims=True))
        return largest + jnp.log(self.sum(jnp.exp(logits - largest)))

    def at(self, values: Float[Array, "token column"], ids: Int[Array, "token k"]) -> Float[Array, "token k"]:
        """The values in the columns `ids`; 0 where an id is -1."""
        mine, place = self._mine(ids)
        found = jnp.take_along_axis(values, jnp.where(mine, place, 0), axis=-1)
        return self._over(jax.lax.psum, jnp.where(mine, found, 0.0))

    def spread(self, ids: Int[Array, "token k"], values: Float[Array, "token k"]) -> Float[Array, "token column"]:
        """The values in the columns `ids`, 0 in all others."""
        mine, place = self._mine(ids)
        if ids.shape[1] == 1:  # fuses with what reads it; a scatter is an array of its own
            return jnp.where(place == jnp.arange(self.width, dtype=place.dtype)[None], values, jnp.zeros_like(values))
        rows = jnp.arange(ids.shape[0])[:, None]
        zeros = jnp.zeros((ids.shape[0], self.width), values.dtype)
        return zeros.at[rows, jnp.where(mine, place, self.width)].add(values, mode="drop")

    def least_of_top(self, values: Float[Array, "token column"], k: int) -> Float[Array, "token 1"]:
        """The k-th largest of all columns."""
        top = jax.lax.top_k(values, min(k, self.width))[0]
        if self.axes:
            top = jax.lax.all_gather(top, self.axes, axis=1, tiled=True)
        # Not [:, -1:], for which XLA's CPU compiler sorts all columns.
        return jnp.min(jax.lax.top_k(top, min(k, top.shape[1]))[0], axis=-1, keepdims=True)

    def _mine(self, ids: Array) -> tuple[Bool[Array, "token k"], Int[Array, "token k"]]:
        place = ids - self.start
        return (ids >= 0) & (place >= 0) & (place < self.width), place

    def _over(self, collective: Callable[[Array, tuple[str, ...]], Array], values: Array) -> Array:
        return collective(values, self.axes) if self.axes else values
