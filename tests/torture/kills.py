"""Commands that are killed and started again must end with the files of a run that was never disturbed.

`chop` (rows, scores, plan, student) from nothing, `cache_teacher` and `heal` (train, export) are killed at random
moments, one to five times in a row; some moments are those at which a temporary file appears.
"""

import collections
import dataclasses
import glob
import pathlib
import random
import time

from end_to_end import runs
from end_to_end.runs import Started
from torture import workbench
from torture.findings import Options, Tally
from torture.workbench import Workbench

COUNTS = {"short": 5, "default": 100, "full": 200}
COMMANDS = ("heal", "heal", "heal", "chop", "chop", "cache_teacher")
# Relative to the workdir: what appears while a command works.
APPEARING = {
    "chop": (
        ".student.writing*/*",
        "rows/.*",
        "rows/*",
        "plan.json",
        ".plan.json*",
        "scores/*",
        "scores/.*",
        "stages/*",
    ),
    "cache_teacher": ("cache/*/*/.*", "cache/*/*/*", "cache/*/*/cache.json"),
    "heal": (
        *("checkpoints/*tmp*", "checkpoints/*tmp*/*", "checkpoints/2", "checkpoints/4", "checkpoints/8"),
        *(".export.writing/*", ".export.writing/m*", "export", "metrics.jsonl", "goodput.json", "stages/*"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a process is killed: so many seconds after its start, or earlier where a file of a name appears."""

    seconds: float
    pattern: str
    delay: float

    @classmethod
    def draw(cls, rng: random.Random, command: str, seconds: float) -> "Moment":
        pattern = rng.choice(APPEARING[command]) if rng.random() < 0.6 else ""
        delay = rng.choice([0.0, 0.0, rng.uniform(0, 0.03)])
        return cls(seconds if pattern else rng.uniform(0, seconds), pattern, delay)

    def kill(self, started: Started, workdir: pathlib.Path) -> bool:
        """Waits for the moment; returns whether the process was still there."""
        end, before = time.monotonic() + self.seconds, self._names(workdir)
        while started.process.is_alive():
            if self._names(workdir) - before or time.monotonic() > end:
                time.sleep(self.delay)
                started.process.kill()
                return True
            time.sleep(0.002)
        return False

    def _names(self, workdir: pathlib.Path) -> set[str]:
        return set(glob.glob(str(workdir / self.pattern), include_hidden=True)) if self.pattern else set()


def run(options: Options) -> Tally:
    """Series after series, until there were enough kills."""
    tally = Tally("kills", options, "kills")
    options.use_temporary("kills")
    bench = workbench.make(options.folder / "workbench")
    places: collections.Counter[str] = collections.Counter()
    began, number = time.monotonic(), int(options.case or 0)
    while tally.count < COUNTS[options.size]:
        if options.seconds and time.monotonic() - began > options.seconds:
            break
        stages = _series(tally, options, bench, number)
        tally.count += len(stages)
        places.update(stages)
        number += 1
        if options.case:
            break
    tally.notes = ", ".join(f"{count} in {stage}" for stage, count in places.most_common())
    return tally


def _series(tally: Tally, options: Options, bench: Workbench, number: int) -> list[str]:
    """Kills one command again and again, then lets it end; returns the stages in which it was killed."""
    rng = random.Random(f"{options.seed}/{number}")
    command = rng.choice(COMMANDS) if options.size != "short" else COMMANDS[-1 - number % 4]
    workdir = bench.copy(command, options.folder / "kills")
    wanted = rng.randint(1, 2 if options.size == "short" else 5)
    stages: list[str] = []
    while True:
        started = runs.start(bench.place, command, bench.arguments(workdir))
        moment = Moment.draw(rng, command, bench.seconds(command)) if len(stages) < wanted else None
        killed = moment is not None and moment.kill(started, workdir)
        ended = started.wait()
        if killed and ended.status == -9:
            stages.append(_stage(command, ended.stdout))
            continue
        break
    if problem := _problem(bench, workdir, command, ended):
        text = f"{command}, killed in {', '.join(stages) or 'no stage'}: {problem}"
        tally.add(str(number), text, workdir, details=f"{ended.stdout}\n{ended.stderr}")
    return stages


def _problem(bench: Workbench, workdir: pathlib.Path, command: str, ended: runs.Ended) -> str:
    """What is wrong after the last start, which was not disturbed."""
    if ended.status or "Traceback" in ended.stderr:
        return f"status {ended.status}: {(ended.stderr.strip().splitlines() or [''])[-1][:300]}"
    if names := workbench.difference(workdir, bench.finished, command):
        return f"other contents: {names}"
    if names_left := workbench.left_over(workdir):
        return f"left over: {', '.join(names_left[:5])}"
    return ""


def _stage(command: str, stdout: str) -> str:
    """The stage that a process was in, by its last line."""
    lines = [line.partition(":")[0] for line in stdout.splitlines() if ": " in line]
    return lines[-1] if lines else f"the start of {command}"
