"""What a run will take, from what its step costs: time, throughput, utilisation, chip-hours."""

import dataclasses

from chopjax.aot.compiling import Costs
from chopjax.aot.estimate import Estimate
from chopjax.aot.hardware import Device, device
from chopjax.aot.steps import TrainingStep
from chopjax.aot.topology import Slices
from chopjax.train.flops import StepFlops, step_flops


@dataclasses.dataclass(frozen=True)
class Outlook:
    """A training step on slices, and the run made of it. Times are estimates; a lower bound is said to be one.

    Attributes:
        flops: of a step over all devices, by formula.
        seconds: kind of work → seconds that a step needs for it at the peak: `compute`, `memory`, `ici`, `dcn`.
        compiler_seconds: the compiler's estimated cycles at the chip's clock; None where it gives none.
        step_seconds: what a step is expected to take: the longest of them all.
        tokens: of a step.
        chips: of all slices.
        peak_flops: FLOP/s of a chip.
    """

    flops: StepFlops
    seconds: dict[str, float]
    compiler_seconds: float | None
    step_seconds: float
    tokens: int
    chips: int
    peak_flops: float

    @property
    def tokens_per_second(self) -> float:
        """Over all chips."""
        return self.tokens / self.step_seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: the teacher's forward pass counts, what is made again does not."""
        return self.flops.model / self.step_seconds / (self.chips * self.peak_flops)

    def hours(self, steps: int) -> float:
        """Of a run of so many steps, without evaluations, checkpoints and what was interrupted."""
        return steps * self.step_seconds / 3600

    def chip_hours(self, steps: int) -> float:
        """Likewise."""
        return self.hours(steps) * self.chips


def outlook(step: TrainingStep, slices: Slices, costs: Costs | None = None) -> Outlook:
    """The outlook of a step, by what the compiler said of it where that is known, else by estimate.

    Raises:
        UserError: as `Estimate`.
    """
    one, estimate = device(slices), Estimate(step, slices.devices, slices.slices)
    flops = step_flops(step.student, step.teacher, step.rows * step.length, step.length, step.step.remat, step.learning)
    time = estimate.time(one)
    seconds = {
        "compute": flops.hardware / slices.devices / one.flops,
        "memory": time.memory,
        "ici": time.ici,
        "dcn": time.dcn,
    }
    compiler = None
    if costs is not None and costs.statistics is not None:
        statistics = costs.statistics
        between = time.dcn * one.dcn  # the compiled text does not say which groups cross slices
        seconds["ici"] = max(0.0, sum(statistics.wire_bytes.values()) - between) / one.ici
        compiler = statistics.cycles / one.clock if one.clock and statistics.cycles else None
    longest = max(*seconds.values(), compiler if compiler is not None else time.step)
    return Outlook(flops, seconds, compiler, longest, step.rows * step.length, slices.chips, chip_peak(one, slices))


def chip_peak(one: Device, slices: Slices) -> float:
    """FLOP/s of a chip, which may show itself as two devices."""
    return one.flops * slices.devices / slices.chips
