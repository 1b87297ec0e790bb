"""What a compiled program's memory is used for at its peak, read from the compiler's own report.

With `xla_dump_to` XLA writes which values are alive when most memory is in use; the module's text says of each where in
the program it was made.
"""

import pathlib
import re
from collections.abc import Iterator

from chopjax.distill.objective import LOSS

KINDS = ("parameters", "optimizer", "teacher", "compute copy", "activations", "gradients", "loss", "other")
"""Master parameters; optimizer state; parameters of the teacher; the copy of the parameters in the compute dtype; what
the forward passes make and keep; what the backward pass makes; the loss in its chunks and its gradients; the rest."""

_PEAK, _VALUE = "Live ranges at", re.compile(r"\s+(\S+?)\{[^}]*\}: (\d+) bytes")
_MADE = re.compile(r"\s+(?:ROOT )?%?(?P<name>[^\s=]+) = (?P<type>\([^=]*?\)|\S+) (?P<opcode>[\w-]+)\(")
# What an argument is, by its name in the step.
_PLACES = {
    "state.params": "parameters",
    "state.opt_state": "optimizer",
    "state.teacher": "teacher",
    "teacher": "teacher",
    "params": "parameters",
}
_STEP = "jit(step)/"  # what is outside both passes: sums of gradients, and the update
_OP_NAME = re.compile(r'op_name="([^"]*)"')
# A layout that ends so lies in the core's own memory, which is no part of the chip's.
_OWN_MEMORY = re.compile(r"S\(\d+\)")


def at_peak(folder: pathlib.Path, peak: int) -> dict[str, int]:
    """Bytes by kind, which add up to the peak; empty if the compiler left no such report, as those for CPUs.

    Args:
        folder: where the compiler's reports are.
        peak: bytes at the peak. What they are more than the live values goes to `other`: the program's code, gaps
            between values, and what fills up rows to the width of the chip's registers.
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
    found["other"] += max(0, peak - sum(found.values()))
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
    place = next((kind for start, kind in _PLACES.items() if op_name.startswith(start)), "")
    if place:  # an argument, or a copy of one in another layout
        return place if opcode == "parameter" else "compute copy"
    if "transpose(" in op_name:
        return "gradients"
    if f"({LOSS})" in op_name or f"/{LOSS}/" in op_name:
        return "loss"
    if "jvp(" in op_name or "/while/" in op_name:
        return "activations"
    if op_name.endswith("/convert_element_type"):
        return "compute copy"
    return "gradients" if op_name.startswith(_STEP) else "other"
