"""From a run's folder to a `Run`. Whatever the run did not get to write is simply absent."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from chopjax import paths, records
from chopjax.chop.plan import Plan
from chopjax.errors import UserError
from chopjax.report import records as searches
from chopjax.report.figures import COLUMNS, ModelFigures
from chopjax.report.run import Run
from chopjax.score import checked
from chopjax.score.file import ScoreFile
from chopjax.train import metrics

Found = TypeVar("Found")
NEWEST = 1  # format of summary.json
_SAMPLES: Any = tuple[Mapping[str, str], ...]

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
    summary = read_summary(folder / "summary.json")
    plan = Plan.from_json(text) if (text := _bytes(folder / "plan.json")) is not None else None
    scores, pooled = folder / SCORES, folder / DIMCHOP
    return Run(
        source=str(summary.get("source") or (plan and plan.name) or paths.absolute(folder).name),
        teacher=str(summary.get("teacher") or ""),
        plan=plan,
        metrics=metrics.read(folder / "metrics.jsonl"),
        models=_models(summary),
        samples=_samples(folder / "samples.json"),
        tokens=summary.get("tokens"),
        seconds=summary.get("seconds"),
        length=summary.get("length"),
        gap_closed=summary.get("gap_closed"),
        config=records.read_object(folder / "config.json", "run any command of this run again"),
        scores=ScoreFile.load(scores).sums if scores.exists() else {},
        pooled=checked.load(pooled, "run python -m chopjax.dimchop again") if pooled.exists() else {},
        search=_read(folder / "search.json", searches.search),
        removal=_read(folder / "removal.json", searches.removal),
    )


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `summary.json` may hold."""

    source: str | None = None
    teacher: str | None = None
    tokens: records.Count | None = None
    seconds: records.NotNegative | None = None
    length: records.Count | None = None
    gap_closed: float | None = None
    teacher_parameters: records.Count | None = None
    parameters: records.Count | None = None
    teacher_perplexity: float | None = None
    chopped_perplexity: float | None = None
    perplexity: float | None = None
    models: Mapping[str, ModelFigures] | None = None


def read_summary(path: pathlib.Path) -> dict[str, Any]:
    """The figures in a `summary.json`, of the kinds of `Summary`; none where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    return _object(path, Summary, "report") or {}


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


def _object(path: pathlib.Path, shape: type, stage: str) -> dict[str, Any] | None:
    """The object in a file, checked against a dataclass of what it may hold; None where there is no such file."""
    fix = f"delete the file and run python -m chopjax.{stage} again"
    body = records.read_object(path, fix)
    if body is not None:
        records.check_format(body, NEWEST, str(path), fix)
        records.shaped(body, shape, str(path), fix, extra=True)
    return body


def _read(path: pathlib.Path, reader: Callable[[Mapping[str, Any], str], Found]) -> Found | None:
    body = records.read_object(path, searches.AGAIN)
    return None if body is None else reader(body, str(path))


def _samples(path: pathlib.Path) -> Sequence[Mapping[str, str]]:
    text, fix = _bytes(path), "delete the file and run python -m chopjax.evaluate again"
    if text is None:
        return []
    return list(records.shaped(records.parse(text, str(path), fix), _SAMPLES, str(path), fix))


def _bytes(path: pathlib.Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
