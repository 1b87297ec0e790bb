"""What compiled steps cost, in words and tables for a person. Pure."""

from collections.abc import Mapping, Sequence

from chopjax.aot.compiling import Costs
from chopjax.aot.estimate import EFFICIENCY, Memory, Wire
from chopjax.aot.hardware import Device
from chopjax.aot.live import KINDS
from chopjax.aot.outlook import Outlook
from chopjax.aot.steps import TrainingStep
from chopjax.aot.sweep import DIGITS, SAFE, Candidate, frontier, ruled_out
from chopjax.report.words import scaled, significant

GB = 1e9
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


def fits(costs: Costs, device: Device) -> str:
    """Whether a step fits, and by how much."""
    has = device.memory / GB
    if costs.peak_bytes is None:
        least = "" if costs.memory else "at least "  # the compiler gave up
        needed = f"it needs {least}{costs.needed_bytes / GB:.2f} GB, and " if costs.needed_bytes else ""
        runtime = "" if costs.memory else ", less what the runtime takes"
        if costs.available_bytes:
            taken = has - costs.available_bytes / GB
            runtime = f", of which the runtime takes {taken:.2f} and leaves {costs.available_bytes / GB:.2f}"
        return f"does not fit: {needed}a device has {has:.2f} GB{runtime}"
    return f"fits: {costs.peak_bytes / GB:.2f} of {has:.2f} GB a device at the peak"


def foreseen(estimated: Memory, wire: Wire, device: Device) -> list[str]:
    """Memory and traffic of a step by formulas, where nothing was compiled."""
    has = device.memory
    verdict = "does not fit" if ruled_out(estimated.peak, device) else "fits"
    if verdict == "fits" and estimated.peak > SAFE * has:
        verdict = "near the limit: compile it"
    lines = [f"by estimate {estimated.peak / GB:.2f} of {has / GB:.2f} GB a device at the peak: {verdict}"]
    sent = f"{wire.ici / GB:.2f} GB inside its slice or box, {wire.dcn / GB:.2f} GB to others"
    return [*lines, *memory(None, estimated), f"sent by a device in a step: {sent}"]


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


def memory(costs: Costs | None, estimated: Memory | None = None) -> list[str]:
    """What a device's memory is for at the peak, as compiled where that is known, and as estimated.

    Each column is of one moment, so it adds up; the two moments may be different ones.
    """
    found: dict[str, Mapping[str, float]] = {}
    if costs is not None and costs.at_peak:
        found["compiled"] = costs.at_peak
    if estimated is not None:
        found["estimated"] = estimated.at_peak
    lines = []
    if costs is not None and costs.memory and not costs.at_peak:
        said = ", ".join(f"{kind} {size / GB:.2f}" for kind, size in costs.memory.items())
        lines.append(f"  GB by kind: {said}")
    if found:
        lines.append(f"  {'GB a device at the peak':28} " + "  ".join(f"{name:>9}" for name in found))
        for kind in KINDS:
            lines.append(f"  {kind:28} " + "  ".join(f"{held.get(kind, 0.0) / GB:9.2f}" for held in found.values()))
        lines.append(f"  {'together':28} " + "  ".join(f"{sum(held.values()) / GB:9.2f}" for held in found.values()))
    if estimated is not None:
        lines.append(f"  the estimate's peak is {'in the loss' if estimated.in_loss else 'after the backward pass'}")
    if costs is not None and costs.memory.get("host"):
        lines.append(f"  {'in the memory of the host':28} {costs.memory['host'] / GB:9.2f}")
    return lines


def traffic(costs: Costs) -> list[str]:
    """Collectives of a step by kind; nothing where the compiler gave up for want of memory."""
    statistics = costs.statistics
    if statistics is None:
        return [] if costs.peak_bytes is None else ["collectives: this compiler cannot print what it made"]
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
        made = (costs.statistics.matmul_flops + costs.statistics.kernel_flops) * found.devices + found.kernel_flops
        lines.append(f"  compiled program: {made / 1e12:,.1f}, attention by whole blocks")
    times = ", ".join(f"{kind} {significant(value)}" for kind, value in found.seconds.items() if value)
    lines.append(f"seconds of a step at the peak: {times}")
    if found.compiler_seconds is not None:
        lines.append(f"  by the compiler's own cycles: {significant(found.compiler_seconds)}{_kernels(found)}")
    lines.append(f"at best: {significant(found.at_best)} s a step, MFU {found.mfu(found.at_best):.1%}: {_bound(found)}")
    rate = f"{found.tokens_per_second:,.0f} tokens/s, {found.tokens_per_second / found.chips:,.0f} a chip"
    lines.append(
        f"to plan with: {significant(found.step_seconds)} s a step, MFU {found.mfu(found.step_seconds):.1%}"
        f"{_planned(found)}; {rate}"
    )
    return lines


def _kernels(found: Outlook) -> str:
    if not found.kernel_flops:
        return ""
    return f", and attention's kernels, which it leaves out, {significant(found.kernel_seconds)} at the peak"


def _bound(found: Outlook) -> str:
    """What the time at best is made of."""
    kind, longest = max(found.seconds.items(), key=lambda one: one[1])
    if found.at_best <= longest and kind != "compute":
        return f"bound by {kind}, if all else goes on meanwhile"
    if found.compiler_seconds is not None:
        return "if no chip ever waits"
    return f"arithmetic at {EFFICIENCY:.0%} of the peak, if no chip ever waits"


def _planned(found: Outlook) -> str:
    if found.step_seconds > found.at_best:
        return " as in published runs"
    return f", no better than at best (published runs have {found.published_mfu:.0%}); expect more"


def whole_run(found: Outlook, steps: int, what: str = "the run") -> str:
    """How long so many steps take.

    Args:
        found: a step of them.
        steps: how many.
        what: what they make up.
    """
    hours = found.chip_hours(steps)
    return (
        f"{what}: {steps:,} steps, {scaled(steps * found.tokens, prefixes='KMBT')} tokens: "
        f"{_length(steps * found.step_seconds)} ({_length(steps * found.at_best)} at best), "
        f"{f'{hours:,.0f}' if hours >= 100 else significant(hours)} chip-hours, evaluations and saving aside"
    )


def _length(seconds: float) -> str:
    """In the unit that a person would use."""
    for unit, size, least in (("days", DAY, 2 * DAY), ("hours", HOUR, 2 * HOUR), ("minutes", MINUTE, 2 * MINUTE)):
        if seconds >= least:
            return f"{significant(seconds / size)} {unit}"
    return f"{significant(seconds)} seconds"


def settings(changes: Mapping[str, object]) -> str:
    """As they are given on the command line."""
    return " ".join(f"--config.{name}={value}" for name, value in changes.items()) or "as configured"


def table(found: Sequence[Candidate], compiled: Sequence[tuple[Candidate, Costs, Outlook]], now: TrainingStep) -> str:
    """A sweep: what was compiled, the frontier marked, and how many were only estimated.

    Args:
        found: what was estimated.
        compiled: what was compiled.
        now: the step as it is configured, against which settings are said.
    """
    peaks = [float(costs.peak_bytes) if costs.peak_bytes else float("inf") for _, costs, _ in compiled]
    seconds = [outlook.at_best for _, _, outlook in compiled]
    best = frontier(peaks, seconds)
    lines = [f"{len(found):,} settings estimated, {len(compiled)} compiled; * no other takes less memory and time"]
    lines.append(f"  {'GB':>7} {'estimated':>9} {'s at best':>10} {'estimated':>10} {'MFU':>6}  settings to change")
    for (one, costs, outlook), marked, peak in zip(compiled, best, peaks, strict=True):
        size = significant(peak / GB, DIGITS) if costs.peak_bytes else "no fit"
        lines.append(
            f"{'*' if marked and costs.peak_bytes else ' '} {size:>7} {one.peak / GB:9.2f} "
            f"{significant(outlook.at_best, DIGITS):>10} {significant(one.seconds, DIGITS):>10} "
            f"{outlook.mfu(outlook.at_best):6.1%}  {settings(one.changed(now))}"
        )
    return "\n".join(lines)
