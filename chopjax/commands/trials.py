"""Plans tried without being carried out: as masks on the uncut model, with its weights and one compilation for all."""

import jax
import numpy as np
from jaxtyping import Float

from chopjax.axes import AROUND
from chopjax.chop.apply import chop_config, chop_params, mask
from chopjax.chop.edits import MergeKvHeads
from chopjax.chop.plan import Plan
from chopjax.commands import calibration, metric, score
from chopjax.commands.run import Run
from chopjax.evaluate.perplexity import batch_sums
from chopjax.models.block import Masks
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Params
from chopjax.models.parameters import declare
from chopjax.sharding.mesh import replicated

AXES = tuple(axis for axis in AROUND if axis != "vocab")


def all_masks(plan: Plan) -> dict[str, np.ndarray]:
    """Masks of every axis, cut or not, so that all plans share one compilation."""
    return {axis: mask(plan, axis) for axis in AXES}


class Trials:
    """The uncut model and calibration rows, held on the mesh, against which plans are tried.

    Args:
        run: the run, whose `plan.metric` is measured.
        params: the source's parameters; loaded if None.
        fresh: whether plans are tried on as many further rows of the text, which nothing was scored on: on its own
            rows a criterion looks better than it is. Where the text has no more, on all calibration rows.
    """

    def __init__(self, run: Run, params: Params | None = None, fresh: bool = False) -> None:
        self._run = run
        self._config, self._params = run.source.config, run.load(run.source) if params is None else params
        self._worth = None if metric.is_loss(run) else metric.function(run)
        self._batches = _batches(run, fresh) if self._worth is None else []

    def loss(self, plan: Plan) -> float:
        """The metric of what `plan` would keep; losses are means over calibration rows, in nats a token."""
        total, tokens = self.sums(plan).sum(0)
        return float(total / max(tokens, 1.0))

    def sums(self, plan: Plan) -> Float[np.ndarray, "batches sum_and_tokens=2"]:
        """Of each calibration batch, the sum of the loss and its tokens; of a metric that is no loss, one value and 1.

        Neither a refit nor head residuals are tried. Merged heads are other weights, so there is no mask for them: such
        a plan is carried out, and so is any plan where the metric is a function of a chopped model.
        """
        if self._worth is not None:
            return np.asarray([[self._worth(*self._chopped(plan)), 1.0]])
        if any(isinstance(edit, MergeKvHeads) for edit in plan.edits):
            return self._sums(*self._chopped(plan))
        masks = jax.device_put(all_masks(plan), replicated(self._run.mesh))
        return self._sums(self._config, self._params, masks)

    def _sums(self, config: ModelConfig, params: Params, masks: Masks | None = None) -> np.ndarray:
        name = self._run.settings.plan.metric
        options = score.loss_options(self._run) | {"masks": masks}
        if name == "kl":
            options |= {"teacher_config": self._config, "teacher_params": self._params}
        found = (batch_sums(config, params, calibration.rows_of(batch), **options) for batch in self._batches)
        return np.asarray([[float(sums[name]), float(sums["tokens"])] for sums in found])

    def _chopped(self, plan: Plan) -> tuple[ModelConfig, Params]:
        params = chop_params(plan, declare(self._config), self._params)
        shardings = jax.tree.map(lambda p: p.sharding, self._params)
        return chop_config(self._config, plan), jax.tree.map(jax.device_put, params, shardings)


def _batches(run: Run, fresh: bool) -> list[calibration.Batch]:
    chosen = run.settings.score
    if not fresh:
        return list(calibration.calibration(run, chosen.rows_for_losses))
    further = calibration.rows_read(run, start=chosen.rows) >= chosen.batch
    if not further:
        run.say(
            "plan: warning: the text has no further rows, so criteria are compared on the rows that they were scored "
            "on; give more text, or lower score.rows"
        )
    return list(calibration.calibration(run, start=chosen.rows if further else 0))
