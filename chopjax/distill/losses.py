"""The training loss: next-token cross entropy, divergence from a teacher and z-loss, without a logits array."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from chopjax.distill import chunked
from chopjax.distill.config import LossConfig
from chopjax.errors import UserError
from chopjax.models.block import Constrain, unpinned


def chunked_loss(
    config: LossConfig,
    hidden: Float[Array, "batch length embed"],
    unembed: Float[Array, "embed vocab"],
    labels: Int[Array, "batch length"],
    weights: Float[Array, "batch length"],
    teacher_hidden: Float[Array, "batch length teacher_embed"] | None = None,
    teacher_unembed: Float[Array, "teacher_embed teacher_vocab"] | None = None,
    *,
    vocab_tokens: int | None = None,
    shards: int = 1,
    constrain: Constrain = unpinned,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Sums of the losses over all tokens, each weighted by `weights`; divide by `weights.sum()` for a mean.

    Logits are made for at most `config.chunk` tokens at a time, and never twice: when differentiated, the gradients
    with respect to `hidden` and `unembed` are made in the pass that makes the loss. Products run in the dtype of
    `hidden` and `unembed` and accumulate in float32, as does everything after them. There is no gradient to labels,
    weights or teacher, nor through the parts.

    A chunk holds the same number of positions of every row, or, where the batch has more rows than `chunk`, one
    position of evenly spread rows; so each of the `shards` devices works on its own rows in every chunk, and a chunk
    never holds less than one token of each. Positions added to fill the last chunk have weight 0.

    Args:
        config: weights of the terms and the size of a chunk.
        hidden: the student's final hidden states, after the final norm, in the compute dtype.
        unembed: the student's unembedding, in the compute dtype.
        labels: the token that each position should predict.
        weights: 1 where a prediction counts, else 0 (any non-negative numbers will do).
        teacher_hidden: the teacher's final hidden states, in its own dtype; needed if `config.kl` is not 0.
        teacher_unembed: the teacher's unembedding.
        vocab_tokens: number of real tokens; later columns, which only pad a vocabulary, are left out of every softmax
            on both sides. By default all columns that both sides have.
        shards: number of equal parts in which the mesh holds the batch axis. The gradient of `unembed` is summed
            apart in each and reduced over the mesh once, not in each chunk.
        constrain: pins activations to the mesh by the names of their axes; needed only with `shards` above 1.

    Returns:
        total: float32 scalar, the weighted sum of the terms.
        parts: float32 scalars `next_token`, `z_loss`, and with a teacher `kl` (T² included): what `total` adds up,
            before the weights of the config.

    Raises:
        UserError: a KL term without a teacher, or `vocab_tokens` beyond either vocabulary.
    """
    terms, chunking, teacher = _checked(config, hidden, unembed, teacher_hidden, teacher_unembed, vocab_tokens, shards)
    return chunked.sums(terms, chunking, constrain, hidden, unembed, labels, weights.astype(jnp.float32), teacher)


def token_losses(
    config: LossConfig,
    hidden: Float[Array, "batch length embed"],
    unembed: Float[Array, "embed vocab"],
    labels: Int[Array, "batch length"],
    teacher_hidden: Float[Array, "batch length teacher_embed"] | None = None,
    teacher_unembed: Float[Array, "teacher_embed teacher_vocab"] | None = None,
    *,
    vocab_tokens: int | None = None,
    shards: int = 1,
    constrain: Constrain = unpinned,
) -> dict[str, Float[Array, "batch length"]]:
    """The terms of `chunked_loss` for each token, unweighted, for who sums by row or by choice. Forward only.

    Returns:
        float32 `next_token`, `z_loss` and with a teacher `kl` (T² included).

    Raises:
        UserError: as in `chunked_loss`.
    """
    terms, chunking, teacher = _checked(config, hidden, unembed, teacher_hidden, teacher_unembed, vocab_tokens, shards)
    return chunked.by_token(terms, chunking, constrain, hidden, unembed, labels, teacher)


def _checked(
    config: LossConfig,
    hidden: Array,
    unembed: Array,
    teacher_hidden: Array | None,
    teacher_unembed: Array | None,
    vocab_tokens: int | None,
    shards: int,
) -> tuple[chunked.Terms, chunked.Chunking, chunked.Teacher | None]:
    if config.kl and teacher_hidden is None:
        raise UserError(f"loss.kl is {config.kl} but there is no teacher; set loss.kl=0 or name a teacher")
    width = unembed.shape[1]
    if teacher_unembed is not None:
        width = min(width, teacher_unembed.shape[1])
    if vocab_tokens is not None and not 0 < vocab_tokens <= width:
        raise UserError(f"the tokenizer has {vocab_tokens} tokens but a model has only {width} rows of vocabulary")
    chunking = chunked.Chunking.make(config.chunk, hidden.shape[:2], shards)
    terms = chunked.Terms(config.next_token, config.kl, config.temperature, config.z_loss, vocab_tokens or width)
    teacher = None
    if teacher_hidden is not None and teacher_unembed is not None:
        teacher = (teacher_hidden, _fit_columns(teacher_unembed, unembed.shape[1]))
        teacher = jax.lax.stop_gradient(teacher)
    return terms, chunking, teacher


def _fit_columns(unembed: Float[Array, "embed old"], vocab: int) -> Float[Array, "embed vocab"]:
    """Cuts off or adds columns, all of them padding, so that both sides' logits line up."""
    added = max(0, vocab - unembed.shape[1])
    return jnp.pad(unembed[:, :vocab], ((0, 0), (0, added))) if unembed.shape[1] != vocab else unembed
