"""What the tests of checkpoints save, and for what they ask."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from chopjax.train.checkpoints import Checkpoints

IDENTITY = {"train.learning_rate": 3e-4, "plan.layers": (0, 2), "plan.file": "", "teacher": None}
TARGET = {"x": ((9,), jnp.float32)}


def abstract_arrays(**given: tuple[tuple[int, ...], Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Abstract arrays on the first device, from shapes and dtypes."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {name: jax.ShapeDtypeStruct(*what, sharding=place) for name, what in given.items()}


def saved(folder: pathlib.Path | str, *steps: int) -> None:
    with Checkpoints(folder, IDENTITY, keep=len(steps)) as checkpoints:
        for step in steps:
            checkpoints.save(step, {"x": jnp.arange(9.0) + step}, {"row": step})
