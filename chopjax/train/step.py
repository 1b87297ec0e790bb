"""The training step: a pure function of state, teacher and batch."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from chopjax.chop.dimchop import DimChop, kept_share
from chopjax.data.labels import next_token_labels
from chopjax.distill.losses import LossConfig, chunked_loss
from chopjax.errors import UserError
from chopjax.models import decoder
from chopjax.models.block import Masks, unpinned
from chopjax.models.config import ModelConfig
from chopjax.sharding.mesh import Constrain, batch_sharding, param_shardings, replicated
from chopjax.train import optimizers
from chopjax.train.schedules import Schedule

Batch = Mapping[str, Int[Array, "batch length"]]
"""`tokens`, `segment_ids` (0 is padding) and `positions` of packed rows."""
Params = dict[str, Any]
Metrics = dict[str, Float[Array, ""]]
ComputeDtype = Literal["float32", "bfloat16"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes; or the shardings, or the shapes, of all of it.

    Attributes:
        step: number of steps done, int32.
        params: float32 master parameters, nested dict.
        opt_state: the optimizer's state.
    """

    step: Any
    params: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """How a step is computed; none of it changes what is computed, up to rounding.

    Attributes:
        accumulate: micro-batches that a batch is worked through in.
        compute_dtype: dtype of activations and matrix products of the student.
        remat: which activations the backward pass makes again (`models.decoder.REMAT`).
    """

    accumulate: int = 1
    compute_dtype: ComputeDtype = "bfloat16"
    remat: str = "none"

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise UserError(f"train.accumulate is {self.accumulate}; give at least 1")
        for name, value, known in (
            ("compute_dtype", self.compute_dtype, get_args(ComputeDtype)),
            ("remat", self.remat, tuple(decoder.REMAT)),
        ):
            if value not in known:
                raise UserError(f"train.{name} is {value!r}; give one of {', '.join(known)}")


@dataclasses.dataclass(frozen=True)
class Models:
    """The student's and the teacher's architecture, and what they share.

    Attributes:
        student: the model that is trained.
        teacher: the model that it learns from; None for none.
        vocab_tokens: tokens of the tokenizer, where vocabularies are padded (see `distill.losses.chunked_loss`).
        constrain: pins activations to a mesh; None on one device.
    """

    student: ModelConfig
    teacher: ModelConfig | None = None
    vocab_tokens: int | None = None
    constrain: Constrain | None = None


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; `params` become float32 masters."""
    masters = _cast(params, jnp.float32)
    return TrainState(jnp.zeros((), jnp.int32), masters, optimizer.init(masters))


def make_step(
    models: Models,
    loss: LossConfig,
    config: StepConfig,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    dimchop: DimChop | None = None,
) -> Callable[[TrainState, Params | None, Batch], tuple[TrainState, Metrics]]:
    """The training step, a pure function (state, teacher_params, batch) → (state, metrics).

    The loss is the sum over all tokens that predict, divided by their number, whatever the number of micro-batches;
    gradients of micro-batches are summed in float32. The masters are cast to the compute dtype once a step. The
    teacher runs in the dtype that its parameters have, and only where the loss has a KL term.

    Metrics, float32 scalars: `loss`; `next_token`, `z_loss` and `kl` a token, before their weights; `tokens` that
    predict; `grad_norm` before clipping; `param_norm` after the update; `learning_rate` of this step; under DimCHOP
    `kept_share`, of all dimensions those not masked in this step.

    With `dimchop`, the optimizer is what its `watching` returned. The gradient is taken at the masked parameters and
    applied to the whole ones, so what is masked goes on learning.

    Raises:
        UserError: a KL term without a teacher.
    """
    if loss.kl and models.teacher is None:
        raise UserError(f"loss.kl is {loss.kl} but there is no teacher; set loss.kl=0 or name a teacher")
    uses_teacher = bool(loss.kl)

    def sums(masks: Masks | None, params: Params, teacher: Params | None, micro: Batch) -> tuple[Array, Metrics]:
        return _sums(models, loss, config.remat, masks, params, teacher if uses_teacher else None, micro)

    def step(state: TrainState, teacher: Params | None, batch: Batch) -> tuple[TrainState, Metrics]:
        params = _cast(state.params, jnp.dtype(config.compute_dtype))
        masks = None
        if dimchop is not None:
            params, masks = dimchop.apply(params, state.opt_state)
        gradients, total = _accumulate(functools.partial(sums, masks), config.accumulate, params, teacher, batch)
        tokens = total.pop("tokens")
        count = jnp.maximum(tokens, 1.0)
        gradients = jax.tree.map(lambda gradient: gradient / count, gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new_params = optax.apply_updates(state.params, updates)
        metrics = {name: value / count for name, value in total.items()} | {
            "tokens": tokens,
            "grad_norm": optax.tree.norm(gradients),
            "param_norm": optax.tree.norm(new_params),
            "learning_rate": schedule(state.step),
        }
        if dimchop is not None:
            metrics["kept_share"] = kept_share(state.opt_state[0])
        return TrainState(state.step + 1, new_params, opt_state), metrics

    return step


def state_shardings(
    model: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, fallbacks: Sequence[str] = ()
) -> TrainState:
    """A `TrainState` of shardings: parameters by the rules, the optimizer's state like its parameters."""
    params = param_shardings(model, mesh, fallbacks)
    whole = replicated(mesh)
    opt_state = optimizers.state_shardings(optimizer, decoder.abstract_params(model), params, whole)
    return TrainState(whole, params, opt_state)


def compile_step(
    step: Callable[[TrainState, Params | None, Batch], tuple[TrainState, Metrics]],
    shardings: TrainState,
    teacher_shardings: Any,
    mesh: Mesh,
) -> jax.stages.Wrapped:
    """`step` under `jax.jit` with its shardings; the given state's memory is used again for the new one.

    Args:
        step: what `make_step` returned, its activations pinned to the same mesh.
        shardings: of the state, as from `state_shardings`.
        teacher_shardings: of the teacher's parameters; None without a teacher.
        mesh: the mesh, over which the rows of a batch are spread.
    """
    return jax.jit(
        step,
        in_shardings=(shardings, teacher_shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def _sums(
    models: Models,
    loss: LossConfig,
    remat: str,
    masks: Masks | None,
    params: Params,
    teacher: Params | None,
    batch: Batch,
) -> tuple[Array, Metrics]:
    """The total loss of a micro-batch, and sums for reports: `loss`, its parts, and `tokens`."""
    labels, weights = next_token_labels(batch["tokens"], batch["segment_ids"])
    pin = models.constrain or unpinned

    def outputs(config: ModelConfig, params: Params, remat: str, masks: Masks | None = None) -> tuple[Array, Array]:
        inputs = batch["tokens"], batch["positions"], batch["segment_ids"]
        hidden = decoder.forward(config, params, *inputs, masks=masks, remat=remat, constrain=pin).hidden
        return hidden, decoder.unembedding(config, params)

    targets: tuple[Array, Array] | None = None
    if models.teacher is not None and teacher is not None:
        targets = outputs(models.teacher, jax.lax.stop_gradient(teacher), "none")
    total, parts = chunked_loss(
        loss,
        *outputs(models.student, params, remat, masks),
        labels,
        weights,
        targets,
        vocab_tokens=models.vocab_tokens,
        constrain=pin,
    )
    return total, {"loss": jax.lax.stop_gradient(total), "tokens": jnp.sum(weights), **parts}


def _accumulate(
    sums: Callable[[Params, Params | None, Batch], tuple[Array, Metrics]],
    accumulate: int,
    params: Params,
    teacher: Params | None,
    batch: Batch,
) -> tuple[Params, Metrics]:
    """Float32 gradients and sums of a batch, micro-batch by micro-batch."""

    def one(micro: Batch) -> tuple[Params, Metrics]:
        gradients, total = jax.grad(sums, has_aux=True)(params, teacher, micro)
        return _cast(gradients, jnp.float32), total

    if accumulate == 1:
        return one(batch)
    rows = batch["tokens"].shape[0]
    if rows % accumulate:
        raise UserError(f"train.batch of {rows} rows is not divisible by train.accumulate={accumulate}; change one")
    # Micro-batch i has the rows i, i + accumulate, ...: each device keeps its own rows.
    micros = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), dict(batch))
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, jax.tree.map(lambda x: x[0], micros))
    )
    return jax.lax.scan(lambda carry, micro: (jax.tree.map(jnp.add, carry, one(micro)), None), zeros, micros)[0]


def _cast(tree: Any, dtype: jax.typing.DTypeLike) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), tree)
