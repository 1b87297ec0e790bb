"""Relations of queries, keys or values with themselves, and their divergence (MiniLMv2, arXiv 2012.15828).

MiniLMv2 distils encoders. In a decoder a token's relation is a distribution over the tokens that it could attend to in
a layer without a window: itself and those before it in its segment. So nothing that the student's own attention cannot
see enters the loss, and packed sequences do not mix.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Queries whose relations exist at one time, in every head.
BLOCK = 128


def relation_divergence(
    student: Float[Array, "batch length *student_heads"],
    teacher: Float[Array, "batch length *teacher_heads"],
    segment_ids: Int[Array, "batch length"],
    heads: int,
    block: int = BLOCK,
) -> Float[Array, "batch length"]:
    """KL(teacher ‖ student) of each token's relations, averaged over the relation heads.

    The heads of either side are put side by side and cut anew into `heads` equal parts, of width d; the relation is
    softmax(x xᵀ / √d), in float32. Relations are made for a block of tokens at a time, and again in the backward pass.

    Args:
        student: queries, keys or values of one layer.
        teacher: the same of the teacher, of any width; there is no gradient to it.
        segment_ids: packed sequences; padding is a segment like any other.
        heads: relation heads; must divide the width of both sides.
        block: tokens in a block.
    """
    batch, length = segment_ids.shape
    block = min(block, length)
    blocks = math.ceil(length / block)
    sides = [_cut(x, heads, blocks * block) for x in (student, jax.lax.stop_gradient(teacher))]
    segments = jnp.pad(segment_ids, ((0, 0), (0, blocks * block - length)))
    index = jnp.arange(blocks * block, dtype=jnp.int32)

    def of_block(queries: tuple[list[Array], Array, Array]) -> Float[Array, "batch block"]:
        own, own_segments, own_index = queries
        seen = own_segments[:, :, None] == segments[:, None, :]
        seen &= (own_index[:, None] >= index[None, :])[None]
        log_q, log_p = (_log_relation(q, x, seen) for q, x in zip(own, sides, strict=True))
        terms = jnp.where(seen[:, None], jnp.exp(log_p) * (log_p - log_q), 0.0)
        return jnp.mean(jnp.sum(terms, axis=-1), axis=1)

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(batch, blocks, block, *x.shape[2:]), 1, 0)

    own = ([split(x) for x in sides], split(segments), index.reshape(blocks, block))
    by_block = jax.lax.map(jax.checkpoint(of_block), own)
    return jnp.moveaxis(by_block, 0, 1).reshape(batch, blocks * block)[:, :length]


def _cut(x: Array, heads: int, length: int) -> Float[Array, "batch padded heads width"]:
    cut = x.reshape(*x.shape[:2], heads, -1)
    return jnp.pad(cut, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))


def _log_relation(
    queries: Float[Array, "batch block heads width"],
    x: Float[Array, "batch length heads width"],
    seen: Bool[Array, "batch block length"],
) -> Float[Array, "batch heads block length"]:
    scores = jnp.einsum("bqad,bkad->baqk", queries, x, preferred_element_type=jnp.float32) * x.shape[-1] ** -0.5
    return jax.nn.log_softmax(jnp.where(seen[:, None], scores, jnp.finfo(jnp.float32).min), axis=-1)
