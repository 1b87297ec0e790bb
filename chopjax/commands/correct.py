"""Teacher correction before the student's training: the teacher learns from the text that it is to teach on."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from chopjax.commands import training
from chopjax.commands.phase import Phase
from chopjax.commands.run import Run
from chopjax.commands.stages import Stage
from chopjax.distill.config import LossConfig
from chopjax.train.state import TrainState

CHECKPOINTS, METRICS = "checkpoints_teacher", "teacher"
STAGE = Stage("correct", (CHECKPOINTS, METRICS), resumable=True)


def make(run: Run) -> None:
    """Trains the teacher and leaves its checkpoints, where the settings ask for that.

    Raises:
        UserError: the workdir holds a run that began otherwise.
    """
    if run.settings.correction.mode == "before":
        last = f"{CHECKPOINTS}/{run.settings.correction.steps}"
        stage = dataclasses.replace(STAGE, outputs=(*STAGE.outputs, last))
        run.stage(stage, _identity(run), functools.partial(_work, run))


def corrected_teacher(run: Run) -> dict[str, Any]:
    """The teacher's parameters after its steps, in the compute dtype."""
    phase = _phase(run)
    with training.checkpoints(run, phase, _identity(run)) as checkpoints:
        state = training.at_end(run, phase, checkpoints)
    cast = jax.jit(lambda params: jax.tree.map(lambda p: p.astype(run.compute_dtype), params))
    return cast(state.params)


def _work(run: Run) -> None:
    training.train_phase(run, _phase(run), _identity(run))


def _phase(run: Run) -> Phase:
    steps = run.settings.correction.steps
    optimizer = training.correction_optimizer(run.settings, steps)
    loss = LossConfig.plain(run.settings.loss.chunk)
    config = run.teacher_config
    return Phase(CHECKPOINTS, config, loss, steps, functools.partial(_fresh, run), optimizer, metrics=METRICS)


def _fresh(run: Run, phase: Phase) -> TrainState:
    return training.fresh(run, phase, run.load_teacher(jnp.dtype(jnp.float32)))


def _identity(run: Run) -> dict[str, Any]:
    """All that decides what the teacher learns."""
    found = run.settings.identity("seed", "optimizer", "correction", "data")
    for name in ("batch", "accumulate", "compute_dtype"):
        found[f"train.{name}"] = run.settings.dotted()[f"train.{name}"]
    return found | {"teacher": run.teacher_print} | training.rows_identity(run)
