"""What one execution of a compiled module costs, read from its text.

XLA's own cost analysis counts the body of a loop once, so of a scanned model about one layer. Here the computations
are walked from the entry on, and each loop's body counts as often as it runs.
"""

import collections
import dataclasses
from collections.abc import Mapping

from chopjax.aot.hlo_flops import matmul_flops
from chopjax.aot.hlo_kernels import kernel_flops
from chopjax.aot.hlo_loops import trips
from chopjax.aot.hlo_text import Instruction, Module, parse
from chopjax.aot.hlo_wire import COLLECTIVES, wire

# Where an instruction names the computations that it runs. `to_apply` of a reduction is run once an element and is
# counted in the reduction's own cycles.
CALLS = ("calls", "branch_computations", "called_computations")


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Sums over one execution on one device, loops by their trip counts.

    Attributes:
        cycles: the compiler's estimates, of all instructions that carry one.
        matmul_flops: FLOPs of dots and convolutions, two for each multiplication that is no padding.
        kernel_flops: FLOPs of kernels (`hlo_kernels`).
        wire_bytes: kind of collective → bytes that a device sends: (n - 1) / n of the whole array over n devices, twice
            that for an all-reduce.
        collectives: kind of collective → executions.
        unknown_loops: loops whose trip count could not be read; they count as one trip.
    """

    cycles: float
    matmul_flops: float
    kernel_flops: float
    wire_bytes: Mapping[str, float]
    collectives: Mapping[str, int]
    unknown_loops: int


def statistics(text: str) -> Statistics:
    """The statistics of a compiled module.

    Args:
        text: what `jax.stages.Compiled.as_text` gives.

    Raises:
        ValueError: `text` is not that of a compiled module.
    """
    walk = _Walk(parse(text))
    walk.computation(walk.module.entry, 1, fused=False, loop="")
    return Statistics(
        walk.sums["cycles"],
        walk.sums["matmul_flops"],
        walk.sums["kernel_flops"],
        dict(walk.wire_bytes),
        dict(walk.executions),
        int(walk.sums["unknown_loops"]),
    )


class _Walk:
    """Sums that grow while the computations are walked."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.sums: dict[str, float] = collections.defaultdict(float)
        self.wire_bytes: dict[str, float] = collections.defaultdict(float)
        self.executions: dict[str, int] = collections.defaultdict(int)
        self._channels: set[tuple[str, int, str]] = set()

    def computation(self, name: str, times: int, fused: bool, loop: str) -> None:
        """Adds what a computation costs that is run `times`, inside a fusion or not, in the body of `loop`."""
        here = self.module.computations[name]
        for instruction in here.values():
            if instruction.opcode in ("dot", "convolution"):
                self.sums["matmul_flops"] += times * matmul_flops(instruction, here)
            if not fused:  # a fusion's estimate stands at the fusion
                self.sums["cycles"] += times * int(instruction.attribute(r'"estimated_cycles":"(\d+)"') or 0)
            if instruction.opcode in COLLECTIVES and self._is_new(instruction, times, fused, loop):
                kind, sent = wire(instruction, name)
                self.wire_bytes[kind] += times * sent
                self.executions[kind] += times
            if instruction.opcode == "custom-call":
                self.sums["kernel_flops"] += times * kernel_flops(instruction, here)
            if instruction.opcode == "while":
                self._loop(instruction, name, times, fused)
            else:
                self._called(instruction, times, fused, loop)

    def _is_new(self, instruction: Instruction, times: int, fused: bool, loop: str) -> bool:
        """Whether this is no other part of a collective counted before: those run in parts share their channel."""
        channel = instruction.attribute(r"channel_id=(\d+)")
        if channel is None or not fused:
            return True
        new = (loop, times, channel) not in self._channels
        self._channels.add((loop, times, channel))
        return new

    def _loop(self, instruction: Instruction, around: str, times: int, fused: bool) -> None:
        body = instruction.attribute(r"body=%([^\s,]+)")
        assert body is not None, f"loop {instruction.name} has no body"
        number = trips(self.module, around, instruction)
        self.sums["unknown_loops"] += number is None
        self.computation(body, times * (1 if number is None else number), fused, body)

    def _called(self, instruction: Instruction, times: int, fused: bool, loop: str) -> None:
        for attribute in CALLS + (("to_apply",) if instruction.opcode == "call" else ()):
            names = instruction.attribute(attribute + r"=(\{[^}]*\}|%[^\s,]+)") or ""
            for name in names.strip("{}").replace("%", "").replace(",", " ").split():
                if name in self.module.computations:
                    self.computation(name, times, fused or instruction.opcode == "fusion", loop)
