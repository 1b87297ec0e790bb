"""The training step: a pure function of state, teacher and batch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from chopjax.axes import flatten, unflatten
from chopjax.chop.dimchop import DimChop, kept_share
from chopjax.distill.config import LossConfig
from chopjax.distill.losses import refuse_missing
from chopjax.distill.matching import Matching
from chopjax.distill.objective import Batch, Metrics, Models, Params, batch_sums
from chopjax.distill.schedules import scalars
from chopjax.errors import UserError
from chopjax.models import decoder
from chopjax.models.config import ModelConfig
from chopjax.sharding import compiler
from chopjax.sharding.mesh import batch_sharding, replicated
from chopjax.train import skipping
from chopjax.train.schedules import Schedule
from chopjax.train.state import TeacherState, TrainState, leaves_of

ComputeDtype = Literal["float32", "bfloat16"]
Update = tuple[Any, Any]


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """How a step is computed. Of these, `steps` and `cached` alone change what is computed, beyond rounding.

    Attributes:
        accumulate: micro-batches that a batch is worked through in.
        compute_dtype: dtype of activations and matrix products of the student.
        remat: which activations the backward pass makes again (`models.decoder.REMAT`).
        steps: steps of the run, over which schedules of the loss go.
        cached: whether batches bring what was kept of the teacher's distributions.
    """

    accumulate: int = 1
    compute_dtype: ComputeDtype = "bfloat16"
    remat: str = "none"
    steps: int = 1
    cached: bool = False

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise UserError(f"train.accumulate is {self.accumulate}; give at least 1")
        for name, value, known in (
            ("compute_dtype", self.compute_dtype, get_args(ComputeDtype)),
            ("remat", self.remat, tuple(decoder.REMAT)),
        ):
            if value not in known:
                raise UserError(f"train.{name} is {value!r}; give one of {', '.join(known)}")


def make_step(
    models: Models,
    loss: LossConfig,
    config: StepConfig,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    dimchop: DimChop | None = None,
    teacher_optimizer: optax.GradientTransformation | None = None,
) -> Callable[[TrainState, Params | None, Batch], tuple[TrainState, Metrics]]:
    """The training step, a pure function (state, teacher_params, batch) → (state, metrics).

    The loss is the sum over all tokens that predict, divided by their number, whatever the number of micro-batches;
    gradients of micro-batches are summed in float32. The masters are cast to the compute dtype once a step. The
    teacher runs in the dtype that its parameters have, and only where a loss compares with it.

    Metrics, float32 scalars: `loss`; its parts a token, before their weights (`next_token`, `z_loss`, `kl`, ...,
    `hidden/TERM`, and `alpha`); `tokens` that predict; `grad_norm` before clipping; `param_norm` after the update;
    `learning_rate` of this step; `skipped`, 1 or 0; `schedule/FIELD`, what a schedule made of it; under DimCHOP
    `kept_share`, of all dimensions those not masked in this step.

    A step with gradients that are not finite is skipped: parameters and optimizer states stay as they are, and only
    what counts the steps of the run goes on.

    With `dimchop`, the optimizer is what its `watching` returned. The gradient is taken at the masked parameters and
    applied to the whole ones, so what is masked goes on learning.

    With `teacher_optimizer`, the teacher is that of the state and learns from the next tokens in the same passes.

    Raises:
        UserError: a term without the teacher that it needs.
    """
    uses_teacher = bool(loss.teacher_terms and not config.cached) or models.hidden
    refuse_missing(loss, "kept" if config.cached else "none" if models.teacher is None else "whole")
    dtype = jnp.dtype(config.compute_dtype)
    correct = teacher_optimizer is not None

    def step(state: TrainState, teacher: Params | None, batch: Batch) -> tuple[TrainState, Metrics]:
        params, masks = _cast(state.params, dtype), None
        if dimchop is not None:
            params, masks = dimchop.apply(params, state.opt_state)
        if state.teacher is not None:
            teacher = _cast(state.teacher.params, dtype)
        objective = functools.partial(batch_sums, remat=config.remat, masks=masks, correct=correct)
        now = scalars(loss, state.step, config.steps)

        def sums(learning: tuple[Params, Params | None], micro: Batch) -> tuple[Array, Metrics]:
            own = learning[1] if correct else jax.lax.stop_gradient(teacher) if uses_teacher else None
            return objective(models, loss, now, learning[0], own, micro)

        learning = params, teacher if correct else None
        gradients, total = _accumulate(sums, config.accumulate, learning, batch, functools.partial(_in_place, models))
        tokens = total.pop("tokens")
        count = jnp.maximum(tokens, 1.0)
        gradients = jax.tree.map(lambda gradient: gradient / count, gradients)
        norms = [optax.tree.norm(gradient) for gradient in gradients if gradient is not None]
        healthy = skipping.finite(*norms)
        new_params, opt_state = _updated(optimizer, gradients[0], state.params, state.opt_state, healthy)
        metrics = {name: value / count for name, value in total.items()} | {
            "tokens": tokens,
            "grad_norm": norms[0],
            "param_norm": optax.tree.norm(new_params),
            "learning_rate": schedule(state.step),
            "skipped": jnp.where(healthy, 0.0, 1.0),
            **{f"schedule/{one.field}": now[one.field] for one in loss.schedules},
        }
        if dimchop is not None:
            metrics["kept_share"] = kept_share(state.opt_state[0])
        learnt = None
        if teacher_optimizer is not None and state.teacher is not None:
            own_state = state.teacher.params, state.teacher.opt_state
            learnt = TeacherState(*_updated(teacher_optimizer, gradients[1], *own_state, healthy))
        return TrainState(state.step + 1, new_params, opt_state, learnt), metrics

    return step


def compile_step(
    step: Callable[[TrainState, Params | None, Batch], tuple[TrainState, Metrics]],
    shardings: TrainState,
    teacher_shardings: Any,
    mesh: Mesh,
) -> jax.stages.Wrapped:
    """`step` under `jax.jit` with its shardings; the given state's memory is used again for the new one.

    Args:
        step: what `make_step` returned, its activations pinned to the same mesh.
        shardings: of the state, as from `state.state_shardings`.
        teacher_shardings: of the teacher's parameters; None without a teacher.
        mesh: the mesh, over which the rows of a batch are spread.
    """
    return jax.jit(
        step,
        in_shardings=(shardings, teacher_shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler.options(mesh),
    )


def _updated(
    optimizer: optax.GradientTransformation, gradients: Params, params: Params, opt_state: Any, healthy: Bool[Array, ""]
) -> Update:
    """New parameters and optimizer state, or the old ones where the step is not healthy."""
    updates, new_state = optimizer.update(gradients, opt_state, params)
    return skipping.where(healthy, (optax.apply_updates(params, updates), new_state), (params, opt_state))


def _in_place(models: Models, gradients: tuple[Params, Params | None]) -> tuple[Params, Params | None]:
    """Gradients where their parameters lie: else XLA may bring parameters and moments to where a gradient was made."""

    def pinned(config: ModelConfig | None, matching: Matching | None, found: Params | None) -> Params | None:
        if config is None or found is None:
            return None
        leaves = leaves_of(config, matching)
        flat = flatten(found)
        return unflatten({path: models.constrain(leaf, leaves[path].axes) for path, leaf in flat.items()})

    student = pinned(models.student, models.matching, gradients[0])
    assert student is not None
    return student, pinned(models.teacher, None, gradients[1])


def _accumulate(
    sums: Callable[[Any, Batch], tuple[Array, Metrics]],
    accumulate: int,
    learning: Any,
    batch: Batch,
    in_place: Callable[[Any], Any],
) -> tuple[Any, Metrics]:
    """Float32 gradients and sums of a batch, micro-batch by micro-batch."""

    def one(micro: Batch) -> tuple[Any, Metrics]:
        gradients, total = jax.grad(sums, has_aux=True)(learning, micro)
        return _cast(in_place(gradients), jnp.float32), total

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
