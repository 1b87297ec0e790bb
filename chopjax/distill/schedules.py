"""The weights of the terms, and the temperature, at each step."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from chopjax.distill.config import TERMS, LossConfig, LossSchedule


def scalars(
    config: LossConfig, step: Int[Array, ""] | int | None = None, steps: int = 1
) -> dict[str, Float[Array, ""]]:
    """Every weight and `temperature`, float32.

    Args:
        config: the values that they begin with, and how they change.
        step: steps done before this one; None for the values of the beginning.
        steps: steps of the run.
    """
    found = {name: jnp.asarray(getattr(config, name), jnp.float32) for name in (*TERMS, "temperature")}
    if step is not None:
        for one in config.schedules:
            found[one.field] = _at(one, getattr(config, one.field), jnp.asarray(step, jnp.float32), steps)
    return found


def _at(schedule: LossSchedule, first: float, step: Float[Array, ""], steps: int) -> Float[Array, ""]:
    if schedule.kind == "constant":
        return jnp.asarray(schedule.final, jnp.float32)
    # The last step has the final value.
    done = jnp.minimum(step / max(1, (schedule.steps or steps) - 1), 1.0)
    left = 1 - done if schedule.kind == "linear" else (1 + jnp.cos(jnp.pi * done)) / 2
    return schedule.final + left * (first - schedule.final)
