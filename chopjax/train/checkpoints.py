"""Checkpoints of a run: state, place in the data and identity, saved while training goes on.

A thin layer over Orbax v1. A checkpoint appears under its step's number only when it is whole, so whatever is listed
can be restored; what a killed run left half-written is never listed and is removed at the next start.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from chopjax.errors import UserError

METRIC = "heldout_loss"


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read back.

    Attributes:
        step: optimizer steps done.
        state: pytree of arrays, in the shardings that were asked for.
        position: place in the data, as it was given to `save`.
    """

    step: int
    state: Any
    position: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run. All processes make and call it alike; use it as a context manager, or `close` it.

    Args:
        folder: absolute or relative; made if need be, on storage that all processes share.
        identity: flat mapping of JSON-able values that decide what is learnt: config fields, digests of plan, source
            and teacher. Kept in every checkpoint; a run of another identity is refused.
        keep: newest checkpoints that are kept.
        keep_best: checkpoints of lowest `metric` that are kept besides; those saved without it do not count.
        metric: which of the metrics given to `save` says how good a checkpoint is; lower is better.

    Raises:
        UserError: the newest checkpoint in `folder` is of another identity.
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        identity: Mapping[str, Any],
        *,
        keep: int = 2,
        keep_best: int = 1,
        metric: str = METRIC,
    ) -> None:
        self.folder = pathlib.Path(folder).absolute()
        self._identity = json.loads(json.dumps(dict(identity)))
        self._metric = metric
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=self._badness, reverse=True, n=keep_best, keep_checkpoints_without_metrics=False
        )
        try:
            self._orbax = ocp.training.Checkpointer(
                self.folder,
                context=_context(),
                save_decision_policy=_Always(),
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
                cleanup_tmp_directories=True,
            )
        except ValueError as error:  # out of a file with metrics
            raise UserError(
                f"{self.folder} holds a checkpoint that cannot be read ({_reason(error)}); move it away"
            ) from error
        try:
            self._refuse_another_identity()
        except BaseException:
            self._orbax.close()
            raise

    @property
    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, ascending."""
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint; None if there is none."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """Step of the checkpoint of lowest metric, the latest if none has it; None if there are no checkpoints."""
        measured = [checkpoint for checkpoint in self._orbax.checkpoints if checkpoint.metrics]
        if not measured:
            return self.latest
        return min(measured, key=lambda checkpoint: self._badness(checkpoint.metrics)).step

    def save(
        self, step: int, state: Any, position: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Copies the state off the devices and writes it in the background; waits for an earlier save first.

        A step that is saved already is left as it is, so a run's last step may be saved without asking. A failure of
        an earlier background write is raised here, or by `wait` or `close`.

        Args:
            step: optimizer steps done.
            state: pytree of arrays. It may be donated as soon as this returns.
            position: JSON-able place in the data.
            metrics: held-out figures at this step.
        """
        if step in self.steps:
            return
        parts = {"state": state, "position": dict(position), "identity": self._identity}
        measured = {name: float(value) for name, value in (metrics or {}).items()}
        self._orbax.save_checkpointables_async(step, parts, metrics=measured or None)

    def restore(self, abstract_state: Any, step: int | None = None) -> Restored | None:
        """Reads a checkpoint into the given shardings, which need not be those it was saved from.

        Args:
            abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings.
            step: which; the newest if None.

        Returns:
            None if there is no checkpoint at all.

        Raises:
            UserError: no checkpoint at `step`, or its arrays have other names, shapes or dtypes.
        """
        self.wait()
        chosen = self.latest if step is None else step
        if chosen is None:
            return None
        if chosen not in self.steps:
            raise UserError(f"{self.folder} holds no checkpoint of step {chosen}; there are {self.steps}")
        with self._named(chosen):
            self._refuse_other_arrays(chosen, abstract_state)
            parts = self._orbax.load_checkpointables(chosen, {"state": abstract_state, "position": None})
        return Restored(chosen, parts["state"], parts["position"])

    def wait(self) -> None:
        """Returns when everything that was saved is on disk."""
        self._orbax.wait()

    def close(self) -> None:
        """Waits for the last save and ends the background threads."""
        self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _badness(self, metrics: Mapping[str, float]) -> float:
        value = metrics.get(self._metric, math.inf)
        return value if math.isfinite(value) else math.inf

    @contextlib.contextmanager
    def _named(self, step: int) -> Iterator[None]:
        """Says which checkpoint cannot be read, and what remains without it."""
        try:
            yield
        except _DAMAGE as error:
            earlier = [other for other in self.steps if other < step]
            then = f"to go on from step {earlier[-1]}" if earlier else "to begin anew"
            raise UserError(
                f"{self.folder}/{step} cannot be read ({_reason(error)}); if it is damaged, move it away {then}"
            ) from error

    def _refuse_another_identity(self) -> None:
        if self.latest is None:
            return
        with self._named(self.latest):
            saved = self._orbax.load_checkpointables(self.latest, {"identity": None})["identity"]
        for name in {**saved, **self._identity}:
            before, now = saved.get(name), self._identity.get(name)
            if before != now:
                raise UserError(
                    f"{self.folder} is of a run with {name} = {before!r}, not {now!r}; "
                    "put it back or set another workdir"
                )

    def _refuse_other_arrays(self, step: int, abstract_state: Any) -> None:
        metadata = self._orbax.checkpointables_metadata(step).metadata["state"]
        if metadata is None:
            raise ValueError("its list of arrays is damaged")
        saved = _shapes(metadata)
        wanted = _shapes(abstract_state)
        for name in {**saved, **wanted}:
            if saved.get(name) != wanted.get(name):
                raise UserError(
                    f"{self.folder}/{step}: {name} is {saved.get(name, 'absent')} there and "
                    f"{wanted.get(name, 'absent')} in this run; set another workdir"
                )


# What Orbax raises for files that are cut short, changed or gone.
_DAMAGE = (ValueError, KeyError, TypeError, OSError)


def _reason(error: BaseException) -> str:
    """What was the matter at the bottom of a chain of exceptions, in one line."""
    while deeper := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = deeper
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _context() -> ocp.Context:
    """Orbax would keep a dict of plain values as arrays; these are to be JSON that a person can read."""
    registry = ocp.handlers.local_registry()
    for name in ("position", "identity"):
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


class _Always:
    """Saves whenever asked: the loop decides when."""

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        return True


def _shapes(tree: Any) -> dict[str, str]:
    """`{"params/embed/table": "float32[7, 5]"}` of any tree of things with a shape and a dtype."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }
