"""Learning rate by step: warm-up, then constant, cosine, or stable with a decay at the end (WSD)."""

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from chopjax.errors import UserError

Kind = Literal["constant", "cosine", "wsd"]
Schedule = Callable[[jax.typing.ArrayLike], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """A learning rate for each step from 0.

    Attributes:
        kind: what follows the warm-up. `constant` stays at the peak; `cosine` falls along half a cosine until the
            last step; `wsd` stays and then falls linearly (Hu et al. 2024, arXiv:2404.06395, section 4.2).
        learning_rate: the peak.
        steps: steps of the run.
        warmup_steps: steps of the linear rise; step 0 already has a share of 1 / warmup_steps.
        final_fraction: learning rate at the end, as a fraction of the peak (`cosine`, `wsd`).
        decay_fraction: share of `steps` in which `wsd` falls.
    """

    kind: Kind = "cosine"
    learning_rate: float = 1e-4
    steps: int = 1000
    warmup_steps: int = 0
    final_fraction: float = 0.1
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError(f"train.schedule is {self.kind!r}; give one of {', '.join(get_args(Kind))}")
        if self.steps < 1:
            raise UserError(f"train.steps is {self.steps}; give at least 1")
        if not self.learning_rate >= 0:
            raise UserError(f"train.learning_rate is {self.learning_rate}; give a number of 0 or more")
        for name in ("final_fraction", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"train.{name} is {getattr(self, name)}; give a fraction from 0 to 1")
        if not 0 <= self.warmup_steps <= self.steps - self._decay_steps:
            raise UserError(
                f"train.warmup_steps is {self.warmup_steps}, but {self.steps} steps less the decay leave only "
                f"{self.steps - self._decay_steps}; warm up for fewer steps"
            )

    @property
    def _decay_steps(self) -> int:
        return round(self.decay_fraction * self.steps) if self.kind == "wsd" else 0


def make_schedule(config: ScheduleConfig) -> Schedule:
    """The learning rate as a function of the step, float32, traceable.

    The first step that has the final value is number `config.steps`, one after the last of the run.
    """
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    warmup, decay = config.warmup_steps, config._decay_steps
    rest = config.steps - warmup
    parts: list[optax.Schedule] = [optax.constant_schedule(peak)]
    boundaries: list[int] = []
    if config.kind == "cosine" and rest:
        parts = [optax.cosine_decay_schedule(peak, rest, config.final_fraction)]
    elif config.kind == "wsd" and decay:
        parts = [optax.constant_schedule(peak), optax.linear_schedule(peak, final, decay)]
        boundaries = [config.steps - decay]
    if warmup:
        parts = [optax.linear_schedule(peak / warmup, peak, warmup - 1), *parts]
        boundaries = [warmup, *boundaries]
    joined = optax.join_schedules(parts, boundaries)

    def schedule(step: jax.typing.ArrayLike) -> Float[Array, ""]:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integer steps with float rates
            return jnp.asarray(joined(step), jnp.float32)

    return schedule
