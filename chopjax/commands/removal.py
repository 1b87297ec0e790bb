"""The loss without layers, measured for a plan: `WORKDIR/removal.json`."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np

from chopjax import files, records
from chopjax.chop.config import PlanConfig
from chopjax.commands import calibration, metric, score
from chopjax.commands.run import Run
from chopjax.commands.stages import Stage
from chopjax.errors import UserError
from chopjax.report import records as reported
from chopjax.report.records import AGAIN
from chopjax.score.candidates import LossMetric, as_costs, mean_losses
from chopjax.score.metric import greedy_by_metric, leave_out_by_metric
from chopjax.score.removal import greedy, leave_out

FILE = "removal.json"
STAGE = Stage("removal", (FILE,))


def measured(run: Run, wanted: PlanConfig) -> np.ndarray:
    """What `wanted.layers_by` ranks layers by, measured now unless that was done.

    Returns:
        for `leave_one_out` the loss without each layer, for `leave_block_out` the loss without each block of
        `remove_layers`, by its first, and for `greedy` the layers in the order in which they went.
    """
    by = wanted.layers_by
    if by == "leave_one_out" and metric.is_loss(run):
        return mean_losses(score.read(run).sums, wanted.metric)
    count = 1 if by == "leave_one_out" else wanted.remove_layers
    if by == "greedy":
        # A longer removal begins with every shorter one; that of another source may be too long.
        count = max(count, min(len(_read(run).get("removed", ())), run.source.config.layers - 1))
    inputs = score.inputs(run) | metric.inputs(run) | {"plan.layers_by": by, "count": count}
    del inputs["statistics"]  # of the score file
    run.stage(STAGE, inputs, functools.partial(_work, run, by, count))
    found = _read(run)
    ranked = "removed" if by == "greedy" else "blocks"
    if not found.get(ranked):
        raise UserError(f"{run.workdir / FILE}: {ranked} is missing; {AGAIN}")
    return np.asarray(found["removed"]) if by == "greedy" else as_costs(found["blocks"])


def _read(run: Run) -> dict[str, Any]:
    found = records.read_object(run.workdir / FILE, AGAIN) or {}
    reported.removal(found, str(run.workdir / FILE))
    return found


def _work(run: Run, by: str, count: int) -> None:
    found = {"metric": run.settings.plan.metric, "count": count}
    found |= _losses(run, by, count) if metric.is_loss(run) else _by_metric(run, by, count)
    if run.writer:
        files.write_json(run.workdir / FILE, found)


def _losses(run: Run, by: str, count: int) -> dict[str, Any]:
    config, params, name = run.source.config, run.load(run.source), cast(LossMetric, run.settings.plan.metric)
    batches = functools.partial(calibration.calibration, run, run.settings.score.rows_for_losses)
    options = score.loss_options(run)
    if by == "greedy":
        removal = greedy(config, params, _told(run, batches, count), count, name, **options)
        return {"removed": list(removal.layers), "losses": list(removal.losses)}
    sums = leave_out(config, params, batches(), count, name, **options)
    dense = float(sums[f"dense/{name}"].sum() / sums["scored"].sum())
    return {"dense": dense, "blocks": _finite(mean_losses(sums, name, count))}


def _told(run: Run, batches: Callable[[], Iterable[Any]], count: int) -> Callable[[], Iterable[Any]]:
    """`batches`, which is called once for each layer that goes: in a deep model there are minutes between."""
    numbers = itertools.count(1)

    def told() -> Iterable[Any]:
        run.say(f"removal: tries the layers that are left, to remove {next(numbers)} of {count}")
        return batches()

    return told


def _by_metric(run: Run, by: str, count: int) -> dict[str, Any]:
    config, params, worth = run.source.config, run.load(run.source), metric.function(run)
    if by == "greedy":
        removal = greedy_by_metric(config, params, worth, count)
        return {"removed": list(removal.layers), "losses": list(removal.losses)}
    return {
        "dense": _finite([worth(config, params)])[0],
        "blocks": _finite(leave_out_by_metric(config, params, worth, count)),
    }


def _finite(losses: Iterable[float]) -> list[float | None]:
    """JSON has no word for infinity, which stands for a model that broke."""
    return [float(loss) if math.isfinite(loss) else None for loss in losses]
