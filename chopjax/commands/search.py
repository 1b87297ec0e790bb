"""Which sizes: every candidate that meets the budgets, the likely ones tried as masks, the best distilled for a while.

Minitron (arXiv 2407.14679, sections 2.3 and 4.3) enumerates and distils each candidate for 400 steps, after which their
order settles. Here a few losses along one axis at a time say first which of perhaps a million candidates are worth a
trial, and the trials, by masks, which are worth a distillation.
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any

from chopjax import checks, files
from chopjax.axes import Sizes
from chopjax.chop.build import WIDTHS, Scores, build_plan, layers_by_score
from chopjax.chop.config import PlanConfig
from chopjax.chop.plan import Plan
from chopjax.commands import evidence, removal
from chopjax.commands.run import Run
from chopjax.commands.stages import Stage
from chopjax.commands.trials import Trials
from chopjax.errors import UserError
from chopjax.hf.families import target_family
from chopjax.models.parameters import count
from chopjax.search.config import SearchConfig
from chopjax.search.enumerate import Candidate, Found, find
from chopjax.search.frontier import increases, probes, select, surrogate
from chopjax.train import metrics
from chopjax.train.checkpoints import METRIC

FOLDER, RESULT = "search", "search.json"
CANDIDATES = f"{FOLDER}/candidates.json"
TRIALS = Stage("trials", (CANDIDATES,))
STAGE = Stage("search", (RESULT,))


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
    if chosen.dimchop.mode == "pooled":
        raise UserError("dimchop.mode 'pooled' ranks widths of given sizes; search for sizes without it, or give sizes")
    if chosen.search.distill and not chosen.data.heldout_fraction and not any(s.heldout for s in chosen.data.sources):
        raise UserError("search.distill: candidates are ranked on held-out text; set data.heldout_fraction or take 0")
    found(run)


def found(run: Run) -> Found:
    """All candidates that meet the budgets, that the mesh divides and that stock transformers loads."""
    accept = functools.partial(target_family, run.source.family)
    return find(run.settings.search, run.source.config, run.mesh.shape, accept)


def make(run: Run) -> PlanConfig:
    """The plan's config with the sizes that were found best, searched for now unless that was done."""
    run.stage(TRIALS, _inputs(run), functools.partial(_try, run))
    tried = json.loads((run.workdir / CANDIDATES).read_text(encoding="utf-8"))
    distilled = _distilled(run, tried) if run.settings.search.distill else tried
    chosen = _best(distilled["candidates"])
    run.stage(
        STAGE,
        {"trials": run.stages.digest("trials"), "distilled": [c["distilled"] for c in distilled["candidates"]]},
        lambda: _write(run, RESULT, distilled | {"chosen": chosen}),
    )
    sizes = distilled["candidates"][chosen]["sizes"]
    run.say(f"search: {distilled['feasible']:,} candidates meet the budgets; best: {_said(sizes)}")
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
    return own | chosen.dotted("plan") | chosen.dotted("mesh") | {"scores": run.stages.digest("score")}


def _try(run: Run) -> None:
    every = found(run)
    run.say(f"search: {len(every):,} of {len(every.space):,} candidates meet the budgets")
    fewest = min(every.space.choices["layers"])
    plans = _Plans(run, run.source.config.layers - fewest)
    trials = Trials(run)
    source = run.source.config.sizes
    dense = trials.loss(Plan(source, {}))
    measured: dict[str, dict[int, float]] = {}
    for axis, sizes in probes(every.space, source).items():
        measured[axis] = {size: trials.loss(plans.of({axis: size})) - dense for size in sizes}
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
            "candidates": sorted(lines, key=lambda line: line["loss"]),
        },
    )


def _record(candidate: Candidate, primary: str, dense: float, loss: float) -> dict[str, Any]:
    return {
        "sizes": dict(candidate.sizes),
        "parameters": int(candidate.figures["params"]),
        "cost": float(candidate.figures[primary]),
        "figures": dict(candidate.figures),
        "surrogate": dense + (candidate.increase or 0.0),
        "loss": loss,
        "distilled": None,
    }


class _Plans:
    """Plans of any sizes, by the criteria of the config; what ranks layers is measured once for all sizes."""

    def __init__(self, run: Run, most: int) -> None:
        self._run = run
        if run.settings.plan.layers_by == "greedy" and most:
            removal.measured(run, dataclasses.replace(run.settings.plan, remove_layers=most))
        self._widths: Scores = evidence.widths(run, run.settings.plan)
        self._layers: dict[int, Scores] = {}

    def of(self, sizes: Sizes) -> Plan:
        """The plan of these sizes, with all words: candidates are tried on the source's own rows."""
        chosen = dataclasses.replace(wanted(self._run, {**self._run.source.config.sizes, **sizes}), vocab=0)
        return build_plan(chosen, self._run.source.config.sizes, self._scores(chosen), self._run.settings.source)

    def _scores(self, chosen: PlanConfig) -> Scores:
        removed = chosen.remove_layers
        if removed not in self._layers:
            by_score = layers_by_score(chosen)
            self._layers[removed] = evidence.layers(self._run, chosen) if by_score else {}
        return {**self._widths, **self._layers[removed]}


def _distilled(run: Run, tried: dict[str, Any]) -> dict[str, Any]:
    """The best few, each trained for a while in a folder of its own, which a run that was cut off goes on in."""
    lines = [dict(line) for line in tried["candidates"]]
    for number, line in enumerate(lines[: run.settings.search.distill], 1):
        run.say(f"search: distils candidate {number} of {run.settings.search.distill}: {_said(line['sizes'])}")
        line["distilled"] = _distil(run, line["sizes"])
    return tried | {"candidates": lines}


def _distil(run: Run, sizes: Sizes) -> float:
    """Held-out loss of one candidate after `search.distill_steps`, in nats a token."""
    from chopjax.commands import chop, heal, plan  # whose own commands make the plan, and so come back here

    chosen, steps = run.settings, run.settings.search.distill_steps
    whole = wanted(run, sizes)
    scores = evidence.scores_for(run, whole)
    text = build_plan(whole, run.source.config.sizes, scores, chosen.source, chosen.score.rows).to_json()
    learnt = chosen.identity("seed", "train", "optimizer", "loss", "data") | {"teacher": chosen.teacher}
    folder = run.workdir / FOLDER / files.digest({"plan": text, "steps": steps, "learnt": learnt})
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
        "train.evaluate_every": steps,
        "export.folder": "",
        "rounds": (),
    }
    one = Run(chosen.changed(changes))
    one.begin()
    plan.make(one)
    chop.make(one)
    heal.make(one)
    return float(next(line[METRIC] for line in reversed(metrics.read(folder / "metrics.jsonl")) if METRIC in line))


def _best(candidates: list[dict[str, Any]]) -> int:
    """The place of the best: by held-out loss after distillation where that was done, else by masks."""
    distilled = [line for line in candidates if line["distilled"] is not None]
    by = "distilled" if distilled else "loss"
    return min(range(len(candidates)), key=lambda place: (candidates[place][by] is None, candidates[place][by] or 0.0))


def _write(run: Run, name: str, body: dict[str, Any]) -> None:
    if run.writer:
        files.write_json(run.workdir / pathlib.Path(name), body)


def _said(sizes: Sizes) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items())
