"""The whole flow, from the source to the export: score, plan, chop, teacher, train, export, verify, evaluate, report.

Each stage is skipped where the workdir holds what it would make, so a run that was cut off is simply started again.
"""

import time

import jax

from chopjax.commands import (
    cache_teacher,
    chop,
    correct,
    evaluate,
    export,
    heal,
    plan,
    prepare_data,
    report,
    rounds,
    score,
    verify,
)
from chopjax.commands.run import Run
from chopjax.commands.settings import Settings
from chopjax.data.checks import check_length


def main(chosen: Settings) -> None:
    """Runs what is not done yet: the whole flow, once or in rounds."""
    if chosen.rounds:
        rounds.main(chosen, flow)
    else:
        flow(chosen)
    if jax.process_index() == 0:
        print("train: finished", flush=True)  # tools/tpu_pod.sh waits for it


def flow(chosen: Settings) -> None:
    """Runs what is not done yet of one round."""
    began = time.monotonic()
    run = Run(chosen)
    _check(run)
    run.begin()
    prepare_data.describe(run)
    plan.make(run)
    chop.make(run)
    correct.make(run)
    if heal.teacher_place(run.settings) == "cached":
        cache_teacher.make(run)
    heal.make(run)
    export.make(run)
    verify.make(run)
    if run.data.heldout():
        evaluate.make(run)
        report.make(run, time.monotonic() - began)


def _check(run: Run) -> None:
    """Says what is wrong with the models, the mesh and the plan before anything is written."""
    export.check(run)
    run.check_mesh(run.teacher.config)
    if score.ranks(run) or run.settings.train.steps_before_chop:
        run.check_mesh(run.source.config)
    if run.settings.data.sources:
        check_length(run.settings.data.length, run.source.config.positions)
    plan.check(run)
    heal.check(run)
    evaluate.check(run)
    chop.check_readable(run)
    made = (plan.STAGE, chop.STAGE, evaluate.STAGE, report.STAGE)
    run.stages.refuse_foreign(*([score.STAGE] if score.needed(run) else []), *made)
