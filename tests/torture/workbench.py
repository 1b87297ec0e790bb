"""What all campaigns share: a tiny model, a text, and workdirs of one run as it was after each of its commands."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import time
from typing import Any

from end_to_end import runs
from end_to_end.runs import Place

import chopjax

SETTINGS = (
    *("cache.kind=top_k", "cache.k=16", "train.save_every=2", "train.evaluate_every=4", "train.keep=5"),
    "evaluate.prompts=()",
)
# What each command makes that must not depend on how often it was killed.
RESULTS = {
    "chop": ("rows", "scores", "plan.json", "student", "sharding.txt"),
    "cache_teacher": ("cache",),
    "heal": ("export",),
}


@dataclasses.dataclass(frozen=True)
class Workbench:
    """Made once for all campaigns and only read afterwards."""

    folder: pathlib.Path

    @property
    def place(self) -> Place:
        """Model, text and config file."""
        return Place(self.folder / "place")

    def before(self, command: str) -> pathlib.Path | None:
        """The workdir as it was before one of `RESULTS`; None where there was none."""
        return {"chop": None, "cache_teacher": self.folder / "chopped", "heal": self.folder / "taught"}[command]

    @property
    def finished(self) -> pathlib.Path:
        """The workdir of a run that was never disturbed."""
        return self.folder / "finished"

    def seconds(self, command: str) -> float:
        """How long a command of `RESULTS` takes where all its programs are compiled already."""
        return self.facts()["seconds"][command]

    def facts(self) -> dict[str, Any]:
        """What was noted when it was made."""
        return json.loads((self.folder / "workbench.json").read_text())

    def arguments(self, workdir: pathlib.Path, *overrides: str) -> list[str]:
        return self.place.arguments(workdir, *SETTINGS, *overrides)

    def copy(self, command: str, workdir: pathlib.Path) -> pathlib.Path:
        """A workdir in which `command` is next."""
        shutil.rmtree(workdir, ignore_errors=True)
        if before := self.before(command):
            shutil.copytree(before, workdir)
        return workdir


def make(folder: pathlib.Path) -> Workbench:
    """Makes the workbench unless the same code of chopjax has made it before.

    Every command of `RESULTS` runs twice, which shows that it repeats itself bit for bit, and how long it takes.
    """
    bench = Workbench(folder)
    code = _code()
    if (folder / "workbench.json").exists() and bench.facts()["code"] == code:
        return bench
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "place").mkdir(parents=True)
    place, run = Place.make(folder / "place"), folder / "run"
    for command, kept in (("chop", "chopped"), ("cache_teacher", "taught"), ("train", "finished")):
        runs.done(place, command, bench.arguments(run))
        shutil.copytree(run, folder / kept)
    seconds: dict[str, float] = {}
    for command in RESULTS:
        again = bench.copy(command, folder / "again")
        start = time.monotonic()
        runs.done(place, command, bench.arguments(again))
        seconds[command] = time.monotonic() - start
        assert not difference(again, bench.finished, command), f"{command} does not repeat itself"
    (folder / "workbench.json").write_text(json.dumps({"code": code, "seconds": seconds}))
    return bench


def difference(workdir: pathlib.Path, finished: pathlib.Path, command: str) -> str:
    """The first names of what a command made otherwise than in the finished workdir; empty if nothing."""
    ours, theirs = (_results(folder, command) for folder in (workdir, finished))
    names = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    return ", ".join(names[:5])


def left_over(workdir: pathlib.Path) -> list[str]:
    """Hidden and temporary names in a workdir, but for Orbax's own."""
    names = [path.relative_to(workdir) for path in workdir.rglob("*")]
    hidden = [name for name in names if any(part.startswith(".") for part in name.parts)]
    half = [name for name in names if name.parts[0] == "checkpoints" and "tmp" in name.name]
    return sorted({str(name) for name in (*hidden, *half)})


def _code() -> str:
    """A digest of chopjax's own files."""
    files = sorted(pathlib.Path(chopjax.__path__[0]).rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _results(workdir: pathlib.Path, command: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in RESULTS[command]:
        path = workdir / name
        files = runs.contents(path) if path.is_dir() else runs.contents(workdir) if path.exists() else {}
        found |= {f"{name}/{file}": digest for file, digest in files.items() if path.is_dir() or file == name}
    if command == "heal":
        found["metrics.jsonl"] = json.dumps(runs.metrics(workdir))
    return found
