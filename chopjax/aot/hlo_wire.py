"""Bytes that collectives of a compiled module put on the wire."""

import math
import re

from chopjax.aot.hlo_text import Instruction, shapes, split

COLLECTIVES = {
    **{f"{name}-start": name for name in ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")},
    **{name: name for name in ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")},
    "ragged-all-to-all": "all-to-all",
    "collective-permute": "collective-permute",
    "collective-permute-start": "collective-permute",
    "collective-broadcast": "collective-broadcast",
}
"""Operation → kind of collective; the `-done` half of an asynchronous one is not counted again."""


def wire(instruction: Instruction, computation: str) -> tuple[str, float]:
    """The kind of a collective and the bytes that one device sends for it.

    (n - 1) / n of the whole array over n devices, twice that for an all-reduce (a reduce-scatter and an all-gather),
    once the array for a permutation or a broadcast.

    Args:
        instruction: the collective.
        computation: name of the computation that it is in, which tells an all-reduce that is part of a reduce-scatter.
    """
    kind, parts = COLLECTIVES[instruction.opcode], devices(instruction)
    whole, share = _whole(instruction, kind), (parts - 1) / parts
    if kind == "all-reduce" and re.search("reduce[-_]scatter", computation):
        return "reduce-scatter", whole * share
    if kind == "all-reduce":
        return kind, 2 * whole * share
    if instruction.opcode == "reduce-scatter":  # its result is one device's part
        return kind, whole * (parts - 1)
    return kind, whole * (1 if kind.startswith("collective") else share)


def _whole(instruction: Instruction, kind: str) -> float:
    """Bytes of a collective's result; of an asynchronous reduce-scatter those of its operands."""
    every = [shape.bytes for shape in instruction.shapes]
    started = instruction.opcode.endswith("-start")
    if kind.startswith("collective"):  # a start's result has its operand and what it waits with beside it
        return max(every, default=0)
    if not started or kind == "all-reduce":
        return sum(every)
    # The result of a start is (operands, results), each an array or several in brackets; one side is the whole.
    sides = [sum(shape.bytes for shape in shapes(side)) for side in split(instruction.type)[:2]]
    return max(sides, default=0)


def devices(instruction: Instruction) -> int:
    """Devices of one group of a collective."""
    if size := instruction.attribute(r"replica_groups=\[\d+,(\d+)\]"):  # [groups, devices of each]
        return int(size)
    over_mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", instruction.attributes)
    if over_mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", over_mesh[1])}
        return math.prod(sizes.get(name, 1) for name in re.findall(r"'([^']+)'", over_mesh[2]))
    listed = instruction.attribute(r"replica_groups=\{\{([0-9,]*)\}")
    return len(listed.split(",")) if listed else 1
