"""Peak rates by the names that JAX gives to devices."""

import types

import jax
import pytest

from chopjax.models.config import ModelConfig
from chopjax.train.flops import step_flops
from chopjax.train.mfu import figures, peak_flops, utilisation


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


def test_what_student_and_teacher_take_of_a_step_counted_by_hand() -> None:
    sizes = {"embed": 4, "kv_heads": 1, "q_per_kv": 1, "head_dim": 2, "mlp": 3, "vocab": 5, "positions": 8}
    # A block: 4 · 8 weights of attention and 3 · 12 of the MLP; the unembedding 20; 2 keys seen on average.
    block, unembedding, keys = 2 * (32 + 36), 2 * 20, 4 * 2 * 2
    student, teacher = 3 * (block + keys + unembedding), 2 * (block + keys) + unembedding
    assert (student, teacher) == (576, 344)
    chips = [types.SimpleNamespace(device_kind="TPU v5 lite")] * 4
    models = ModelConfig(layers=1, **sizes), ModelConfig(layers=2, **sizes)
    found = figures(step_flops(*models, tokens=1, length=3), 1e11, chips)
    rates = {"tflops": 23.0, "tflops_student": 14.4, "tflops_teacher": 8.6}
    assert found == pytest.approx(rates | {name.replace("tflops", "mfu"): rate / 197 for name, rate in rates.items()})
    learning = figures(step_flops(*models, tokens=1, length=3, learning=True), 1e11, chips)
    assert learning["tflops_teacher"] == pytest.approx(3 * 8.6)
    alone = figures(step_flops(models[0], None, tokens=1, length=3), 1e11, jax.devices())
    assert alone == {"tflops": pytest.approx(57.6 / jax.device_count()), "mfu": None}
