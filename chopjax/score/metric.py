"""Any metric as a criterion for layers: each candidate is truly chopped, and the metric is asked what it is worth."""

import importlib
import re
from collections.abc import Callable, Collection, Sequence

import jax
import numpy as np
from jaxtyping import Float

from chopjax.chop.apply import chop_config, chop_params
from chopjax.chop.plan import Plan
from chopjax.errors import UserError
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Params
from chopjax.models.parameters import declare
from chopjax.score.candidates import Removal, as_costs, one_by_one, without_block

Metric = Callable[[ModelConfig, Params], float]
"""What a model is worth, in any unit; lower is better. Its parameters lie where those of the whole model do."""


def load_metric(name: str) -> Metric:
    """The function that `package.module:function` names.

    Raises:
        UserError: the text has another form, or the module, the function or something that the module needs is missing.
    """
    form = re.fullmatch(r"([\w.]*\w):(\w+)", name)
    if not form or name.startswith("."):
        raise UserError(f"plan.metric is {name!r}; write package.module:function")
    path, attribute = form.groups()
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        raise UserError(f"plan.metric {name!r}: {path} cannot be imported ({error}); is it on PYTHONPATH?") from error
    if not hasattr(module, attribute):
        raise UserError(f"plan.metric {name!r}: {module.__file__ or path} has no {attribute!r}")
    metric = getattr(module, attribute)
    if not callable(metric):
        raise UserError(f"plan.metric {name!r}: that is a {type(metric).__name__}; name a function (config, params)")
    return metric


def leave_out_by_metric(
    config: ModelConfig,
    params: Params,
    metric: Metric,
    count: int = 1,
    order: Sequence[int] | None = None,
) -> Float[np.ndarray, "starts"]:
    """The metric without each `count` consecutive layers, float64, by the first of them; +inf where it is not finite.

    Each candidate is a model of its own, so for its time as much memory is needed again, less what it lacks.

    Args:
        config: the architecture of `params`.
        params: parameters, sharded in any way.
        metric: lower is better.
        count: layers that are left out together.
        order: the layers that are there to begin with, ascending; all of them if None.

    Raises:
        UserError: `count` leaves no layer, or the metric gives something that is no number.
    """
    layers = tuple(range(config.layers)) if order is None else tuple(order)
    if not 1 <= count < len(layers):
        raise UserError(f"{count} of {len(layers)} layers are to go at a time; give 1 to {len(layers) - 1}")
    candidates = (without_block(layers, start, count) for start in range(len(layers) - count + 1))
    return as_costs([worth(metric, *of_layers(config, params, kept)) for kept in candidates])


def greedy_by_metric(
    config: ModelConfig, params: Params, metric: Metric, remove: int, keep: Collection[int] = ()
) -> Removal:
    """Removes the layer without which the metric is lowest, measures all candidates again, and so on.

    Args:
        config: the architecture of `params`.
        params: parameters, sharded in any way.
        metric: lower is better.
        remove: number of layers to remove.
        keep: layers that must stay.

    Raises:
        UserError: see `leave_out_by_metric` and `chopjax.score.candidates.one_by_one`.
    """
    return one_by_one(config.layers, remove, lambda order: leave_out_by_metric(config, params, metric, 1, order), keep)


def of_layers(config: ModelConfig, params: Params, kept: Sequence[int]) -> tuple[ModelConfig, Params]:
    """The model of the `kept` layers alone, its parameters sharded like those of the whole one."""
    plan = Plan(dict(config.sizes), {"layers": np.asarray(kept, np.int32)})
    chopped = chop_params(plan, declare(config), params)
    return chop_config(config, plan), jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), chopped, params)


def worth(metric: Metric, config: ModelConfig, params: Params) -> float:
    """What `metric` gives, as a float.

    Raises:
        UserError: it gives something that is no number.
    """
    found = metric(config, params)
    try:
        return float(found)
    except (TypeError, ValueError) as error:
        raise UserError(f"plan.metric: it gave {found!r}; it must give one number, lower for better") from error
