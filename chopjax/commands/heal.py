"""Training after the chop, and the few ordinary steps before it that Just CHOP takes; resumable at any moment."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from chopjax.chop.apply import chop_config, chop_params
from chopjax.chop.build import axes_to_score
from chopjax.chop.dimchop import DimChop
from chopjax.chop.optimizer_state import chop_optimizer_state
from chopjax.chop.plan import Plan
from chopjax.commands import correct, training
from chopjax.commands import plan as planning
from chopjax.commands import teacher as teaching
from chopjax.commands.phase import Phase, TeacherPlace
from chopjax.commands.run import Run
from chopjax.commands.settings import Settings
from chopjax.commands.stages import Stage
from chopjax.distill import cache_config, on_policy_config
from chopjax.distill.config import LossConfig
from chopjax.distill.matching import Matching, match
from chopjax.distill.objective import of_model
from chopjax.errors import Diverged, UserError
from chopjax.hf.checkpoint import Checkpoint
from chopjax.models.config import ModelConfig
from chopjax.sharding.mesh import replicated
from chopjax.train.config import OptimizerConfig
from chopjax.train.state import TrainState, state_shardings

CHECKPOINTS, DENSE = "checkpoints", "checkpoints_before_chop"
STAGE = Stage("train", (CHECKPOINTS,), resumable=True)


def make(run: Run) -> None:
    """Trains the student and leaves its checkpoints, or skips what was trained before.

    Raises:
        UserError: the workdir holds a run that began otherwise.
    """
    _check_settings(run)
    last = f"{CHECKPOINTS}/{_until(run)}"  # without which nothing that comes after has what it is of
    stage = dataclasses.replace(STAGE, outputs=(*STAGE.outputs, last))
    run.stage(stage, identity(run), functools.partial(_work, run))


def check(run: Run) -> None:
    """Refuses, before anything is made anew, settings and models other than those that training began with.

    Raises:
        UserError: names the first that changed; or settings that do not fit each other, or not the teacher.
    """
    _check_settings(run)
    teaching.check(run)
    _check_hidden(run)
    run.stages.refuse_changes(STAGE, _known(run))


def trained_params(run: Run) -> tuple[int, dict[str, Any]]:
    """Steps done, and the student's float32 parameters that training ended with; masked if DimCHOP masks them.

    Raises:
        UserError: their checkpoint is not there, or cannot be read.
        Diverged: no model of any use has such parameters.
    """
    phase = _healing(run)
    with training.checkpoints(run, phase, identity(run)) as checkpoints:
        state = training.at_end(run, phase, checkpoints, whole=phase.dimchop is not None)
    _refuse_overflown(run, state)
    params = state.params
    if phase.dimchop is not None:
        params, _ = phase.dimchop.apply(params, state.opt_state)
    return phase.until, of_model(params)


def _refuse_overflown(run: Run, state: TrainState) -> None:
    """Refuses parameters of which float32 has no norm, which is what `param_norm` is null for in the metrics."""
    norm = jax.jit(optax.global_norm, out_shardings=replicated(run.mesh))(of_model(state.params))
    if not math.isfinite(np.asarray(norm)):
        raise Diverged(
            "train: its last parameters are not finite, or too large for float32; see the losses in metrics.jsonl and "
            "lower train.learning_rate or train.clip in a new workdir; a train.skip_limit above 0 would have said so "
            "sooner"
        )


def dense_phase(run: Run) -> Phase:
    """The steps before the chop; with DimCHOP pooled, those in which it finds out what is to be cut."""
    source, steps = run.source.config, run.settings.train.steps_before_chop
    dimchop = None
    if run.settings.dimchop.mode == "pooled":
        chosen = run.settings.plan
        targets = {axis: getattr(chosen, axis) for axis in axes_to_score(chosen, source.sizes)}
        dimchop = DimChop(run.settings.dimchop, source, steps, targets)
    # The student is the source still, so there is nothing to distil.
    loss, optimizer = LossConfig.plain(run.settings.loss.chunk), _optimizer(run)
    begin = functools.partial(_fresh, run, run.source)
    return Phase(DENSE, source, loss, steps, begin, optimizer, dimchop)


def train_dense(run: Run) -> TrainState:
    """Takes the steps before the chop."""
    return training.train_phase(run, dense_phase(run), identity(run))


def _matching(run: Run, student: ModelConfig, teacher: ModelConfig, plan: Plan) -> Matching:
    """Which activations of the student are compared with the teacher's."""
    # The plan says which teacher layer a student layer was only where the teacher is what was chopped.
    return match(run.settings.hidden, student, teacher, plan.kept if run.teacher is run.source else None)


def identity(run: Run) -> dict[str, Any]:
    """All that decides what is learnt."""
    return _known(run) | training.rows_identity(run)


def _healing(run: Run) -> Phase:
    """The steps after the chop; with DimCHOP by matrix, those in which dimensions are masked."""
    chosen, student, optimizer = run.settings.train, run.student.config, _optimizer(run)
    masking = run.settings.dimchop.mode == "matrix"
    dimchop = DimChop(run.settings.dimchop, student, chosen.steps) if masking else None
    compared = _matching(run, student, run.teacher_config, run.plan) if run.settings.hidden.terms else None
    begin = functools.partial(_fresh, run, run.student)
    if chosen.steps_before_chop:
        begin = functools.partial(_chopped, run)
    return Phase(
        CHECKPOINTS,
        student,
        run.settings.loss,
        _until(run),
        begin,
        optimizer,
        dimchop,
        teacher_place(run.settings),
        compared,
        run.settings.on_policy,
    )


def _until(run: Run) -> int:
    """Steps of the whole run, with those before the chop."""
    return run.settings.train.steps_before_chop + run.settings.train.steps


def teacher_place(chosen: Settings) -> TeacherPlace:
    """Where the teacher is while the student learns."""
    if not chosen.loss.teacher_terms and not chosen.hidden.terms:
        return "none"
    if chosen.cache.kind != "off":
        return "cached"
    return "learning" if chosen.correction.mode == "alongside" else "beside"


def _work(run: Run) -> None:
    corrected = run.settings.correction.mode == "before"
    load_teacher = functools.partial(correct.corrected_teacher, run) if corrected else None
    training.train_phase(run, _healing(run), identity(run), load_teacher)


def _fresh(run: Run, checkpoint: Checkpoint, phase: Phase) -> TrainState:
    return training.fresh(run, phase, run.load(checkpoint, jnp.dtype(jnp.float32)))


def _chopped(run: Run, phase: Phase) -> TrainState:
    """The state after the steps before the chop, its parameters and moments cut by the plan."""
    state, dense = train_dense(run), dense_phase(run)
    old = training.of_student(dense.config, dense.optimizer)
    new, teacher = training.trained_in(run, phase)
    if dense.dimchop is not None:
        state = dataclasses.replace(state, opt_state=state.opt_state[1])  # the masks have become the plan

    def cut(state: TrainState, teacher_params: Any) -> TrainState:
        params = training.with_projections(run, chop_params(run.plan, old.leaves, state.params), phase.matching)
        moments = chop_optimizer_state(run.plan, old.leaves, old.optimizer, state.opt_state)
        own = None if teacher is None else (teacher_params, teacher.optimizer)
        start = training.init_state(params, new.optimizer, own)
        opt_state = _overlaid(start.opt_state, moments)
        return dataclasses.replace(start, step=state.step, opt_state=opt_state)

    shardings = state_shardings(new, run.mesh, run.fallbacks, teacher)
    teacher_params = None if teacher is None else run.load_teacher(jnp.dtype(jnp.float32))
    # Not donated: no buffer of the whole fits one of the cut.
    return jax.jit(cut, out_shardings=shardings)(state, teacher_params)


def _overlaid(start: Any, moments: Any) -> Any:
    """A fresh optimizer state with the moments of all parameters that had any before."""
    if isinstance(start, dict):
        return {name: _overlaid(part, moments[name]) if name in moments else part for name, part in start.items()}
    if isinstance(start, tuple):
        parts = [_overlaid(*pair) for pair in zip(start, moments, strict=True)]
        return type(start)(*parts) if hasattr(start, "_fields") else tuple(parts)
    return moments


def _optimizer(run: Run) -> OptimizerConfig:
    """The optimizer, its schedule spread over all steps of the run, those before the chop too."""
    chosen = run.settings.optimizer
    return dataclasses.replace(chosen, schedule=dataclasses.replace(chosen.schedule, steps=_until(run)))


def _known(run: Run) -> dict[str, Any]:
    """Of the identity, what is known before any text is read."""
    sections = ("seed", "train", "optimizer", "loss", "hidden", "cache", "correction", "on_policy", "data", "dimchop")
    teacher = {"teacher": "none" if teacher_place(run.settings) == "none" else run.teacher_print}
    return run.settings.identity(*sections) | planning.inputs(run) | teacher


def _check_settings(run: Run) -> None:
    """Refuses settings that do not go together."""
    chosen = run.settings
    cache_config.check_loss(chosen.cache, chosen.loss)
    if chosen.cache.kind != "off":  # of a vocabulary that is trimmed, what stays is known later
        cache_config.check_vocab(chosen.cache, run.tokenizer.vocab)
    if chosen.loss.top_k > run.tokenizer.vocab:
        raise UserError(
            f"loss.top_k is {chosen.loss.top_k}, but the tokenizer has {run.tokenizer.vocab} tokens; "
            "give fewer, or 0 for all"
        )
    needing = {"hidden": chosen.hidden.terms, "correction.mode": chosen.correction.mode != "off"}
    for name in (name for name, wanted in needing.items() if wanted and chosen.cache.kind != "off"):
        raise UserError(f"{name} needs a teacher that runs; set cache.kind to 'off', which is {chosen.cache.kind!r}")
    if chosen.cache.kind != "off" and not chosen.loss.teacher_terms:
        raise UserError(f"cache.kind is {chosen.cache.kind!r}, but no loss compares with a teacher; set it to 'off'")
    _check_on_policy(run)
    if chosen.correction.mode != "off" and teacher_place(run.settings) == "none":
        raise UserError(f"correction.mode is {chosen.correction.mode!r}, but no loss compares with a teacher")
    training.check_correction(run)
    if chosen.hidden.learned and not chosen.optimizer.schedule.learning_rate:
        raise UserError(
            f"hidden.project is {chosen.hidden.project!r}, a matrix to be learned, but train.learning_rate is 0, which "
            "freezes it with the student; choose 'gather' or 'none', or give it a rate"
        )
    _check_dimchop(run)


def _check_hidden(run: Run) -> None:
    """Refuses activations that cannot be compared, as far as the sizes of the student are known."""
    if run.settings.hidden.terms and not run.settings.search.wanted:
        plan = planning.foreseen(run)
        _matching(run, chop_config(run.source.config, plan), run.teacher.config, plan)


def _check_on_policy(run: Run) -> None:
    """Refuses settings with which a student's own samples do not go together."""
    chosen = run.settings
    if not chosen.on_policy.share:
        return
    on_policy_config.check_loss(chosen.on_policy, chosen.loss, chosen.cache)
    if chosen.data.sources:  # else rows are there already, maybe of another length
        on_policy_config.check_length(chosen.on_policy, chosen.data.length)
    said = f"on_policy.share is {chosen.on_policy.share}, and"
    if chosen.correction.mode == "alongside":
        raise UserError(f"{said} a learning teacher would learn the student's samples; set correction.mode to 'before'")
    if chosen.dimchop.mode == "matrix":
        raise UserError(f"{said} samples are not drawn with DimCHOP's masks; set dimchop.mode to 'off' or 'pooled'")


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
        if run.settings.hidden.learned:
            raise UserError("dimchop.mode 'matrix' masks no projections; set hidden.project to 'gather' or 'none'")
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
