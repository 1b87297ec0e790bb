"""The plan that a config asks for, with `best` settled by trying the contenders on calibration rows."""

import dataclasses
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

# And for widths, (over rows, over the tokens of a row): the first, unless another is clearly better. Variances are left
# out: what is always on has none, and so they cost little on text like the calibration text and much on any other
# (Minitron, table 11; docs/criteria.md). A mean over rows comes first, since a few odd rows rule it least.
AGGREGATIONS: tuple[tuple[Aggregation, Aggregation], ...] = (
    ("mean", "l2"),
    ("mean", "mean"),
    ("l2", "l2"),
    ("l2", "mean"),
)
CLEARLY = 2.0  # standard errors of a difference over batches

Making = Callable[[], trials.Trials]  # on the first call, since not every plan needs any


def plan_for(run: Run, wanted: PlanConfig) -> Plan:
    """The plan that a config asks for; what it goes by is measured now unless that was done."""
    chosen = settled(run, wanted)
    plan = _plan(run, chosen)
    said, widths_by = dict(plan.reasons), plan.widths_by
    widths = axes_to_score(wanted, plan.source)
    for field, axes in (("layers_by", ["layers"]), ("widths_by", widths)):
        if getattr(chosen, field) != getattr(wanted, field):
            said |= {axis: f"{said[axis]}; best of several criteria by {wanted.metric}" for axis in axes}
    if run.settings.dimchop.mode == "pooled":
        said |= dict.fromkeys(widths, "DimCHOP: sensitivity x uncertainty, pooled (Just CHOP)")
        widths_by = {"scores": "dimchop"} if widths else {}
    return dataclasses.replace(plan, reasons=said, widths_by=widths_by)


def settled(run: Run, wanted: PlanConfig) -> PlanConfig:
    """The same, with each `best` replaced by what does best by `plan.metric` on calibration rows.

    Layers are settled first, on the full width; widths on the layers that are left.
    """
    tried = cache(lambda: trials.Trials(run, fresh=True))
    return _settled_widths(run, _settled_layers(run, wanted, tried), tried)


def _settled_layers(run: Run, wanted: PlanConfig, tried: Making) -> PlanConfig:
    if wanted.layers_by != "best" or not wanted.remove_layers:
        return wanted
    sizes = run.source.config.sizes
    contenders = LAYERS if metric.is_loss(run) else LAYERS_BY_METRIC
    chosen = [dataclasses.replace(wanted, layers_by=by) for by in contenders]
    kept = [choose_layers(one, sizes["layers"], evidence.layers(run, one)) for one in chosen]
    plans = [Plan(sizes, {"layers": np.asarray(layers)}) for layers in kept]
    said = (f"{wanted.remove_layers} layers by {one.layers_by}" for one in chosen)
    return _best(run, zip(chosen, plans, said, strict=True), tried)


def _settled_widths(run: Run, wanted: PlanConfig, tried: Making) -> PlanConfig:
    axes = axes_to_score(wanted, run.source.config.sizes)
    if wanted.widths_by != "best" or not axes or run.settings.dimchop.mode == "pooled":
        return wanted
    chosen = [
        dataclasses.replace(wanted, widths_by="activation", over_batch=rows, over_sequence=tokens)
        for rows, tokens in AGGREGATIONS
    ]
    # All words stay, and one step is enough to compare.
    plans = (_plan(run, dataclasses.replace(one, vocab=0, iterations=1, refit=False)) for one in chosen)
    said = (f"{', '.join(axes)} by activation ({one.over_sequence}, then {one.over_batch})" for one in chosen)
    return _best(run, zip(chosen, plans, said, strict=True), tried, CLEARLY)


def _best(
    run: Run, contenders: Iterable[tuple[PlanConfig, Plan, str]], tried: Making, clearly: float = 0.0
) -> PlanConfig:
    """The contender with the least loss, or one before it that it does not beat by so many standard errors.

    Plans that come out equal are tried once.
    """
    known: dict[str, np.ndarray] = {}
    best: tuple[PlanConfig, np.ndarray] | None = None
    for chosen, plan, said in contenders:
        key = dataclasses.replace(plan, reasons={}, widths_by={}).to_json()
        sums = known[key] if key in known else known.setdefault(key, tried().sums(plan))
        run.say(f"plan: {said}: {chosen.metric} {sums[:, 0].sum() / max(sums[:, 1].sum(), 1.0):.4f}")
        if best is None or _beats(sums, best[1], clearly):
            best = chosen, sums
    assert best is not None
    return best[0]


def _beats(one: np.ndarray, other: np.ndarray, clearly: float) -> bool:
    """Whether the losses [batch, (sum, tokens)] of one are less than those of the other on the same batches."""
    if not np.isfinite(one).all() or not np.isfinite(other).all():
        return bool(np.isfinite(one).all())
    difference = one[:, 0] - other[:, 0]
    return bool(difference.sum() < -clearly * np.sqrt(len(difference)) * difference.std())


def _plan(run: Run, chosen: PlanConfig) -> Plan:
    scores = evidence.scores_for(run, chosen)
    return build_plan(chosen, run.source.config.sizes, scores, run.settings.source, run.settings.score.rows)
