"""Model FLOPs utilisation: the share of the devices' peak that a model's own arithmetic uses."""

from collections.abc import Sequence

import jax

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
