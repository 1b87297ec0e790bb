"""Which stages of a run are done, and from what: a finished stage is skipped, a changed one noticed.

A stage is a box of the flow: files or folders under the workdir, made from named inputs. `WORKDIR/stages/NAME.json`
holds its inputs and whether it was finished. The record is written "started" before any work and "finished" after it,
each time atomically, so a stage that was cut off is known as such. What a stage made before is kept aside until it is
made anew, and comes back if bad input is found on the way.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from chopjax import files, folders, paths, records, temporary
from chopjax.errors import Diverged, UserError

NEWEST = 1  # format of the records, and of what the stages write


@dataclasses.dataclass(frozen=True)
class Stage:
    """A box of the flow.

    Attributes:
        name: as in `python -m chopjax.NAME`.
        outputs: files and folders that it makes, relative to the workdir, absolute or in a store; they are replaced
            when it starts again.
        resumable: it keeps its outputs when cut off and goes on from them, so changed inputs are refused instead of
            redone. For stages whose work is dear and that keep checkpoints of their own.
    """

    name: str
    outputs: tuple[str, ...]
    resumable: bool = False


@dataclasses.dataclass(frozen=True)
class _Record:
    """What `WORKDIR/stages/NAME.json` holds, of all outputs of the stage too."""

    finished: bool
    outputs: tuple[str, ...]
    inputs: Mapping[str, Any]


class Stages:
    """The stages of one workdir.

    Args:
        workdir: folder of the run, shared by all processes.
        writer: whether this process writes records and removes outputs; true for one process only.
        barrier: called where all processes must have arrived before any goes on.
        say: prints a line.
        defaults: defaults of config fields, by their dotted names (`records.with_defaults`). A field that a record
            lacks and that has its default is no change, so a stage that an earlier version made stays done.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        writer: bool = True,
        barrier: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = print,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.workdir = paths.make(workdir)
        self._defaults = defaults or {}
        self._writer = writer
        self._barrier = barrier
        self._say = say if writer else lambda line: None

    def run(self, stage: Stage, inputs: Mapping[str, Any], work: Callable[[], None]) -> bool:
        """Does `work` unless it was done before from the same inputs.

        Args:
            stage: what is made.
            inputs: JSON-able values that decide the result, by the names under which a person knows them: config
                fields, fingerprints of files, digests of earlier stages. One flat mapping.
            work: makes the outputs. Every process calls it.

        Returns:
            whether work was done.

        Raises:
            UserError: see `pending`; or bad input that `work` found, in which case the workdir is as it was.
            OSError: a folder or a disk refused something; the workdir is as it was then too.
            Diverged: training went wrong; so it is then, but for what a resumable stage leaves.
        """
        inputs = json.loads(json.dumps(dict(inputs)))
        reason = self.pending(stage, inputs)
        self._barrier()  # every process has read the record before one of them rewrites it
        if not reason:
            if self._writer:
                self._clear(stage)
            self._say(f"{stage.name}: done before, skipped")
            return False
        self._say(f"{stage.name}: {reason}")
        with self._attempt(stage, inputs):
            work()
        return True

    def pending(self, stage: Stage, inputs: Mapping[str, Any]) -> str:
        """Why the stage has to run, in a few words; empty if it is done.

        Raises:
            UserError: the inputs of a resumable stage changed, or in place of an output lies what no run made.
        """
        record = self._read(stage.name)
        self._refuse_foreign(stage, record)
        if record is None:
            return "starts"
        changed = self._difference(record["inputs"], inputs)
        if changed and stage.resumable:
            raise self._changed(stage, changed)
        if changed:
            return f"made again, for {changed}"
        if not record["finished"]:
            return "goes on where it was cut off" if stage.resumable else "was cut off and starts again"
        how = "goes on" if stage.resumable else "made again"
        gone = [output for output in stage.outputs if not self._at(output).exists()]
        return f"{how}, for {gone[0]} is gone" if gone else ""

    def refuse_changes(self, stage: Stage, known: Mapping[str, Any]) -> None:
        """Refuses other inputs than those that a stage began with; `known` need not hold all of them.

        Raises:
            UserError: names the first that changed.
        """
        record = self._read(stage.name)
        if record is None:
            return
        began = {name: value for name, value in record["inputs"].items() if name in known}
        if changed := self._difference(began, json.loads(json.dumps(dict(known)))):
            raise self._changed(stage, changed)

    def digest(self, name: str) -> str:
        """Digest of a finished stage's inputs, itself an input of the stages after it.

        Raises:
            UserError: the stage was not finished.
        """
        record = self._read(name)
        if record is None or not record["finished"]:
            raise UserError(f"{self.workdir} holds no finished {name}; run python -m chopjax.{name} first")
        return files.digest(record["inputs"])

    def inputs(self, name: str) -> dict[str, Any]:
        """The recorded inputs of a stage that was started; empty for any other."""
        record = self._read(name)
        return record["inputs"] if record else {}

    @contextlib.contextmanager
    def _attempt(self, stage: Stage, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Keeps the record around the work, and what was made before aside until the work has ended well."""
        before = self._read(stage.name)
        if before is not None and not self._difference(before["inputs"], inputs):
            inputs = before["inputs"]  # which may lack newer fields: stages after this one know their digest
        moved: dict[pathlib.Path, pathlib.Path] = {}
        try:
            if self._writer:
                if before is None or before["finished"]:
                    self._clear(stage)
                self._write(stage, inputs, finished=False)
                self._set_aside(stage, moved, cut_off=before is not None and not before["finished"])
            self._barrier()
            yield
            self._barrier()
            if self._writer:
                self._write(stage, inputs, finished=True)
        except (UserError, OSError, Diverged) as error:
            if self._writer:
                for path, kept in moved.items():
                    _move(kept, path)
                if not (stage.resumable and isinstance(error, Diverged)):  # its checkpoints stay, and so its record
                    self._restore(stage, before)
            raise
        if self._writer:
            self._clear(stage)
        self._barrier()

    def _set_aside(self, stage: Stage, moved: dict[pathlib.Path, pathlib.Path], cut_off: bool) -> None:
        """Moves what was made before out of the way; adds to `moved` each output with its place, once it is there."""
        for path, kept in self._asides(stage).items():
            if cut_off and kept.exists():
                paths.remove(path)  # half made, where what was cut off had put a whole one aside
            else:
                _move(path, kept)
            moved[path] = kept

    def _difference(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
        return difference(records.with_defaults(before, now, self._defaults), now)

    def _changed(self, stage: Stage, changed: str) -> UserError:
        return UserError(
            f"{stage.name} in {self.workdir} began otherwise: {changed}; put it back or set another workdir"
        )

    def refuse_foreign(self, *stages: Stage) -> None:
        """Refuses, before anything slow, what lies in place of outputs and was not made by a run.

        Raises:
            UserError: names the first such file or folder.
        """
        for stage in stages:
            self._refuse_foreign(stage, self._read(stage.name))

    def _refuse_foreign(self, stage: Stage, record: dict[str, Any] | None) -> None:
        ours = record["outputs"] if record else []
        for output in () if stage.resumable else stage.outputs:
            path = self._at(output)
            if output not in ours and path.exists():
                raise UserError(
                    f"{paths.shown(path)} is there, but was not made by {stage.name} of this run; move it away"
                )

    def _restore(self, stage: Stage, record: dict[str, Any] | None) -> None:
        if record is None:
            self._record(stage.name).unlink(missing_ok=True)
        else:
            files.write_json(self._record(stage.name), {"stage": stage.name, **record})

    def _at(self, output: str) -> pathlib.Path:
        return paths.join(self.workdir, output)

    def _asides(self, stage: Stage) -> dict[pathlib.Path, pathlib.Path]:
        """Where each output waits while it is made again; none of a resumable stage, which keeps its outputs."""
        outputs = () if stage.resumable else map(self._at, stage.outputs)
        return {path: temporary.before(path) for path in outputs}

    def _clear(self, stage: Stage) -> None:
        """Removes what a finished stage needs no longer, and what killed processes left of its files."""
        for kept in self._asides(stage).values():
            paths.remove(kept)
        for path in (self._record(stage.name), *map(self._at, stage.outputs)):
            folders.clear(path)

    def _write(self, stage: Stage, inputs: Mapping[str, Any], finished: bool) -> None:
        record = {"stage": stage.name, "finished": finished, "outputs": list(stage.outputs), "inputs": inputs}
        files.write_json(self._record(stage.name), record)

    def _read(self, name: str) -> dict[str, Any] | None:
        path, fix = self._record(name), f"remove the file to make {name} again"
        record = records.read_object(path, fix)
        if record is None:
            return None
        records.check_format(record, NEWEST, str(path), fix)
        found = records.shaped(record, _Record, str(path), fix, extra=True)
        return {"finished": found.finished, "outputs": list(found.outputs), "inputs": dict(found.inputs)}

    def _record(self, name: str) -> pathlib.Path:
        return self.workdir / "stages" / f"{name}.json"


def _move(path: pathlib.Path, to: pathlib.Path) -> None:
    """`path` in place of `to`, where nothing is left if there is no `path`."""
    paths.remove(to)
    if path.exists():
        paths.move(path, to)


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first changed name with both values, and how many more there are; empty if nothing changed."""
    changed = [name for name in {**before, **now} if before.get(name, _ABSENT) != now.get(name, _ABSENT)]
    if not changed:
        return ""
    name = changed[0]
    more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
    return f"{name} was {_said(before, name)} and is {_said(now, name)}{more}"


_ABSENT = object()


def _said(values: Mapping[str, Any], name: str) -> str:
    text = repr(values[name]) if name in values else "not set"
    return text if len(text) <= 60 else f"{text[:57]}..."
