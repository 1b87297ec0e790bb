"""Plans tried without being carried out: as masks on the uncut model, with its weights and one compilation for all."""

from collections.abc import Mapping

import jax
import numpy as np

from chopjax.axes import AROUND
from chopjax.chop.apply import mask
from chopjax.chop.plan import Plan
from chopjax.commands import calibration, score
from chopjax.commands.run import Run
from chopjax.evaluate.perplexity import batch_sums
from chopjax.models.decoder import Params
from chopjax.sharding.mesh import replicated

AXES = tuple(axis for axis in AROUND if axis != "vocab")


def all_masks(plan: Plan) -> dict[str, np.ndarray]:
    """Masks of every axis, cut or not, so that all plans share one compilation."""
    return {axis: mask(plan, axis) for axis in AXES}


class Trials:
    """The uncut model and calibration rows, held on the mesh, against which plans are tried.

    Args:
        run: the run.
        params: the source's parameters; loaded if None.
    """

    def __init__(self, run: Run, params: Params | None = None) -> None:
        self._run = run
        self._params = run.load(run.source) if params is None else params
        self._batches = list(calibration.calibration(run))

    def loss(self, plan: Plan) -> float:
        """Mean next-token loss in nats over the calibration rows, of what `plan` would keep; edits are not tried."""
        masks: Mapping[str, jax.Array] = jax.device_put(all_masks(plan), replicated(self._run.mesh))
        total = tokens = 0.0
        for batch in self._batches:
            rows = {name: batch[name] for name in ("tokens", "segment_ids", "positions")}
            sums = batch_sums(self._run.source.config, self._params, rows, masks=masks, **score.loss_options(self._run))
            total, tokens = total + float(sums["next_token"]), tokens + float(sums["tokens"])
        return total / max(tokens, 1.0)
