"""Model FLOPs utilisation: the share of the devices' peak that a model's own arithmetic uses."""

from collections.abc import Sequence

import jax

from chopjax.train.flops import StepFlops

# Dense bfloat16 FLOP/s of one JAX device, by a part of its `device_kind`; the first that occurs in it counts. From the
# vendors' data sheets. A TPU7x chip (2307e12) shows itself as two devices; v4 and v5p chips as one.
PEAK_FLOPS = (
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6", 918e12),
    ("TPU7x", 2307e12 / 2),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
)


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s in bfloat16 of a device such as `"TPU v5 lite"`; None where it is not known, as for CPUs."""
    return next((peak for name, peak in PEAK_FLOPS if name.lower() in device_kind.lower()), None)


def utilisation(flops_per_second: float, devices: Sequence[jax.Device]) -> float | None:
    """The share, from 0 to 1, of the devices' summed bfloat16 peak.

    Args:
        flops_per_second: floating-point operations that the model needs each second, over all devices; what is
            recomputed in the backward pass is not counted.
        devices: all devices of the mesh.

    Returns:
        None where the peak of a device is not known.
    """
    peaks = [peak_flops(device.device_kind) for device in devices]
    known = [peak for peak in peaks if peak is not None]
    return flops_per_second / sum(known) if known and len(known) == len(peaks) else None


def figures(flops: StepFlops, steps_per_second: float, devices: Sequence[jax.Device]) -> dict[str, float | None]:
    """What a person watches of a step's arithmetic, the teacher's apart from the student's where there is one.

    Student and teacher are one program, so no clock tells their times apart: both are over the time of the whole step,
    and each of `NAME_student` and `NAME_teacher` is a part of `NAME`.

    Args:
        flops: of a step (or of a token) over all devices.
        steps_per_second: such steps (or tokens).
        devices: all devices of the mesh.

    Returns:
        `tflops`, 1e12 FLOP/s of a device on average, and `mfu`, from 0 to 1, None where a device's peak is not known.
    """
    parts = {"": flops.model}
    if flops.teacher:
        parts |= {"_student": flops.student, "_teacher": flops.teacher}
    rates = {name: part * steps_per_second for name, part in parts.items()}
    found: dict[str, float | None] = {f"tflops{name}": rate / len(devices) / 1e12 for name, rate in rates.items()}
    return found | {f"mfu{name}": utilisation(rate, devices) for name, rate in rates.items()}
