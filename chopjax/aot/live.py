"""What a compiled program's memory is used for at its peak, read from the compiler's own report.

With `xla_dump_to` XLA writes which values are alive when most memory is in use; the module's text says of each where in
the program it was made.
"""

import pathlib
import re
from collections.abc import Iterator

from chopjax.distill.objective import LOSS, TEACHER

KINDS = ("parameters", "optimizer", "teacher", "compute copy", "activations", "gradients", "loss", "other")
"""Master parameters; optimizer state; parameters of the teacher; the copy of the parameters in the compute dtype; what
the forward passes make and keep; what the backward pass makes; the loss in its chunks and its gradients; the rest."""

_PEAK, _VALUE = "Live ranges at", re.compile(r"\s+(\S+?)\{[^}]*\}: (\d+) bytes")
_MADE = re.compile(r"\s+(?:ROOT )?%?(?P<name>[^\s=]+) = (?P<type>\([^=]*?\)|\S+) (?P<opcode>[\w-]+)\(")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
# A layout that ends so lies in the core's own memory, which is no part of the chip's.
_OWN_MEMORY = re.compile(r"S\(\d+\)")


def at_peak(folder: pathlib.Path) -> dict[str, int]:
    """Bytes by kind; empty if the compiler left no such report in the folder, as those for CPUs.

    The kinds add up to the live values, which is a little less than the peak: between values there are gaps.
    """
    ranges = sorted(folder.glob("*jit_*live-range.txt"))
    modules = sorted(folder.glob("*jit_*after_optimizations.txt"))
    if not ranges or not modules:
        return {}
    made = _instructions(modules[-1])
    found = dict.fromkeys(KINDS, 0)
    for name, size in _alive(ranges[-1]):
        opcode, type_, op_name = made.get(name, ("", "", ""))
        if not _OWN_MEMORY.search(type_):
            found[_kind(opcode, op_name)] += size
    return found


def _alive(file: pathlib.Path) -> Iterator[tuple[str, int]]:
    """Names and bytes of the values alive at the peak."""
    reached = False
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if reached:
                value = _VALUE.match(line)
                if value is None:
                    return
                yield value[1], int(value[2])
            reached = reached or _PEAK in line


def _instructions(file: pathlib.Path) -> dict[str, tuple[str, str, str]]:
    """Name → operation, type, and where in the program it was asked for."""
    made = {}
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if found := _MADE.match(line):
                op_name = _OP_NAME.search(line)
                made[found["name"]] = found["opcode"], found["type"], op_name[1] if op_name else ""
    return made


def _kind(opcode: str, op_name: str) -> str:
    if opcode == "parameter":
        places = {"state.params": "parameters", "state.opt_state": "optimizer", "teacher": "teacher"}
        of_teacher = op_name.startswith("state.teacher.params")
        of_args = op_name.startswith(("params", "teacher_params"))
        if of_teacher or of_args:
            return "teacher" if "teacher" in op_name else "parameters"
        return next((kind for start, kind in places.items() if op_name.startswith(start)), "other")
    if "transpose(" in op_name:
        return "gradients"
    if f"({LOSS})" in op_name or f"/{LOSS}/" in op_name:
        return "loss"
    if "jvp(" in op_name or "/while/" in op_name or f"/{TEACHER}/" in op_name:
        return "activations"
    return "compute copy" if op_name.endswith("/convert_element_type") else "other"
