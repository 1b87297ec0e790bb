"""Peak rates by the names that JAX gives to devices."""

import types

import jax
import pytest

from chopjax.train.mfu import peak_flops, utilisation


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU v6e", 918e12),
        ("TPU7x", 1153.5e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("cpu", None),
        ("TPU v2", None),
    ],
)
def test_peak_by_device_kind(kind: str, peak: float | None) -> None:
    assert peak_flops(kind) == peak


def test_utilisation_is_of_all_devices() -> None:
    chips = [types.SimpleNamespace(device_kind="TPU v5 lite")] * 4
    assert utilisation(2 * 197e12, chips) == pytest.approx(0.5)
    assert utilisation(1e12, [*chips, types.SimpleNamespace(device_kind="cpu")]) is None
    assert utilisation(1e12, jax.devices()) is None
