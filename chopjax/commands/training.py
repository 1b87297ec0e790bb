"""A phase of training, carried out: its state, its step, its batches, its checkpoints."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from chopjax.chop.dimchop import DimChop
from chopjax.commands import cache_teacher, settings
from chopjax.commands.ends import end_tokens
from chopjax.commands.phase import Phase
from chopjax.commands.run import Run
from chopjax.commands.settings import Settings
from chopjax.commands.watch import Watch, evaluation_missing
from chopjax.data.batches import Batches, Mixture
from chopjax.distill.matching import Matching
from chopjax.distill.objective import Models, of_model
from chopjax.distill.projections import init_projections
from chopjax.errors import UserError
from chopjax.models.config import ModelConfig
from chopjax.train import on_policy, optimizers
from chopjax.train.checkpoints import UNREAD, Checkpoints
from chopjax.train.config import OptimizerConfig
from chopjax.train.loop import Before, train, unchanged
from chopjax.train.schedules import make_schedule
from chopjax.train.state import Trained, TrainState, abstract_state, init_state, leaves_of, state_shardings, trained
from chopjax.train.step import StepConfig, compile_step, make_step


def train_phase(
    run: Run, phase: Phase, identity: Mapping[str, Any], load_teacher: Callable[[], Any] | None = None
) -> TrainState:
    """Goes on from the phase's newest checkpoint, or begins it, and trains to its end.

    Args:
        run: the run.
        phase: what is trained.
        identity: all that decides what is learnt.
        load_teacher: makes the parameters of a teacher beside the student; `run.load_teacher` by default.
    """
    run.check_mesh(phase.config)
    with checkpoints(run, phase, identity) as saved:
        restored = saved.resume(abstract(run, phase))
        missing = restored is not None and evaluation_missing(run, phase, restored.step)
        if restored and restored.step >= phase.until and not missing:
            return restored.state
        state = restored.state if restored else phase.begin(phase)
        done = int(state.step)
        if restored:
            run.say(f"train: goes on from step {done} of {phase.until}")
        batches = _batches(run, phase)
        if restored:
            batches.set_state(restored.position)
        else:
            batches.seek(done * run.settings.train.batch)
        for line in passes(run.student_data.mixture(), phase.until * run.settings.train.batch):
            run.say(f"train: {line}")
        params = (load_teacher or run.load_teacher)() if phase.teacher == "beside" else None
        step = _compiled(run, phase, params)
        with Watch(run, phase, saved, batches, params, done) as watch:
            watch.catch_up(state)
            before = _sampler(run, phase, state) if phase.on_policy.share else unchanged
            return train(step, state, params, batches, run.mesh, phase.until, watch.after, before)


def passes(mixture: Mixture, rows: int) -> list[str]:
    """A line for each source that so many rows of the mixture read more than once."""
    total = sum(weight for _, weight in mixture)
    times = [(part, rows * weight / total / len(part)) for part, weight in mixture]
    return [
        f"{part.folder.parent.name} has {len(part):,} rows, each of which is read {count:.1f} times"
        for part, count in times
        if count > 1
    ]


def at_end(run: Run, phase: Phase, checkpoints: Checkpoints, whole: bool = False) -> TrainState:
    """The state that a phase ended with; unless it is to be whole, `UNREAD` in place of all but step and parameters.

    Raises:
        UserError: it is not there, whatever else is, or cannot be read.
    """
    if phase.until not in checkpoints.steps:
        raise UserError(
            f"{checkpoints.folder} lacks the checkpoint of step {phase.until}, with which training ended; put it back, "
            "or run python -m chopjax.train, which trains again from the newest that is there"
        )
    wanted = abstract(run, phase)
    if not whole:  # twice as many bytes as the parameters
        opt_state, teacher = jax.tree.map(lambda leaf: UNREAD, (wanted.opt_state, wanted.teacher))
        wanted = dataclasses.replace(wanted, opt_state=opt_state, teacher=teacher)
    restored = checkpoints.restore(wanted, phase.until)
    assert restored is not None, "a step that is listed is restored"
    return restored.state


def fresh(run: Run, phase: Phase, params: Any) -> TrainState:
    """A phase's state before its first step.

    Args:
        run: the run.
        phase: what is trained.
        params: the model's parameters on the mesh, float32, which are given up; projections are made here, and a
            teacher that learns is loaded.
    """
    student, teacher = trained_in(run, phase)
    params = with_projections(run, params, phase.matching)
    teacher_params = None if teacher is None else run.load_teacher(jnp.dtype(jnp.float32))
    shardings = state_shardings(student, run.mesh, run.fallbacks, teacher)

    def start(params: Any, teacher_params: Any) -> TrainState:
        own = None if teacher is None else (teacher_params, teacher.optimizer)
        return init_state(params, student.optimizer, own)

    # Donated: beside copies of them an allocator would later find no room in one piece for the step.
    return jax.jit(start, out_shardings=shardings, donate_argnums=(0, 1))(params, teacher_params)


def with_projections(run: Run, params: Any, matching: Matching | None) -> Any:
    """Parameters and beside them the projections that a matching of activations learns."""
    if matching is None:
        return params
    return params | init_projections(matching, jax.random.key(run.settings.seed))


def of_student(
    config: ModelConfig,
    chosen: OptimizerConfig,
    dimchop: DimChop | None = None,
    matching: Matching | None = None,
) -> Trained:
    """What is trained of a student, and how."""
    optimizer = optimizers.build(chosen, leaves_of(config, matching))
    return trained(config, optimizer if dimchop is None else dimchop.watching(optimizer), matching)


def of_teacher(run: Run) -> Trained:
    """What is trained of a teacher that learns alongside, and how."""
    config = run.teacher_config
    # It begins to learn after the chop, whatever steps the student took before.
    chosen = correction_optimizer(run.settings, run.settings.train.steps)
    return trained(config, optimizers.build(chosen, leaves_of(config)))


def correction_optimizer(settings: Settings, steps: int) -> OptimizerConfig:
    """The optimizer of a teacher that learns for so many steps."""
    chosen, correction = settings.optimizer, settings.correction
    schedule = dataclasses.replace(
        chosen.schedule,
        learning_rate=correction.learning_rate,
        warmup_steps=correction.warmup_steps,
        steps=steps,
    )
    return dataclasses.replace(chosen, schedule=schedule)


def check_correction(run: Run) -> None:
    """Refuses a rise of the teacher's rate that is longer than its steps leave.

    Raises:
        UserError: names `correction.warmup_steps`.
    """
    correction, chosen = run.settings.correction, run.settings
    if correction.mode == "off":
        return
    steps = correction.steps if correction.mode == "before" else chosen.train.steps
    left = steps - dataclasses.replace(chosen.optimizer.schedule, steps=steps, warmup_steps=0).decay_steps
    if correction.warmup_steps > left:
        raise UserError(
            f"correction.warmup_steps is {correction.warmup_steps}, but the teacher's {steps} steps less the decay "
            f"leave only {left}; warm up for fewer steps"
        )


def abstract(run: Run, phase: Phase) -> TrainState:
    """Shapes and shardings of a phase's state."""
    student, teacher = trained_in(run, phase)
    return abstract_state(student, run.mesh, run.fallbacks, teacher)


def checkpoints(run: Run, phase: Phase, identity: Mapping[str, Any]) -> Checkpoints:
    """Where a phase's states are saved."""
    chosen = run.settings.train
    return Checkpoints(
        run.workdir / phase.folder,
        identity,
        keep=chosen.keep,
        keep_best=chosen.keep_best,
        say=run.say,
        defaults=settings.defaults(),
    )


def trained_in(run: Run, phase: Phase) -> tuple[Trained, Trained | None]:
    """What a phase trains: the model, with its projections, and a teacher that learns."""
    student = of_student(phase.config, phase.optimizer, phase.dimchop, phase.matching)
    return student, of_teacher(run) if phase.teacher == "learning" else None


def rows_identity(run: Run) -> dict[str, Any]:
    """Of what decides what is learnt, the rows and their tokens."""
    found: dict[str, Any] = {"rows": [part.digest for part in run.student_data.parts]}
    return found | ({"tokenizer": run.student_tokenizer.digest} if run.trimmed else {})


def _compiled(run: Run, phase: Phase, teacher_params: Any) -> jax.stages.Wrapped:
    chosen, (student, teacher) = run.settings.train, trained_in(run, phase)
    config = run.teacher_config if phase.teacher in ("beside", "learning") else None
    models = Models(phase.config, config, run.student_tokenizer.vocab, run.constrain, phase.matching)
    cached = phase.teacher == "cached"
    how = StepConfig(chosen.accumulate, chosen.compute_dtype, chosen.remat, phase.optimizer.schedule.steps, cached)
    schedule = make_schedule(phase.optimizer.schedule)
    own = None if teacher is None else teacher.optimizer
    step = make_step(models, phase.loss, how, student.optimizer, schedule, phase.dimchop, own)
    shardings = state_shardings(student, run.mesh, run.fallbacks, teacher)
    return compile_step(step, shardings, jax.tree.map(lambda p: p.sharding, teacher_params), run.mesh)


def _sampler(run: Run, phase: Phase, state: TrainState) -> Before:
    """Puts what the student writes in the place of some batches."""
    shardings = jax.tree.map(lambda p: p.sharding, of_model(state.params))
    sample = on_policy.compile_sampler(
        phase.config,
        phase.on_policy,
        shardings,
        run.mesh,
        run.settings.seed,
        constrain=run.constrain,
        compute_dtype=run.settings.train.compute_dtype,
        vocab_tokens=run.student_tokenizer.vocab,
        eos=end_tokens(run),
    )

    def before(done: int, state: TrainState, batch: dict[str, Any]) -> dict[str, Any]:
        if on_policy.is_sampled(run.settings.seed, done, phase.on_policy.share):
            return sample(of_model(state.params), state.step, batch)
        # All batches have the same keys, so that the step is compiled once.
        return {"targets": jnp.ones_like(batch["tokens"], bool)} | batch

    return before


def _batches(run: Run, phase: Phase) -> Batches:
    return Batches(
        cache_teacher.mixture(run) if phase.teacher == "cached" else run.student_data.mixture(),
        run.settings.train.batch,
        run.settings.seed,
        process_index=run.share.index,
        process_count=run.share.count,
        threads=run.settings.data.threads,
        prefetch=run.settings.data.prefetch,
    )
