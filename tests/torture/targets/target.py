"""What a fuzz target is."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from torture.sandbox import Reader
from torture.workbench import Workbench

CANARY = '{"canary": "nothing reads this"}'


@dataclasses.dataclass(frozen=True)
class Draw:
    """One input that is to be made.

    Attributes:
        rng: every random choice.
        folder: an empty folder for the input.
        bench: undamaged files.
        kind: which kind of damage.
        outside: a folder that nothing may read or write.
    """

    rng: random.Random
    folder: pathlib.Path
    bench: Workbench
    kind: str
    outside: pathlib.Path

    def model(self) -> pathlib.Path:
        """A copy of the model, to be damaged."""
        return pathlib.Path(shutil.copytree(self.bench.place.source, self.folder / "model"))

    def copy(self, name: str) -> pathlib.Path:
        """A copy of a file or folder of the finished workdir."""
        path, copy = self.bench.finished / name, self.folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        return pathlib.Path(shutil.copytree(path, copy) if path.is_dir() else shutil.copyfile(path, copy))


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader and its inputs.

    Attributes:
        name: as in `CASE=fuzz:NAME:NUMBER`.
        make: makes the input and returns what reads it.
        kinds: of damage, tried in turn.
        every: it has a turn in every so many rounds; above 1 where a reader is slow.
    """

    name: str
    make: Callable[[Draw], Reader]
    kinds: Sequence[str]
    every: int = 1


def in_child(make: Callable[[], object]) -> None:
    """Makes a file in a process of its own, for libraries whose threads would not survive a fork of this one."""
    process = os.fork()
    if not process:
        try:
            make()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(process, 0)[1]
    assert not status, "the input was not made"


def read_json(path: pathlib.Path) -> Any:
    """The value of an undamaged file."""
    return json.loads(path.read_text(encoding="utf-8"))


def json_bytes(value: Any) -> bytes:
    """A value as JSON; lone surrogates stay."""
    return json.dumps(value).encode("utf-8", "surrogatepass")
