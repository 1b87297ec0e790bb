"""The plan that a config asks for, with `best` settled by trying the contenders on calibration rows."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np

from chopjax.chop.build import axes_to_score, build_plan, choose_layers
from chopjax.chop.config import Aggregation, LayersBy, PlanConfig
from chopjax.chop.plan import Plan
from chopjax.commands import evidence, metric, trials
from chopjax.commands.run import Run

# What `best` tries for layers: the cheap criteria of each kind, and the greedy one, seldom beaten by more than noise.
LAYERS: tuple[LayersBy, ...] = ("block_importance", "angular", "leave_one_out", "greedy")
LAYERS_BY_METRIC: tuple[LayersBy, ...] = ("block_importance", "angular", "greedy")

# And for widths: (over rows, over the tokens of a row). Variances are left out: what is always on has none, and so they
# cost little on text like the calibration text and much on any other (Minitron, table 11; docs/criteria.md).
AGGREGATIONS: tuple[Aggregation, ...] = ("l2", "mean")

Trials = Callable[[], trials.Trials]


def plan_for(run: Run, wanted: PlanConfig) -> Plan:
    """The plan that a config asks for; what it goes by is measured now unless that was done."""
    chosen = settled(run, wanted)
    plan = _plan(run, chosen)
    said = dict(plan.reasons)
    widths = axes_to_score(wanted, plan.source)
    for field, axes in (("layers_by", ["layers"]), ("widths_by", widths)):
        if getattr(chosen, field) != getattr(wanted, field):
            said |= {axis: f"{said[axis]}; best of several criteria by {wanted.metric}" for axis in axes}
    if run.settings.dimchop.mode == "pooled":
        said |= dict.fromkeys(widths, "DimCHOP: sensitivity x uncertainty, pooled (Just CHOP)")
    return dataclasses.replace(plan, reasons=said)


def settled(run: Run, wanted: PlanConfig) -> PlanConfig:
    """The same, with each `best` replaced by what does best by `plan.metric` on calibration rows.

    Layers are settled first, on the full width; widths on the layers that are left.
    """
    tried = cache(lambda: trials.Trials(run, fresh=True))
    return _settled_widths(run, _settled_layers(run, wanted, tried), tried)


def _settled_layers(run: Run, wanted: PlanConfig, tried: Trials) -> PlanConfig:
    if wanted.layers_by != "best" or not wanted.remove_layers:
        return wanted
    sizes = run.source.config.sizes
    contenders = LAYERS if metric.is_loss(run) else LAYERS_BY_METRIC
    chosen = [dataclasses.replace(wanted, layers_by=by) for by in contenders]
    kept = [choose_layers(one, sizes["layers"], evidence.layers(run, one)) for one in chosen]
    plans = [Plan(sizes, {"layers": np.asarray(layers)}) for layers in kept]
    said = (f"{wanted.remove_layers} layers by {one.layers_by}" for one in chosen)
    return _best(run, zip(chosen, plans, said, strict=True), tried)


def _settled_widths(run: Run, wanted: PlanConfig, tried: Trials) -> PlanConfig:
    axes = axes_to_score(wanted, run.source.config.sizes)
    if wanted.widths_by != "best" or not axes or run.settings.dimchop.mode == "pooled":
        return wanted
    chosen = [
        dataclasses.replace(wanted, widths_by="activation", over_batch=rows, over_sequence=tokens)
        for rows, tokens in itertools.product(AGGREGATIONS, repeat=2)
    ]
    # All words stay, and one step is enough to compare.
    plans = (_plan(run, dataclasses.replace(one, vocab=0, iterations=1, refit=False)) for one in chosen)
    said = (f"{', '.join(axes)} by activation ({one.over_sequence}, then {one.over_batch})" for one in chosen)
    return _best(run, zip(chosen, plans, said, strict=True), tried)


def _best(run: Run, contenders: Iterable[tuple[PlanConfig, Plan, str]], tried: Trials) -> PlanConfig:
    """The first of the contenders with the least loss; plans that come out equal are tried once."""
    losses: dict[str, float] = {}
    best, least = None, math.inf
    for chosen, plan, said in contenders:
        key = dataclasses.replace(plan, reasons={}).to_json()
        if key not in losses:
            losses[key] = tried().loss(plan)
        run.say(f"plan: {said}: {chosen.metric} {losses[key]:.4f}")
        if best is None or losses[key] < least:
            best, least = chosen, losses[key] if math.isfinite(losses[key]) else math.inf
    assert best is not None
    return best


def _plan(run: Run, chosen: PlanConfig) -> Plan:
    scores = evidence.scores_for(run, chosen)
    return build_plan(chosen, run.source.config.sizes, scores, run.settings.source, run.settings.score.rows)
