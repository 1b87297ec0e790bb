"""Steps whose gradients are not finite: what they would have changed stays as it was."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from chopjax.chop.dimchop import Watched
from chopjax.errors import Diverged

# What counts the steps of the run for a schedule goes on, or the schedule would fall behind the run.
_COUNTING = (optax.ScaleByScheduleState, Watched)


def finite(*norms: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether global norms of gradients are finite, and with them all gradients.

    A norm that overflows counts as not finite too: clipping would make nothing of such gradients but zeros.
    """
    return jnp.all(jnp.stack([jnp.isfinite(norm) for norm in norms]))


def where(healthy: Bool[Array, ""], new: Any, old: Any) -> Any:
    """`new` where a step was healthy and else `old`, for each array of two equal trees: parameters, optimizer states.

    A select on each array: it fuses with the update that makes `new`, so that a donated `old` is written in place.
    """

    def one(new: Any, old: Any) -> Any:
        if isinstance(new, optax.ScaleByScheduleState):
            return new
        if isinstance(new, Watched):
            return Watched(new.step, *(where(healthy, *parts) for parts in zip(new[1:], old[1:], strict=True)))
        return jnp.where(healthy, new, old)

    return jax.tree.map(one, new, old, is_leaf=lambda part: isinstance(part, _COUNTING))


class Steps:
    """Follows the steps that the devices were given, counts those that were skipped, and stops when too many were.

    The host may be `AHEAD` steps ahead of the devices, no more: enough to keep them busy, and little to wait for when
    the run is told to end.

    Args:
        done: steps done before.
        skipped: how many of them were skipped.
        limit: skipped steps in a row that end the run; 0 for never.
    """

    AHEAD = 2

    def __init__(self, done: int = 0, skipped: int = 0, limit: int = 0) -> None:
        self.ended, self.skipped, self.in_a_row = done, skipped, 0
        self._limit = limit
        self._flags: collections.deque[tuple[int, Any]] = collections.deque()

    def begin(self, step: int, flag: Float[Array, ""]) -> None:
        """Takes note of a step, and waits for the one that lies `AHEAD` of it.

        Args:
            step: number of steps done when it is done.
            flag: of its metrics `skipped`.

        Raises:
            Diverged: as many steps in a row as `limit` were skipped.
        """
        self._flags.append((step, flag))
        self._settle(self.AHEAD)

    def settle(self) -> None:
        """Waits for all steps that were begun.

        Raises:
            Diverged: as `begin`.
        """
        self._settle(0)

    def _settle(self, ahead: int) -> None:
        while len(self._flags) > ahead:
            step, flag = self._flags.popleft()
            skipped = bool(jax.device_get(flag))
            self.ended, self.skipped = step, self.skipped + skipped
            self.in_a_row = self.in_a_row + 1 if skipped else 0
            if self._limit and self.in_a_row >= self._limit:
                raise Diverged(
                    f"step {step}: gradients were not finite in {self.in_a_row} steps in a row, from step "
                    f"{step - self.in_a_row + 1} on; look at the rows and the losses of those steps, lower "
                    "train.learning_rate or train.clip in a new workdir, or raise train.skip_limit"
                )
