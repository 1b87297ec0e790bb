"""Costs of compiled steps, kept by a digest of the program: what was compiled once is not compiled again."""

import json
import pathlib
import time

from chopjax import files
from chopjax.aot import compiling, topology
from chopjax.aot.compiling import Costs
from chopjax.aot.steps import Step
from chopjax.aot.topology import Slices


def costs(step: Step, slices: Slices, folder: pathlib.Path, dump: str = "") -> Costs:
    """The costs of a step on slices, compiled now unless the folder has them.

    Args:
        step: the step.
        slices: what it is compiled for.
        folder: where costs are kept, a file for each program.
        dump: folder for the compiler's reports; "" for none. With one, it is compiled in any case.

    Raises:
        UserError: as `Step.lower` and `topology.devices`.
    """
    begun = time.perf_counter()
    lowered = step.lower(topology.devices(slices))
    seconds = time.perf_counter() - begun
    file = folder / f"{compiling.digest(lowered, str(slices))[:32]}.json"
    if file.exists() and not dump:
        return Costs.from_json(json.loads(file.read_text(encoding="utf-8")))
    found = compiling.compile_lowered(lowered, seconds, dump=dump).costs
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(file, found.to_json())
    return found
