"""Rotary position embedding with every scaling rule that transformers 5 knows for text decoders.

Rotation pairs dimension i with i + pairs (the half-split layout of Hugging Face checkpoints), never neighbours, so
weights need no re-ordering.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from chopjax.models.config import ModelConfig, Rope

Frequencies = Float[Array, "pairs"] | Float[np.ndarray, "pairs"]


def rotation(
    config: ModelConfig, positions: Int[Array, "batch length"]
) -> tuple[Float[Array, "batch length pairs"], Float[Array, "batch length pairs"]]:
    """Cosines and sines for `positions`, float32, already multiplied by the rule's attention factor.

    `dynamic` and `longrope` depend on the longest position present, as in transformers.
    """
    longest = jnp.max(positions) + 1
    frequencies = _frequencies(config, longest)
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)[None, None, :]
    factor = attention_factor(config)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


@jax.custom_vjp
def rotate(
    x: Float[Array, "batch length *heads head_dim"],
    cos: Float[Array, "batch length pairs"],
    sin: Float[Array, "batch length pairs"],
) -> Float[Array, "batch length *heads head_dim"]:
    """Rotates the first 2 · pairs dimensions of every head; the rest pass through.

    Its gradient is rotated back the same way: JAX's own would be four padded pieces, added up. Angles get none.
    """
    pairs = cos.shape[-1]
    heads = (1,) * (x.ndim - 3)
    cos = cos.reshape(*cos.shape[:2], *heads, pairs).astype(x.dtype)
    sin = sin.reshape(*sin.shape[:2], *heads, pairs).astype(x.dtype)
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def _rotate_forward(x: Array, cos: Array, sin: Array) -> tuple[Array, tuple[Array, Array]]:
    return rotate(x, cos, sin), (cos, sin)


def _rotate_backward(angles: tuple[Array, Array], d_y: Array) -> tuple[Array, None, None]:
    cos, sin = angles
    return rotate(d_y, cos, -sin), None, None


rotate.defvjp(_rotate_forward, _rotate_backward)


def attention_factor(config: ModelConfig) -> float:
    """The factor on cosines and sines: YaRN's mscale, LongRoPE's √(1 + ln factor / ln original), otherwise 1."""
    rope = config.rope
    if rope.kind not in ("yarn", "longrope"):
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    factor = _stretch(config)
    if rope.kind == "longrope":
        assert rope.original_positions is not None
        return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(rope.original_positions))

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def _frequencies(config: ModelConfig, longest: Int[Array, ""]) -> Frequencies:
    dim = int(config.head_dim * config.rope.rotary_fraction)
    rule: Callable[[ModelConfig, int, Array], Frequencies] = _RULES[config.rope.kind]
    return rule(config, dim, longest)


def _plain(rope: Rope, dim: int) -> Float[np.ndarray, "pairs"]:
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (1.0 / np.float32(rope.theta) ** exponents).astype(np.float32)


def _default(config: ModelConfig, dim: int, longest: Array) -> Frequencies:
    return _plain(config.rope, dim)


def _linear(config: ModelConfig, dim: int, longest: Array) -> Frequencies:
    return _plain(config.rope, dim) / np.float32(_required(config.rope.factor))


def _dynamic(config: ModelConfig, dim: int, longest: Array) -> Frequencies:
    # NTK-aware scaling: the base grows once the sequence is longer than the model's positions.
    factor = _required(config.rope.factor)
    length = jnp.maximum(longest, config.positions).astype(jnp.float32)
    base = config.rope.theta * (factor * length / config.positions - (factor - 1)) ** (dim / (dim - 2))
    return 1.0 / base ** (jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)


def _llama3(config: ModelConfig, dim: int, longest: Array) -> Frequencies:
    rope = config.rope
    plain = _plain(rope, dim)
    factor, low, high = _required(rope.factor), _required(rope.low_freq_factor), _required(rope.high_freq_factor)
    original = _required(rope.original_positions)
    wavelength = 2 * np.pi / plain
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * plain / factor + smooth * plain
    slow = np.where(wavelength > original / low, plain / factor, plain)
    medium = (wavelength >= original / high) & (wavelength <= original / low)
    return np.where(medium, blended, slow).astype(np.float32)


def _yarn(config: ModelConfig, dim: int, longest: Array) -> Frequencies:
    rope = config.rope
    plain, factor, original = _plain(rope, dim), _stretch(config), _required(rope.original_positions)

    def correction(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = correction(rope.beta_fast or 32), correction(rope.beta_slow or 1)
    if rope.truncate is None or rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 if low == high else 0
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    return (plain / factor * ramp + plain * (1 - ramp)).astype(np.float32)


def _longrope(config: ModelConfig, dim: int, longest: Array) -> Frequencies:
    rope = config.rope
    plain = _plain(rope, dim)
    assert rope.long_factor is not None and rope.short_factor is not None
    long, short = (plain / np.asarray(f, np.float32) for f in (rope.long_factor, rope.short_factor))
    return jnp.where(longest > _required(rope.original_positions), long, short)


def _stretch(config: ModelConfig) -> float:
    """How many times longer the sequences are than in pretraining."""
    rope = config.rope
    return rope.factor if rope.factor is not None else config.positions / _required(rope.original_positions)


def _required(value: float | None) -> float:
    if value is None:
        raise ValueError("rope: a field that its kind requires is missing")
    return value


_RULES: dict[str, Callable[[ModelConfig, int, Array], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
