"""The whole flow, from the source to the export: score, plan, chop, train, export, verify, evaluate, report.

Each stage is skipped where the workdir holds what it would make, so a run that was cut off is simply started again.
"""

import time

from chopjax.commands import chop, evaluate, export, heal, plan, prepare_data, report, score, verify
from chopjax.commands.run import begin
from chopjax.commands.settings import Settings


def main(chosen: Settings) -> None:
    """Runs what is not done yet."""
    began = time.monotonic()
    run = begin(chosen)
    _ = run.source, run.teacher, run.mesh  # what is wrong with them is said before anything slow starts
    prepare_data.describe(run)
    if score.needed(run):
        score.make(run)
    plan.make(run)
    chop.make(run)
    heal.make(run)
    export.make(run)
    verify.check(run)
    if run.data.heldout():
        evaluate.make(run)
        report.make(run, time.monotonic() - began)
