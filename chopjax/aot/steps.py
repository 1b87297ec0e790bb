"""The training step, compiled for devices that need not be there; and what the compiler says of it."""

import dataclasses
import time
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from chopjax.aot import hlo
from chopjax.distill.config import LossConfig
from chopjax.distill.objective import Models
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import abstract_params
from chopjax.sharding.mesh import Constrain, Kernel, make_mesh, param_shardings
from chopjax.sharding.rules import MeshConfig
from chopjax.train import optimizers
from chopjax.train.config import OptimizerConfig
from chopjax.train.schedules import make_schedule
from chopjax.train.state import abstract_state, leaves_of, state_shardings, trained
from chopjax.train.step import StepConfig, compile_step, make_step

BATCH = ("tokens", "segment_ids", "positions")


@dataclasses.dataclass(frozen=True)
class TrainingStep:
    """A training step, by all that its program depends on.

    Attributes:
        student: the model that is trained.
        rows: rows of a batch, over all devices.
        length: tokens of a row.
        loss: the losses.
        teacher: the model that it learns from, held in `step.compute_dtype`; None for none.
        step: how the step is computed.
        optimizer: how gradients become updates.
        mesh: how devices are laid out.
        vocab_tokens: tokens of the tokenizer, where vocabularies are padded.
        kernel: what computes attention (`sharding.mesh.Constrain`).
    """

    student: ModelConfig
    rows: int
    length: int
    loss: LossConfig
    teacher: ModelConfig | None = None
    step: StepConfig = StepConfig(remat="full")
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    vocab_tokens: int | None = None
    kernel: Kernel = "auto"


@dataclasses.dataclass(frozen=True)
class Compilation:
    """What the compiler says of a program, per device.

    Attributes:
        compiled: the executable.
        lower_seconds: time of tracing and lowering.
        compile_seconds: time of compiling.
        statistics: cycles, FLOPs and bytes on the wire; None where the compiler cannot print what it made (TPU v5p
            with jaxlib 0.10).
    """

    compiled: jax.stages.Compiled
    lower_seconds: float
    compile_seconds: float
    statistics: hlo.Statistics | None

    @property
    def peak_bytes(self) -> int:
        """The most memory in use at one time, arguments and results included."""
        return self.memory["peak"]

    @property
    def memory(self) -> dict[str, int]:
        """Bytes by kind: arguments, results, results that take the place of arguments, temporaries, code; and peak.

        `temporary` is what the heap of temporaries takes with its gaps, and so may be more than the peak.
        """
        found = self.compiled.memory_analysis()
        assert found is not None, "compilers for TPUs report memory"
        return {
            "peak": found.peak_memory_in_bytes,
            "arguments": found.argument_size_in_bytes,
            "results": found.output_size_in_bytes,
            "reused": found.alias_size_in_bytes,
            "temporary": found.temp_size_in_bytes,
            "code": found.generated_code_size_in_bytes,
        }


def lower(wanted: TrainingStep, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
    """The training step as it is made for a run, lowered for these devices; nothing is allocated.

    Raises:
        UserError: the mesh cannot hold the models, or is not made up by the devices.
    """
    mesh, fallbacks = make_mesh(wanted.mesh, devices), wanted.mesh.fallbacks
    optimizer = optimizers.build(wanted.optimizer, leaves_of(wanted.student))
    models = Models(wanted.student, wanted.teacher, wanted.vocab_tokens, Constrain(mesh, fallbacks, wanted.kernel))
    step = make_step(models, wanted.loss, wanted.step, optimizer, make_schedule(wanted.optimizer.schedule))
    student = trained(wanted.student, optimizer)
    state, shardings = abstract_state(student, mesh, fallbacks), state_shardings(student, mesh, fallbacks)
    teacher = teacher_shardings = None
    if wanted.teacher is not None:
        teacher = abstract_params(wanted.teacher, jnp.dtype(wanted.step.compute_dtype))
        teacher_shardings = param_shardings(wanted.teacher, mesh, fallbacks)
    batch = {name: jax.ShapeDtypeStruct((wanted.rows, wanted.length), jnp.int32) for name in BATCH}
    return compile_step(step, shardings, teacher_shardings, mesh).lower(state, teacher, batch)


def compile(
    wanted: TrainingStep, devices: Sequence[jax.Device], options: Mapping[str, str] | None = None
) -> Compilation:
    """`lower`, and then compiled; takes minutes for models of billions of parameters.

    Args:
        wanted: the step.
        devices: what it is compiled for.
        options: of the compiler; `xla_dump_to` names a folder for its reports, the assignment of buffers among them.

    Raises:
        UserError: as in `lower`.
        jax.errors.JaxRuntimeError: the program does not fit into the devices' memory, among other reasons.
    """
    begun = time.perf_counter()
    lowered = lower(wanted, devices)
    between = time.perf_counter()
    compiled = lowered.compile(dict(options or {}))
    ended = time.perf_counter()
    return Compilation(compiled, between - begun, ended - between, _statistics(compiled))


def _statistics(compiled: jax.stages.Compiled) -> hlo.Statistics | None:
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return None
    return hlo.statistics(text) if text else None
