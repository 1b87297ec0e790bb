"""Which sizes: every candidate that meets the budgets, the likely ones tried as masks, the best distilled for a while.

Minitron (arXiv 2407.14679, sections 2.3 and 4.3) enumerates and distils each candidate for 400 steps, after which their
order settles. Here a few losses along one axis at a time say first which of perhaps a million candidates are worth a
trial, and the trials, by masks, which are worth a distillation.
"""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import numpy as np

from chopjax import checks, files, records
from chopjax.axes import Sizes
from chopjax.chop.apply import chop_config
from chopjax.chop.build import WIDTHS, Scores, build_plan, layers_by_score
from chopjax.chop.config import LayersBy, PlanConfig
from chopjax.chop.plan import Plan
from chopjax.commands import choose, evidence, metric, refit, removal
from chopjax.commands.run import Run
from chopjax.commands.stages import Stage
from chopjax.commands.trials import Trials
from chopjax.errors import UserError
from chopjax.hf.families import target_family
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import count
from chopjax.report import records as reported
from chopjax.search.config import SearchConfig
from chopjax.search.count import SizeArrays
from chopjax.search.enumerate import Candidate, Found, find
from chopjax.search.frontier import increases, probes, select, surrogate
from chopjax.train import metrics
from chopjax.train.checkpoints import METRIC

FOLDER, RESULT = "search", "search.json"
CANDIDATES = f"{FOLDER}/candidates.json"
TRIALS = Stage("trials", (CANDIDATES,))
STAGE = Stage("search", (RESULT,))
MOST_WARMUP = 4  # a candidate's warm-up takes no more than one in so many of its few steps


def check(run: Run) -> None:
    """Says before anything slow that nothing meets the budgets, or that sizes are both given and searched for.

    Raises:
        UserError: names the budget or the field.
    """
    chosen = run.settings
    if not chosen.search.wanted:
        return
    for name in ("remove_layers", "layers", "file", *WIDTHS):
        if getattr(chosen.plan, name):
            mend = "leave one of them out" if name == "file" else f"list search.{name} instead"
            raise UserError(f"plan.{name} is set, but search is to choose the sizes; {mend}")
    if chosen.dimchop.mode != "off":
        raise UserError(
            f"dimchop.mode {chosen.dimchop.mode!r} is for given sizes; search for sizes without it, or give sizes"
        )
    data = chosen.data
    if chosen.search.distill and data.sources and not (data.heldout_fraction or any(s.heldout for s in data.sources)):
        raise _no_heldout()
    _check_edits(run)
    every = found(run)
    _refuse_the_source(run, every)
    choices = every.space.choices
    _placeholder(run, {"layers": min(choices["layers"])})
    for mlp in choices["mlp"]:
        run.check_mesh(dataclasses.replace(run.source.config, mlp=mlp))


def _refuse_the_source(run: Run, every: Found) -> None:
    """Refuses budgets that the source meets as it is: nothing that is cut could do better."""
    whole, sizes = run.source.config.sizes, every.space.sizes(every.numbers)
    uncut = np.all([sizes[axis] == whole[axis] for axis in sizes], axis=0)
    if uncut.any() and not 0 < run.settings.plan.vocab < whole["vocab"]:
        met = ", ".join(f"search.{limit.field} = {limit.said}" for limit in every.limits)
        raise UserError(f"{met}: the source meets that as it is, so nothing would be cut; give less")


def _check_edits(run: Run) -> None:
    """Refuses edits that some candidate could not be given."""
    chosen = run.settings
    asked = {"refit": chosen.plan.refit, "merge_kv_heads": chosen.plan.merge_kv_heads}
    asked["head_residual"] = chosen.plan.head_residual != "off"
    if chosen.train.steps_before_chop and any(asked.values()):
        name = next(name for name, wanted in asked.items() if wanted)
        raise UserError(
            f"train.steps_before_chop: the optimizer's moments cannot follow plan.{name}; set it to 0, or search "
            "without that"
        )
    if chosen.plan.refit:
        refit.check_rows(chosen.score.rows, chosen.score.batch)


def _no_heldout() -> UserError:
    return UserError("search.distill: candidates are ranked on held-out text; set data.heldout_fraction or take 0")


def found(run: Run) -> Found:
    """All candidates that meet the budgets, that the mesh divides, edits can be made for and stock transformers loads.

    Budgets are for what comes out: with merged heads, which keep their query heads, and with `plan.vocab` words.
    """
    source, wanted_plan = run.source.config, run.settings.plan

    def accept(config: ModelConfig) -> None:
        sizes = {axis: config.sizes[axis] for axis in ("embed", "kv_heads", "q_per_kv")}
        student = chop_config(source, _placeholder(run, sizes))
        run.check_mesh(student)
        target_family(run.source.family, student)

    def student(sizes: SizeArrays) -> SizeArrays:
        own = dict(sizes)
        if wanted_plan.merge_kv_heads:
            own["q_per_kv"] = sizes["q_per_kv"] * (source.kv_heads // sizes["kv_heads"])
        if wanted_plan.vocab:
            own["vocab"] = np.full_like(sizes["embed"], min(wanted_plan.vocab, source.vocab))
        return own

    return find(run.settings.search, source, run.mesh.shape, accept, student)


def _placeholder(run: Run, sizes: Sizes) -> Plan:
    """Some plan of these sizes, the others whole, where scores are of no matter; a `UserError` if there is none."""
    whole = run.source.config.sizes
    chosen = dataclasses.replace(wanted(run, {**whole, **sizes}), vocab=0)
    return build_plan(chosen, whole, evidence.placeholders(run, chosen))


def _fits(run: Run, axis: str, size: int) -> bool:
    """Whether there is a plan that cuts one axis alone to this size."""
    try:
        _placeholder(run, {axis: size})
    except UserError:
        return False
    return True


def make(run: Run) -> PlanConfig:
    """The plan's config with the sizes that were found best, searched for now unless that was done."""
    if run.settings.search.distill and not run.data.heldout():
        raise _no_heldout()
    run.stage(TRIALS, _inputs(run), functools.partial(_try, run))
    inputs = {"trials": run.stages.digest("trials"), "search.distill": run.settings.search.distill}
    run.stage(STAGE, inputs | (_learnt(run) if run.settings.search.distill else {}), functools.partial(_choose, run))
    ended = _read(run, RESULT)
    sizes = ended["candidates"][ended["chosen"]]["sizes"]
    run.say(f"search: {ended['feasible']:,} candidates meet the budgets; best: {_said(sizes)}")
    return wanted(run, sizes)


def wanted(run: Run, sizes: Sizes) -> PlanConfig:
    """The plan's config with these sizes; those of the source are left as they are."""
    source = run.source.config.sizes
    cut: dict[str, Any] = {axis: size for axis, size in sizes.items() if size < source[axis]}
    if run.settings.plan.merge_kv_heads and "kv_heads" in cut:
        # Sizes count query heads for each of the old heads; all of a merged group's stay but for those.
        cut["q_per_kv"] = sizes["q_per_kv"] * (source["kv_heads"] // sizes["kv_heads"])
    layers = cut.pop("layers", source["layers"])
    return dataclasses.replace(run.settings.plan, remove_layers=source["layers"] - layers, **cut)


def _inputs(run: Run) -> dict[str, Any]:
    chosen = run.settings
    own = {name: value for name, value in chosen.dotted("search").items() if "distill" not in name}
    given = chosen.dotted("plan") | chosen.dotted("mesh") | metric.inputs(run)
    return own | given | {"scores": run.stages.digest("score")}


def _try(run: Run) -> None:
    every = found(run)
    run.say(f"search: {len(every):,} of {len(every.space):,} candidates meet the budgets")
    fewest = min(every.space.choices["layers"])
    plans = _Plans(run, run.source.config.layers - fewest)
    trials = Trials(run)
    source = run.source.config.sizes
    dense = trials.loss(Plan(source, {}))
    if not math.isfinite(dense):
        raise UserError(f"search: the loss of the whole model is {dense}; check the weights and the calibration text")
    measured: dict[str, dict[int, float]] = {}
    for axis, sizes in probes(every.space, source).items():
        possible = [size for size in sizes if _fits(run, axis, size)]
        found_there = {size: trials.loss(plans.of({axis: size})) - dense for size in possible}
        measured[axis] = {size: loss for size, loss in found_there.items() if math.isfinite(loss)}
        run.say(f"search: {axis} " + ", ".join(f"{size}: {loss:+.3f}" for size, loss in measured[axis].items()))
    estimates = surrogate(every, increases(every.space, source, measured))
    lines = []
    for place in select(every, run.settings.search.evaluate, estimates):
        candidate = every.candidate(int(place), float(estimates[place]))
        loss = trials.loss(plans.of(candidate.sizes))
        lines.append(_record(candidate, every.primary, dense, loss))
        run.say(f"search: {_said(candidate.sizes)}: loss {loss:.4f} (expected {dense + estimates[place]:.4f})")
    _write(
        run,
        CANDIDATES,
        {
            "enumerated": len(every.space),
            "feasible": len(every),
            "budget": {limit.field: limit.said for limit in every.limits},
            "cost": every.primary,
            "dense": {"parameters": count(run.source.config), "loss": dense},
            "probes": measured,
            "candidates": sorted(lines, key=lambda line: (line["loss"] is None, line["loss"] or 0.0)),
        },
    )


def _record(candidate: Candidate, primary: str, dense: float, loss: float) -> dict[str, Any]:
    return {
        "sizes": dict(candidate.sizes),
        "parameters": int(candidate.figures["params"]),
        "cost": float(candidate.figures[primary]),
        "figures": dict(candidate.figures),
        "surrogate": dense + (candidate.increase or 0.0),
        "loss": loss if math.isfinite(loss) else None,
        "distilled": None,
    }


class _Plans:
    """Plans of any sizes, by the criteria of the config; what ranks layers is measured once for all sizes."""

    def __init__(self, run: Run, most: int) -> None:
        self._run = run
        if run.settings.plan.layers_by in ("best", "greedy") and most:
            removal.measured(run, dataclasses.replace(run.settings.plan, layers_by="greedy", remove_layers=most))
        # Widths that shrink in steps do so on the way to sizes, which are not known yet.
        self._widths: Scores = evidence.widths(run, dataclasses.replace(run.settings.plan, iterations=1))
        self._layers: dict[int, tuple[LayersBy, Scores]] = {}

    def of(self, sizes: Sizes) -> Plan:
        """The plan of these sizes, with all words: candidates are tried on the source's own rows."""
        chosen = dataclasses.replace(wanted(self._run, {**self._run.source.config.sizes, **sizes}), vocab=0)
        if chosen.remove_layers not in self._layers:
            known = choose.settled(self._run, dataclasses.replace(chosen, widths_by="activation"))
            found = evidence.layers(self._run, known) if layers_by_score(known) else {}
            self._layers[chosen.remove_layers] = known.layers_by, found
        layers_by, scores = self._layers[chosen.remove_layers]
        chosen, scores = dataclasses.replace(chosen, layers_by=layers_by), {**self._widths, **scores}
        return build_plan(chosen, self._run.source.config.sizes, scores, self._run.settings.source)


def _choose(run: Run) -> None:
    tried = _read(run, CANDIDATES)
    distilled = _distilled(run, tried) if run.settings.search.distill else tried
    _write(run, RESULT, distilled | {"chosen": _best(distilled["candidates"])})


def _learnt(run: Run) -> dict[str, Any]:
    """What decides how a candidate is distilled."""
    learnt = run.settings.identity("seed", "train", "optimizer", "loss", "data")
    for name in ("train.steps", "train.steps_before_chop"):
        del learnt[name]
    learnt |= {"steps": run.settings.search.distill_steps, "rows": [part.digest for part in run.data.parts]}
    return learnt | {"source": run.source_print, "teacher": run.teacher_print}


def _distilled(run: Run, tried: dict[str, Any]) -> dict[str, Any]:
    """The best few, each trained for a while in a folder of its own, which a run that was cut off goes on in."""
    lines = [dict(line) for line in tried["candidates"]]
    for number, line in enumerate(lines[: run.settings.search.distill], 1):
        run.say(f"search: distils candidate {number} of {run.settings.search.distill}: {_said(line['sizes'])}")
        line["distilled"] = _distil(run, line["sizes"])
    return tried | {"candidates": lines}


def _distil(run: Run, sizes: Sizes) -> float | None:
    """Held-out loss of one candidate after `search.distill_steps`, in nats a token; None where it is not finite."""
    from chopjax.commands import chop, heal, plan  # whose own commands make the plan, and so come back here

    chosen, steps = run.settings, run.settings.search.distill_steps
    text = choose.plan_for(run, wanted(run, sizes)).to_json()
    # As recorded: a run that an earlier version began goes on with the folders of its candidates.
    learnt = {name: value for name, value in run.stages.inputs(STAGE.name).items() if name in _learnt(run)}
    folder = run.workdir / FOLDER / files.digest({"plan": text, "learnt": learnt})
    if run.writer:
        files.write_text(folder.with_suffix(".json"), text + "\n")
    run.barrier()
    defaults = checks.fields(SearchConfig(), "search") | checks.fields(PlanConfig(), "plan")
    changes = defaults | {
        "workdir": str(folder),
        "plan.file": str(folder.with_suffix(".json")),
        "data.rows": str(run.data.folder),
        "train.steps": steps,
        "train.steps_before_chop": 0,
        "train.warmup_steps": min(chosen.optimizer.schedule.warmup_steps, steps // MOST_WARMUP),
        "train.evaluate_every": steps,
        "export.folder": "",
        "rounds": (),
    }
    one = Run(chosen.changed(changes))
    one.begin()
    plan.make(one)
    chop.make(one)
    heal.make(one)
    return next(line[METRIC] for line in reversed(metrics.read(folder / "metrics.jsonl")) if METRIC in line)


def _best(candidates: list[dict[str, Any]]) -> int:
    """The place of the best: by held-out loss after distillation where that was done, else by masks."""
    distilled = [line for line in candidates if line["distilled"] is not None]
    by = "distilled" if distilled else "loss"
    return min(range(len(candidates)), key=lambda place: (candidates[place][by] is None, candidates[place][by] or 0.0))


def _read(run: Run, name: str) -> dict[str, Any]:
    file = run.workdir / name
    found = records.read_object(file, reported.AGAIN)
    if found is None:
        raise UserError(f"{file} is gone; run python -m chopjax.plan again")
    checked = reported.search(found, str(file))
    if not checked.candidates or (name == RESULT and None in (checked.chosen, checked.feasible)):
        raise UserError(f"{file}: candidates, chosen or feasible is missing; {reported.AGAIN}")
    return found


def _write(run: Run, name: str, body: dict[str, Any]) -> None:
    if run.writer:
        files.write_json(run.workdir / pathlib.Path(name), body)


def _said(sizes: Sizes) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items())
