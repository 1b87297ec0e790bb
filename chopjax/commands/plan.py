"""What is kept on every axis, and why: `WORKDIR/plan.json`."""

import functools
import pathlib
from typing import Any

import numpy as np

from chopjax import files
from chopjax.axes import AROUND
from chopjax.chop.apply import chop_config
from chopjax.chop.build import Scores, axes_to_score, build_plan
from chopjax.chop.plan import Plan, check_source
from chopjax.commands import score
from chopjax.commands.run import PLAN, Run, begin
from chopjax.commands.settings import Settings
from chopjax.commands.stages import Stage
from chopjax.errors import UserError
from chopjax.hf.families import target_family
from chopjax.models.parameters import count
from chopjax.report.words import ranges
from chopjax.sharding.table import format_table, table

STAGE = Stage("plan", (PLAN,))


def main(chosen: Settings) -> None:
    """Makes the plan, and the scores that it needs."""
    run = begin(chosen)
    if score.needed(run):
        score.make(run)
    make(run)


def make(run: Run) -> None:
    """Writes the plan, checked against the source, the mesh and what stock transformers loads.

    Raises:
        UserError: a plan that no model, mesh or stock class could follow.
    """
    scores = {"scores": run.stages.digest("score")} if score.needed(run) else {}
    run.stage(STAGE, inputs(run) | scores, functools.partial(_work, run))
    note = _check(run, run.plan)
    student = chop_config(run.source.config, run.plan)
    run.say(f"plan: {count(run.source.config):,} -> {count(student):,} parameters")
    for line in [*describe(run.plan), *([note] if note else [])]:
        run.say(f"plan: {line}")
    if run.mesh.size > 1:
        run.say(format_table(table(student, run.mesh.shape, run.fallbacks)))


def check(run: Run) -> None:
    """Says what is wrong with the plan before anything slow starts: which sizes it keeps does not depend on scores.

    Raises:
        UserError: as `make`.
    """
    sizes = run.source.config.sizes
    axes = axes_to_score(run.settings.plan, sizes)
    _check(run, _build(run, {axis: np.zeros([sizes[name] for name in (*AROUND[axis], axis)]) for axis in axes}))


def inputs(run: Run) -> dict[str, Any]:
    """What decides the plan, as far as it is known before there are rows and scores."""
    file = run.settings.plan.file
    inputs = run.settings.dotted("plan") | {"source": run.source_print}
    if file:
        if not pathlib.Path(file).is_file():
            raise UserError(f"plan.file: {file} is no file; name a plan.json")
        return inputs | {"plan.file (contents)": files.fingerprint(file)}
    return inputs | (run.settings.dotted("score") if score.needed(run) else {})


def describe(plan: Plan) -> list[str]:
    """One line for each axis that is cut."""
    return [
        f"{axis} {plan.source[axis]} -> {plan.sizes[axis]}"
        + (f" (kept {ranges(plan.layers)})" if axis == "layers" else "")
        + (f": {plan.reasons[axis]}" if axis in plan.reasons else "")
        for axis in plan.kept
    ]


def _work(run: Run) -> None:
    plan = _build(run, score.read(run) if score.needed(run) else {})
    _check(run, plan)
    if run.writer:
        files.write_text(run.workdir / PLAN, plan.to_json() + "\n")


def _build(run: Run, scores: Scores) -> Plan:
    chosen = run.settings.plan
    if chosen.file:
        return _read(pathlib.Path(chosen.file))
    return build_plan(chosen, run.source.config.sizes, scores, run.settings.source)


def _read(file: pathlib.Path) -> Plan:
    try:
        return Plan.from_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"plan.file: {file} cannot be read ({error}); name a plan.json") from error


def _check(run: Run, plan: Plan) -> str | None:
    """Refuses a plan that cannot be followed; a note for the user if the student is of another family."""
    check_source(plan, run.source.config.sizes)
    words = run.tokenizer.vocab
    if "vocab" in plan.kept and plan.sizes["vocab"] < words:
        raise UserError(f"plan.vocab: keeps {plan.sizes['vocab']} rows, but the tokenizer has {words} tokens")
    if plan.sizes["vocab"] < words:
        raise UserError(
            f"{run.source.folder}: the tokenizer has ids up to {words - 1}, but the model has only "
            f"{plan.sizes['vocab']} rows of vocabulary; take the tokens beyond out of tokenizer.json"
        )
    student = chop_config(run.source.config, plan)
    run.check_mesh(student)
    return target_family(run.source.family, student)[1]
