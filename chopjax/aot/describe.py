"""What compiled steps cost, in words and tables for a person. Pure."""

from collections.abc import Mapping, Sequence

from chopjax.aot.compiling import Costs
from chopjax.aot.estimate import Memory
from chopjax.aot.hardware import Device
from chopjax.aot.outlook import Outlook
from chopjax.aot.sweep import Candidate, frontier
from chopjax.report.words import significant

GB = 1e9
# Which estimate stands beside a kind of compiled memory, where it is called otherwise.
_ESTIMATED = {"compute copy": "compute_copy", "other": "working"}


def fits(costs: Costs, device: Device) -> str:
    """Whether a step fits, and by how much."""
    has = device.memory / GB
    if costs.peak_bytes is None:
        needed = f"it needs {costs.needed_bytes / GB:.2f} GB and " if costs.needed_bytes else ""
        return f"does not fit: {needed}a chip has {has:.2f} GB, less what the runtime takes"
    return f"fits: {costs.peak_bytes / GB:.2f} of {has:.2f} GB a device at the peak"


def in_training(costs: Costs, beside: int, device: Device) -> str:
    """What an evaluation takes while training goes on.

    Args:
        costs: of the evaluation by itself.
        beside: bytes of the state that training holds meanwhile (`TrainingStep.state_beside`).
        device: the peaks of a device.
    """
    said = f"in training {beside / GB:.2f} GB of its state (masters, moments) stay beside that"
    if costs.peak_bytes is None:
        return said
    both, has = costs.peak_bytes + beside, device.memory
    verdict = "fits" if both <= has else "does not fit; take a smaller evaluate.batch or more chips"
    return f"{said}, {both / GB:.2f} of {has / GB:.2f} GB a device at the peak: {verdict}"


def taken(costs: Costs, device: Device, beside: int = 0) -> list[str]:
    """What to tell JAX where it would not take as much of a GPU's memory as is needed."""
    if costs.peak_bytes is None or not device.taken < costs.peak_bytes + beside <= device.memory:
        return []
    share = device.taken / device.memory
    return [f"JAX takes {share:.0%} of a GPU's memory by itself: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 for the run"]


def memory(costs: Costs, estimated: Memory | None = None) -> list[str]:
    """What a device's memory is for, as compiled and as estimated."""
    if not costs.at_peak:
        said = ", ".join(f"{kind} {size / GB:.2f}" for kind, size in costs.memory.items())
        return [f"  GB by kind: {said}"] if said else []
    lines = [f"  {'GB a device at the peak':28} {'compiled':>9}" + (f" {'estimated':>10}" if estimated else "")]
    for kind, size in costs.at_peak.items():
        guess = getattr(estimated, _ESTIMATED.get(kind, kind), 0.0)
        lines.append(f"  {kind:28} {size / GB:9.2f}" + (f" {guess / GB:10.2f}" if estimated else ""))
    if costs.memory.get("host"):
        lines.append(f"  {'in the memory of the host':28} {costs.memory['host'] / GB:9.2f}")
    return lines


def traffic(costs: Costs) -> list[str]:
    """Collectives of a step by kind."""
    statistics = costs.statistics
    if statistics is None:
        return ["collectives: this compiler cannot print what it made"]
    if not statistics.wire_bytes:
        return ["collectives: none"]
    lines = [f"collectives, of a device: {sum(statistics.wire_bytes.values()) / GB:.2f} GB sent in a step"]
    for kind, sent in sorted(statistics.wire_bytes.items(), key=lambda one: -one[1]):
        lines.append(f"  {kind:28} {sent / GB:9.2f} GB in {statistics.collectives.get(kind, 0):,}")
    return lines


def work(found: Outlook, costs: Costs | None) -> list[str]:
    """FLOPs and time of a step, and the run's rate."""
    flops = found.flops
    parts = [f"student {flops.student / 1e12:,.1f}"]
    parts += [f"teacher {flops.teacher / 1e12:,.1f}"] if flops.teacher else []
    parts += [f"made again {flops.recomputed / 1e12:,.1f}"] if flops.recomputed else []
    lines = [f"TFLOP of a step, all devices, causal attention: {', '.join(parts)}"]
    if costs is not None and costs.statistics is not None:
        made = (costs.statistics.matmul_flops + costs.statistics.kernel_flops) * found.chips
        lines.append(f"  compiled program: {made / 1e12:,.1f} (a kernel counts whole blocks of causal attention)")
    times = ", ".join(f"{kind} {significant(value)}" for kind, value in found.seconds.items() if value)
    lines.append(f"seconds of a step at the peak: {times}")
    if found.compiler_seconds is not None:
        lines.append(f"  by the compiler's own cycles: {significant(found.compiler_seconds)}")
    lines.append(f"at best: {significant(found.at_best)} s a step, MFU {found.mfu(found.at_best):.1%}: nothing waits")
    lines.append(
        f"to plan with: {significant(found.step_seconds)} s a step, MFU {found.mfu(found.step_seconds):.1%} as in "
        f"published runs; {found.tokens_per_second:,.0f} tokens/s, {found.tokens_per_second / found.chips:,.0f} a chip"
    )
    return lines


def whole_run(found: Outlook, steps: int) -> str:
    """Days of a run."""

    def length(seconds: float) -> str:
        hours = steps * seconds / 3600
        return f"{significant(hours / 24)} days" if hours >= 48 else f"{significant(hours)} hours"

    return (
        f"the run: {steps:,} steps, {steps * found.tokens / 1e9:,.2f}B tokens: {length(found.step_seconds)} "
        f"({length(found.at_best)} at best), {found.chip_hours(steps):,.0f} chip-hours, evaluations and saving aside"
    )


def settings(changes: Mapping[str, object]) -> str:
    """As they are given on the command line."""
    return " ".join(f"--config.{name}={value}" for name, value in changes.items())


def table(
    found: Sequence[Candidate], compiled: Sequence[tuple[Candidate, Costs, Outlook]], now: Mapping[str, object]
) -> str:
    """A sweep: what was compiled, the frontier marked, and how many were only estimated."""
    peaks = [float(costs.peak_bytes) if costs.peak_bytes else float("inf") for _, costs, _ in compiled]
    seconds = [outlook.at_best for _, _, outlook in compiled]
    best = frontier(peaks, seconds)
    lines = [f"{len(found):,} settings estimated, {len(compiled)} compiled; * no other takes less memory and time"]
    lines.append(f"  {'GB':>7} {'estimated':>9} {'s at best':>9} {'estimated':>9} {'MFU':>6}  settings")
    for (one, costs, outlook), marked, peak in zip(compiled, best, peaks, strict=True):
        size = f"{peak / GB:.2f}" if costs.peak_bytes else "no fit"
        same = "  (as now)" if one.changes == now else ""
        lines.append(
            f"{'*' if marked and costs.peak_bytes else ' '} {size:>7} {one.peak / GB:9.2f} "
            f"{outlook.at_best:9.3f} {one.seconds:9.3f} {outlook.mfu(outlook.at_best):6.1%}  "
            f"{settings(one.changes)}{same}"
        )
    return "\n".join(lines)
