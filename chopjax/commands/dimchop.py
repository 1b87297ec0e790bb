"""DimCHOP pooled by axes: training with masks before the chop, which ends in scores that the plan is made from."""

import functools

import jax
import numpy as np

from chopjax.chop.dimchop import DimChop
from chopjax.commands import heal
from chopjax.commands.run import DIMCHOP, Run, begin
from chopjax.commands.settings import Settings
from chopjax.commands.stages import Stage
from chopjax.errors import UserError
from chopjax.score import checked
from chopjax.sharding.mesh import replicated

STAGE = Stage("dimchop", (heal.DENSE, DIMCHOP), resumable=True)


def main(chosen: Settings) -> None:
    """Trains with masks and writes what the plan is then made from."""
    run = begin(chosen)
    if not needed(run):
        raise UserError(f"dimchop.mode is {chosen.dimchop.mode!r}; only 'pooled' trains before the plan")
    make(run)


def needed(run: Run) -> bool:
    """Whether the plan's widths are chosen by DimCHOP."""
    return run.settings.dimchop.mode == "pooled"


def make(run: Run) -> None:
    """Trains the source for `train.steps_before_chop` and writes the last pooled score of every axis that is cut.

    The checkpoints stay: training goes on from them after the chop.

    Raises:
        UserError: the workdir holds a run that began otherwise, or settings do not go together.
    """
    heal.check(run)
    run.stage(STAGE, heal.identity(run), functools.partial(_work, run))


def _work(run: Run) -> None:
    phase = heal.dense_phase(run)
    state = heal.train_dense(run)
    assert phase.dimchop is not None
    scores_of = functools.partial(DimChop.scores, phase.dimchop)
    scores = jax.jit(scores_of, out_shardings=replicated(run.mesh))(state.opt_state[0].platon)
    if run.writer:
        checked.save(run.workdir / DIMCHOP, {axis: np.asarray(score) for axis, score in scores.items()})
