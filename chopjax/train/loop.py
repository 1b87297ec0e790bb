"""The training loop: steps, and what happens after some of them."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from chopjax.data.rows import Batch
from chopjax.distill.objective import Metrics, Params
from chopjax.sharding.mesh import place_batch
from chopjax.train.state import TrainState

Step = Callable[[TrainState, Params | None, Any], tuple[TrainState, Metrics]]
After = Callable[[int, TrainState, Metrics], None]
Before = Callable[[int, TrainState, dict[str, Any]], dict[str, Any]]


def unchanged(done: int, state: TrainState, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as it is."""
    return batch


def train(
    step: Step,
    state: TrainState,
    teacher: Params | None,
    batches: Iterator[Batch],
    mesh: Mesh,
    until: int,
    after: After,
    before: Before = unchanged,
) -> TrainState:
    """Takes steps until `until` of them are done, counted from the run's start.

    Args:
        step: the compiled step; it may donate the state.
        state: where to go on.
        teacher: the teacher's parameters, if the step has one.
        batches: this process's share of the batch of each step from `state.step` on.
        mesh: over which a batch is spread.
        until: number of steps done when it returns.
        after: called with the number of steps done, the new state and its metrics, which are still on the devices:
            reading them waits for the step, so it is best done seldom.
        before: called with the number of steps done, the state and the batch on the mesh; gives the batch to learn
            from.
    """
    done = int(state.step)
    while done < until:
        batch = before(done, state, place_batch(mesh, next(batches)))
        # What moves between host and devices in here is a mistake, and would stall every step.
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, teacher, batch)
        done += 1
        after(done, state, metrics)
    return state


def due(step: int, every: int, last: int) -> bool:
    """Whether something done every `every` steps, and in any case after the last, is to be done after this one."""
    return step == last or (every > 0 and step % every == 0)


def to_host(metrics: Metrics) -> dict[str, float]:
    """Metrics as Python floats; waits for the step that made them."""
    return {name: float(np.asarray(value)) for name, value in jax.device_get(metrics).items()}
