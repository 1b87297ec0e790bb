"""What training minimises: all losses of a micro-batch, from parameters and rows."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from chopjax.data.labels import next_token_labels
from chopjax.distill.config import LossConfig
from chopjax.distill.hidden import hidden_loss, hidden_sums
from chopjax.distill.losses import Teacher, chunked_loss
from chopjax.distill.matching import Matching
from chopjax.distill.targets import Sparse, of_batch
from chopjax.models import decoder
from chopjax.models.block import Masks
from chopjax.models.config import ModelConfig
from chopjax.models.constrain import Constrain, unpinned

PROJECTIONS = "projections"
# By these names a compiled step's memory is told apart (`aot.live`).
STUDENT, TEACHER, LOSS = "student", "teacher", "loss"

Batch = Mapping[str, Shaped[Array, "batch length *rest"]]
"""Packed rows: int32 `tokens`, `segment_ids` (0 is padding) and `positions`; maybe bool `targets`, False where a token
is not to be predicted; and what `targets.of_batch` reads where the teacher was run before."""
Params = dict[str, Any]
Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Models:
    """The student's and the teacher's architecture, and what they share.

    Attributes:
        student: the model that is trained.
        teacher: the model that it learns from and that runs beside it; None for none.
        vocab_tokens: tokens of the tokenizer, where vocabularies are padded (see `distill.losses.chunked_loss`).
        constrain: pins activations to a mesh.
        matching: which activations of the two are compared; None for none.
    """

    student: ModelConfig
    teacher: ModelConfig | None = None
    vocab_tokens: int | None = None
    constrain: Constrain = unpinned
    matching: Matching | None = None

    @property
    def hidden(self) -> bool:
        """Whether activations are compared."""
        return self.matching is not None and bool(self.matching.config.terms)


def of_model(params: Params) -> Params:
    """A student's own parameters, without the projections that are learned beside them."""
    return {name: part for name, part in params.items() if name != PROJECTIONS}


def batch_sums(
    models: Models,
    loss: LossConfig,
    scalars: dict[str, Float[Array, ""]],
    params: Params,
    teacher: Params | None,
    batch: Batch,
    *,
    remat: str = "none",
    masks: Masks | None = None,
    correct: bool = False,
) -> tuple[Float[Array, ""], Metrics]:
    """The total loss of a micro-batch, summed over its tokens, and sums for reports.

    Args:
        models: what is trained, and what teaches.
        loss: the losses on logits.
        scalars: their weights and the temperature (`distill.schedules`).
        params: the student's parameters, and under `projections` those to the teacher's width.
        teacher: the teacher's parameters; None where nothing needs them.
        batch: rows.
        remat: which activations the backward pass makes again.
        masks: of the student (`models.decoder.forward`).
        correct: whether the teacher learns too, from the next tokens. It shares the forward pass; the student's losses
            have no gradient to it.

    Returns:
        total: float32.
        sums: float32 `loss`, `tokens`, the parts by name; `hidden/TERM`, and `alpha` times tokens, where activations
            are compared; `teacher_next_token` where the teacher learns.
    """
    labels, weights = next_token_labels(batch["tokens"], batch["segment_ids"], batch.get("targets"))
    run = functools.partial(_forward, batch, models.constrain)
    projections, params = params.get(PROJECTIONS), of_model(params)
    keep = (models.matching.student_keep, models.matching.teacher_keep) if models.matching else ({}, {})
    with jax.named_scope(STUDENT):
        student = run(models.student, params, remat=remat, masks=masks, keep=keep[0])
    taught: Teacher | Sparse | None = of_batch(batch)
    of_teacher = own_logits = None
    if models.teacher is not None and teacher is not None:
        # A teacher that learns keeps as little for its backward pass as the student.
        with jax.named_scope(TEACHER):
            of_teacher = run(models.teacher, teacher, remat=remat if correct else "none", keep=keep[1])
        own_logits = of_teacher.hidden, decoder.unembedding(models.teacher, teacher)
        taught = own_logits if loss.teacher_terms else None
    options: dict[str, Any] = {"vocab_tokens": models.vocab_tokens, "constrain": models.constrain}
    unembed = decoder.unembedding(models.student, params)
    with jax.named_scope(LOSS):
        total, parts = chunked_loss(loss, student.hidden, unembed, labels, weights, taught, scalars=scalars, **options)
    if models.matching is not None and models.hidden:
        assert of_teacher is not None and teacher is not None, "activations are compared with a teacher that runs"
        tables = params["embed"]["table"], teacher["embed"]["table"]
        inputs = student, of_teacher, weights, batch["segment_ids"], projections, tables
        hidden = hidden_sums(models.matching, *inputs, **options)
        added, alpha = hidden_loss(models.matching.config, hidden, jax.lax.stop_gradient(total))
        total = total + added
        parts |= {f"hidden/{name}": value for name, value in hidden.items()} | {"alpha": alpha * jnp.sum(weights)}
    metrics = {"loss": jax.lax.stop_gradient(total), "tokens": jnp.sum(weights), **parts}
    if correct:
        assert own_logits is not None, "a teacher that learns is one that runs"
        own, _ = chunked_loss(LossConfig.plain(loss.chunk), *own_logits, labels, weights, **options)
        total, metrics["teacher_next_token"] = total + own, jax.lax.stop_gradient(own)
    return total, jax.lax.stop_gradient(metrics)


def _forward(batch: Batch, constrain: Constrain, config: ModelConfig, params: Params, **options: Any) -> decoder.Output:
    inputs = batch["tokens"], batch["positions"], batch["segment_ids"]
    return decoder.forward(config, params, *inputs, constrain=constrain, **options)
