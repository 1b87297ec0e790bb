"""The loss without layers, measured for a plan: `WORKDIR/removal.json`."""

import functools
import json
from typing import Any, get_args

import numpy as np

from chopjax import files
from chopjax.chop.config import PlanConfig
from chopjax.commands import calibration, score
from chopjax.commands.run import Run
from chopjax.commands.stages import Stage
from chopjax.score.candidates import LossMetric, mean_losses
from chopjax.score.removal import greedy, leave_out

FILE = "removal.json"
STAGE = Stage("removal", (FILE,))


def measured(run: Run, wanted: PlanConfig) -> np.ndarray:
    """What `wanted.layers_by` ranks layers by, measured now unless that was done.

    Returns:
        for `leave_one_out` the loss without each layer, for `leave_block_out` the loss without each block of
        `remove_layers`, by its first, and for `greedy` the layers in the order in which they went.
    """
    by, metric = wanted.layers_by, wanted.metric
    if by == "leave_one_out" and metric in get_args(LossMetric):
        return mean_losses(score.read(run).sums, metric)
    count = 1 if by == "leave_one_out" else wanted.remove_layers
    if by == "greedy":
        count = max(count, len(_read(run).get("removed", ())))  # a longer removal begins with every shorter one
    inputs = score.inputs(run) | {"plan.layers_by": by, "plan.metric": metric, "count": count}
    run.stage(STAGE, inputs, functools.partial(_work, run, by, metric, count))
    return np.asarray(
        _read(run)[{"leave_one_out": "without_one", "leave_block_out": "blocks", "greedy": "removed"}[by]]
    )


def _read(run: Run) -> dict[str, Any]:
    file = run.workdir / FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _work(run: Run, by: str, metric: Any, count: int) -> None:
    config, params = run.source.config, run.load(run.source)
    options, batches = score.loss_options(run), functools.partial(calibration.calibration, run)
    found: dict[str, Any] = {"metric": metric, "count": count}
    if by == "greedy":
        removal = greedy(config, params, batches, count, metric, **options)
        found |= {"removed": list(removal.layers), "losses": list(removal.losses)}
    else:
        sums = leave_out(config, params, batches(), count, metric, **options)
        found["dense"] = float(sums[f"dense/{metric}"].sum() / sums["scored"].sum())
        found["blocks"] = mean_losses(sums, metric, count).tolist()
    if run.writer:
        files.write_json(run.workdir / FILE, found)
