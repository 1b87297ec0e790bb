"""Damaged and hostile inputs for every reader, each read in a process of its own."""

import collections
import pathlib
import random
import shutil
import time
from collections.abc import Iterator

from torture import workbench
from torture.findings import Options, Tally
from torture.sandbox import Sandbox
from torture.targets import TARGETS
from torture.targets.target import CANARY, Draw, Target
from torture.workbench import Workbench

COUNTS = {"short": 150, "default": 1200, "full": 2000}


def run(options: Options) -> Tally:
    """Every target in turn, until there were enough inputs."""
    tally = Tally("fuzz", options, "inputs")
    options.use_temporary("fuzz")
    bench = workbench.make(options.folder / "workbench")
    folder = options.folder / "fuzz"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "outside").mkdir(parents=True)
    (folder / "outside" / "canary.json").write_text(CANARY)
    from torture import readers  # noqa: F401  # loads what all readers import, before the first fork

    kinds: collections.Counter[str] = collections.Counter()
    began = time.monotonic()
    for target, number in _cases(options):
        if options.seconds and time.monotonic() - began > options.seconds:
            tally.notes = "out of time, "
            break
        tally.count += 1
        kinds[_case(tally, options, bench, folder, target, number)] += 1
    tally.notes += ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return tally


def _cases(options: Options) -> Iterator[tuple[Target, int]]:
    """Targets and numbers, interleaved, so that a run that is cut short has tried all of them."""
    if options.case:
        name, _, chosen = options.case.rpartition(":")
        yield TARGETS[name], int(chosen)
        return
    wanted = COUNTS[options.size]
    given, number = 0, 0
    while given < wanted:
        for target in TARGETS.values():
            if number % target.every == 0 and given < wanted:
                given += 1
                yield target, number
        number += 1


def _case(tally: Tally, options: Options, bench: Workbench, folder: pathlib.Path, target: Target, number: int) -> str:
    """Makes one input, reads it and returns the kind of its outcome."""
    place = folder / "input"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    kinds = list(target.kinds)
    random.Random(f"{options.seed}/{target.name}").shuffle(kinds)
    kind = kinds[number // target.every % len(kinds)]
    rng = random.Random(f"{options.seed}/{target.name}/{number}")
    read = target.make(Draw(rng, place, bench, kind, folder / "outside"))
    sandbox = Sandbox(folder, bench.place.recipe, (place, options.temporary("fuzz")), (bench.folder,))
    outcome = sandbox.run(read)
    if (folder / "outside" / "canary.json").read_text() != CANARY:
        outcome = type(outcome)("outside", "a file outside of the input was changed", outcome.stderr)
        (folder / "outside" / "canary.json").write_text(CANARY)
    if not outcome.good:
        text = f"{kind}: {outcome.kind}, {outcome.text}"
        tally.add(f"{target.name}:{number}", text, place, details=outcome.stderr)
    return outcome.kind
