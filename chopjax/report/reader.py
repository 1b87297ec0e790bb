"""From a run's folder to a `Run`. Whatever the run did not get to write is simply absent."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from chopjax import paths
from chopjax.chop.plan import Plan
from chopjax.errors import UserError
from chopjax.report import records
from chopjax.report.figures import COLUMNS, ModelFigures
from chopjax.report.run import Run
from chopjax.score import checked
from chopjax.score.file import ScoreFile
from chopjax.train import metrics

DIMCHOP = "dimchop.safetensors"
SCORES = pathlib.Path("scores", "scores.safetensors")

# Fields of `summary.json` that hold a model's figures, beside the optional nested `models`.
FLAT_FIGURES = {
    "teacher": {"teacher_parameters": "parameters", "teacher_perplexity": "perplexity"},
    "chopped": {"parameters": "parameters", "chopped_perplexity": "perplexity"},
    "healed": {"parameters": "parameters", "perplexity": "perplexity"},
}


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Reads what a run's folder holds of `summary.json`, `plan.json`, `metrics.jsonl`, `samples.json`, `config.json`,
    `scores/scores.safetensors`, `dimchop.safetensors`, `search.json` and `removal.json`.

    `summary.json` may hold `source`, `teacher`, `tokens`, `seconds`, `length`, `gap_closed`, the flat figures of
    `FLAT_FIGURES`, and `models`: for each model the fields of `ModelFigures`, which come first.

    Raises:
        UserError: the folder is absent, or a file in it is damaged.
    """
    folder = paths.make(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the workdir of a run")
    summary = _json(folder / "summary.json", dict) or {}
    plan = Plan.from_json(text) if (text := _text(folder / "plan.json")) is not None else None
    scores, pooled = folder / SCORES, folder / DIMCHOP
    search, removal = _json(folder / "search.json", dict), _json(folder / "removal.json", dict)
    return Run(
        source=str(summary.get("source") or (plan and plan.name) or paths.absolute(folder).name),
        teacher=str(summary.get("teacher") or ""),
        plan=plan,
        metrics=metrics.read(folder / "metrics.jsonl"),
        models=_models(summary),
        samples=_json(folder / "samples.json", list) or [],
        tokens=summary.get("tokens"),
        seconds=summary.get("seconds"),
        length=summary.get("length"),
        gap_closed=summary.get("gap_closed"),
        config=_json(folder / "config.json", dict),
        scores=ScoreFile.load(scores).sums if scores.exists() else {},
        pooled=checked.load(pooled, "run python -m chopjax.dimchop again") if pooled.exists() else {},
        search=None if search is None else records.search(search),
        removal=None if removal is None else records.removal(removal),
    )


def _models(summary: Mapping[str, Any]) -> dict[str, ModelFigures]:
    nested = summary.get("models") or {}
    known = {field.name for field in dataclasses.fields(ModelFigures)}
    models = {}
    for column in COLUMNS:
        flat = {to: summary[name] for name, to in FLAT_FIGURES.get(column, {}).items() if name in summary}
        values = flat | {name: value for name, value in nested.get(column, {}).items() if name in known}
        # A student has its size as soon as it is cut; it is a column only once something was measured on it.
        if values.keys() - {"parameters"} or (values and column == "teacher"):
            models[column] = ModelFigures(**values)
    return models


def _json(path: pathlib.Path, kind: type) -> Any:
    text = _text(path)
    if text is None:
        return None
    value = _parsed(text)
    if not isinstance(value, kind):
        word = "object" if kind is dict else "list"
        raise UserError(f"{path}: not a JSON {word}; delete the file or run the stage that writes it again")
    return value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _text(path: pathlib.Path) -> str | None:
    return path.read_bytes().decode("utf-8", "replace") if path.exists() else None
