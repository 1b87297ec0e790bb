"""A few tokens of the teacher's distribution at each position, to be kept in place of the teacher."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from chopjax.distill.targets import Sparse
from chopjax.errors import UserError
from chopjax.models.constrain import Constrain, unpinned


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TopTokens:
    """The k most probable tokens of each position.

    Attributes:
      ids: the tokens, the most probable first; of equal ones the lowest id first.
      log_probs: their log-probabilities over the whole vocabulary, in nats.
      log_tail: the log of the probability of all other tokens; -inf without any.
    """

    ids: Int[Array, "batch length k"]
    log_probs: Float[Array, "batch length k"]
    log_tail: Float[Array, "batch length"]

    def sparse(self) -> Sparse:
        """The targets of a loss."""
        probs, tail = jnp.exp(self.log_probs), jnp.exp(self.log_tail)
        plogp = jnp.where(probs > 0, probs * self.log_probs, 0.0).sum(-1)
        return Sparse(self.ids, probs, tail, plogp + jnp.where(tail > 0, tail * self.log_tail, 0.0))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Draws:
    """Random tokens of each position, drawn with replacement.

    Attributes:
      ids: the tokens in rising order, each at the first place of its draws; -1 at the places of its other draws.
      counts: how often each was drawn; 0 where `ids` is -1. They add up to the number of draws.
      entropy: of the distribution that was drawn from, in nats.
    """

    ids: Int[Array, "batch length draws"]
    counts: Int[Array, "batch length draws"]
    entropy: Float[Array, "batch length"]

    def sparse(self) -> Sparse:
        """The targets of a loss, whose gradient is in expectation that of the whole distribution."""
        probs = self.counts.astype(jnp.float32) / self.ids.shape[-1]
        return Sparse(self.ids, probs, jnp.zeros_like(self.entropy), -self.entropy)


def top_tokens(
    hidden: Float[Array, "batch length embed"],
    unembed: Float[Array, "embed vocab"],
    k: int,
    *,
    temperature: float = 1.0,
    vocab_tokens: int | None = None,
    chunk: int = 512,
    constrain: Constrain = unpinned,
) -> TopTokens:
    """The k most probable tokens at each position, and what is left to all others.

    Args:
        hidden: the teacher's final hidden states, after the final norm.
        unembed: its unembedding.
        k: how many.
        temperature: by which logits are divided.
        vocab_tokens: number of real tokens; later columns, which only pad a vocabulary, have no probability.
        chunk: tokens of the batch, over all devices, whose logits exist at one time; at least one of each row.
        constrain: the mesh (`chopjax.sharding.mesh.Constrain`).

    Raises:
        UserError: the vocabulary has fewer than `k` or than `vocab_tokens` tokens.
    """
    tokens = _tokens(unembed, vocab_tokens)
    if k > tokens:
        raise UserError(f"cache.k is {k}, but the tokenizer has only {tokens} tokens; keep {tokens} or fewer")

    def of_chunk(log_probs: Float[Array, "*tokens vocab"]) -> tuple[Array, ...]:
        top, ids = jax.lax.top_k(log_probs, k)
        return ids, top, _log_rest(log_probs, top)

    found = _by_chunk(of_chunk, hidden, unembed, (), temperature, tokens, chunk, constrain)
    return TopTokens(*found)


def draw_tokens(
    hidden: Float[Array, "batch length embed"],
    unembed: Float[Array, "embed vocab"],
    keys: UInt32[Array, "batch 2"],
    draws: int,
    *,
    temperature: float = 1.0,
    vocab_tokens: int | None = None,
    chunk: int = 512,
    constrain: Constrain = unpinned,
) -> Draws:
    """Independent draws from the teacher's distribution at each position (arXiv:2503.16870, section 4).

    What is drawn for a row follows from its key and its distributions alone, so it is the same in any batch, in chunks
    of any size and on any mesh (as far as rounding lets the distributions be the same: a draw changes where its random
    number lies within rounding of a border).

    Args:
        hidden: the teacher's final hidden states, after the final norm.
        unembed: its unembedding.
        keys: a key for each row, as raw data of a threefry key.
        draws: how many at each position.
        temperature: by which logits are divided; so are the others, see `top_tokens`.

    Raises:
        UserError: the vocabulary has fewer than `vocab_tokens` tokens.
    """
    tokens = _tokens(unembed, vocab_tokens)

    def of_row(key: UInt32[Array, "2"]) -> Array:
        wrapped = jax.random.wrap_key_data(key, impl="threefry2x32")
        return jax.random.uniform(wrapped, (hidden.shape[1], draws, 2), jnp.float32)

    def of_chunk(
        log_probs: Float[Array, "*tokens vocab"], uniforms: Float[Array, "*tokens draws 2"]
    ) -> tuple[Array, ...]:
        probs = jnp.exp(log_probs)
        entropy = -jnp.where(probs > 0, probs * log_probs, 0.0).sum(-1)
        drawn = jnp.minimum(_invert(probs, uniforms), tokens - 1)
        return (*_counted(drawn), entropy)

    uniforms = constrain(jax.vmap(of_row)(keys), ("batch", None, None, None))
    found = _by_chunk(of_chunk, hidden, unembed, (uniforms,), temperature, tokens, chunk, constrain)
    return Draws(*found)


def _tokens(unembed: Array, vocab_tokens: int | None) -> int:
    width = unembed.shape[1]
    if vocab_tokens is not None and not 0 < vocab_tokens <= width:
        raise UserError(f"the tokenizer has {vocab_tokens} tokens but the teacher has only {width} rows of vocabulary")
    return vocab_tokens or width


def _by_chunk(
    of_chunk: Callable[..., tuple[Array, ...]],
    hidden: Float[Array, "batch length embed"],
    unembed: Float[Array, "embed vocab"],
    others: tuple[Array, ...],
    temperature: float,
    tokens: int,
    chunk: int,
    pin: Constrain,
) -> tuple[Array, ...]:
    """`of_chunk` of the float32 log-probabilities [batch, position, vocab] of some positions of all rows, and of the
    same positions of `others`; the results put together along the length."""
    batch, length = hidden.shape[:2]
    count = math.ceil(length / max(1, chunk // batch))
    parts = pin.size(pin.parts("length"))
    positions = math.ceil(length / count / parts) * parts
    unembed, of_tokens = pin(unembed, (None, "vocab")), ("batch", "length")

    def split(array: Array) -> Array:
        padded = jnp.pad(array, [(0, 0), (0, count * positions - length)] + [(0, 0)] * (array.ndim - 2))
        chunks = jnp.moveaxis(padded.reshape(batch, count, positions, *array.shape[2:]), 1, 0)
        return pin(chunks, (None, "batch", "length", *(None for _ in array.shape[2:])))

    def join(chunks: Array) -> Array:
        return jnp.moveaxis(chunks, 0, 1).reshape(batch, -1, *chunks.shape[3:])[:, :length]

    def step(parts: tuple[Array, ...]) -> tuple[Array, ...]:
        product = jnp.einsum("bte,ev->btv", parts[0], unembed, preferred_element_type=jnp.float32)
        # Made in parts of the vocabulary, then whole: each device goes through all logits of its own rows. By hand, for
        # the partitioner would have every device search the rows of all.
        logits = pin(pin(product, ("batch", "length", "vocab")), ("batch", "length", None)) / temperature
        logits = jnp.where(jnp.arange(logits.shape[-1])[None, None] < tokens, logits, -jnp.inf)
        log_probs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        return pin.manual(of_chunk, tuple(of_tokens for _ in parts), of_tokens)(log_probs, *parts[1:])

    return tuple(map(join, jax.lax.map(step, tuple(map(split, (hidden, *others))))))


def _log_rest(log_probs: Float[Array, "*tokens vocab"], top: Float[Array, "*tokens k"]) -> Float[Array, "*tokens"]:
    """log of the summed probability of all but the `top` ones; as exact for 1e-20 as for 0.5, unlike 1 - sum."""
    # Not as the last of `top`: with a slice of its own, XLA takes a full sort in place of its partial one.
    least = top.min(-1, keepdims=True)
    below = jnp.where(log_probs < least, log_probs, -jnp.inf)
    ties = (log_probs == least).sum(-1) - (top == least).sum(-1)  # as probable as the last, but not kept
    of_ties = jnp.where(ties > 0, least[..., 0] + jnp.log(jnp.maximum(ties, 1).astype(jnp.float32)), -jnp.inf)
    return jnp.logaddexp(jax.nn.logsumexp(below, axis=-1), of_ties)


def _invert(
    probs: Float[Array, "*tokens vocab"], uniforms: Float[Array, "*tokens draws 2"]
) -> Int[Array, "*tokens draws"]:
    """Draws by inverting the cumulative distribution, first of blocks of tokens, then within the drawn block.

    One float32 sum over all tokens would know probabilities to 6e-8 only, and could not draw the rarer ones rightly.
    """
    *tokens, vocab = probs.shape
    block = math.isqrt(vocab - 1) + 1
    padded = jnp.pad(probs, [(0, 0)] * len(tokens) + [(0, -vocab % block)])
    blocks = padded.reshape(*tokens, -1, block)
    drawn = _find(blocks.sum(-1)[..., None, :], uniforms[..., 0])
    within = jnp.take_along_axis(blocks, drawn[..., None], axis=-2)
    return drawn * block + _find(within, uniforms[..., 1])


def _find(
    weights: Float[Array, "*tokens #draws n"], uniforms: Float[Array, "*tokens draws"]
) -> Int[Array, "*tokens draws"]:
    """The index at which the running sum of `weights` first exceeds its total times the random number."""
    running = jax.lax.cummax(jnp.cumsum(weights, axis=-1), axis=weights.ndim - 1)  # rounding may let a sum fall
    below = running <= (running[..., -1] * uniforms)[..., None]
    return jnp.minimum(below.sum(-1), weights.shape[-1] - 1).astype(jnp.int32)


def _counted(drawn: Int[Array, "*tokens draws"]) -> tuple[Int[Array, "*tokens draws"], Int[Array, "*tokens draws"]]:
    """`ids` and `counts` of `Draws`."""
    draws = drawn.shape[-1]
    rising = jnp.sort(drawn, axis=-1)
    new = rising[..., 1:] != rising[..., :-1]
    first = jnp.concatenate([jnp.ones_like(new, shape=(*new.shape[:-1], 1)), new], axis=-1)
    # Each count reaches from one first place to the next.
    starts = jnp.where(first, jnp.arange(draws), draws)
    following = jax.lax.cummin(starts, axis=starts.ndim - 1, reverse=True)
    ends = jnp.concatenate([following[..., 1:], jnp.full_like(following[..., :1], draws)], axis=-1)
    return jnp.where(first, rising, -1), jnp.where(first, ends - starts, 0).astype(jnp.int32)
