"""Compiling a step for devices that need not be there, and what the compiler then says of it."""

import dataclasses
import hashlib
import importlib.metadata
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from chopjax import records
from chopjax.aot import gpus, hlo, live
from chopjax.aot.steps import Step
from chopjax.errors import UserError
from chopjax.sharding import compiler

FORMAT = 2  # of the costs that are kept; to be raised with every change of their meaning
MODULE = "module.txt"  # in a folder of reports, the text that costs are read from
# What a compiler for TPUs says of a program that does not fit: of all of it, or of temporaries that are too much alone.
_NEEDED = re.compile(r"(?:Used |temporaries \()([0-9.]+)([KMGT]?)\b")
_AVAILABLE = re.compile(r"(?:Used \S+ of |available HBM \()([0-9.]+)([KMGT]?)\b")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Costs:
    """What the compiler says of a program, per device; plain data that JSON can hold.

    Attributes:
        peak_bytes: the most memory in use at one time, arguments and results included; None if it does not fit, which
            compilers for TPUs say and those for GPUs do not (`cache.costs` does).
        needed_bytes: what the compiler would have needed at least, where it does not fit and says so.
        memory: bytes by kind: arguments, results, results that take the place of arguments, temporaries, code. Of
            temporaries what their heap takes with its gaps, and so may be more than the peak.
        at_peak: bytes by what they are for (`live.KINDS`) at the moment of the peak; empty if not known.
        lower_seconds: time of tracing and lowering.
        compile_seconds: time of compiling.
        statistics: cycles, FLOPs and bytes on the wire; None where the compiler cannot print what it made (TPU v5p
            with jaxlib 0.10).
        available_bytes: what a program may take of a device, where it does not fit and the compiler says so.
    """

    peak_bytes: int | None
    needed_bytes: int | None
    memory: Mapping[str, int]
    at_peak: Mapping[str, int]
    lower_seconds: float
    compile_seconds: float
    statistics: hlo.Statistics | None
    available_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Costs":
        """What `to_json` gave.

        Raises:
            UserError: something else.
        """
        return records.shaped(found, cls, "costs", "compile again")


@dataclasses.dataclass(frozen=True)
class Compilation:
    """A compiled program and its costs; without the program, where it does not fit."""

    costs: Costs
    compiled: jax.stages.Compiled | None


def digest(lowered: jax.stages.Lowered, order: Sequence[int], topology: str) -> str:
    """Of a program, what it is compiled for, and the compiler with what it is told.

    Args:
        lowered: the program, whose text does not say which device is where in its mesh.
        order: ids of the devices in the order of the mesh.
        topology: name of the slices.
    """
    libraries = {name: _version(name) for name in ("jax", "jaxlib", "libtpu")} | gpus.versions()
    told = sorted((kind, sorted(options.items())) for kind, options in compiler.OPTIONS.items())
    variables = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    parts = FORMAT, topology, list(order), libraries, told, variables, lowered.as_text()
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def compile(step: Step, devices: Sequence[jax.Device]) -> Compilation:
    """Lowers and compiles a step; takes minutes for models of billions of parameters.

    Args:
        step: the step.
        devices: what it is compiled for.

    Raises:
        UserError: as `Step.lower`.
    """
    begun = time.perf_counter()
    lowered = lower(step, devices)
    return compile_lowered(lowered, time.perf_counter() - begun)


def lower(step: Step, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
    """`step.lower`, which asks the installed cuDNN for its version where that computes the attention.

    Raises:
        UserError: as `Step.lower`, or cuDNN is not installed.
    """
    try:
        return step.lower(devices)
    except RuntimeError as error:
        if "cuDNN not found" not in str(error):
            raise
        raise UserError(
            "mesh.attention: GPUs compute attention with cuDNN, which is compiled with but not installed; "
            "pip install 'chopjax[cuda]'"
        ) from error


def compile_lowered(lowered: jax.stages.Lowered, lower_seconds: float, dump: str = "") -> Compilation:
    """`compile`, of what is lowered already; with `dump` the compiler's reports stay in that folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = dump or temporary
        begun = time.perf_counter()
        try:
            compiled = lowered.compile({"xla_dump_to": folder})
        except jax.errors.JaxRuntimeError as error:
            # A kernel that takes too much of a core's own memory is a mistake of the program, not of its size.
            if "RESOURCE_EXHAUSTED" not in str(error) or "vmem" in str(error).lower():
                raise
            seconds = time.perf_counter() - begun
            needed, available = (_bytes(pattern, str(error)) for pattern in (_NEEDED, _AVAILABLE))
            return Compilation(Costs(None, needed, {}, {}, lower_seconds, seconds, None, available), None)
        seconds = time.perf_counter() - begun
        memory = _memory(compiled)
        peak = memory.pop("peak")
        at_peak = live.at_peak(pathlib.Path(folder), peak)
    text = _text(compiled)
    if dump and text:
        pathlib.Path(dump, MODULE).write_text(text, encoding="utf-8")
    statistics = hlo.statistics(text) if text else None
    return Compilation(Costs(peak, None, memory, at_peak, lower_seconds, seconds, statistics), compiled)


def _memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    found = compiled.memory_analysis()
    assert found is not None, "compilers for TPUs and GPUs report memory"
    return {
        "peak": found.peak_memory_in_bytes,
        "arguments": found.argument_size_in_bytes,
        "results": found.output_size_in_bytes,
        "reused": found.alias_size_in_bytes,
        "temporary": found.temp_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
        "host": found.host_temp_size_in_bytes,
    }


def _text(compiled: jax.stages.Compiled) -> str:
    try:
        return compiled.as_text() or ""
    except jax.errors.JaxRuntimeError:
        return ""


def _bytes(pattern: re.Pattern[str], message: str) -> int | None:
    found = pattern.search(message)
    return round(float(found[1]) * _UNITS[found[2]]) if found else None


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
