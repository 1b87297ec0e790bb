"""Checkpoints of a run: state, place in the data and identity, saved while training goes on.

A thin layer over Orbax v1. A checkpoint is listed only when it is whole, so whatever is listed can be restored, unless
it was damaged afterwards; what a killed run left half-written is never listed, and is named and removed at the next
start.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from chopjax import paths, records
from chopjax.errors import UserError
from chopjax.train import echoes, preemption

METRIC = "heldout_loss"
# In place of an array that is not to be read back.
UNREAD = ocp.PLACEHOLDER


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
        say: prints a line, about what was left half-written or is damaged.
        defaults: of config fields, by their dotted names (`records.with_defaults`). A field that the identity of a
            checkpoint lacks is taken to have had its default.

    Raises:
        UserError: the newest checkpoint in `folder` is of another identity, or of none of them it can be read.
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        identity: Mapping[str, Any],
        *,
        keep: int = 2,
        keep_best: int = 1,
        metric: str = METRIC,
        say: Callable[[str], None] = lambda line: None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self._say = say
        self._defaults = defaults or {}
        self.folder = paths.absolute(paths.make(folder))
        self._identity = json.loads(json.dumps(dict(identity)))
        self._metric = metric
        for half in _half_written(self.folder):
            say(f"{half} was left half-written by a run that was cut off; it is removed")
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=self._badness, reverse=True, n=keep_best, keep_checkpoints_without_metrics=False
        )
        with contextlib.ExitStack() as opened:
            with preemption.unbroken():
                self._orbax = self._open(policies.AnyPreservationPolicy([policies.LatestN(keep), best]))
                opened.callback(self._orbax.close)
                self._refuse_another_identity()
            opened.pop_all()

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

    @preemption.unbroken()
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

    @preemption.unbroken()
    def restore(self, abstract_state: Any, step: int | None = None) -> Restored | None:
        """Reads a checkpoint into the given shardings, which need not be those it was saved from.

        Args:
            abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings; `UNREAD` in place of what is not read,
                which stands there in the result too.
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

    @preemption.unbroken()
    def resume(self, abstract_state: Any) -> Restored | None:
        """Reads the newest checkpoint that is whole in all that it holds, as all processes find it.

        Damaged ones that are newer are set aside, under `FOLDER_damaged`, and named.

        Args:
            abstract_state: as for `restore`.

        Returns:
            None if there is no checkpoint at all.

        Raises:
            UserError: none can be read; or as `restore`.
        """
        self.wait()
        damaged: list[tuple[int, str]] = []
        for step in sorted(self.steps, reverse=True):
            restored, error = None, None
            try:
                for name in ("identity", "position"):  # each alone, and before the state, which takes long
                    self._json(step, name)
                restored = self.restore(abstract_state, step)
            except _Damaged as caught:
                error = caught
            if _all(error is None):
                for other, reason in reversed(damaged):
                    self._set_aside(other, reason, step)
                return restored
            damaged.append((step, error.reason if error else "another process cannot read it"))
        if not damaged:
            return None
        raise UserError(self._none(damaged))

    @preemption.unbroken()
    def wait(self) -> None:
        """Returns when everything that was saved is on disk."""
        self._orbax.wait()

    @preemption.unbroken()
    def close(self) -> None:
        """Waits for the last save and ends the background threads."""
        self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self, preserved: Any) -> ocp.training.Checkpointer:
        """Orbax's own of it."""
        try:
            orbax = ocp.training.Checkpointer(
                self.folder,
                context=_context(),
                save_decision_policy=_Always(),
                preservation_policy=preserved,
                cleanup_tmp_directories=True,
            )
        except ValueError as error:  # out of a file with metrics
            raise UserError(
                f"{self.folder} holds a checkpoint that cannot be read ({_reason(error)}); move it away"
            ) from error
        # Orbax would ask JAX by itself whether to stop, by numbers that upset those of `train.preemption`.
        orbax._manager.reached_preemption = lambda step: False  # type: ignore[method-assign]
        return orbax

    def _badness(self, metrics: Mapping[str, float]) -> float:
        value = metrics.get(self._metric, math.inf)
        return value if math.isfinite(value) else math.inf

    @contextlib.contextmanager
    def _named(self, step: int) -> Iterator[None]:
        """Says which checkpoint cannot be read, and what remains without it."""
        try:
            with echoes.silenced():
                yield
        except _DAMAGE as error:
            raise _Damaged(self._said(step, _reason(error)), _reason(error)) from error

    def _said(self, step: int, reason: str) -> str:
        earlier = any(other < step for other in self.steps)  # of which each may be damaged too
        then = "and train again from the newest before it that can be read" if earlier else "to begin anew"
        return f"{self.folder}/{step} cannot be read ({reason}); if it is damaged, move it away {then}"

    def _none(self, damaged: list[tuple[int, str]]) -> str:
        """Says that there is nothing to go on from."""
        if len(damaged) == 1:
            return self._said(*damaged[0])
        listed = ", ".join(f"{step} ({reason})" for step, reason in damaged)
        return f"{self.folder}: no checkpoint can be read: {listed}; if all are damaged, move them away to begin anew"

    def _set_aside(self, step: int, reason: str, instead: int) -> None:
        """Moves a damaged checkpoint to where it is no checkpoint any more."""
        aside = self.folder.with_name(f"{self.folder.name}_damaged")
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            taken = len(list(aside.glob(f"{step}*")))
            paths.move(self.folder / str(step), aside / (f"{step}.{taken}" if taken else str(step)))
        self._say(f"{self.folder}/{step} cannot be read ({reason}); moved to {aside}, going on from step {instead}")
        _all(True)  # so that all see it gone
        self._orbax.reload()

    def _json(self, step: int, name: str) -> dict[str, Any]:
        """One of the plain parts of a checkpoint."""
        with self._named(step):
            return self._orbax.load_checkpointables(step, {name: None})[name]

    def _refuse_another_identity(self) -> None:
        """Compares with the newest identity that can be read; which of the checkpoints is whole, `resume` finds out."""
        damaged: list[tuple[int, str]] = []
        for step in sorted(self.steps, reverse=True):
            try:
                saved = self._json(step, "identity")
                break
            except _Damaged as error:
                damaged.append((step, error.reason))
        else:
            if damaged:
                raise UserError(self._none(damaged))
            return
        saved = records.with_defaults(saved, self._identity, self._defaults)
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
            left_out = wanted.get(name) is UNREAD and name in saved
            if not left_out and saved.get(name) != wanted.get(name):
                raise UserError(
                    f"{self.folder}/{step}: {name} is {saved.get(name, 'absent')} there and "
                    f"{wanted.get(name, 'absent')} in this run; set another workdir"
                )


class _Damaged(UserError):
    """A checkpoint that cannot be read, and the reason alone."""

    def __init__(self, said: str, reason: str) -> None:
        super().__init__(said)
        self.reason = reason


# What Orbax raises for files that are cut short, changed or gone.
_DAMAGE = (ValueError, KeyError, TypeError, OSError)
_HALF_WRITTEN = "orbax-checkpoint-tmp"  # in the names of what is not whole yet, on a disk
_COMMITTED = "commit_success.txt"  # in what is whole, in a store


def _half_written(folder: pathlib.Path) -> list[pathlib.Path]:
    """What Orbax takes for checkpoints that were never finished, and removes.

    On a disk they have another name until they are whole. Stores cannot rename: there a checkpoint has its name from
    the beginning, and a file in it says in the end that it is whole.
    """
    if not paths.is_remote(folder):
        return sorted(folder.glob(f"*{_HALF_WRITTEN}*"))
    names = [tuple(name.split("/")) for name in paths.inside(folder)]
    whole = {first for first, *rest in names if rest == [_COMMITTED]}
    halves = {first for first, *rest in names if rest} - whole
    return [folder / name for name in sorted(halves, key=lambda name: (len(name), name))]


def _all(mine: bool) -> bool:
    """Whether it is so in all processes, which all ask here."""
    if jax.process_count() == 1:
        return mine
    return bool(np.all(multihost_utils.process_allgather(np.asarray(mine))))


def _reason(error: BaseException) -> str:
    """What was the matter at the bottom of a chain of exceptions, in one line."""
    while deeper := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = deeper
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _context() -> ocp.Context:
    """Orbax would keep a dict of plain values as arrays; these are to be JSON that a person can read.

    And it would compress arrays, which of float32 weights and moments saves 8 %, takes twice the CPU time, and holds
    all of them in memory once more.
    """
    registry = ocp.handlers.local_registry()
    for name in ("position", "identity"):
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.array.saving.use_compression = False
    return context


class _Always:
    """Saves whenever asked: the loop decides when."""

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        return True


def _shapes(tree: Any) -> dict[str, Any]:
    """`{"params/embed/table": "float32[7, 5]"}` of any tree of things with a shape and a dtype, or `UNREAD`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            leaf if leaf is UNREAD else f"{leaf.dtype}{list(leaf.shape)}"
        )
        for path, leaf in leaves
        if leaf is UNREAD or hasattr(leaf, "shape")
    }
