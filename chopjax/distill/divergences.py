"""Divergences of a student's distribution q from a teacher's p, each with its gradient, written out by hand.

Every function takes arrays [token, column] of one device (see `columns`) and gives the value of each token, [token, 1],
and its derivative with respect to the student's *softened* logits s / T, [token, column]. XLA drops the derivative
where nobody reads it.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from chopjax.distill.columns import MASKED, Columns

Values = Float[Array, "token 1"]
Slopes = Float[Array, "token column"]


class Side(NamedTuple):
    """The softened logits of one side, and their log-probabilities."""

    logits: Float[Array, "token column"]
    log_probs: Float[Array, "token column"]

    @property
    def probs(self) -> Float[Array, "token column"]:
        """Of each column."""
        return jnp.exp(self.log_probs)


def forward_kl(columns: Columns, p: Side, q: Side) -> tuple[Values, Slopes]:
    """Σ p (log p - log q), KL(p ‖ q) (Hinton et al. 2015, arXiv:1503.02531; Minitron, section 3)."""
    return columns.sum(p.probs * (p.log_probs - q.log_probs)), q.probs - p.probs


def reverse_kl(columns: Columns, p: Side, q: Side) -> tuple[Values, Slopes]:
    """Σ q (log q - log p), KL(q ‖ p) (Gu et al. 2024, MiniLLM, arXiv:2306.08543)."""
    ratio = q.log_probs - p.log_probs
    value = columns.sum(q.probs * ratio)
    return value, q.probs * (ratio - value)


def jsd(columns: Columns, p: Side, q: Side, beta: float) -> tuple[Values, Slopes]:
    """β KL(p ‖ m) + (1 - β) KL(q ‖ m) with m = β p + (1 - β) q (Agarwal et al. 2024, GKD, arXiv:2306.13649, eq. 1)."""
    log_m = jnp.logaddexp(jnp.log(beta) + p.log_probs, jnp.log1p(-beta) + q.log_probs)
    own = (1 - beta) * (q.log_probs - log_m)
    value = columns.sum(beta * p.probs * (p.log_probs - log_m) + q.probs * own)
    return value, q.probs * (own - columns.sum(q.probs * own))


def mse(columns: Columns, p: Side, q: Side, of_logits: bool) -> tuple[Values, Slopes]:
    """Σ (q - p)² of probabilities, or the mean over tokens of the vocabulary of (s - t)² / T² of logits."""
    if of_logits:
        difference = jnp.where(columns.is_token, q.logits - p.logits, 0.0)
        return columns.sum(difference**2) / columns.tokens, 2 / columns.tokens * difference
    difference = q.probs - p.probs
    return columns.sum(difference**2), through_softmax(columns, q, 2 * difference)


def cosine(columns: Columns, p: Side, q: Side, of_logits: bool) -> tuple[Values, Slopes]:
    """1 - cos(q, p), of probabilities or of logits."""
    x, y = (jnp.where(columns.is_token, side.logits if of_logits else side.probs, 0.0) for side in (q, p))
    squares, other = columns.sum(x * x), columns.sum(y * y)
    length = jnp.maximum(jnp.sqrt(squares * other), 1e-30)
    dot = columns.sum(x * y)
    slopes = (dot / jnp.maximum(squares, 1e-30) * x - y) / length
    return 1 - dot / length, slopes if of_logits else through_softmax(columns, q, slopes)


def top_k_kl(columns: Columns, p: Side, q: Side, k: int) -> tuple[Values, Slopes]:
    """KL(p ‖ q) over the teacher's k most probable tokens and one more outcome: any other token.

    Tokens as probable as the k-th are among them. Without that last outcome, the mass beyond the k would get no
    gradient at all.
    """
    inside = p.logits >= columns.least_of_top(p.logits, k)
    top = columns.sum(jnp.where(inside, p.probs * (p.log_probs - q.log_probs), 0.0))
    log_p_tail, log_q_tail, rest = _tail(columns, inside, p), *_tail_and_rest(columns, inside, q)
    tail = jnp.exp(log_p_tail)
    value = top + jnp.where(tail > 0, tail * (log_p_tail - log_q_tail), 0.0)
    return value, q.probs - jnp.where(inside, p.probs, tail * rest)


def sparse_kl(
    columns: Columns,
    ids: Int[Array, "token k"],
    probs: Float[Array, "token k"],
    tail: Values,
    offset: Values,
    q: Side,
) -> tuple[Values, Slopes]:
    """KL from what was kept of a teacher's distribution (`chopjax.distill.targets.Sparse`).

    For random draws the slopes are an unbiased estimate of those of the full divergence (Anshumann et al. 2025,
    arXiv:2503.16870, section 3).
    """
    inside = columns.spread(ids, jnp.ones_like(probs)) > 0
    log_q_tail, rest = _tail_and_rest(columns, inside, q)
    cross = jnp.sum(probs * columns.at(q.log_probs, ids), axis=-1, keepdims=True)
    value = offset - cross - jnp.where(tail > 0, tail * log_q_tail, 0.0)
    mass = jnp.sum(probs, axis=-1, keepdims=True) + tail
    return value, mass * q.probs - columns.spread(ids, probs) - jnp.where(inside, 0.0, tail * rest)


def through_softmax(columns: Columns, q: Side, slopes: Slopes) -> Slopes:
    """Derivatives by softened logits from those by probabilities."""
    return q.probs * (slopes - columns.sum(q.probs * slopes))


def _tail(columns: Columns, inside: Bool[Array, "token column"], side: Side) -> Values:
    """The log-probability of all tokens outside."""
    return columns.logsumexp(jnp.where(inside, MASKED, side.log_probs))


def _tail_and_rest(columns: Columns, inside: Bool[Array, "token column"], side: Side) -> tuple[Values, Slopes]:
    """The log-probability of all tokens outside, and the distribution among them."""
    tail = _tail(columns, inside, side)
    return tail, jnp.where(inside, 0.0, jnp.exp(jnp.minimum(side.log_probs - tail, 0.0)))
