"""The chips' peaks, and the bound by hand."""

import numpy as np
import pytest

from chopjax.errors import UserError
from chopjax.search.roofline import CHIPS, chip_named, latency, memory
from chopjax.train.mfu import peak_flops


def test_the_longer_of_arithmetic_and_reads() -> None:
    chip = CHIPS["v5e"]
    found = latency(np.array([197e9, 394e9]), np.array([1.638e9, 0.819e9]), chip)
    np.testing.assert_allclose(found, [2.0, 2.0])
    np.testing.assert_allclose(latency(np.array([197e9]), np.array([1.638e9]), chip, chips=4), [0.5])


@pytest.mark.parametrize(
    ("name", "kind", "devices"),
    [
        ("v4", "TPU v4", 1), ("v5e", "TPU v5 lite", 1), ("v5p", "TPU v5", 1), ("v6e", "TPU v6 lite", 1),
        ("tpu7x", "TPU7x", 2), ("a100", "NVIDIA A100-SXM4-80GB", 1), ("h100", "NVIDIA H100 80GB HBM3", 1),
        ("h200", "NVIDIA H200", 1),
    ],
)  # fmt: skip
def test_peaks_are_those_by_which_training_is_measured(name: str, kind: str, devices: int) -> None:
    peak = peak_flops(kind)
    assert peak is not None
    assert CHIPS[name].flops == devices * peak


def test_names_as_people_write_them() -> None:
    assert chip_named("TPU v5e") == chip_named("V5E") == CHIPS["v5e"]
    assert chip_named("NVIDIA H100") == CHIPS["h100"]
    assert chip_named("TPU7x") == CHIPS["tpu7x"]
    with pytest.raises(UserError, match=r"^search\.chip is 'h1000'; did you mean \"h100\"\?"):
        chip_named("h1000")


def test_a_tenth_of_the_memory_is_left_free() -> None:
    assert memory(CHIPS["h100"]) == pytest.approx(72e9)
    assert memory(CHIPS["v5e"], chips=2) == pytest.approx(0.9 * 2 * 2**34)
