"""The run's figures in `summary.json`, and the page that a person reads."""

import dataclasses
from typing import Any

import numpy as np

from chopjax import files
from chopjax.chop.apply import chop_config
from chopjax.commands import evaluate
from chopjax.commands.run import Run, begin
from chopjax.commands.settings import Settings
from chopjax.commands.stages import Stage
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.safetensors import DTYPES
from chopjax.report import page
from chopjax.report.figures import gap_closed, measure
from chopjax.report.pictures.files import write_pictures
from chopjax.report.reader import read_run, read_summary
from chopjax.report.records import Removal
from chopjax.report.run import Run as ReportedRun
from chopjax.train import metrics

SUMMARY, REPORT, PICTURES = "summary.json", "report.html", "pictures"
STAGE = Stage("report", (SUMMARY, REPORT, PICTURES))
PAGE_OF_PLAN = "plan.html"
PLAN_STAGE = Stage("page", (PAGE_OF_PLAN,))


def main(chosen: Settings) -> None:
    """Writes the summary and the report of a run that was evaluated.

    Raises:
        UserError: it was not evaluated yet.
    """
    run = begin(chosen, check)
    _write(run, _last_seconds(run))


def check(run: Run) -> None:
    """Refuses a run that was not evaluated yet.

    Raises:
        UserError: says which command does that.
    """
    run.stages.digest("evaluate")


def make(run: Run, seconds: float) -> None:
    """Writes `summary.json`, `report.html` and `pictures/`, unless that was done from the same evaluation.

    Args:
        run: an evaluated run.
        seconds: what the whole run took.
    """
    run.stage(STAGE, {"evaluate": run.stages.digest("evaluate")}, lambda: _write(run, seconds))


def make_page_of_plan(run: Run) -> None:
    """Writes `plan.html`: what the plan keeps and why, with its pictures, and what the student would cost."""
    run.stage(PLAN_STAGE, {"plan": run.stages.digest("plan")}, lambda: _write_page_of_plan(run))


def _write_page_of_plan(run: Run) -> None:
    if run.writer:
        configs = {"teacher": run.source.config, "chopped": chop_config(run.source.config, run.plan)}
        width, length = np.dtype(DTYPES[run.source.dtype]).itemsize, run.length
        models = {name: measure(config, length, width) for name, config in configs.items()}
        found = dataclasses.replace(_without_leftovers(run), source=run.settings.source, models=models, length=length)
        page.write(run.workdir / PAGE_OF_PLAN, dataclasses.replace(found, metrics=(), samples=()))
        run.say(f"plan: {run.workdir / PAGE_OF_PLAN}")


def _without_leftovers(run: Run) -> ReportedRun:
    """What the workdir holds, less what an earlier config searched for or measured."""
    found = read_run(run.workdir)
    search = found.search if run.settings.search.wanted else None
    removal = found.removal if found.removal and _measured_for(run, found.removal) else None
    return dataclasses.replace(found, search=search, removal=removal)


def _measured_for(run: Run, removal: Removal) -> bool:
    """Whether the plan's layers were chosen by these losses, or among others by them."""
    chosen, gone = run.settings.plan, run.plan.source["layers"] - len(run.plan.layers)
    if chosen.file or not gone or removal.metric != chosen.metric:
        return False
    if chosen.layers_by in ("best", "greedy"):
        return len(removal.removed) >= gone
    count = {"leave_one_out": 1, "leave_block_out": gone}.get(chosen.layers_by)
    return bool(removal.blocks) and removal.count == count


def _write(run: Run, seconds: float | None) -> None:
    if run.writer:
        files.write_json(run.workdir / SUMMARY, summary(run, seconds))
        finished = _without_leftovers(run)
        page.write(run.workdir / REPORT, finished)
        write_pictures(run.workdir / PICTURES, finished)
        run.say(f"report: {run.workdir / REPORT}")


def summary(run: Run, seconds: float | None) -> dict[str, Any]:
    """The final figures of a run."""
    evaluation = evaluate.read(run)
    exported = open_checkpoint(run.export_folder)
    width = np.dtype(DTYPES[exported.dtype]).itemsize
    length = run.data.length
    configs = {"teacher": run.teacher.config, "chopped": run.student.config, "healed": exported.config}
    models = {
        name: measure(config, length, width, evaluation[name]["perplexity"], evaluation[name]["kl"])
        for name, config in configs.items()
    }
    perplexity = {name: figures.perplexity for name, figures in models.items()}
    steps = run.settings.train.steps_before_chop + run.settings.train.steps
    last: dict[str, Any] = next(iter(reversed(metrics.read(run.workdir / "metrics.jsonl"))), {})
    return {
        "source": run.settings.source,
        "teacher": run.settings.teacher or run.settings.source,
        "teacher_parameters": models["teacher"].parameters,
        "parameters": models["healed"].parameters,
        "teacher_perplexity": perplexity["teacher"],
        "chopped_perplexity": perplexity["chopped"],
        "perplexity": perplexity["healed"],
        "gap_closed": gap_closed(perplexity["teacher"], perplexity["chopped"], perplexity["healed"]),
        "tokens": steps * run.settings.train.batch * length,
        "seconds": seconds,
        "goodput": last.get("goodput"),
        "skipped": last.get("skipped"),
        "length": length,
        "models": {name: dataclasses.asdict(figures) for name, figures in models.items()},
    }


def _last_seconds(run: Run) -> float | None:
    return read_summary(run.workdir / SUMMARY).get("seconds")
