"""What a run will take, from what its step costs: time, throughput, utilisation, chip-hours."""

import dataclasses

from chopjax.aot.compiling import Costs
from chopjax.aot.estimate import Estimate
from chopjax.aot.hardware import PUBLISHED_MFU, device
from chopjax.aot.kernels import splash_flops
from chopjax.aot.steps import TrainingStep
from chopjax.aot.topology import Slices
from chopjax.train.flops import StepFlops, step_flops


@dataclasses.dataclass(frozen=True)
class Outlook:
    """A training step on slices, and the run made of it.

    The compiler's cycles and the peaks of a chip say what a step takes at best, when nothing waits for anything. What
    published runs reached says what to plan with.

    Attributes:
        flops: of a step over all devices, by formula.
        seconds: kind of work → seconds that a step needs for it at the peak: `compute`, `memory`, `ici`, `dcn`, `host`.
        compiler_seconds: the compiler's estimated cycles at the chip's clock; None where it gives none.
        kernel_flops: of the attention kernels over all devices, which those cycles leave out; 0 where they do not.
        kernel_seconds: of these at the peak.
        at_best: seconds of a step when nothing waits: the longest of `seconds`, and of the compiler's and the kernels'
            together; without the compiler's, arithmetic at `estimate.EFFICIENCY` of the peak.
        published_mfu: utilisation that published runs reached on such chips.
        tokens: of a step.
        chips: of all slices.
        devices: of all slices.
        peak_flops: FLOP/s of a chip.
    """

    flops: StepFlops
    seconds: dict[str, float]
    compiler_seconds: float | None
    kernel_flops: float
    kernel_seconds: float
    at_best: float
    published_mfu: float
    tokens: int
    chips: int
    devices: int
    peak_flops: float

    @property
    def published_seconds(self) -> float:
        """Of a step at the utilisation that published runs reached."""
        return self.flops.model / (self.published_mfu * self.chips * self.peak_flops)

    @property
    def step_seconds(self) -> float:
        """To plan with: as published runs do, or what it takes at best if that is more."""
        return max(self.at_best, self.published_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Over all chips."""
        return self.tokens / self.step_seconds

    def mfu(self, seconds: float) -> float:
        """Model FLOPs utilisation of a step of that time: a teacher's forward pass counts, what is made again not."""
        return self.flops.model / seconds / (self.chips * self.peak_flops)

    def chip_hours(self, steps: int) -> float:
        """Of a run of so many steps, without evaluations, checkpoints and what was interrupted."""
        return steps * self.step_seconds / 3600 * self.chips


def outlook(step: TrainingStep, slices: Slices, costs: Costs | None = None) -> Outlook:
    """The outlook of a step, by what the compiler said of it where that is known, else by estimate.

    Raises:
        UserError: as `Estimate`.
    """
    one, estimate = device(slices), Estimate(step, slices.devices)
    flops = step_flops(step.student, step.teacher, step.rows * step.length, step.length, step.step.remat, step.learning)
    time = estimate.time(one)
    seconds = {
        "compute": flops.hardware / slices.devices / one.flops,
        "memory": time.memory,
        "ici": time.ici,
        "dcn": time.dcn,
        "host": time.host,
    }
    compiler, kernels = None, 0.0 if slices.gpus else splash_flops(step)
    kernel_seconds = kernels / slices.devices / one.flops
    if costs is not None and costs.statistics is not None:
        statistics = costs.statistics
        between = time.dcn * one.dcn  # the compiled text does not say which groups cross slices
        seconds["ici"] = max(0.0, sum(statistics.wire_bytes.values()) - between) / one.ici
        compiler = statistics.cycles / one.clock if statistics.cycles and one.clock else None
    longest = max(*seconds.values(), compiler + kernel_seconds if compiler is not None else time.step)
    return Outlook(
        flops,
        seconds,
        compiler,
        kernels,
        kernel_seconds,
        longest,
        PUBLISHED_MFU[slices.kind],
        step.rows * step.length,
        slices.chips,
        slices.devices,
        one.flops * slices.devices / slices.chips,
    )
