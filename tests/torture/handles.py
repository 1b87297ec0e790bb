"""Open files and threads must not grow over many saves."""

import dataclasses
import json
import pathlib

from end_to_end import runs
from torture import workbench
from torture.findings import Options, Tally

SAVES = {"short": 16, "default": 200, "full": 400}
SAVE = "chopjax.train.checkpoints:Checkpoints.save"
SLACK = 4


@dataclasses.dataclass(frozen=True)
class Probe:
    """Writes how many files and threads a process has, at every call of a method."""

    method: str
    file: pathlib.Path

    def prepare(self) -> None:
        def note() -> None:
            process = pathlib.Path("/proc/self")
            counts = {name: len(list((process / name).iterdir())) for name in ("fd", "task")}
            with self.file.open("a") as file:
                file.write(json.dumps(counts) + "\n")

        runs.intercept(self.method, note)


def run(options: Options) -> Tally:
    """One training run that saves at every step."""
    tally = Tally("handles", options, "saves")
    bench = workbench.make(options.folder / "workbench")
    workdir, saves = bench.copy("heal", options.folder / "handles"), SAVES[options.size]
    file = options.folder / "handles.jsonl"
    file.unlink(missing_ok=True)
    changes = (
        "cache.kind=off",
        f"train.steps={saves}",
        "train.save_every=1",
        "train.evaluate_every=10",
        "train.keep=2",
    )
    ended = runs.start(bench.place, "heal", bench.arguments(workdir, *changes), death=Probe(SAVE, file)).wait(3600)
    if ended.status:
        tally.add("saves", f"status {ended.status}", details=ended.stderr)
        return tally
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    tally.count = len(lines)
    half = len(lines) // 2
    for name, title in (("fd", "open files"), ("task", "threads")):
        early, late = (max(line[name] for line in part) for part in (lines[2:half], lines[half:]))
        tally.notes += f"{', ' * bool(tally.notes)}{early} and then {late} {title}"
        if late > early + SLACK:
            tally.add("saves", f"{early} {title} in the first half of {len(lines)} saves, {late} in the second", file)
    return tally
