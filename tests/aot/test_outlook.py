"""What a step takes at best and what to plan with, from what a compiler might say of it."""

import dataclasses

import pytest

from chopjax.aot import describe, topology
from chopjax.aot.compiling import Costs
from chopjax.aot.hardware import LINKS, PUBLISHED_MFU
from chopjax.aot.hlo import Statistics
from chopjax.aot.kernels import splash_flops
from chopjax.aot.outlook import outlook
from chopjax.aot.steps import TrainingStep
from chopjax.distill.config import LossConfig
from chopjax.models.config import LayerKind, ModelConfig
from chopjax.search.roofline import CHIPS
from chopjax.sharding.rules import MeshConfig
from chopjax.train.step import StepConfig

MODEL = ModelConfig(layers=3, embed=512, kv_heads=2, q_per_kv=3, head_dim=72, mlp=1000, vocab=1024, positions=1000)
STEP = TrainingStep(MODEL, 8, 1000, LossConfig(next_token=1.0, kl=0.0))
# One row and head: two blocks of queries see three blocks of keys of 512, of heads filled up to 80.
PRODUCT = 2 * 3 * 512**2 * 80


def costs(cycles: float, wire: float = 0.0, flops: float = 1e9) -> Costs:
    return Costs(1, None, {}, {}, 0.0, 0.0, Statistics(cycles, flops, 0.0, {"all-gather": wire}, {}, 0))


def test_attention_kernels_forward_again_and_backward() -> None:
    heads = 8 * 6 * 3
    assert splash_flops(STEP) == heads * (2 + 2 + 7) * PRODUCT
    assert splash_flops(dataclasses.replace(STEP, step=StepConfig(remat="none"))) == heads * (2 + 7) * PRODUCT
    taught = dataclasses.replace(STEP, teacher=dataclasses.replace(MODEL, layers=5, kind_of_layer=()))
    assert splash_flops(taught) == heads * 11 * PRODUCT + 8 * 6 * 5 * 2 * PRODUCT
    assert splash_flops(dataclasses.replace(STEP, mesh=MeshConfig(attention="reference"))) == 0
    # In two layers a query sees itself alone, and so two of the three blocks hold anything.
    windows = (LayerKind(), LayerKind(window=1))
    mixed = dataclasses.replace(MODEL, kinds=windows, kind_of_layer=(0, 1, 1))
    assert splash_flops(dataclasses.replace(STEP, student=mixed)) == 8 * 6 * 11 * (PRODUCT + 2 * PRODUCT * 2 // 3)


def test_cycles_leave_the_kernels_out() -> None:
    found = outlook(STEP, topology.parse("v5e:2x2"), costs(3e9))
    kernels = splash_flops(STEP) / 4 / CHIPS["v5e"].flops
    assert found.at_best == pytest.approx(3e9 / LINKS["v5e"].clock + kernels)
    said = "\n".join(describe.work(found, costs(3e9)))
    assert "by the compiler's own cycles: 2.00, and attention's kernels, which it leaves out," in said
    assert "at best: 2.00 s a step" in said and "if no chip ever waits" in said


def test_gpus_have_no_such_kernels_and_no_cycles() -> None:
    found = outlook(STEP, topology.parse("h100:4"), costs(0))
    assert found.kernel_flops == 0 and found.compiler_seconds is None
    assert "arithmetic at 82% of the peak" in "\n".join(describe.work(found, costs(0)))


@pytest.mark.parametrize("name", ["v5e:2x2", "tpu7x:2x2x1"])
def test_a_program_counts_on_every_device(name: str) -> None:
    """TPU7x has two devices a chip."""
    slices = topology.parse(name)
    part = costs(1e6, flops=8e12 / slices.devices)
    said = describe.work(outlook(STEP, slices, part), part)
    assert said[1] == f"  compiled program: {8 + splash_flops(STEP) / 1e12:,.1f}, attention by whole blocks"


def test_what_to_plan_with() -> None:
    slices = topology.parse("v5e:2x2")
    quick, slow = outlook(STEP, slices, costs(1)), outlook(STEP, slices, costs(1, wire=1e12))
    assert quick.mfu(quick.step_seconds) == pytest.approx(PUBLISHED_MFU["v5e"])
    assert "MFU 46.0% as in published runs" in describe.work(quick, costs(1))[-1]
    assert slow.step_seconds == slow.at_best == pytest.approx(1e12 / LINKS["v5e"].ici)
    said = describe.work(slow, costs(1, wire=1e12))
    assert said[-2].endswith("bound by ici, if all else goes on meanwhile")
    assert "no better than at best (published runs have 46%); expect more" in said[-1]
