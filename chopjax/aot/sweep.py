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
MOST_ROWS = 16  # rows of a device at a time
WIDEST = 8  # copies, and parts of heads and neurons
# Of a chip's memory: some is the runtime's. An estimate may be too high, so what it rules out is ruled out with room.
USABLE, ROOM = 0.98, 1.08


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
        step, mesh = self.step, self.step.mesh
        found: dict[str, object] = {"train.accumulate": step.step.accumulate, "train.remat": step.step.remat}
        over = ("dcn_data", "dcn_fsdp") if math.prod(mesh.slices.values()) > 1 else ()
        return found | {f"mesh.{name}": getattr(mesh, name) for name in ("data", "fsdp", "tensor", "context", *over)}


def candidates(step: TrainingStep, slices: Slices, device: Device) -> list[Candidate]:
    """All that the mesh can hold, the fastest by estimate first; those of equal speed by memory."""
    found = []
    for one in _ways(step, slices):
        try:
            estimate = Estimate(one, slices.devices)
        except UserError:  # a size that this mesh does not divide
            continue
        found.append(Candidate(one, estimate.memory().peak, estimate.time(device).step))
    return sorted(found, key=lambda one: (one.seconds, one.peak))


def fitting(found: Iterable[Candidate], device: Device) -> list[Candidate]:
    """Those that may fit into a device's memory."""
    return [one for one in found if one.peak <= ROOM * USABLE * device.memory]


def worth_compiling(found: Sequence[Candidate], current: TrainingStep, count: int = COMPILES) -> list[Candidate]:
    """The fastest of each mesh in turn until there are enough; what the config says now is among them."""
    chosen = [one for one in found if one.step == current][:1]
    by_mesh: dict[MeshConfig, list[Candidate]] = {}
    for one in found:
        by_mesh.setdefault(one.step.mesh, []).append(one)
    ranked = itertools.zip_longest(*by_mesh.values())
    for one in itertools.chain.from_iterable(ranked):
        if one is not None and len(chosen) < count and one not in chosen:
            chosen.append(one)
    return sorted(chosen, key=lambda one: one.seconds)


def frontier(peaks: Sequence[float], seconds: Sequence[float]) -> list[bool]:
    """Which of them no other beats in memory and time at once."""
    both = list(zip(peaks, seconds, strict=True))
    return [not any(p <= peak and s <= time and (p, s) != (peak, time) for p, s in both) for peak, time in both]


def _ways(step: TrainingStep, slices: Slices) -> Iterator[TrainingStep]:
    for mesh in _meshes(step.mesh, slices):
        shape = mesh.shape(slices.devices)
        parts = shape["data"] * shape["fsdp"]
        if step.rows % parts:
            continue
        own = step.rows // parts
        for rows in (rows for rows in range(1, min(own, MOST_ROWS) + 1) if own % rows == 0):
            for remat in decoder.REMAT:
                how = dataclasses.replace(step.step, accumulate=own // rows, remat=remat)
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
