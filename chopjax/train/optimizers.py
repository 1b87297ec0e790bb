"""Optimizers from Optax: clipping, AdamW or Lion, weight decay by role, and where their state lies."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import optax

from chopjax.axes import Leaf, Role, unflatten
from chopjax.errors import UserError
from chopjax.train.schedules import ScheduleConfig, make_schedule

Name = Literal["adamw", "lion"]
DECAYING = (Role.MATRIX, Role.TABLE)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates.

    Attributes:
        name: `adamw` (Loshchilov & Hutter 2019, arXiv:1711.05101) or `lion` (Chen et al. 2023, arXiv:2302.06675).
        schedule: learning rate by step.
        b1: decay of the mean of gradients.
        b2: decay of the mean of squared gradients (`adamw`), or of the mean kept from step to step (`lion`).
        eps: added to the root of the mean square; unused by `lion`.
        weight_decay: share of a weight, times the learning rate, that is taken off each step; matrices and tables only.
        clip: greatest global norm of the gradient; 0 for no limit.
    """

    name: Name = "adamw"
    schedule: ScheduleConfig = ScheduleConfig()
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            raise UserError(f"train.optimizer is {self.name!r}; give one of {', '.join(get_args(Name))}")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"train.{name} is {getattr(self, name)}; give a number from 0 to below 1")
        for name in ("weight_decay", "clip", "eps"):
            if not getattr(self, name) >= 0:
                raise UserError(f"train.{name} is {getattr(self, name)}; give a number of 0 or more")


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
    """Whether weight decay applies to each parameter, as a nested dict: to matrices and tables, not biases and norms."""
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
