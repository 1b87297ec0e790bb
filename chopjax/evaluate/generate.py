"""Sampling with a cache of keys and values, so that a person can read what a model says."""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from chopjax.errors import UserError
from chopjax.models.block import KeysValues
from chopjax.models.config import ModelConfig
from chopjax.models.constrain import KEYS, Constrain, unpinned
from chopjax.models.decoder import Cache, Output, Params, forward, init_cache, logits

# Prompts are filled up to a multiple of this, so that prompts of about the same length share a compilation.
_BUCKET = 16


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: draws from this many of the most likely tokens; 0 for all.
        top_p: draws from the fewest most likely tokens whose probabilities sum to at least this.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError(f"evaluate.temperature is {self.temperature}: give 0 or more")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(f"top_k is {self.top_k} and top_p is {self.top_p}: give at least 0, and above 0 up to 1")


def generate(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    temperature: float = 0.0,
    key: Array | None = None,
    eos: Collection[int] = (),
    *,
    top_k: int = 0,
    top_p: float = 1.0,
) -> list[list[int]]:
    """Continues each prompt by at most `new_tokens` tokens.

    Prompts of different lengths stand in one batch, filled up on the left with padding of segment 0 that no token
    sees, and each counts its own positions from 0, so a continuation does not depend on the prompts beside it. The
    exceptions are the rope rules `dynamic` and `longrope`, which go by the longest sequence of the batch, as in
    transformers; and, as there, keys already in the cache keep the rotation that they were given.

    Args:
        config: the architecture of `params`.
        params: parameters in the compute dtype, sharded in any way; the cache has the same dtype.
        prompts: token ids, at least one each.
        new_tokens: tokens to add at most.
        temperature: 0 for the most likely token; otherwise the logits are divided by it and a token is drawn.
        key: randomness; needed if `temperature` is not 0.
        eos: tokens that end a text.
        top_k: draw from this many of the most likely tokens; 0 for all.
        top_p: draw from the fewest most likely tokens with at least this probability together, after `top_k`.

    Returns:
        For each prompt the added tokens alone, with the `eos` that ended it.

    Raises:
        UserError: an empty prompt, a token outside the vocabulary, or a sampling option out of range.
        ValueError: a temperature without a key.
    """
    sampling = Sampling(temperature, top_k, top_p)
    if temperature and key is None:
        raise ValueError("sampling at a temperature needs a key")
    for i, prompt in enumerate(prompts):
        if not prompt or not 0 <= min(prompt) <= max(prompt) < config.vocab:
            raise UserError(f"prompt {i} is empty or has a token outside of 0 to {config.vocab - 1}: {list(prompt)}")
    if not prompts or new_tokens < 1:
        return [[] for _ in prompts]
    key = jax.random.key(0) if key is None else key
    tokens, segment_ids = _padded(prompts)
    drawn = _generate(config, params, tokens, segment_ids, key, new_tokens, sampling, tuple(sorted(eos)))
    return [_until(row, eos) for row in np.asarray(drawn).tolist()]


class _State(NamedTuple):
    """The loop's carry: `drawn` holds the first `added` tokens, the last of which is not yet in the cache."""

    added: Int[Array, ""]
    drawn: Int[Array, "batch new_tokens"]
    ended: Bool[Array, "batch"]
    cache: Cache


@functools.partial(jax.jit, static_argnames=("config", "new_tokens", "sampling", "eos"))
def _generate(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "batch length"],
    segment_ids: Int[Array, "batch length"],
    key: Array,
    new_tokens: int,
    sampling: Sampling,
    eos: tuple[int, ...],
) -> Int[Array, "batch new_tokens"]:
    positions = jnp.maximum(jnp.cumsum(segment_ids, axis=1) - 1, 0)
    ended = jnp.zeros(tokens.shape[0], bool)
    return continued(config, params, Prompts(tokens, positions, segment_ids, ended), key, new_tokens, sampling, eos)


class Prompts(NamedTuple):
    """Rows that end in the text to be continued; what stands before it is padding or other segments.

    Attributes:
        tokens: token ids.
        positions: place of each token in its segment.
        segment_ids: a token sees its own segment only.
        ended: rows that are not to be continued.
    """

    tokens: Int[Array, "batch length"]
    positions: Int[Array, "batch length"]
    segment_ids: Int[Array, "batch length"]
    ended: Bool[Array, "batch"]


def continued(
    config: ModelConfig,
    params: Params,
    prompts: Prompts,
    key: Array,
    new_tokens: int,
    sampling: Sampling,
    eos: tuple[int, ...] = (),
    *,
    vocab_tokens: int | None = None,
    constrain: Constrain = unpinned,
) -> Int[Array, "batch new_tokens"]:
    """Draws `new_tokens` tokens after each row, or fewer if all rows have ended before; to be called under `jax.jit`.

    One pass over the prompts fills the cache, then a loop adds a token to all rows at a time. What follows an `eos`, or
    stands in a row that had ended, is meaningless. Of the rope rules `dynamic` and `longrope` see `generate`.

    Args:
        config: the architecture of `params`.
        params: parameters in the compute dtype; the cache has the same dtype.
        prompts: what is continued, in the segment of its last token.
        key: randomness; draw i is made with i folded in. The draws do not depend on a mesh.
        new_tokens: tokens to add, at least 1.
        sampling: how a token is drawn.
        eos: tokens that end a text.
        vocab_tokens: only ids below this are drawn; None for all.
        constrain: pins activations and the cache to a mesh.
    """
    batch, length = prompts.tokens.shape
    words = None
    if vocab_tokens is not None:
        words = {"vocab": (jnp.arange(config.vocab) < vocab_tokens).astype(jnp.float32)}

    def extended(state: _State, output: Output) -> _State:
        last = logits(config, params, output.hidden[:, -1], words)
        token = sample(sampling, constrain(last, ("batch", "vocab")), jax.random.fold_in(key, state.added))
        drawn = jax.lax.dynamic_update_slice(state.drawn, token[:, None], (0, state.added))
        ended = state.ended | jnp.isin(token, jnp.asarray(eos, jnp.int32))
        assert output.cache is not None
        return _State(state.added + 1, drawn, ended, output.cache)

    def step(state: _State) -> _State:
        token = jax.lax.dynamic_slice(state.drawn, (0, state.added - 1), (batch, 1))
        position, segment = prompts.positions[:, -1:] + state.added, prompts.segment_ids[:, -1:]
        output = forward(config, params, token, position, segment, cache=state.cache, constrain=constrain)
        return extended(state, output)

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.added < new_tokens) & ~jnp.all(state.ended)

    empty = init_cache(config, batch, length + new_tokens - 1, params["embed"]["table"].dtype)
    k, v = (constrain(array, ("layers", *KEYS)) for array in (empty.layers.k, empty.layers.v))
    cache = Cache(KeysValues(k, v, empty.layers.start), empty.places)
    drawn = jnp.zeros((batch, new_tokens), jnp.int32)
    state = _State(jnp.zeros((), jnp.int32), drawn, prompts.ended, cache)
    state = extended(state, forward(config, params, *prompts[:3], cache=cache, constrain=constrain))
    return jax.lax.while_loop(unfinished, step, state).drawn


def sample(sampling: Sampling, logits: Float[Array, "batch vocab"], key: Array) -> Int[Array, "batch"]:
    """Draws one token for each row of float32 logits."""
    if not sampling.temperature:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = _at_least(logits, least)
    if sampling.top_p < 1:
        falling = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(falling, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        least = jnp.min(jnp.where(before < sampling.top_p, falling, jnp.inf), axis=-1, keepdims=True)
        logits = _at_least(logits, least)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def _at_least(logits: Float[Array, "batch vocab"], least: Float[Array, "batch 1"]) -> Float[Array, "batch vocab"]:
    return jnp.where(logits >= jnp.broadcast_to(least, logits.shape), logits, -jnp.inf)


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[Int[np.ndarray, "batch length"], ...]:
    longest = max(map(len, prompts))
    length = -(-longest // _BUCKET) * _BUCKET
    tokens, segment_ids = (np.zeros((len(prompts), length), np.int32) for _ in range(2))
    for i, prompt in enumerate(prompts):
        tokens[i, length - len(prompt) :] = prompt
        segment_ids[i, length - len(prompt) :] = 1
    return tokens, segment_ids


def _until(tokens: list[int], eos: Collection[int]) -> list[int]:
    ends = [i + 1 for i, token in enumerate(tokens) if token in eos]
    return tokens[: ends[0]] if ends else tokens
