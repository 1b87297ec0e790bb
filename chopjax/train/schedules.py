"""Learning rate by step: warm-up, then constant, cosine, or stable with a decay at the end (WSD)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from chopjax.train.config import ScheduleConfig

Schedule = Callable[[jax.typing.ArrayLike], Float[Array, ""]]


def make_schedule(config: ScheduleConfig) -> Schedule:
    """The learning rate as a function of the step, float32, traceable.

    The first step that has the final value is number `config.steps`, one after the last of the run.
    """
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    warmup, decay = config.warmup_steps, config.decay_steps
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
