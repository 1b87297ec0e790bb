"""Losses between activations of the student and of the teacher: sums over tokens, differentiated by JAX.

Layers are compared one pair after the other in a scan, each pair made again in the backward pass, so that what is in
float32 or of the teacher's width exists for one pair at a time. What stays is what `decoder.forward` kept: activations
of the mapped layers alone, in the compute dtype.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from chopjax.distill.hidden_config import LAYER_TERMS, HiddenConfig
from chopjax.distill.matching import Matching
from chopjax.distill.relations import relation_divergence
from chopjax.models.constrain import Constrain, unpinned
from chopjax.models.decoder import Output

# Rows of the embedding tables that are compared at one time.
TABLE_ROWS = 2048
# Square of a length below which a vector has no direction.
NOTHING = 1e-20

Tables = tuple[Float[Array, "vocab embed"], Float[Array, "teacher_vocab teacher_embed"]]


def hidden_sums(
    matching: Matching,
    student: Output,
    teacher: Output,
    weights: Float[Array, "batch length"],
    segment_ids: Int[Array, "batch length"],
    projections: Mapping[str, Any] | None = None,
    tables: Tables | None = None,
    *,
    vocab_tokens: int | None = None,
    constrain: Constrain = unpinned,
) -> dict[str, Float[Array, ""]]:
    """Each term that has a weight, before that weight: summed over pairs of layers and, weighted, over tokens.

    Divide by `weights.sum()` for a mean, as with the losses on logits. `embedding_table` is a sum over the tables and
    not over tokens; it is given times `weights.sum()`, so that it becomes itself in the mean. float32; there is no
    gradient to the teacher.

    Args:
        matching: what is compared with what.
        student: of a forward pass with `keep=matching.student_keep`.
        teacher: of a forward pass on the same tokens with `keep=matching.teacher_keep`.
        weights: of tokens, as for the losses on logits; padding has 0.
        segment_ids: packed sequences, for relations.
        projections: what lies under `projections` in the student's parameters.
        tables: the two embedding tables, for the term `embedding_table`; row i of both is the same word.
        vocab_tokens: rows of the tables that are words; by default all that both have.
        constrain: pins activations to the mesh.
    """
    teacher = jax.lax.stop_gradient(teacher)
    weights = weights.astype(jnp.float32)
    kernels = projections or {}
    sums = {}
    for term in matching.config.terms:
        if term in LAYER_TERMS:
            sums[term] = _layers_sum(matching, term, student, teacher, kernels, weights, segment_ids)
        elif term == "embedding":
            pair = {"embedded": student.embedded}, {"embedded": teacher.embedded}
            kernel = _kernel(matching, term, kernels)
            sums[term] = _pair_sum(matching, term, *pair, kernel, weights, segment_ids)
        elif tables is None:
            raise ValueError("the term embedding_table needs the tables")
        else:
            rows = vocab_tokens or min(tables[0].shape[0], tables[1].shape[0])
            cut = tables[0][:rows], jax.lax.stop_gradient(tables[1])[:rows]
            kernel = _kernel(matching, term, kernels)
            sums[term] = _tables_sum(matching, *cut, kernel, constrain) * jnp.sum(weights)
    return sums


def hidden_loss(
    config: HiddenConfig, sums: Mapping[str, Float[Array, ""]], logits_loss: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The weighted sum of the terms times α, and α, which has no gradient.

    α is 1, or with `config.dynamic` what makes the product as large as `logits_loss`: α = L_logits / L_is, anew
    in each step (Minitron, arXiv 2407.14679); 0 where all terms are 0.

    Args:
        config: the weights.
        sums: of `hidden_sums`.
        logits_loss: sum of the losses on logits over the same tokens.
    """
    total = sum((getattr(config, term) * value for term, value in sums.items()), start=jnp.zeros((), jnp.float32))
    if not config.dynamic:
        return total, jnp.ones((), jnp.float32)
    ratio = logits_loss / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    alpha = jax.lax.stop_gradient(jnp.where(total > 0, ratio, 0.0))
    return alpha * total, alpha


def distance(
    name: str, student: Float[Array, "*rest width"], teacher: Float[Array, "*rest width"]
) -> Float[Array, "*rest"]:
    """Distance of each vector from the teacher's, in float32 (`HiddenConfig.distance`).

    1 − cos is made as ½ |s/|s| − t/|t||², which is exact for equal vectors and loses nothing near them.
    """
    s, t = _rounded(student), _rounded(teacher)
    if name == "cosine":
        return 0.5 * jnp.sum(jnp.square(_rounded(_direction(s)) - _rounded(_direction(t))), axis=-1)
    squared = jnp.sum(jnp.square(s - t), axis=-1)
    if name == "mse":
        return squared / s.shape[-1]
    if name == "normalised_mse":
        return squared / jnp.maximum(jnp.sum(jnp.square(t), axis=-1), jnp.finfo(jnp.float32).tiny)
    return squared


def _rounded(x: Array) -> Array:
    """`x` in float32, rounded before it is compared.

    Where XLA fuses what made `x` into the comparison, LLVM may subtract a rounded product from an unrounded one (a
    fused multiply-add), so that equal models would differ. A bound that no finite number passes is in its way; barriers
    and roundings to the dtype that an array has already are removed before.
    """
    return jnp.maximum(x, jnp.finfo(x.dtype).min).astype(jnp.float32)


def _direction(x: Array) -> Array:
    """`x` at length 1; a vector of nothing has no direction, and no gradient."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    some = squared > NOTHING
    return x * jnp.where(some, jax.lax.rsqrt(jnp.where(some, squared, 1.0)), 0.0)


def _layers_sum(
    matching: Matching,
    term: str,
    student: Output,
    teacher: Output,
    kernels: Mapping[str, Any],
    weights: Array,
    segment_ids: Array,
) -> Float[Array, ""]:
    """A term of layers over all pairs: a scan over those between kept activations, and the final norms apart."""
    names = matching.activations(term)
    kernel = _kernel(matching, term, kernels)
    stacked = kernel is not None and kernel.ndim == 3

    @jax.checkpoint
    def of_pair(pair: tuple) -> Float[Array, ""]:
        one, other, own_kernel = pair
        kernel_of_pair = own_kernel if stacked else kernel
        return _pair_sum(matching, term, one, other, kernel_of_pair, weights, segment_ids)

    if kernel is not None and not stacked:
        kernel = kernel.astype(jnp.float32)  # so that its gradient is added over the pairs in float32

    keeps = matching.student_keep, matching.teacher_keep
    places = [_slots(matching, term, keep.get(names[0], ()), side) for side, keep in enumerate(keeps)]
    inner = [place for place in range(len(matching.pairs)) if None not in (places[0][place], places[1][place])]
    total = jnp.zeros((), jnp.float32)
    if inner:
        sides = [
            {name: _picked(output.kept[name], [slots[place] or 0 for place in inner]) for name in names}
            for output, slots in zip((student, teacher), places, strict=True)
        ]
        own_kernels = _picked(kernel, inner) if stacked and kernel is not None else None
        total, _ = jax.lax.scan(lambda sum_, pair: (sum_ + of_pair(pair), None), total, (*sides, own_kernels))
    for place in sorted(set(range(len(matching.pairs))) - set(inner)):
        ends = [
            {name: output.hidden if slots[place] is None else output.kept[name][slots[place]] for name in names}
            for output, slots in zip((student, teacher), places, strict=True)
        ]
        total += of_pair((*ends, kernel[place] if stacked and kernel is not None else None))
    return total


def _slots(matching: Matching, term: str, kept: tuple[int, ...], side: int) -> list[int | None]:
    """For each pair the slot of what a side kept; None for the final norm."""
    tapped = [matching.tapped_layer(term, pair[side]) for pair in matching.pairs]
    return [kept.index(layer) if layer in kept else None for layer in tapped]


def _picked(stacked: Array, places: list[int]) -> Array:
    """`stacked[places]`, without a copy where that is all of it."""
    whole = places == list(range(stacked.shape[0]))
    return stacked if whole else jnp.take(stacked, jnp.asarray(places, jnp.int32), axis=0)


def _pair_sum(
    matching: Matching,
    term: str,
    student: Mapping[str, Array],
    teacher: Mapping[str, Array],
    kernel: Array | None,
    weights: Float[Array, "batch length"],
    segment_ids: Int[Array, "batch length"],
) -> Float[Array, ""]:
    if term == "relation":
        by_token = [
            relation_divergence(student[name], teacher[name], segment_ids, matching.relation_heads) for name in student
        ]
        return sum((jnp.sum(values * weights) for values in by_token), start=jnp.zeros((), jnp.float32))
    ((name, one),) = student.items()
    one, other = one.reshape(*weights.shape, -1), teacher[name].reshape(*weights.shape, -1)
    if term != "heads":
        one, other = _bridged(matching, one, other, kernel)
    return jnp.sum(distance(matching.config.distance, one, other) * weights)


def _bridged(matching: Matching, student: Array, teacher: Array, kernel: Array | None) -> tuple[Array, Array]:
    """Both sides at the same width: the student's projected, or of the teacher's the channels that were kept."""
    if kernel is not None:
        projected = jnp.tensordot(student, kernel.astype(student.dtype), axes=1, preferred_element_type=jnp.float32)
        return projected, teacher
    if matching.config.project == "gather" and matching.kept_embed is not None:
        return student, jnp.take(teacher, jnp.asarray(matching.kept_embed, jnp.int32), axis=-1)
    return student, teacher


def _kernel(matching: Matching, term: str, kernels: Mapping[str, Any]) -> Array | None:
    if term not in matching.config.learned:
        return None
    return kernels["shared" if matching.config.project == "shared" else term]["kernel"]


def _tables_sum(
    matching: Matching,
    student: Float[Array, "vocab embed"],
    teacher: Float[Array, "vocab teacher_embed"],
    kernel: Array | None,
    constrain: Constrain,
) -> Float[Array, ""]:
    """Σ (E_t − E_s W)² in chunks of rows, which the devices share evenly; rows added to fill up count 0."""
    vocab = student.shape[0]
    shards = constrain.size(constrain.parts("batch"))
    rows = -(-min(TABLE_ROWS, vocab) // shards) * shards
    chunks = -(-vocab // rows)

    def split(table: Array) -> Array:
        padded = jnp.pad(table, ((0, rows * chunks - vocab), (0, 0)))
        return jnp.swapaxes(constrain(padded.reshape(rows, chunks, -1), ("batch", None, None)), 0, 1)

    if kernel is not None:
        kernel = constrain(kernel, (None, None))

    @jax.checkpoint
    def of_chunk(chunk: tuple[Array, Array]) -> Float[Array, ""]:
        return jnp.sum(distance("squared", *_bridged(matching, *chunk, kernel)))

    start = jnp.zeros((), jnp.float32)
    chunked = (split(student), split(teacher))
    return jax.lax.scan(lambda sum_, chunk: (sum_ + of_chunk(chunk), None), start, chunked)[0]
