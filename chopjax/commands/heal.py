"""Training after the chop, and the few ordinary steps before it that Just CHOP takes; resumable at any moment."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from chopjax.chop.apply import chop_params
from chopjax.chop.build import axes_to_score
from chopjax.chop.dimchop import DimChop
from chopjax.chop.optimizer_state import chop_optimizer_state
from chopjax.commands import plan as planning
from chopjax.commands.run import Run
from chopjax.commands.stages import Stage
from chopjax.commands.watch import Phase, Watch
from chopjax.data.batches import Batches
from chopjax.distill.config import LossConfig
from chopjax.errors import UserError
from chopjax.hf.checkpoint import Checkpoint
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
    _check_dimchop(run)
    run.stage(STAGE, identity(run), functools.partial(_work, run))


def check(run: Run) -> None:
    """Refuses, before anything is made anew, settings and models other than those that training began with.

    Raises:
        UserError: names the first that changed; or settings of DimCHOP that do not fit the others.
    """
    _check_dimchop(run)
    run.stages.refuse_changes(STAGE, _known(run))


def trained_params(run: Run) -> tuple[int, dict[str, Any]]:
    """Steps done, and the float32 parameters of the newest checkpoint, on the mesh; masked if DimCHOP masks them."""
    phase = _healing(run)
    with _checkpoints(run, CHECKPOINTS) as checkpoints:
        restored = checkpoints.restore(_abstract_state(run, phase))
    assert restored is not None, "the train stage ended without a checkpoint"
    params = restored.state.params
    if phase.dimchop is not None:
        params, _ = phase.dimchop.apply(params, restored.state.opt_state)
    return restored.step, params


def dense_phase(run: Run) -> Phase:
    """The steps before the chop; with DimCHOP pooled, those in which it finds out what is to be cut."""
    source, steps = run.source.config, run.settings.train.steps_before_chop
    dimchop = None
    if run.settings.dimchop.mode == "pooled":
        chosen = run.settings.plan
        targets = {axis: getattr(chosen, axis) for axis in axes_to_score(chosen, source.sizes)}
        dimchop = DimChop(run.settings.dimchop, source, steps, targets)
    loss = dataclasses.replace(DENSE_LOSS, chunk=run.settings.loss.chunk)
    return Phase(DENSE, source, loss, steps, functools.partial(_fresh, run, run.source, dimchop), dimchop)


def _healing(run: Run) -> Phase:
    """The steps after the chop; with DimCHOP by matrix, those in which dimensions are masked."""
    chosen, student = run.settings.train, run.student.config
    masking = run.settings.dimchop.mode == "matrix"
    dimchop = DimChop(run.settings.dimchop, student, chosen.steps) if masking else None
    begin = functools.partial(_fresh, run, run.student, dimchop)
    if chosen.steps_before_chop:
        begin = functools.partial(_chopped, run, dense_phase(run))
    total = chosen.steps_before_chop + chosen.steps
    return Phase(CHECKPOINTS, student, run.settings.loss, total, begin, dimchop)


def _work(run: Run) -> None:
    train_phase(run, _healing(run))


def _fresh(run: Run, checkpoint: Checkpoint, dimchop: DimChop | None) -> TrainState:
    """The state before the first step on a checkpoint's parameters."""
    params = run.load(checkpoint, jnp.dtype(jnp.float32))
    optimizer = _optimizer(run, checkpoint.config, dimchop)
    shardings = state_shardings(checkpoint.config, optimizer, run.mesh, run.fallbacks)
    return jax.jit(lambda params: init_state(params, optimizer), out_shardings=shardings)(params)


def _chopped(run: Run, dense: Phase) -> TrainState:
    """The state after the steps before the chop, its parameters and moments cut by the plan."""
    state = train_phase(run, dense)
    leaves, optimizer = declare(dense.config), _optimizer(run, dense.config)
    if dense.dimchop is not None:
        state = dataclasses.replace(state, opt_state=state.opt_state[1])  # the masks have become the plan

    def cut(state: TrainState) -> TrainState:
        params = chop_params(run.plan, leaves, state.params)
        return TrainState(state.step, params, chop_optimizer_state(run.plan, leaves, optimizer, state.opt_state))

    shardings = state_shardings(run.student.config, optimizer, run.mesh, run.fallbacks)
    return jax.jit(cut, out_shardings=shardings)(state)  # not donated: no buffer of the whole fits one of the cut


def train_phase(run: Run, phase: Phase) -> TrainState:
    """Goes on from the phase's newest checkpoint, or begins it, and trains to its end."""
    run.check_mesh(phase.config)
    with _checkpoints(run, phase.folder) as checkpoints:
        restored = checkpoints.restore(_abstract_state(run, phase))
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
        step = _compiled(run, phase, teacher)
        with Watch(run, phase, checkpoints, batches, teacher, done) as watch:
            return train(step, state, teacher, batches, run.mesh, phase.until, watch.after)


def _compiled(run: Run, phase: Phase, teacher: Any) -> jax.stages.Wrapped:
    chosen, optimizer = run.settings.train, _optimizer(run, phase.config, phase.dimchop)
    teacher_config = run.teacher_config if teacher is not None else None
    models = Models(phase.config, teacher_config, run.student_tokenizer.vocab, run.constrain)
    how = StepConfig(chosen.accumulate, chosen.compute_dtype, chosen.remat)
    schedule = make_schedule(_optimizer_config(run).schedule)
    step = make_step(models, phase.loss, how, optimizer, schedule, phase.dimchop)
    shardings = state_shardings(phase.config, optimizer, run.mesh, run.fallbacks)
    teacher_shardings = jax.tree.map(lambda p: p.sharding, teacher)
    return compile_step(step, shardings, teacher_shardings, run.mesh)


def _optimizer(run: Run, config: ModelConfig, dimchop: DimChop | None = None) -> optax.GradientTransformation:
    optimizer = optimizers.build(_optimizer_config(run), declare(config))
    return optimizer if dimchop is None else dimchop.watching(optimizer)


def _optimizer_config(run: Run) -> OptimizerConfig:
    """The optimizer, its schedule spread over all steps of the run, those before the chop too."""
    chosen, steps = run.settings.optimizer, run.settings.train.steps_before_chop + run.settings.train.steps
    return dataclasses.replace(chosen, schedule=dataclasses.replace(chosen.schedule, steps=steps))


def _abstract_state(run: Run, phase: Phase) -> TrainState:
    optimizer = _optimizer(run, phase.config, phase.dimchop)
    shapes = jax.eval_shape(lambda params: init_state(params, optimizer), abstract_params(phase.config))
    shardings = state_shardings(phase.config, optimizer, run.mesh, run.fallbacks)
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
    return Checkpoints(run.workdir / folder, identity(run), keep=chosen.keep, keep_best=chosen.keep_best)


def identity(run: Run) -> dict[str, Any]:
    """All that decides what is learnt."""
    found = _known(run) | {"rows": [part.digest for part in run.student_data.parts]}
    return found | ({"tokenizer": run.student_tokenizer.digest} if run.trimmed else {})


def _known(run: Run) -> dict[str, Any]:
    """Of that, what is known before any text is read."""
    teacher = {"teacher": run.teacher_print if run.settings.loss.kl else "none"}
    return (
        run.settings.identity("seed", "train", "optimizer", "loss", "data", "dimchop") | planning.inputs(run) | teacher
    )


def _check_dimchop(run: Run) -> None:
    """Refuses settings of DimCHOP that do not fit those of the plan and of training."""
    chosen, train, wanted = run.settings.dimchop, run.settings.train, run.settings.plan
    if chosen.mode == "off":
        return
    if chosen.mode == "matrix":
        field, steps = "train.steps", train.steps
        if train.steps_before_chop:
            raise UserError(
                "train.steps_before_chop: with dimchop.mode 'matrix' nothing is chopped; "
                "give ordinary steps as dimchop.start, and 0 here"
            )
    else:
        field, steps = "train.steps_before_chop", train.steps_before_chop
        widths = axes_to_score(wanted, run.source.config.sizes)
        if wanted.file or wanted.merge_kv_heads or run.settings.search.wanted or run.trimmed or not widths:
            raise UserError(
                "dimchop.mode 'pooled' chooses which units of given widths to keep; set plan.mlp, plan.embed, "
                "plan.kv_heads or plan.q_per_kv, and no plan.file, plan.merge_kv_heads, plan.vocab or search"
            )
    if chosen.start + chosen.steps > steps:
        raise UserError(
            f"dimchop.start + dimchop.steps is {chosen.start + chosen.steps}, but masks are worn in the {steps} steps "
            f"of {field} only; make it more, or the others less"
        )
