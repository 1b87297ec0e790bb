"""Processes that train together: one is killed, stopped or told to end; the others must end and name it."""

import dataclasses
import os
import pathlib
import random
import shutil
import signal
import time
from collections.abc import Sequence

from end_to_end import hosts, runs
from end_to_end.runs import Started
from torture import workbench
from torture.findings import Options, Tally
from torture.workbench import Workbench

DEVICES = 4
STEPS = 40
SETTINGS = (
    *("cache.kind=off", "train.batch=8", f"train.steps={STEPS}", "train.save_every=5", "train.keep=2"),
    "train.evaluate_every=0",
)
ENDS = ("train.hang_seconds=10", "train.hang_ends=True")
END_SECONDS = 180
CLOSE = 1e-5


@dataclasses.dataclass(frozen=True)
class Case:
    """What happens to one of several processes.

    Attributes:
        signal: that it is sent in the middle of training.
        processes: how many there are.
        victim: its number.
        settings: of the run.
        again: how many processes go on afterwards.
    """

    signal: signal.Signals
    processes: int
    victim: int
    settings: Sequence[str] = ()
    again: int = 1


CASES = {
    "kill": Case(signal.SIGKILL, 2, 1, again=4),
    "kill-first": Case(signal.SIGKILL, 2, 0),
    "stop": Case(signal.SIGSTOP, 2, 1, ENDS),
    "stop-first": Case(signal.SIGSTOP, 2, 0, ENDS, again=2),
    "end": Case(signal.SIGTERM, 2, 1),
    "kill-of-four": Case(signal.SIGKILL, 4, 2, again=1),
    "stop-of-four": Case(signal.SIGSTOP, 4, 3, ENDS, again=2),
}
CHOSEN = {"default": ("kill", "stop", "end"), "full": tuple(CASES)}


def run(options: Options) -> Tally:
    """One case after the other."""
    tally = Tally("hosts", options, "cases")
    bench = workbench.make(options.folder / "workbench")
    sound = options.folder / "hosts-sound"
    shutil.rmtree(sound, ignore_errors=True)
    shutil.copytree(bench.folder / "chopped", sound)
    hosts.done(bench.place, "heal", bench.arguments(sound, *SETTINGS), 1, DEVICES)
    began = time.monotonic()
    for name in [options.case] if options.case else CHOSEN[options.size]:
        if options.seconds and time.monotonic() - began > options.seconds:
            break
        tally.count += 1
        rng = random.Random(f"{options.seed}/{name}")
        _case(tally, bench, options.folder / "hosts", sound, name, rng)
    return tally


def _case(
    tally: Tally, bench: Workbench, workdir: pathlib.Path, sound: pathlib.Path, name: str, rng: random.Random
) -> None:
    case = CASES[name]
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(bench.folder / "chopped", workdir)
    arguments = bench.arguments(workdir, *SETTINGS, *case.settings)
    started = hosts.start(bench.place, "heal", arguments, case.processes, DEVICES // case.processes)
    _await_step(started, workdir)
    time.sleep(rng.uniform(0, 1))
    os.kill(started[case.victim].process.pid, case.signal)
    rest = [one for index, one in enumerate(started) if index != case.victim or case.signal == signal.SIGTERM]
    late = _await_end(rest)
    _release(started)
    texts = "\n".join(f"--- process {index}\n{''.join(one.text())}" for index, one in enumerate(started))
    for problem in _problems(case, rest, late):
        tally.add(name, problem, workdir, details=texts)
    again = hosts.run(bench.place, "heal", bench.arguments(workdir, *SETTINGS), case.again, DEVICES // case.again)
    if any(one.status for one in again):
        last = (again[0].stderr.strip().splitlines() or [""])[-1][:300]
        tally.add(name, f"does not go on with {case.again} processes: {last}", workdir, details=again[0].stderr)
    elif problem := _difference(workdir, sound):
        tally.add(name, f"goes on with {case.again} processes to {problem}", workdir)


def _problems(case: Case, rest: Sequence[Started], late: int) -> list[str]:
    """What the others did wrong."""
    if late:
        return [f"{late} processes had not ended after {END_SECONDS} s"]
    problems = []
    if case.signal == signal.SIGTERM:
        statuses = [one.process.exitcode for one in rest]
        return [f"statuses {statuses} in place of 0"] if any(statuses) else []
    texts = ["".join(one.text()) for one in rest]
    if any(one.process.exitcode == 0 for one in rest):
        problems.append("a process ended with status 0")
    if not any(_names(text, case.victim) for text in texts):
        problems.append(f"no process named process {case.victim}")
    return problems


def _names(text: str, victim: int) -> bool:
    return any(name in text for name in (f"process {victim}", f"processes {victim}", f"task:{victim}"))


def _await_step(started: Sequence[Started], workdir: pathlib.Path) -> None:
    """Returns in the middle of training, some time after the first save."""
    end = time.monotonic() + END_SECONDS
    while time.monotonic() < end and not (workdir / "checkpoints" / "5").exists():
        assert all(one.process.is_alive() for one in started), "".join(started[0].text())
        time.sleep(0.02)


def _await_end(started: Sequence[Started]) -> int:
    """How many have not ended in time."""
    end = time.monotonic() + END_SECONDS
    while time.monotonic() < end and any(one.process.is_alive() for one in started):
        time.sleep(0.05)
    return sum(one.process.is_alive() for one in started)


def _release(started: Sequence[Started]) -> None:
    """Ends what is stopped or hangs."""
    for one in started:
        one.process.kill()
        one.process.join()


def _difference(workdir: pathlib.Path, sound: pathlib.Path) -> str:
    """Whether the figures of all steps are those of an undisturbed run, but for the order of sums."""
    ours, theirs = runs.metrics(workdir), runs.metrics(sound)
    if [line["step"] for line in ours] != [line["step"] for line in theirs]:
        return f"the steps {[line['step'] for line in ours]}"
    for line, expected in zip(ours, theirs, strict=True):
        for name, value in expected.items():
            if isinstance(value, float) and abs(line[name] - value) > CLOSE * max(1e-3, abs(value)):
                return f"{name} {line[name]} in place of {value} at step {line['step']}"
    return "" if (workdir / "export" / "config.json").exists() else "no export"
