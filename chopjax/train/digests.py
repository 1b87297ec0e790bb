"""Digests of what a checkpoint holds: the same on any mesh, different for any flipped bit.

The digest of an array is two sums, modulo 2^32, over a mix of each element's bits with its position. Sums of integers
do not depend on the order of their terms, so each device sums its own part and the result is exact. For a given
position the mix is a bijection: a change of one element changes both sums. Moved elements change the sums too.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped, UInt32

# One odd factor for each axis of an array; otherwise arbitrary.
_FACTORS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0xD3A2646D, 0xFD7046C5, 0xB55A4F09)

Pair = tuple[UInt32[Array, ""], UInt32[Array, ""]]


def of_arrays(arrays: Mapping[str, Array]) -> dict[str, str]:
    """The digest of each array, 16 hexadecimal digits. Reads each array once and copies none.

    All processes that hold parts of the arrays call this alike and get the same result.
    """
    if not arrays:
        return {}
    sharding = getattr(next(iter(arrays.values())), "sharding", None)
    on = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
    sums = np.asarray(_compiled(on)(list(arrays.values())))
    return {name: f"{first:08x}{second:08x}" for name, (first, second) in zip(arrays, sums.tolist(), strict=True)}


def of_json(value: Any) -> str:
    """The digest of a value read from JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def of_traced(arrays: Sequence[Array]) -> UInt32[Array, "arrays 2"]:
    """The two sums of each array, for use in compiled functions."""
    return jnp.stack([jnp.stack(_sums(array)) for array in arrays])


@functools.cache
def _compiled(on: NamedSharding | None) -> Any:
    """The sums, on every device of a mesh."""
    return jax.jit(of_traced, out_shardings=on)


def _sums(array: Shaped[Array, "..."]) -> Pair:
    words = _words(array)
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position += index * jnp.uint32(_FACTORS[axis % len(_FACTORS)])
    mixed = _mix(words ^ position)
    # One reduction of a pair: of two reductions, or of a single one, XLA for CPUs keeps the mixed array in memory.
    zero = jnp.uint32(0)
    terms = (mixed, mixed * (position | jnp.uint32(1)))
    return tuple(jax.lax.reduce(terms, (zero, zero), _add, tuple(range(words.ndim))))  # type: ignore[return-value]


def _add(left: Pair, right: Pair) -> Pair:
    return left[0] + right[0], left[1] + right[1]


def _words(array: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    """The bits of each element as one number of 32 bits, or two of them along a further axis."""
    if array.dtype == bool:
        return array.astype(jnp.uint32)
    bits = 8 * min(array.dtype.itemsize, 4)
    return jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Spreads each bit over all 32; a bijection (the last steps of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
