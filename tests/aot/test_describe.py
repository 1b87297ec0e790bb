"""What is said of memory that an evaluation does not know of, and of memory that JAX does not take by itself."""

import pytest

from chopjax.aot import describe, hardware, topology
from chopjax.aot.compiling import Costs


def costs(peak: float | None) -> Costs:
    return Costs(None if peak is None else round(peak), None, {}, {}, 0.0, 0.0, None)


@pytest.mark.parametrize(
    ("peak", "verdict"), [(5e9, "15.00 of 17.18 GB a device at the peak: fits"), (8e9, "does not")]
)
def test_an_evaluation_beside_the_state(peak: float, verdict: str) -> None:
    said = describe.in_training(costs(peak), round(10e9), hardware.device(topology.parse("v5e-4")))
    assert (
        said.startswith("in training 10.00 GB of its state (masters, moments) stay beside that, ") and verdict in said
    )


def test_an_evaluation_that_does_not_fit_alone() -> None:
    said = describe.in_training(costs(None), round(10e9), hardware.device(topology.parse("v5e-4")))
    assert said == "in training 10.00 GB of its state (masters, moments) stay beside that"


@pytest.mark.parametrize(
    ("name", "peak", "beside", "told"),
    [
        ("h100:8", 59e9, 0, False),
        ("h100:8", 61e9, 0, True),
        ("h100:8", 50e9, 20e9, True),
        ("h100:8", 50e9, 40e9, False),  # does not fit in any case
        ("h200:8", 61e9, 0, False),
        ("v5e-4", 17e9, 0, False),
    ],
)
def test_the_share_that_jax_takes(name: str, peak: float, beside: float, told: bool) -> None:
    said = describe.taken(costs(peak), hardware.device(topology.parse(name)), round(beside))
    assert said == (
        ["JAX takes 75% of a GPU's memory by itself: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 for the run"]
        if told
        else []
    )
