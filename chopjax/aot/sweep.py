"""Settings that make the same batch in other ways, and which of them are worth a compile."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from chopjax.aot.estimate import Estimate
from chopjax.aot.hardware import Device
from chopjax.aot.steps import TrainingStep
from chopjax.aot.topology import Slices
from chopjax.errors import UserError
from chopjax.models import decoder
from chopjax.sharding.rules import MeshConfig

COMPILES = 6
WIDEST = 8  # copies, and parts of heads and neurons
# Of a chip's memory: some is the runtime's. An estimate may be too high, so what it rules out is ruled out with room;
# it may be too low, so what it proposes leaves some.
USABLE, ROOM, SAFE = 0.98, 1.08, 0.87
# Estimates of time that differ by no more than this say nothing of which is faster.
TIE = 0.02
DIGITS = 4  # of compiled memory and time, as they are shown; what reads the same is the same


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to make the batch.

    Attributes:
        step: the step.
        peak: estimated bytes of a device.
        seconds: estimated time of the step.
    """

    step: TrainingStep
    peak: float
    seconds: float

    @property
    def changes(self) -> dict[str, object]:
        """The fields of the config that say it."""
        several = math.prod(self.step.mesh.slices.values()) > 1
        return {name: value for name, value in _fields(self.step).items() if several or "dcn" not in name}

    def changed(self, now: TrainingStep) -> dict[str, object]:
        """The fields that it needs other than a step, whose mesh may leave a size open (-1): that follows."""
        said = _fields(now)
        return {name: value for name, value in _fields(self.step).items() if said[name] not in (value, -1)}


def candidates(step: TrainingStep, slices: Slices, device: Device) -> list[Candidate]:
    """All that the mesh can hold, the fastest by estimate first.

    An estimate knows of nothing that a micro-batch costs by itself. So of those that are as fast, give or take `TIE`,
    first comes what leaves some memory, then what changes the fewest fields, then the fewest micro-batches.
    """
    found = []
    for one in _ways(step, slices):
        try:
            estimate = Estimate(one, slices.devices)
        except UserError:  # a size that this mesh does not divide
            continue
        found.append(Candidate(one, estimate.memory().peak, estimate.time(device).step))

    def rank(one: Candidate) -> tuple[bool, int, int, float]:
        return one.peak > SAFE * device.memory, len(one.changed(step)), one.step.step.accumulate, one.peak

    return [one for tied in _tied(found) for one in sorted(tied, key=rank)]


def fitting(found: Iterable[Candidate], device: Device) -> list[Candidate]:
    """Those that may fit into a device's memory."""
    return [one for one in found if not ruled_out(one.peak, device)]


def ruled_out(peak: float, device: Device) -> bool:
    """Whether a step of such an estimate does not fit, whatever a compiler would say."""
    return peak > ROOM * USABLE * device.memory


def worth_compiling(found: Sequence[Candidate], current: TrainingStep, count: int = COMPILES) -> list[Candidate]:
    """The first of each mesh in turn until there are enough; what the config says now is among them."""
    chosen = [one for one in found if one.step == current][:1]
    by_mesh: dict[MeshConfig, list[Candidate]] = {}
    for one in found:
        by_mesh.setdefault(one.step.mesh, []).append(one)
    ranked = itertools.zip_longest(*by_mesh.values())
    for one in itertools.chain.from_iterable(ranked):
        if one is not None and len(chosen) < count and one not in chosen:
            chosen.append(one)
    return sorted(chosen, key=found.index)


def nearest(
    found: Sequence[Candidate], now: TrainingStep, device: Device, needed: float, estimated: float
) -> Candidate | None:
    """What changes the fewest fields and fits by estimate, micro-batches before all else; None if nothing does.

    Args:
        found: in the order of `candidates`.
        now: what does not fit; its mesh may leave a size open.
        device: the peaks of a device.
        needed: bytes that it was found to need, where that is known; else 0.
        estimated: bytes that it was estimated to need. By as much as that was too low, others may be.
    """
    scale = max(1.0, max(needed, device.memory) / estimated)
    for share in (SAFE, USABLE):
        there = [one for one in found if one.peak * scale <= share * device.memory]
        if there:
            return min(there, key=lambda one: (len(one.changed(now)), list(one.changed(now)) != ["train.accumulate"]))
    return None


def frontier(peaks: Sequence[float], seconds: Sequence[float]) -> list[bool]:
    """Which of them no other beats in memory and time at once, as far as they are shown (`DIGITS`)."""
    both = _shown(peaks, seconds)
    return [not any(p <= peak and s <= time and (s, p) != (time, peak) for s, p in both) for time, peak in both]


def fastest(peaks: Sequence[float], seconds: Sequence[float]) -> int:
    """Which of them is the fastest; of those as fast what takes least memory, so that it is on the frontier."""
    return min(range(len(peaks)), key=_shown(peaks, seconds).__getitem__)


def _shown(peaks: Sequence[float], seconds: Sequence[float]) -> list[tuple[float, float]]:
    """Times and memory as they are shown; the memory of what does not fit is infinite, and so is its time."""
    times = (time if math.isfinite(peak) else math.inf for peak, time in zip(peaks, seconds, strict=True))
    return [(rounded(time), rounded(peak)) for peak, time in zip(peaks, times, strict=True)]


def rounded(value: float) -> float:
    """To as many digits as are shown."""
    return float(f"{value:.{DIGITS - 1}e}")


def _tied(found: Iterable[Candidate]) -> list[list[Candidate]]:
    """The fastest first, with all that are as fast."""
    tiers: list[list[Candidate]] = []
    for one in sorted(found, key=lambda one: one.seconds):
        if not tiers or one.seconds > tiers[-1][0].seconds * (1 + TIE):
            tiers.append([])
        tiers[-1].append(one)
    return tiers


def _fields(step: TrainingStep) -> dict[str, object]:
    found: dict[str, object] = {"train.accumulate": step.step.accumulate, "train.remat": step.step.remat}
    names = ("data", "fsdp", "tensor", "context", "dcn_data", "dcn_fsdp")
    return found | {f"mesh.{name}": getattr(step.mesh, name) for name in names}


def _ways(step: TrainingStep, slices: Slices) -> Iterator[TrainingStep]:
    for mesh in _meshes(step.mesh, slices):
        shape = mesh.shape(slices.devices)
        parts = shape["data"] * shape["fsdp"]
        if step.rows % parts:
            continue
        own = step.rows // parts
        for accumulate in (parts for parts in range(1, own + 1) if own % parts == 0):
            for remat in decoder.REMAT:
                how = dataclasses.replace(step.step, accumulate=accumulate, remat=remat)
                yield dataclasses.replace(step, mesh=mesh, step=how)


def _meshes(mesh: MeshConfig, slices: Slices) -> list[MeshConfig]:
    """Meshes of all devices; rows stay as whole as they are, and slices hold copies. What is set now is among them."""
    now = mesh.filled(slices.devices)
    devices = slices.devices // now.context
    powers = [1 << power for power in range(WIDEST.bit_length())]
    found = []
    for copies, tensor in itertools.product(powers, powers):
        data = copies * slices.slices
        if devices % (data * tensor) == 0:
            fsdp = devices // (data * tensor)
            sizes = dataclasses.replace(now, data=data, fsdp=fsdp, tensor=tensor, dcn_data=slices.slices, dcn_fsdp=1)
            found.append(sizes)
    return found if now in found else [*found, now]
