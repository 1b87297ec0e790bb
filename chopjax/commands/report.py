"""The run's figures in `summary.json`, and the page that a person reads."""

import dataclasses
import json
from typing import Any

import numpy as np

from chopjax import files
from chopjax.commands import evaluate
from chopjax.commands.run import Run, begin
from chopjax.commands.settings import Settings
from chopjax.commands.stages import Stage
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.safetensors import DTYPES
from chopjax.report import page
from chopjax.report.figures import gap_closed, measure
from chopjax.report.pictures.files import write_pictures
from chopjax.report.reader import read_run

SUMMARY, REPORT, PICTURES = "summary.json", "report.html", "pictures"
STAGE = Stage("report", (SUMMARY, REPORT, PICTURES))


def main(chosen: Settings) -> None:
    """Writes the summary and the report of a run that was evaluated."""
    run = begin(chosen)
    _write(run, _last_seconds(run))


def make(run: Run, seconds: float) -> None:
    """Writes `summary.json`, `report.html` and `pictures/`, unless that was done from the same evaluation.

    Args:
        run: an evaluated run.
        seconds: what the whole run took.
    """
    run.stage(STAGE, {"evaluate": run.stages.digest("evaluate")}, lambda: _write(run, seconds))


def _write(run: Run, seconds: float | None) -> None:
    if run.writer:
        files.write_json(run.workdir / SUMMARY, summary(run, seconds))
        finished = read_run(run.workdir)
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
        "length": length,
        "models": {name: dataclasses.asdict(figures) for name, figures in models.items()},
    }


def _last_seconds(run: Run) -> float | None:
    file = run.workdir / SUMMARY
    return json.loads(file.read_text(encoding="utf-8")).get("seconds") if file.exists() else None
