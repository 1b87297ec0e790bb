"""The training loss on logits: next token, divergences from a teacher and z-loss, without a logits array."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from chopjax.distill import chunked
from chopjax.distill.config import LossConfig
from chopjax.distill.schedules import scalars as constants
from chopjax.distill.targets import Sparse
from chopjax.errors import UserError
from chopjax.models.constrain import Constrain, unpinned

Teacher = tuple[Float[Array, "batch length teacher_embed"], Float[Array, "teacher_embed teacher_vocab"]]
"""The teacher's final hidden states and its unembedding, in its own dtype."""


def chunked_loss(
    config: LossConfig,
    hidden: Float[Array, "batch length embed"],
    unembed: Float[Array, "embed vocab"],
    labels: Int[Array, "batch length"],
    weights: Float[Array, "batch length"],
    teacher: Teacher | Sparse | None = None,
    *,
    scalars: dict[str, Float[Array, ""]] | None = None,
    vocab_tokens: int | None = None,
    constrain: Constrain = unpinned,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Sums of the losses over all tokens, each weighted by `weights`; divide by `weights.sum()` for a mean.

    Logits are made for at most `config.chunk` tokens at a time, and never twice: when differentiated, the gradients
    with respect to `hidden` and `unembed` are made in the pass that makes the loss. Products run in the dtype of
    `hidden` and `unembed` and accumulate in float32, as does everything after them. There is no gradient to labels,
    weights or teacher, nor through the parts.

    On a mesh each device works on its share of the vocabulary, and a chunk holds equally many tokens of each device's
    rows, one at least. Tokens added to fill the last chunk have weight 0.

    Args:
        config: the terms and the size of a chunk.
        hidden: the student's final hidden states, after the final norm, in the compute dtype.
        unembed: the student's unembedding, in the compute dtype.
        labels: the token that each position should predict.
        weights: 1 where a prediction counts, else 0 (any non-negative numbers will do).
        teacher: what the terms with a teacher compare with: hidden states and unembedding, or what was kept of the
            teacher's distribution, of which there is a forward KL alone.
        scalars: weights and temperature at this step, as from `schedules.scalars`; by default those of `config`.
        vocab_tokens: number of real tokens; later columns, which only pad a vocabulary, are left out of every softmax
            on both sides. By default all columns that both sides have.
        constrain: the mesh (`chopjax.sharding.mesh.Constrain`).

    Returns:
        total: float32 scalar, the weighted sum of the terms.
        parts: float32 scalars `next_token`, `z_loss`, with a teacher `kl`, and the other terms that have a weight: what
            `total` adds up, before the weights.

    Raises:
        UserError: a term without the teacher that it needs, or `vocab_tokens` beyond either vocabulary.
    """
    terms, tokens, unembeds = _checked(config, hidden, unembed, labels, teacher, vocab_tokens)
    tokens["weights"] = weights.astype(jnp.float32)
    return chunked.sums(terms, constrain, (hidden, unembed), tokens, unembeds, scalars or constants(config))


def token_losses(
    config: LossConfig,
    hidden: Float[Array, "batch length embed"],
    unembed: Float[Array, "embed vocab"],
    labels: Int[Array, "batch length"],
    teacher: Teacher | Sparse | None = None,
    *,
    vocab_tokens: int | None = None,
    constrain: Constrain = unpinned,
) -> dict[str, Float[Array, "batch length"]]:
    """The terms of `chunked_loss` for each token, unweighted, for who sums by row or by choice. Forward only.

    Returns:
        float32, by the names that `chunked_loss` gives its parts.

    Raises:
        UserError: as in `chunked_loss`.
    """
    terms, tokens, unembeds = _checked(config, hidden, unembed, labels, teacher, vocab_tokens)
    return chunked.by_token(terms, constrain, (hidden, unembed), tokens, unembeds, constants(config))


def _checked(
    config: LossConfig,
    hidden: Array,
    unembed: Array,
    labels: Array,
    teacher: Teacher | Sparse | None,
    vocab_tokens: int | None,
) -> tuple[chunked.Terms, dict[str, Array], Array | None]:
    refuse_missing(config, "none" if teacher is None else "kept" if isinstance(teacher, Sparse) else "whole")
    width = unembed.shape[1]
    tokens, teacher_unembed = {"labels": labels}, None
    if isinstance(teacher, Sparse):
        tokens |= {name: getattr(teacher, name) for name in ("ids", "probs", "tail", "offset")}
    elif teacher is not None:
        width = min(width, teacher[1].shape[1])
        tokens["teacher"] = jax.lax.stop_gradient(teacher[0])
        teacher_unembed = jax.lax.stop_gradient(_fit_columns(teacher[1], unembed.shape[1]))
    if vocab_tokens is not None and not 0 < vocab_tokens <= width:
        raise UserError(f"the tokenizer has {vocab_tokens} tokens but a model has only {width} rows of vocabulary")
    terms = chunked.Terms(
        config.active,
        vocab_tokens or width,
        config.chunk,
        config.softened,
        config.scale_by_temperature,
        config.jsd_beta,
        config.distance_of == "logits",
        config.top_k,
    )
    return terms, tokens, teacher_unembed


def refuse_missing(config: LossConfig, teacher: str) -> None:
    """Refuses terms without the teacher that they need.

    Args:
        teacher: `whole`, `kept` where only a part of its distribution was, or `none`.

    Raises:
        UserError: names the term.
    """
    needed = config.teacher_terms
    if needed and teacher == "none":
        name = needed[0]
        raise UserError(f"loss.{name} has a weight but there is no teacher; set loss.{name}=0 or name a teacher")
    other = [name for name in needed if name != "kl"]
    if other and teacher == "kept":
        raise UserError(f"loss.{other[0]} needs the whole teacher; with a cache of a part of it there is loss.kl alone")


def _fit_columns(unembed: Float[Array, "embed old"], vocab: int) -> Float[Array, "embed vocab"]:
    """Cuts off or adds columns, all of them padding, so that both sides' logits line up."""
    added = max(0, vocab - unembed.shape[1])
    return jnp.pad(unembed[:, :vocab], ((0, 0), (0, added))) if unembed.shape[1] != vocab else unembed
