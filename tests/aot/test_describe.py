"""What is said of memory, and of the time of a run."""

import dataclasses

import pytest
from aot.test_estimate import STEP

from chopjax.aot import describe, hardware, live, sweep, topology
from chopjax.aot.compiling import Costs
from chopjax.aot.estimate import Estimate
from chopjax.aot.outlook import outlook

SLICES = topology.parse("v5e-4")


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


def test_where_the_line_is() -> None:
    device = hardware.device(SLICES)
    assert describe.fits(costs(None), device) == "does not fit: a device has 17.18 GB, less what the runtime takes"
    refused = dataclasses.replace(costs(None), needed_bytes=round(49e9), available_bytes=round(15.75 * 2**30))
    assert describe.fits(refused, device) == (
        "does not fit: it needs at least 49.00 GB, and a device has 17.18 GB, "
        "of which the runtime takes 0.27 and leaves 16.91"
    )
    gpu = dataclasses.replace(costs(None), needed_bytes=round(164e9), memory={"temporary": round(160e9)})
    said = describe.fits(gpu, hardware.device(topology.parse("h100:8")))
    assert said == "does not fit: it needs 164.00 GB, and a device has 80.00 GB"


def test_memory_adds_up() -> None:
    estimate = Estimate(STEP, 4).memory()
    compiled = dataclasses.replace(costs(8e9), at_peak=dict.fromkeys(live.KINDS, round(1e9)))
    head, *rows, total, moment = (line.split() for line in describe.memory(compiled, estimate))
    assert head[-2:] == ["compiled", "estimated"] and len(rows) == len(live.KINDS)
    for column in (-2, -1):
        assert sum(float(row[column]) for row in rows) == pytest.approx(float(total[column]), abs=0.05)
    assert float(total[-1]) == pytest.approx(estimate.peak / 1e9, abs=0.01)
    assert moment == ["the", "estimate's", "peak", "is", "after", "the", "backward", "pass"]
    # Where the compiler gave up, what it would be for is known from the estimate alone.
    head, *rest = describe.memory(costs(None), estimate)
    assert head.split()[-1] == "estimated" and len(rest) == len(live.KINDS) + 2


def test_the_loss_is_held_only_at_its_own_peak() -> None:
    held = dataclasses.replace(Estimate(STEP, 4).memory(), loss=9e9)
    assert held.in_loss and held.at_peak["gradients"] == held.at_peak["other"] == 0
    assert held.peak == sum(held.at_peak.values()) > 9e9
    assert describe.memory(None, held)[-1].endswith("in the loss")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (10, "the run: 10 steps, 81.9K tokens: 5.00 seconds (1.00 seconds at best), 0.00556 chip-hours, "),
        (1_000, "the run: 1,000 steps, 8.19M tokens: 8.33 minutes (100 seconds at best), 0.556 chip-hours, "),
        (1_000_000, "the run: 1,000,000 steps, 8.19B tokens: 5.79 days (27.8 hours at best), 556 chip-hours, "),
    ],
)
def test_a_run_in_fitting_units(steps: int, said: str) -> None:
    found = outlook(STEP, SLICES)
    found = dataclasses.replace(found, at_best=0.1, published_mfu=found.flops.model / (0.5 * 4 * found.peak_flops))
    assert describe.whole_run(found, steps).startswith(said)


def test_a_table_names_what_changes() -> None:
    device = hardware.device(SLICES)
    every = sweep.candidates(STEP, SLICES, device)
    own = next(one for one in every if not one.changed(STEP))
    other = next(one for one in every if list(one.changed(STEP)) == ["train.remat"])
    rows = [(one, costs(peak), outlook(one.step, SLICES)) for one, peak in ((own, 2e9), (other, None))]
    *_, first, second = describe.table(every, rows, STEP).splitlines()
    assert first.startswith("*   2.000 ") and first.endswith("%  as configured")
    assert second.startswith("   no fit ") and second.endswith(f"%  --config.train.remat={other.step.step.remat}")
