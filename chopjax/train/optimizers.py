"""Optimizers from Optax: clipping, AdamW or Lion, weight decay by role, and where their state lies."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from chopjax.axes import Leaf, Role, unflatten
from chopjax.train.config import OptimizerConfig
from chopjax.train.schedules import make_schedule

DECAYING = (Role.MATRIX, Role.TABLE)


def build(config: OptimizerConfig, declarations: Mapping[str, Leaf]) -> optax.GradientTransformation:
    """The Optax transformation for parameters with these declarations.

    Its state is float32 and holds no more than Optax's own: two trees like the parameters for AdamW, one for Lion.

    Args:
        config: the optimizer.
        declarations: path → declaration of each parameter, for the weight-decay mask.
    """
    rate, mask = make_schedule(config.schedule), decay_mask(declarations)
    if config.name == "adamw":
        rule = optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=mask)
    else:
        rule = optax.lion(rate, config.b1, config.b2, weight_decay=config.weight_decay, mask=mask)
    chain = optax.chain(optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(), rule)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):  # optax relies on implicit promotion
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)


def decay_mask(declarations: Mapping[str, Leaf]) -> dict[str, Any]:
    """Whether weight decay applies to each parameter, as a nested dict: to matrices and tables only."""
    return unflatten({path: leaf.role in DECAYING for path, leaf in declarations.items()})


def state_shardings(
    optimizer: optax.GradientTransformation,
    params: Any,
    param_shardings: Any,
    other: jax.sharding.Sharding,
) -> Any:
    """The sharding of each leaf of the optimizer's state: of what is like a parameter, that parameter's.

    Args:
        optimizer: the transformation.
        params: the parameters, or their `jax.ShapeDtypeStruct`s.
        param_shardings: a sharding for each parameter.
        other: the sharding of the rest, such as step counters.
    """
    state = jax.eval_shape(optimizer.init, params)
    return optax.tree_utils.tree_map_params(
        optimizer, lambda _, sharding: sharding, state, param_shardings, transform_non_params=lambda _: other
    )
