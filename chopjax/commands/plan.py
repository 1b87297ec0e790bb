"""What is kept on every axis, and why: `WORKDIR/plan.json`."""

import functools
from typing import Any

from chopjax import files, paths
from chopjax.chop.apply import chop_config
from chopjax.chop.build import WIDTHS, build_plan
from chopjax.chop.config import PlanConfig
from chopjax.chop.optimizer_state import refuse_edits
from chopjax.chop.plan import Plan, check_source
from chopjax.commands import choose, evidence, metric, refit, report, score, search, vocabulary
from chopjax.commands.run import PLAN, Run, begin, read_plan
from chopjax.commands.settings import Settings
from chopjax.commands.stages import Stage
from chopjax.errors import UserError
from chopjax.hf.families import target_family
from chopjax.hf.small_files import small_files
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import count
from chopjax.report.words import ranges
from chopjax.sharding.table import format_table, table

STAGE = Stage("plan", (PLAN,))
SHARDING = "sharding.txt"


def main(chosen: Settings) -> None:
    """Makes the plan, with all that it needs, and a page that shows why."""
    run = begin(chosen, check)
    make(run)
    report.make_page_of_plan(run)


def make(run: Run) -> None:
    """Writes the plan, checked against the source, the mesh and what stock transformers loads.

    Before it come the scores that it needs, the search for its sizes, and the losses without layers that it goes by.

    Raises:
        UserError: a plan that no model, mesh or stock class could follow.
    """
    from chopjax.commands import dimchop  # which trains, and training asks this module what decides a plan

    if run.settings.plan.refit and not run.settings.plan.file:
        refit.check_text(run, run.settings.score.rows)
    needed = score.needed(run)
    if needed:
        score.make(run)
    wanted = search.make(run) if run.settings.search.wanted else run.settings.plan
    before: dict[str, Any] = {"scores": run.stages.digest("score"), "sizes": _sizes(wanted)} if needed else {}
    if dimchop.needed(run):
        dimchop.make(run)
        before["dimchop"] = run.stages.digest("dimchop")
    run.stage(STAGE, inputs(run) | before, functools.partial(_work, run, wanted))
    note = _check(run, run.plan)
    student = chop_config(run.source.config, run.plan)
    run.say(f"plan: {count(run.source.config):,} -> {count(student):,} parameters")
    for line in [*describe(run.plan), *([note] if note else [])]:
        run.say(f"plan: {line}")
    _say_where(run, student)


def _say_where(run: Run, student: ModelConfig) -> None:
    """Writes where the parameters of source and student lie on the mesh, and says it of the student."""
    shape, width = run.mesh.shape, run.compute_dtype.itemsize
    taught = format_table(table(student, shape, run.fallbacks))
    try:
        whole = format_table(table(run.source.config, shape, run.fallbacks, width))
    except UserError as error:  # who only chops need not hold it
        whole = str(error)
    if run.writer:
        said = f"source, in {run.compute_dtype.name}\n{whole}\n\nstudent, in float32\n{taught}\n"
        files.write_text(run.workdir / SHARDING, said)
    if run.mesh.size > 1:
        run.say(taught)


def check(run: Run) -> None:
    """Says what is wrong with the plan before anything slow starts: which sizes it keeps does not depend on scores.

    Raises:
        UserError: as `make`, or nothing meets the budgets of the search.
    """
    search.check(run)
    score.check(run)
    metric.check(run)
    _check(run, foreseen(run))


def foreseen(run: Run) -> Plan:
    """A plan of the sizes that the run's will have, unless a search chooses them; what it keeps may be other units."""
    wanted = run.settings.plan
    if wanted.file:
        return read_plan(wanted.file)
    rows, scores = run.settings.score.rows, evidence.placeholders(run, wanted)
    return build_plan(wanted, run.source.config.sizes, scores, refit_rows=rows)


def inputs(run: Run) -> dict[str, Any]:
    """What decides the plan, as far as it is known before there are rows and scores."""
    file = run.settings.plan.file
    inputs = run.settings.dotted("plan") | {"source": run.source_print}
    if file:
        if not paths.make(file).is_file():
            raise UserError(f"plan.file: {file} is no file; name a plan.json")
        return inputs | {"plan.file (contents)": files.fingerprint(file)}
    inputs |= metric.inputs(run)
    if run.settings.plan.refit:
        inputs["score.rows"] = run.settings.score.rows
    return inputs | (run.settings.dotted("score", "search") if score.ranks(run) else {})


def describe(plan: Plan) -> list[str]:
    """One line for each axis that is cut, and for each edit of weights."""
    axes = [
        f"{axis} {plan.source[axis]} -> {plan.sizes[axis]}"
        + (f" (kept {ranges(plan.layers)})" if axis == "layers" else "")
        + (f": {plan.reasons[axis]}" if axis in plan.reasons else "")
        for axis in plan.kept
    ]
    return axes + [edit.describe() for edit in plan.edits]


def _work(run: Run, wanted: PlanConfig) -> None:
    file = run.settings.plan.file
    plan = read_plan(file) if file else choose.plan_for(run, wanted)
    _check(run, plan)
    if run.writer:
        files.write_text(run.workdir / PLAN, plan.to_json() + "\n")


def _sizes(wanted: PlanConfig) -> dict[str, int]:
    return {name: getattr(wanted, name) for name in ("remove_layers", *WIDTHS)}


def _check(run: Run, plan: Plan) -> str | None:
    """Refuses a plan that cannot be followed; a note for the user if the student is of another family."""
    check_source(plan, run.source.config.sizes)
    small_files(run.source.folder)
    vocabulary.check(run, plan)
    _check_edits(run, plan)
    student = chop_config(run.source.config, plan)
    run.check_mesh(student)
    return target_family(run.source.family, student)[1]


def _check_edits(run: Run, plan: Plan) -> None:
    """Refuses edits that could not be made later, after all that is slow."""
    if run.settings.train.steps_before_chop:
        refuse_edits(plan)
    if fit := refit.asked(plan):
        refit.check_rows(fit.rows, run.settings.score.batch)
