"""A distillation step compiled for a TPU slice, on any machine."""

import dataclasses

import jax
import pytest
from aot.slices import needs_libtpu

from chopjax.aot import compiling, steps, topology
from chopjax.distill.config import LossConfig
from chopjax.errors import UserError
from chopjax.models.config import LayerKind, ModelConfig
from chopjax.models.parameters import count
from chopjax.sharding.rules import MeshConfig
from chopjax.train.config import OptimizerConfig
from chopjax.train.step import StepConfig

STUDENT = ModelConfig(
    layers=3,
    embed=256,
    kv_heads=3,
    q_per_kv=2,
    head_dim=72,
    mlp=384,
    vocab=1024,
    positions=512,
    kinds=(LayerKind(), LayerKind(window=100)),
    kind_of_layer=(0, 1, 0),
)
TEACHER = dataclasses.replace(STUDENT, embed=384, head_dim=80, q_per_kv=4)
WANTED = steps.TrainingStep(
    STUDENT, 4, 200, LossConfig(chunk=256), TEACHER, StepConfig(remat="full"), mesh=MeshConfig(fsdp=2, tensor=2)
)


@needs_libtpu
def test_distillation_step() -> None:
    """Odd heads, a head size that is filled up, a length that is, a window, and heads that the mesh does not divide."""
    fitting = dataclasses.replace(WANTED, mesh=dataclasses.replace(WANTED.mesh, fallbacks=("kv_heads",)))
    with jax.default_matmul_precision("default"):  # kernels have no products of bfloat16 in several passes
        done = compiling.compile(fitting, topology.devices("v5e:2x2"))
    costs = done.costs
    assert done.compiled is not None and costs.peak_bytes is not None
    text = done.compiled.as_text()
    assert "splash_mha_fwd" in text and "splash_mha_dq" in text and "splash_mha_dkv" in text
    assert costs.statistics is not None and costs.statistics.unknown_loops == 0
    # Masters and two moments in float32, the teacher in bfloat16: at least a quarter of each on each device.
    assert costs.memory["arguments"] >= (12 * count(STUDENT) + 2 * count(TEACHER)) / 4
    assert costs.memory["reused"] >= 12 * count(STUDENT) / 4  # the new state takes the place of the old
    assert costs.peak_bytes >= costs.memory["arguments"]
    assert costs.compile_seconds > 0 and costs.lower_seconds > 0


def test_state_beside_an_evaluation() -> None:
    """Two moments of float32, and masters where the evaluation reads copies; each device its own part."""
    plain = dataclasses.replace(
        WANTED, teacher=None, loss=LossConfig.plain(256), mesh=MeshConfig(fsdp=4, fallbacks=("kv_heads",))
    )
    devices = jax.devices()[:4]
    counters = 4 * 4  # of steps, whole on each device: no more of them than that
    for dtype, each in (("bfloat16", 12), ("float32", 8)):
        step = dataclasses.replace(plain, step=dataclasses.replace(plain.step, compute_dtype=dtype))
        assert 0 <= step.state_beside(devices) - each * count(STUDENT) / 4 <= counters
    # A teacher that is only run is no state; one that learns is.
    beside = dataclasses.replace(plain, teacher=TEACHER)
    assert beside.state_beside(devices) == plain.state_beside(devices)
    learning = dataclasses.replace(beside, teacher_optimizer=OptimizerConfig())
    more = learning.state_beside(devices) - plain.state_beside(devices)
    assert 0 <= more - 12 * count(TEACHER) / 4 <= counters


@needs_libtpu
def test_a_mesh_that_cannot_hold_the_models() -> None:
    with pytest.raises(UserError, match="kv_heads of size 3"):
        WANTED.lower(topology.devices("v5e:2x2"))
    with pytest.raises(UserError, match="do not make up the 4 devices"):
        dataclasses.replace(WANTED, mesh=MeshConfig(fsdp=3)).lower(topology.devices("v5e:2x2"))
