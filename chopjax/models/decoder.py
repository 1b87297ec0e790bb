"""The decoder: embedding, a scan over stacked blocks, a final norm. Pure functions of plain nested dicts of arrays."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PyTree

from chopjax.axes import flatten, unflatten
from chopjax.models.attention import Places
from chopjax.models.block import Block, KeysValues, Masks, Tokens, masked
from chopjax.models.config import ModelConfig
from chopjax.models.constrain import RESIDUAL, Constrain, unpinned
from chopjax.models.kept import Keep, empty, put, slot_of_layer
from chopjax.models.layers import PRODUCT, Norm, parameter
from chopjax.models.lookup import lookup
from chopjax.models.parameters import declare
from chopjax.models.rope import rotation

Params = dict[str, Any]
Tap = Callable[[Mapping[str, Array]], PyTree]
"""Picks or reduces the named activations of one block; its results come back stacked along `layers`."""

# Name of a block's input, for remat policies that keep it elsewhere than on the device.
INPUT = "block_input"


def _on_host(*names: str) -> Callable[..., Any]:
    """Keeps the named arrays in the host's memory, and makes all others again."""
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(names),
        offload_src="device",
        offload_dst="pinned_host",
    )


# What the backward pass finds of each block beside its parameters: everything; its input; its input and products; its
# input, or its input and products, in the memory of the host.
REMAT: Mapping[str, Callable[..., Any] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "offload": _on_host(INPUT),
    "offload_dots": _on_host(INPUT, PRODUCT),
}


class Cache(NamedTuple):
    """Keys, values and their places for sampling; segment 0 marks slots not yet written."""

    layers: KeysValues
    places: Places


class Output(NamedTuple):
    """What a forward pass gives.

    Attributes:
        hidden: the final norm's output, which the unembedding maps to logits.
        embedded: the embedding's output, before the first block.
        taps: what the tap returned for each block, stacked along `layers`; None without a tap.
        cache: the updated cache; None without one.
        kept: the activations that `keep` names, each stacked along the layers that it names.
    """

    hidden: Float[Array, "batch length embed"]
    embedded: Float[Array, "batch length embed"]
    taps: PyTree
    cache: Cache | None
    kept: Mapping[str, Float[Array, "kept batch length *rest"]]


class Decoder(nnx.Module):
    """A decoder-only transformer as a Flax module, so that tools which take NNX models take this one."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        leaves = unflatten(declare(config))
        self.config = config
        self.embed = Table(leaves["embed"], config, rngs)
        self.layers = Block(leaves["layers"], config, rngs)
        self.final_norm = Norm(leaves["final_norm"], config, rngs)
        self.unembed = None if config.tied else Unembed(leaves["unembed"], config, rngs)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None = None,
        segment_ids: Int[Array, "batch length"] | None = None,
        *,
        masks: Masks | None = None,
        tap: Tap | None = None,
        keep: Keep | None = None,
        remat: str = "none",
        constrain: Constrain = unpinned,
        cache: Cache | None = None,
    ) -> Output:
        """See `forward`."""
        masks = dict(masks or {})
        x = embedded = self.embedded(tokens, masks.get("embed"), constrain)
        where = places(self.config, tokens, positions, segment_ids, cache)
        shared = {name: masks.pop(name) for name in ("embed", "vocab") if name in masks}
        graph, stacked = nnx.split(self.layers)

        keep = keep or {}

        def step(x: Array, layer: tuple) -> tuple[Array, dict[str, Array], tuple[PyTree, KeysValues | None]]:
            params, kind, own_masks, keys_values = layer
            if remat.startswith("offload"):
                x = checkpoint_name(x, INPUT)
            block = nnx.merge(graph, params)
            activations, keys_values = block(x, where, kind, shared | own_masks, keys_values, constrain)
            picked = {name: activations[name] for name in keep}
            return activations["block_output"], picked, (tap(activations) if tap else None, keys_values)

        if remat != "none":
            step = jax.checkpoint(step, policy=REMAT[remat], prevent_cse=False)

        def keeping(carry: tuple[Array, dict], over: tuple) -> tuple[tuple[Array, dict], PyTree]:
            x, picked, out = step(carry[0], over[0])
            return (x, put(carry[1], picked, over[1])), out

        kinds = jnp.asarray(self.config.kind_of_layer, jnp.int32)
        over = (stacked, kinds, masks, cache.layers if cache else None)
        sizes = {**self.config.sizes, "batch": x.shape[0], "length": x.shape[1]}
        start = (x, empty(keep, sizes, x.dtype, constrain))
        slots = jax.tree.map(jnp.asarray, slot_of_layer(keep, self.config.layers))
        (x, kept), (taps, keys_values) = jax.lax.scan(keeping, start, (over, slots))
        hidden = self.final_norm(x, shared.get("embed"))
        new_cache = Cache(keys_values, where.keys) if keys_values else None
        return Output(constrain(hidden, RESIDUAL), embedded, taps, new_cache, kept)

    def embedded(
        self, tokens: Int[Array, "batch length"], mask: Array | None, constrain: Constrain
    ) -> Float[Array, "batch length embed"]:
        """The residual stream before the first block."""
        return constrain(masked(lookup(self.embed.table[...], tokens, constrain), mask), RESIDUAL)


class Table(nnx.Module):
    """The embedding table."""

    def __init__(self, leaves: Mapping[str, Any], config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.table = parameter(leaves["table"], config, rngs)


class Unembed(nnx.Module):
    """The matrix that maps hidden states to logits, where it is not the embedding table."""

    def __init__(self, leaves: Mapping[str, Any], config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.kernel = parameter(leaves["kernel"], config, rngs)


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "batch length"],
    positions: Int[Array, "batch length"] | None = None,
    segment_ids: Int[Array, "batch length"] | None = None,
    *,
    masks: Masks | None = None,
    tap: Tap | None = None,
    keep: Keep | None = None,
    remat: str = "none",
    constrain: Constrain = unpinned,
    cache: Cache | None = None,
) -> Output:
    """Runs the decoder; computes in the dtype of `params`, with norms and softmax in float32.

    Args:
        config: the architecture; must fit `params`.
        params: nested dict of arrays as declared in `models.parameters`.
        tokens: token ids.
        positions: place of each token in its sequence, from 0, rising along each segment; counted along the row if
            None.
        segment_ids: packed sequences of a row; a token sees its own segment only. All one segment if None.
        masks: what a plan would keep, as masks on the full-width model (see `chopjax.chop.masks`).
        tap: picks or reduces the activations of each block (names in `models.block.Block`).
        keep: activations that come back whole, and of which layers; no others take memory.
        remat: which activations the backward pass recomputes, or fetches from the host (`REMAT`).
        constrain: pins activation shardings.
        cache: keys and values of earlier tokens; the given tokens follow them.

    Returns:
        Hidden states after the final norm, and what was asked for besides.
    """
    return bind(config, params)(
        tokens, positions, segment_ids, masks=masks, tap=tap, keep=keep, remat=remat, constrain=constrain, cache=cache
    )


def bind(config: ModelConfig, params: Params) -> Decoder:
    """A `Decoder` that holds the given arrays.

    Raises:
        ValueError: `params` lacks a leaf of `config` or has one more.
    """
    graph, state = _graph(config)
    differing = flatten(nnx.to_pure_dict(state)).keys() ^ flatten(params).keys()
    if differing:
        raise ValueError(f"params do not fit the config: {sorted(differing)} are on one side only")
    state = jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(params))
    return nnx.merge(graph, state)


def abstract_params(config: ModelConfig, dtype: jax.typing.DTypeLike = jnp.float32) -> Params:
    """Shapes and dtype of every parameter, without making any."""
    leaves = declare(config).items()
    return unflatten({path: jax.ShapeDtypeStruct(leaf.shape(config.sizes), dtype) for path, leaf in leaves})


def init_params(config: ModelConfig, key: Array) -> Params:
    """Freshly drawn float32 parameters."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(params=key))))


def unembedding(config: ModelConfig, params: Params) -> Float[Array, "embed vocab"]:
    """The matrix from hidden states to logits."""
    return params["embed"]["table"].T if config.tied else params["unembed"]["kernel"]


def logits(
    config: ModelConfig, params: Params, hidden: Float[Array, "*rest embed"], masks: Masks | None = None
) -> Float[Array, "*rest vocab"]:
    """float32 logits, −∞ where a mask drops the word. For a few positions only: losses work in chunks instead."""
    full = jnp.tensordot(hidden, unembedding(config, params), axes=1, preferred_element_type=jnp.float32)
    if masks is None or "vocab" not in masks:
        return full
    return jnp.where(jnp.broadcast_to(masks["vocab"] > 0, full.shape), full, -jnp.inf)


def init_cache(config: ModelConfig, batch: int, length: int, dtype: jax.typing.DTypeLike) -> Cache:
    """An empty cache for `batch` sequences of at most `length` tokens."""
    shape = (config.layers, batch, length, config.kv_heads, config.head_dim)
    start = jnp.zeros(config.layers, jnp.int32)
    empty = jnp.zeros((batch, length), jnp.int32)
    return Cache(KeysValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), start), Places(empty, empty))


def places(
    config: ModelConfig,
    tokens: Int[Array, "batch length"],
    positions: Int[Array, "batch length"] | None,
    segment_ids: Int[Array, "batch length"] | None,
    cache: Cache | None = None,
) -> Tokens:
    """Where the tokens stand, with the defaults of `forward`."""
    start = cache.layers.start[0] if cache else 0
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] + start, tokens.shape)
    if segment_ids is None:
        segment_ids = jnp.ones(tokens.shape, jnp.int32)
    queries = keys = Places(positions, segment_ids)
    if cache:
        written = (jax.lax.dynamic_update_slice(*pair, (0, start)) for pair in zip(cache.places, queries, strict=True))
        keys = Places(*written)
    return Tokens(queries, keys, *rotation(config, positions))


@functools.lru_cache
def _graph(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(params=0))))
