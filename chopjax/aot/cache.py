"""Costs of compiled steps, kept by a digest of the program: what was compiled once is not compiled again."""

import contextlib
import dataclasses
import pathlib
import tempfile
import time

from chopjax import files, paths, records
from chopjax.aot import compiling, topology
from chopjax.aot.compiling import Costs
from chopjax.aot.hardware import device
from chopjax.aot.steps import Step
from chopjax.aot.topology import Slices
from chopjax.errors import UserError
from chopjax.sharding.mesh import make_mesh


def costs(step: Step, slices: Slices, folder: pathlib.Path, dump: str = "", anew: bool = False) -> Costs:
    """The costs of a step on slices, compiled now unless the folder has them.

    Args:
        step: the step.
        slices: what it is compiled for.
        folder: where costs are kept, a file for each program.
        dump: folder for the compiler's reports; "" for none. With one, it is compiled in any case.
        anew: whether it is compiled in any case.

    Raises:
        UserError: as `Step.lower` and `topology.devices`.
    """
    begun, devices = time.perf_counter(), topology.devices(slices)
    lowered = compiling.lower(step, devices)
    seconds = time.perf_counter() - begun
    order = [one.id for one in make_mesh(step.mesh, devices).devices.flat]
    file = folder / f"{compiling.digest(lowered, order, str(slices))[:32]}.json"
    if file.exists() and not dump and not anew:
        with contextlib.suppress(UserError):  # cut short, or changed by hand
            return Costs.from_json(records.read_object(file, "compile again") or {})
    found = compiling.compile_lowered(lowered, seconds, dump=dump).costs
    if found.peak_bytes is not None and found.peak_bytes > device(slices).memory:
        found = dataclasses.replace(found, peak_bytes=None, needed_bytes=found.peak_bytes)
    try:
        files.write_json(file, found.to_json())
    except OSError as error:  # found dearly, so they are said in any case
        print(f"{file} cannot be written ({error.strerror}): this will be compiled again", flush=True)
    return found


def ready(folder: pathlib.Path) -> None:
    """Makes a folder for costs, so that one that cannot be written to is said before anything is compiled.

    Raises:
        UserError: it cannot be made, or nothing be written there.
    """
    if paths.is_remote(folder):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"workdir: {folder} cannot be written to ({error.strerror}); name another folder") from error
