"""Sums of losses over chunks of tokens, with the gradients made in the same pass.

Reverse-mode differentiation of a loss would either keep every chunk's logits or make them a second time. But the
total is a scalar, so its gradients can be made beside it and only be scaled when the cotangent arrives.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from chopjax.models.block import Constrain

# Logit of a column that is no token. Finite, so that 0 · (masked - masked) stays 0.
MASKED = -1e30

Parts = dict[str, Array]
Teacher = tuple[Float[Array, "batch length teacher_embed"], Float[Array, "teacher_embed vocab"]]


@dataclasses.dataclass(frozen=True)
class Chunking:
    """How [batch, length] is cut: `row_chunks` x `length_chunks` chunks of `rows` x `positions` tokens.

    Rows of one chunk lie `row_chunks` apart in the batch. So where the batch axis is held in `shards` consecutive
    parts, each part gives `rows / shards` rows to every chunk and nothing moves between devices.
    """

    row_chunks: int
    rows: int
    length_chunks: int
    positions: int
    shards: int

    @classmethod
    def make(cls, chunk: int, shape: tuple[int, ...], shards: int) -> "Chunking":
        """The fewest even chunks of at most `chunk` tokens; never less than one token for each shard.

        Raises:
            ValueError: the batch cannot be held in `shards` equal parts.
        """
        batch, length = shape
        if batch % shards:
            raise ValueError(f"a batch of {batch} rows cannot be held in {shards} equal parts")
        share = batch // shards
        fitting = [n for n in range(1, share + 1) if share % n == 0 and n * shards <= chunk]
        rows = max(fitting, default=1) * shards
        length_chunks = math.ceil(length / max(1, chunk // rows))
        return cls(batch // rows, rows, length_chunks, math.ceil(length / length_chunks), shards)

    def split(self, array: Array, pin: Constrain) -> Array:
        """[batch, length, ...] → [chunk, token, ...], filled up with zeros at the end of the length."""
        missing = self.length_chunks * self.positions - array.shape[1]
        rest = array.shape[2:]
        padded = jnp.pad(array, [(0, 0), (0, missing)] + [(0, 0)] * len(rest))
        cut = padded.reshape(self.rows, self.row_chunks, self.length_chunks, self.positions, *rest)
        chunks = jnp.moveaxis(cut, 0, 2).reshape(-1, self.rows * self.positions, *rest)
        return pin(chunks, (None, "batch", *(None for _ in rest)))

    def join(self, chunks: Array, length: int) -> Array:
        """The inverse of `split`."""
        rest = chunks.shape[2:]
        cut = chunks.reshape(self.row_chunks, self.length_chunks, self.rows, self.positions, *rest)
        return jnp.moveaxis(cut, 2, 0).reshape(self.rows * self.row_chunks, -1, *rest)[:, :length]


@dataclasses.dataclass(frozen=True)
class Terms:
    """Weights of the terms, as in `losses.LossConfig`, and the number of columns that are tokens."""

    next_token: float
    kl: float
    temperature: float
    z_loss: float
    tokens: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def sums(
    terms: Terms,
    chunking: Chunking,
    pin: Constrain,
    hidden: Float[Array, "batch length embed"],
    unembed: Float[Array, "embed vocab"],
    labels: Int[Array, "batch length"],
    weights: Float[Array, "batch length"],
    teacher: Teacher | None,
) -> tuple[Float[Array, ""], Parts]:
    """`losses.chunked_loss` after its arguments were checked. Differentiable in `hidden` and `unembed` only."""
    unembed, teacher_unembed, chunks = _prepare(chunking, pin, hidden, unembed, labels, weights, teacher)

    def step(parts: Parts, chunk: dict[str, Array]) -> tuple[Parts, None]:
        values, _ = _chunk(terms, pin, chunk, unembed, teacher_unembed, gradient=False)
        return _add(parts, values, chunk["weights"]), None

    by_place, _ = jax.lax.scan(step, _zero_parts(chunking, pin, teacher), chunks)
    return _total(terms, by_place)


def by_token(
    terms: Terms,
    chunking: Chunking,
    pin: Constrain,
    hidden: Float[Array, "batch length embed"],
    unembed: Float[Array, "embed vocab"],
    labels: Int[Array, "batch length"],
    teacher: Teacher | None,
) -> Parts:
    """`losses.token_losses` after its arguments were checked: each term, [batch, length]. Not to be differentiated."""
    weights = jnp.ones(labels.shape, jnp.float32)
    unembed, teacher_unembed, chunks = _prepare(chunking, pin, hidden, unembed, labels, weights, teacher)

    def step(carry: None, chunk: dict[str, Array]) -> tuple[None, Parts]:
        return carry, _chunk(terms, pin, chunk, unembed, teacher_unembed, gradient=False)[0]

    _, values = jax.lax.scan(step, None, chunks)
    return {name: chunking.join(value, labels.shape[1]) for name, value in values.items()}


def _sums_and_gradients(
    terms: Terms,
    chunking: Chunking,
    pin: Constrain,
    hidden: Array,
    unembed: Array,
    labels: Array,
    weights: Array,
    teacher: Any,
) -> tuple[tuple[Array, Parts], tuple[Array, Array]]:
    embed, vocab = unembed.shape
    whole, teacher_unembed, chunks = _prepare(chunking, pin, hidden, unembed, labels, weights, teacher)

    def step(carry: tuple[Parts, Array], chunk: dict[str, Array]) -> tuple[tuple[Parts, Array], Array]:
        parts, d_unembed = carry
        values, d_logits = _chunk(terms, pin, chunk, whole, teacher_unembed, gradient=True)
        d_logits = (d_logits * chunk["weights"][:, None]).astype(hidden.dtype)
        d_hidden = pin(_product("tv,ev->te", d_logits, whole).astype(hidden.dtype), ("batch", None))
        by_shard = (array.reshape(chunking.shards, -1, array.shape[1]) for array in (chunk["hidden"], d_logits))
        d_unembed = pin(d_unembed + _product("ste,stv->sev", *by_shard), ("batch", None, "vocab"))
        return (_add(parts, values, chunk["weights"]), d_unembed), d_hidden

    zeros = jnp.zeros((chunking.shards, embed, vocab), jnp.float32)
    start = _zero_parts(chunking, pin, teacher), pin(zeros, ("batch", None, "vocab"))
    (by_place, d_unembed), d_hidden = jax.lax.scan(step, start, chunks)
    gradients = chunking.join(d_hidden, hidden.shape[1]), d_unembed.sum(0).astype(unembed.dtype)
    return _total(terms, by_place), gradients


def _scale_gradients(
    terms: Terms, chunking: Chunking, pin: Constrain, gradients: tuple[Array, Array], cotangent: tuple[Array, Parts]
) -> tuple[Array, Array, None, None, None]:
    total, _ = cotangent  # the parts are for reports
    d_hidden, d_unembed = ((gradient.astype(jnp.float32) * total).astype(gradient.dtype) for gradient in gradients)
    return d_hidden, d_unembed, None, None, None


sums.defvjp(_sums_and_gradients, _scale_gradients)


def _prepare(
    chunking: Chunking, pin: Constrain, hidden: Array, unembed: Array, labels: Array, weights: Array, teacher: Any
) -> tuple[Array, Array | None, dict[str, Array]]:
    """Both unembeddings, whole but for the vocabulary, gathered here once and not in each chunk; and the chunks."""
    arrays = {"hidden": hidden, "labels": labels, "weights": weights}
    teacher_unembed = None
    if teacher is not None:
        arrays["teacher"] = teacher[0]
        teacher_unembed = pin(teacher[1], (None, "vocab"))
    return pin(unembed, (None, "vocab")), teacher_unembed, {k: chunking.split(v, pin) for k, v in arrays.items()}


def _chunk(
    terms: Terms, pin: Constrain, chunk: dict[str, Array], unembed: Array, teacher_unembed: Array | None, gradient: bool
) -> tuple[dict[str, Float[Array, "token"]], Array]:
    """Each term for each token of a chunk, and the gradient of their weighted sum with respect to the logits."""
    student = _logits(terms, pin, chunk["hidden"], unembed)
    labels = chunk["labels"][:, None]
    lse = jax.nn.logsumexp(student, axis=-1, keepdims=True)
    label_logit = jnp.take_along_axis(student, labels, axis=-1)
    values = {"next_token": lse - label_logit, "z_loss": lse**2}
    d_logits = jnp.zeros_like(student)
    if gradient and (terms.next_token or terms.z_loss):
        is_label = jnp.arange(student.shape[-1])[None] == labels
        slope = terms.next_token + 2 * terms.z_loss * lse
        d_logits = slope * jnp.exp(student - lse) - jnp.where(is_label, terms.next_token, 0.0)
    if teacher_unembed is not None:
        soften = 1 / terms.temperature
        teacher = _logits(terms, pin, chunk["teacher"], teacher_unembed) * soften
        soft = student * soften
        log_p = teacher - jax.nn.logsumexp(teacher, axis=-1, keepdims=True)
        log_q = soft - (lse if soften == 1 else jax.nn.logsumexp(soft, axis=-1, keepdims=True))
        divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1, keepdims=True)
        values["kl"] = terms.temperature**2 * divergence
        if gradient and terms.kl:
            d_logits = d_logits + terms.kl * terms.temperature * (jnp.exp(log_q) - jnp.exp(log_p))
    return {name: value[:, 0] for name, value in values.items()}, d_logits


def _logits(
    terms: Terms, pin: Constrain, hidden: Float[Array, "token embed"], unembed: Float[Array, "embed vocab"]
) -> Float[Array, "token vocab"]:
    logits = pin(_product("te,ev->tv", hidden, unembed), ("batch", "vocab"))
    if terms.tokens == unembed.shape[1]:
        return logits
    return jnp.where(jnp.arange(unembed.shape[1])[None] < terms.tokens, logits, MASKED)


def _product(equation: str, left: Array, right: Array) -> Array:
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)


def _zero_parts(chunking: Chunking, pin: Constrain, teacher: Any) -> Parts:
    """Sums of each term for each place in a chunk, so that devices add theirs up only once, after the last chunk."""
    names = ("next_token", "z_loss") if teacher is None else ("next_token", "z_loss", "kl")
    return {name: pin(jnp.zeros(chunking.rows * chunking.positions, jnp.float32), ("batch",)) for name in names}


def _add(parts: Parts, values: Parts, weights: Float[Array, "token"]) -> Parts:
    return {name: parts[name] + values[name] * weights for name in parts}


def _total(terms: Terms, by_place: Parts) -> tuple[Float[Array, ""], Parts]:
    parts = {name: jnp.sum(values) for name, values in by_place.items()}
    total = terms.next_token * parts["next_token"] + terms.z_loss * parts["z_loss"]
    return (total + terms.kl * parts["kl"] if "kl" in parts else total), parts
