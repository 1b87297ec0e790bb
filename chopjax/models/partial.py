"""Parts of the decoder's stack, forward only: any layers, in any order, from any residual stream.

`forward` scans over all layers. Here the layers and the bounds are traced, so that one compilation serves every part
of every candidate.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from chopjax.models.block import Tokens
from chopjax.models.config import ModelConfig
from chopjax.models.constrain import RESIDUAL, Constrain, unpinned
from chopjax.models.decoder import Decoder, Params, bind, places


class Stack(NamedTuple):
    """A decoder and the tokens that it is run on.

    Attributes:
        decoder: holds the parameters.
        where: where the tokens stand.
        constrain: pins activation shardings.
    """

    decoder: Decoder
    where: Tokens
    constrain: Constrain


def enter(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "batch length"],
    positions: Int[Array, "batch length"] | None = None,
    segment_ids: Int[Array, "batch length"] | None = None,
    *,
    constrain: Constrain = unpinned,
) -> tuple[Stack, Float[Array, "batch length embed"]]:
    """The stack, and the residual stream before its first layer; arguments as in `chopjax.models.decoder.forward`."""
    decoder = bind(config, params)
    stack = Stack(decoder, places(config, tokens, positions, segment_ids), constrain)
    return stack, decoder.embedded(tokens, None, constrain)


def run_layers(
    stack: Stack,
    x: Float[Array, "batch length embed"],
    order: Int[Array, "places"],
    first: Int[Array, ""] | int,
    last: Int[Array, ""] | int,
) -> Float[Array, "batch length embed"]:
    """The residual stream after the layers `order[first], ..., order[last - 1]`; `x` itself where there are none.

    Args:
        stack: from `enter`.
        x: the residual stream that the first of these layers reads.
        order: layers by their place in the stack that is run; entries outside of the bounds are not looked at.
        first: place of the first layer.
        last: one beyond the place of the last layer.
    """
    graph, stacked = nnx.split(stack.decoder.layers)
    kinds = jnp.asarray(stack.decoder.config.kind_of_layer, jnp.int32)

    def step(place: Array, x: Array) -> Array:
        layer = order[place]
        params = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), stacked)
        activations, _ = nnx.merge(graph, params)(x, stack.where, kinds[layer], {}, None, stack.constrain)
        return activations["block_output"]

    return jax.lax.fori_loop(first, last, step, x)


def leave(stack: Stack, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length embed"]:
    """What the unembedding maps to logits: the final norm's output."""
    return stack.constrain(stack.decoder.final_norm(x), RESIDUAL)
