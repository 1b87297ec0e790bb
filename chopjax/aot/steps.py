"""The steps of a run, lowered for devices that need not be there."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from chopjax.distill.config import LossConfig
from chopjax.distill.matching import Matching
from chopjax.distill.objective import Models
from chopjax.distill.targets import PREFIX
from chopjax.evaluate.perplexity import batch_sums
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import abstract_params
from chopjax.score.activations import score_sums
from chopjax.sharding.mesh import (
    Constrain,
    batch_sharding,
    make_mesh,
    param_shardings,
    replicated,
    row_sharding,
)
from chopjax.sharding.rules import MeshConfig
from chopjax.train import optimizers
from chopjax.train.config import OptimizerConfig
from chopjax.train.schedules import make_schedule
from chopjax.train.state import Trained, TrainState, abstract_state, leaves_of, state_shardings, trained
from chopjax.train.step import StepConfig, compile_step, make_step

BATCH = ("tokens", "segment_ids", "positions")


class Step(Protocol):
    """A step by all that its program depends on."""

    @property
    def mesh(self) -> MeshConfig:
        """How devices are laid out."""
        ...

    def lower(self, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
        """The step as it is made for a run, lowered for these devices; nothing is allocated.

        Raises:
            UserError: the mesh cannot hold the models, or is not made up by the devices.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TrainingStep:
    """A training step.

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
        matching: which activations are compared with the teacher's; None for none.
        teacher_optimizer: of a teacher that learns in the same step; None for one that does not.
        kept: entries of the teacher's distribution that batches bring for each token, with `step.cached`.
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
    matching: Matching | None = None
    teacher_optimizer: OptimizerConfig | None = None
    kept: int = 64

    @property
    def learning(self) -> bool:
        """Whether the teacher learns too."""
        return self.teacher_optimizer is not None

    @property
    def micro_rows(self) -> int:
        """Rows of a micro-batch, over all devices."""
        return self.rows // self.step.accumulate

    def lower(self, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
        """See `Step.lower`."""
        mesh, fallbacks = make_mesh(self.mesh, devices), self.mesh.fallbacks
        pin = Constrain(mesh, fallbacks, self.mesh.attention)
        student, teacher = self._trained()
        models = Models(self.student, self.teacher, self.vocab_tokens, pin, self.matching)
        schedule, own = make_schedule(self.optimizer.schedule), None if teacher is None else teacher.optimizer
        step = make_step(models, self.loss, self.step, student.optimizer, schedule, teacher_optimizer=own)
        state = self.state(mesh)
        shardings = state_shardings(student, mesh, fallbacks, teacher)
        beside = beside_shardings = None
        if self.teacher is not None and not self.learning:
            beside = _params(self.teacher, self.step.compute_dtype, self.mesh, mesh)
            beside_shardings = param_shardings(self.teacher, mesh, fallbacks)
        # All shapes say where they lie, as arrays do: else the program is another one to JAX's caches.
        batch = _placed(self._batch(), batch_sharding(mesh))
        return compile_step(step, shardings, beside_shardings, mesh).lower(state, beside, batch)

    def state_beside(self, devices: Sequence[jax.Device]) -> int:
        """Bytes of a device that training holds beside an evaluation: what of its state the evaluation does not read.

        The evaluation reads copies in the compute dtype; float32 masters themselves, where that is the dtype.

        Raises:
            UserError: as `lower`.
        """
        state = self.state(make_mesh(self.mesh, devices))
        held: list[Any] = [one.opt_state for one in (state, state.teacher) if one is not None]
        if self.step.compute_dtype != "float32":
            held += [one.params for one in (state, state.teacher) if one is not None]
        return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(held))

    def state(self, mesh: jax.sharding.Mesh) -> TrainState:
        """All that the step changes, as shapes with their shardings.

        Raises:
            UserError: the mesh cannot hold the models.
        """
        student, teacher = self._trained()
        return abstract_state(student, mesh, self.mesh.fallbacks, teacher)

    def _trained(self) -> tuple[Trained, Trained | None]:
        """The student, and a teacher that learns too."""
        student = trained(
            self.student, optimizers.build(self.optimizer, leaves_of(self.student, self.matching)), self.matching
        )
        if self.teacher is None or self.teacher_optimizer is None:
            return student, None
        return student, trained(self.teacher, optimizers.build(self.teacher_optimizer, leaves_of(self.teacher)))

    def _batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        batch = _rows(self.rows, self.length)
        if self.step.cached:
            for name in ("ids", "probs", "tail", "offset"):
                kept = (self.kept,) if name in ("ids", "probs") else ()
                dtype = jnp.int32 if name == "ids" else jnp.float32
                batch[f"{PREFIX}{name}"] = jax.ShapeDtypeStruct((self.rows, self.length, *kept), dtype)
        return batch


@dataclasses.dataclass(frozen=True)
class ScoringStep:
    """A pass over calibration rows that scores activations.

    Attributes:
        model: the model that is scored.
        rows: rows of a batch, over all devices.
        length: tokens of a row.
        dtype: of parameters and activations.
        mesh: how devices are laid out.
    """

    model: ModelConfig
    rows: int
    length: int
    dtype: str = "bfloat16"
    mesh: MeshConfig = MeshConfig()

    def lower(self, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
        """See `Step.lower`."""
        mesh = make_mesh(self.mesh, devices)
        pin = Constrain(mesh, self.mesh.fallbacks, self.mesh.attention)
        step = jax.jit(functools.partial(score_sums, self.model, constrain=pin), out_shardings=replicated(mesh))
        half = jax.ShapeDtypeStruct((self.rows,), jnp.int32, sharding=row_sharding(mesh))
        batch = _placed(_rows(self.rows, self.length), batch_sharding(mesh))
        return step.lower(_params(self.model, self.dtype, self.mesh, mesh), batch, half, masks={})


@dataclasses.dataclass(frozen=True)
class EvaluationStep:
    """A pass over held-out rows: perplexity, and with a teacher the divergence from it.

    Attributes:
        model: the model that is judged.
        rows: rows of a batch, over all devices.
        length: tokens of a row.
        teacher: the model that it is compared with; None for none.
        chunk: tokens of a batch whose logits exist at one time.
        dtype: of parameters and activations.
        mesh: how devices are laid out.
        vocab_tokens: tokens of the tokenizer, where vocabularies are padded.
    """

    model: ModelConfig
    rows: int
    length: int
    teacher: ModelConfig | None = None
    chunk: int = 512
    dtype: str = "bfloat16"
    mesh: MeshConfig = MeshConfig()
    vocab_tokens: int | None = None

    def lower(self, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
        """See `Step.lower`."""
        mesh = make_mesh(self.mesh, devices)
        options: dict[str, Any] = {"chunk": self.chunk, "vocab_tokens": self.vocab_tokens}
        options["constrain"] = Constrain(mesh, self.mesh.fallbacks, self.mesh.attention)
        if self.teacher is not None:
            options["teacher_config"] = self.teacher
            options["teacher_params"] = _params(self.teacher, self.dtype, self.mesh, mesh)
        batch = _placed(_rows(self.rows, self.length), batch_sharding(mesh))
        return batch_sums.lower(self.model, _params(self.model, self.dtype, self.mesh, mesh), batch, **options)


def _rows(rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct((rows, length), jnp.int32) for name in BATCH}


def _params(config: ModelConfig, dtype: str, chosen: MeshConfig, mesh: jax.sharding.Mesh) -> Any:
    shardings = param_shardings(config, mesh, chosen.fallbacks)
    return jax.tree.map(_with, abstract_params(config, jnp.dtype(dtype)), shardings)


def _placed(shapes: Any, sharding: jax.sharding.NamedSharding) -> Any:
    return jax.tree.map(lambda shape: _with(shape, sharding), shapes)


def _with(shape: jax.ShapeDtypeStruct, sharding: jax.sharding.NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
