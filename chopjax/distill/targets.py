"""Targets of a teacher that is not in memory: a few tokens of its distribution at each position."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import jax
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sparse:
    """What is kept of the teacher's distribution p at each position, all at the temperature of the loss.

    The divergence of a student with distribution q is
    `offset - sum_i probs_i log q(ids_i) - tail log q(all other ids)`, where a term of `tail` 0 is 0.

    Attributes:
      ids: token ids, without repeats; unused places hold -1.
      probs: the k most probable tokens: p(ids), over the whole vocabulary. Random draws: counts / draws, whose
        expectation is p. 0 at unused places.
      tail: the probability of all tokens that are not in `ids`. Random draws: 0.
      offset: what makes the value a divergence, in nats. The k most probable tokens: sum p log p + tail log tail.
        Random draws: minus the entropy of p, so that the value is an unbiased estimate of KL(p, q).
    """

    ids: Int[Array, "batch length k"]
    probs: Float[Array, "batch length k"]
    tail: Float[Array, "batch length"]
    offset: Float[Array, "batch length"]


PREFIX = "target_"


def of_batch(batch: Mapping[str, Array]) -> Sparse | None:
    """The targets that a batch holds as `target_ids`, `target_probs`, `target_tail`, `target_offset`; None without."""
    if f"{PREFIX}ids" not in batch:
        return None
    return Sparse(**{field.name: batch[f"{PREFIX}{field.name}"] for field in fields(Sparse)})
