"""Training after the chop, and the few ordinary steps before it that Just CHOP takes; resumable at any moment."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from chopjax.chop.apply import chop_params
from chopjax.chop.optimizer_state import chop_optimizer_state
from chopjax.commands import plan as planning
from chopjax.commands.run import Run
from chopjax.commands.stages import Stage
from chopjax.commands.watch import Phase, Watch
from chopjax.data.batches import Batches
from chopjax.distill.config import LossConfig
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import abstract_params
from chopjax.models.parameters import declare
from chopjax.train import optimizers
from chopjax.train.checkpoints import Checkpoints
from chopjax.train.config import OptimizerConfig
from chopjax.train.loop import train
from chopjax.train.schedules import make_schedule
from chopjax.train.step import (
    Models,
    StepConfig,
    TrainState,
    compile_step,
    init_state,
    make_step,
    state_shardings,
)

CHECKPOINTS, DENSE = "checkpoints", "checkpoints_before_chop"
STAGE = Stage("train", (CHECKPOINTS,), resumable=True)

# Before the chop the student is the source, so there is nothing to distil: plain next-token loss.
DENSE_LOSS = LossConfig(next_token=1.0, kl=0.0)


def make(run: Run) -> None:
    """Trains the student and leaves its checkpoints, or skips what was trained before.

    Raises:
        UserError: the workdir holds a run that began otherwise.
    """
    run.stage(STAGE, _identity(run), functools.partial(_work, run))


def check(run: Run) -> None:
    """Refuses, before anything is made anew, settings and models other than those that training began with.

    Raises:
        UserError: names the first that changed.
    """
    run.stages.refuse_changes(STAGE, _known(run))


def trained_params(run: Run) -> tuple[int, dict[str, Any]]:
    """Steps done, and the float32 parameters of the newest checkpoint, on the mesh."""
    optimizer = _optimizer(run, run.student.config)
    with _checkpoints(run, CHECKPOINTS) as checkpoints:
        restored = checkpoints.restore(_abstract_state(run, run.student.config, optimizer))
    assert restored is not None, "the train stage ended without a checkpoint"
    return restored.step, restored.state.params


def _work(run: Run) -> None:
    chosen = run.settings.train
    before, total = chosen.steps_before_chop, chosen.steps_before_chop + chosen.steps
    dense = Phase(DENSE, run.source.config, _with_chunk(run, DENSE_LOSS), before, functools.partial(_from_source, run))
    begin = functools.partial(_chopped, run, dense) if before else functools.partial(_from_student, run)
    _train_phase(run, Phase(CHECKPOINTS, run.student.config, run.settings.loss, total, begin))


def _from_source(run: Run) -> TrainState:
    return _fresh(run, run.source.config, run.load(run.source, jnp.dtype(jnp.float32)))


def _from_student(run: Run) -> TrainState:
    return _fresh(run, run.student.config, run.load(run.student, jnp.dtype(jnp.float32)))


def _fresh(run: Run, config: ModelConfig, params: dict[str, Any]) -> TrainState:
    optimizer = _optimizer(run, config)
    shardings = state_shardings(config, optimizer, run.mesh, run.fallbacks)
    return jax.jit(lambda params: init_state(params, optimizer), out_shardings=shardings)(params)


def _chopped(run: Run, dense: Phase) -> TrainState:
    """The state after the steps before the chop, its parameters and moments cut by the plan."""
    state = _train_phase(run, dense)
    leaves, optimizer = declare(dense.config), _optimizer(run, dense.config)

    def cut(state: TrainState) -> TrainState:
        params = chop_params(run.plan, leaves, state.params)
        return TrainState(state.step, params, chop_optimizer_state(run.plan, leaves, optimizer, state.opt_state))

    shardings = state_shardings(run.student.config, optimizer, run.mesh, run.fallbacks)
    return jax.jit(cut, out_shardings=shardings)(state)  # not donated: no buffer of the whole fits one of the cut


def _train_phase(run: Run, phase: Phase) -> TrainState:
    """Goes on from the phase's newest checkpoint, or begins it, and trains to its end."""
    run.check_mesh(phase.config)
    optimizer = _optimizer(run, phase.config)
    with _checkpoints(run, phase.folder) as checkpoints:
        restored = checkpoints.restore(_abstract_state(run, phase.config, optimizer))
        if restored and restored.step >= phase.until:
            return restored.state
        state = restored.state if restored else phase.begin()
        done = int(state.step)
        if restored:
            run.say(f"train: goes on from step {done} of {phase.until}")
        batches = _batches(run)
        if restored:
            batches.set_state(restored.position)
        else:
            batches.seek(done * run.settings.train.batch)
        teacher = run.load_teacher() if phase.loss.kl else None
        step = _compiled(run, phase, optimizer, teacher)
        with Watch(run, phase, checkpoints, batches, teacher, done) as watch:
            return train(step, state, teacher, batches, run.mesh, phase.until, watch.after)


def _compiled(run: Run, phase: Phase, optimizer: optax.GradientTransformation, teacher: Any) -> jax.stages.Wrapped:
    chosen = run.settings.train
    teacher_config = run.teacher_config if teacher is not None else None
    models = Models(phase.config, teacher_config, run.student_tokenizer.vocab, run.constrain)
    how = StepConfig(chosen.accumulate, chosen.compute_dtype, chosen.remat)
    step = make_step(models, phase.loss, how, optimizer, make_schedule(_optimizer_config(run).schedule))
    shardings = state_shardings(phase.config, optimizer, run.mesh, run.fallbacks)
    teacher_shardings = jax.tree.map(lambda p: p.sharding, teacher)
    return compile_step(step, shardings, teacher_shardings, run.mesh)


def _optimizer(run: Run, config: ModelConfig) -> optax.GradientTransformation:
    return optimizers.build(_optimizer_config(run), declare(config))


def _optimizer_config(run: Run) -> OptimizerConfig:
    """The optimizer, its schedule spread over all steps of the run, those before the chop too."""
    chosen, steps = run.settings.optimizer, run.settings.train.steps_before_chop + run.settings.train.steps
    return dataclasses.replace(chosen, schedule=dataclasses.replace(chosen.schedule, steps=steps))


def _abstract_state(run: Run, config: ModelConfig, optimizer: optax.GradientTransformation) -> TrainState:
    shapes = jax.eval_shape(lambda params: init_state(params, optimizer), abstract_params(config))
    shardings = state_shardings(config, optimizer, run.mesh, run.fallbacks)
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings)


def _batches(run: Run) -> Batches:
    return Batches(
        run.student_data.mixture(),
        run.settings.train.batch,
        run.settings.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=run.settings.data.threads,
        prefetch=run.settings.data.prefetch,
    )


def _checkpoints(run: Run, folder: str) -> Checkpoints:
    chosen = run.settings.train
    return Checkpoints(run.workdir / folder, _identity(run), keep=chosen.keep, keep_best=chosen.keep_best)


def _identity(run: Run) -> dict[str, Any]:
    """All that decides what is learnt."""
    found = _known(run) | {"rows": [part.digest for part in run.student_data.parts]}
    return found | ({"tokenizer": run.student_tokenizer.digest} if run.trimmed else {})


def _known(run: Run) -> dict[str, Any]:
    """Of that, what is known before any text is read."""
    teacher = {"teacher": run.teacher_print if run.settings.loss.kl else "none"}
    return run.settings.identity("seed", "train", "optimizer", "loss", "data") | planning.inputs(run) | teacher


def _with_chunk(run: Run, loss: LossConfig) -> LossConfig:
    return dataclasses.replace(loss, chunk=run.settings.loss.chunk)
