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
from orbax.checkpoint import v1 as ocp

from chopjax import files, paths, records
from chopjax.errors import UserError
from chopjax.sharding.processes import in_all
from chopjax.train import checkpoint_parts as parts
from chopjax.train import digests, echoes, preemption

METRIC = "heldout_loss"
NEWEST = 1  # format of a checkpoint, in its identity; absent for 1
# In place of an array that is not to be read back.
UNREAD = parts.UNREAD
_METRICS = "metrics"  # Orbax's name of the part, and of the file in it


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
        # The write in the background, and the step that it saves.
        self._response: ocp.AsyncResponse[bool] | None = None
        self._saving = -1
        self.folder = paths.absolute(paths.make(folder))
        self._identity = json.loads(json.dumps(dict(identity)))
        self._metric = metric
        for half in parts.half_written(self.folder):
            say(f"{half} was left half-written by a run that was cut off; it is removed")
        echoes.silence_refused_writes()
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

        Raises:
            UserError: the storage refuses this write or the one before; the checkpoints before it stay as they are.
        """
        if step in self.steps:
            return
        self._finish()
        saved = parts.of(state, json.loads(json.dumps(dict(position))), self._identity)
        measured = {name: float(value) for name, value in (metrics or {}).items()}
        self._saving = step
        with self._written():
            self._response = self._orbax.save_checkpointables_async(step, saved, metrics=measured or None)

    @preemption.unbroken()
    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds held-out figures to a checkpoint that was saved without them."""
        self._finish()
        file = self.folder / str(step) / _METRICS / _METRICS
        if jax.process_index() == 0 and not file.exists():
            files.write_text(file, json.dumps({name: float(value) for name, value in metrics.items()}))
        in_all(True)  # so that all processes read them
        self._orbax.reload()

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
            UserError: no checkpoint at `step`, or its arrays have other names, shapes or dtypes, or it is damaged.
        """
        self.wait()
        chosen = self.latest if step is None else step
        if chosen is None:
            return None
        if chosen not in self.steps:
            raise UserError(f"{self.folder} holds no checkpoint of step {chosen}; there are {self.steps}")
        return self._read(chosen, abstract_state)

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
            try:
                restored = self.restore(abstract_state, step)
            except _Damaged as error:
                damaged.append((step, error.reason))
                continue
            for other, reason in reversed(damaged):
                self._set_aside(other, reason, step)
            return restored
        if not damaged:
            return None
        raise UserError(self._none(damaged))

    @preemption.unbroken()
    def wait(self) -> None:
        """Returns when everything that was saved is on disk.

        Raises:
            UserError: the storage refused it.
        """
        self._finish()

    @preemption.unbroken()
    def close(self) -> None:
        """Waits for the last save and ends the background threads.

        Raises:
            UserError: the storage refused it.
        """
        try:
            self._finish()
        finally:
            self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _finish(self) -> None:
        """Waits for the write in the background, and ends the thread that Orbax keeps for each until it is asked."""
        response, self._response = self._response, None
        with self._written(), contextlib.ExitStack() as stack:
            stack.callback(self._orbax.wait)  # Orbax raises a failure once in each thread
            if response is not None:
                response.result()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Reports a write that the storage refuses."""
        try:
            yield
        except Exception as error:
            if not (reason := echoes.refusal(error)):
                raise
            raise UserError(
                f"{self.folder}/{self._saving} could not be written ({reason}); the checkpoints before it are whole. "
                "See to the space left and the permissions; then the same command goes on"
            ) from error

    def _open(self, preserved: Any) -> ocp.training.Checkpointer:
        """Orbax's own of it."""
        try:
            orbax = ocp.training.Checkpointer(
                self.folder,
                context=parts.context(),
                save_decision_policy=parts.Always(),
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
            raise self._damaged(step, _reason(error)) from error

    def _damaged(self, step: int, reason: str) -> "_Damaged":
        return _Damaged(self._said(step, reason), reason)

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
        in_all(True)  # so that all see it gone
        self._orbax.reload()

    def _read(self, step: int, abstract_state: Any) -> Restored:
        """Reads all parts and compares them with their digests.

        Raises:
            _Damaged: in all processes if in one.
        """
        found, error = None, None
        try:
            found = self._parts(step, abstract_state)
        except _Damaged as caught:
            error = caught
        if not in_all(error is None) or found is None:
            raise error or self._damaged(step, "another process cannot read it")
        state, position, kept = found
        arrays = {name: leaf for name, leaf in parts.leaves(state).items() if leaf is not UNREAD}
        if kept:
            for name, digest in digests.of_arrays(arrays).items():
                if kept[name].split()[-1] != digest:
                    raise self._damaged(step, f"{name} is not what was saved")
        return Restored(step, state, position)

    def _parts(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any], dict[str, str]]:
        """State, position and digests of arrays as they are stored; no digests in a checkpoint of before them."""
        kept = self._kept(step)
        for name in (parts.IDENTITY, parts.POSITION):  # each alone, and before the state, which takes long
            position = self._json(step, name, kept)
        with self._named(step):
            self._refuse_other_arrays(step, abstract_state, kept)
            state = self._orbax.load_checkpointables(step, {"state": abstract_state})["state"]
        return state, position, kept.get("state", {})

    def _kept(self, step: int) -> dict[str, Any]:
        """The digests that were saved; empty for a checkpoint of before them."""
        if not (self.folder / str(step) / parts.DIGESTS / "data.json").exists():
            return {}
        return self._json(step, parts.DIGESTS, {})

    def _json(self, step: int, name: str, kept: Mapping[str, Any]) -> dict[str, Any]:
        """One of the plain parts of a checkpoint, compared with its digest."""
        with self._named(step):
            part = self._orbax.load_checkpointables(step, {name: None})[name]
            if not isinstance(part, dict) or (kept and digests.of_json(part) != kept[name]):
                raise ValueError(f"its {name} is not what was saved")
        return part

    def _refuse_another_identity(self) -> None:
        """Compares with the newest identity that can be read; which of the checkpoints is whole, `resume` finds out."""
        damaged: list[tuple[int, str]] = []
        for step in sorted(self.steps, reverse=True):
            try:
                saved = self._json(step, parts.IDENTITY, self._kept(step))
                break
            except _Damaged as error:
                damaged.append((step, error.reason))
        else:
            if damaged:
                raise UserError(self._none(damaged))
            return
        saved = dict(saved)
        records.check_format(saved, NEWEST, f"{self.folder}/{step}", "set another workdir")
        saved = records.with_defaults(saved, self._identity, self._defaults)
        for name in {**saved, **self._identity}:
            before, now = saved.get(name), self._identity.get(name)
            if before != now:
                raise UserError(
                    f"{self.folder} is of a run with {name} = {before!r}, not {now!r}; "
                    "put it back or set another workdir"
                )

    def _refuse_other_arrays(self, step: int, abstract_state: Any, kept: Mapping[str, Any]) -> None:
        metadata = self._orbax.checkpointables_metadata(step).metadata["state"]
        if metadata is None:
            raise ValueError("its list of arrays is damaged")
        saved = parts.shapes(metadata)
        if kept and saved != {name: line.rpartition(" ")[0] for name, line in kept["state"].items()}:
            raise ValueError("its list of arrays is not what was saved")
        wanted = parts.shapes(abstract_state)
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


def _reason(error: BaseException) -> str:
    """What was the matter at the bottom of a chain of exceptions, in one line."""
    while deeper := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = deeper
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
