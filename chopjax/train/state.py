"""All that training changes, and where it lies on a mesh."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from chopjax.axes import Leaf, Sizes, unflatten
from chopjax.distill.matching import Matching, declare_projections, projection_sizes
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import declare
from chopjax.sharding.mesh import leaf_shardings, replicated
from chopjax.train import optimizers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TeacherState:
    """A teacher that learns: float32 parameters and the optimizer's state."""

    params: Any
    opt_state: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes; or the shardings, or the shapes, of all of it.

    Attributes:
        step: number of steps done, int32.
        params: float32 master parameters, nested dict: the student's, and under `projections` learned maps from its
            width to the teacher's.
        opt_state: the optimizer's state.
        teacher: the teacher, where it learns too.
    """

    step: Any
    params: Any
    opt_state: Any
    teacher: TeacherState | None = None


@dataclasses.dataclass(frozen=True)
class Trained:
    """Parameters that an optimizer changes.

    Attributes:
        leaves: path → declaration.
        sizes: of all axes.
        optimizer: the transformation.
    """

    leaves: Mapping[str, Leaf]
    sizes: Sizes
    optimizer: optax.GradientTransformation

    @property
    def abstract(self) -> dict[str, Any]:
        """The shapes of the parameters, float32."""
        found = {path: jax.ShapeDtypeStruct(leaf.shape(self.sizes), jnp.float32) for path, leaf in self.leaves.items()}
        return unflatten(found)


def leaves_of(config: ModelConfig, matching: Matching | None = None) -> dict[str, Leaf]:
    """What is trained: a model's parameters and, where activations are matched so, learned projections."""
    return {**declare(config), **({} if matching is None else declare_projections(matching))}


def trained(config: ModelConfig, optimizer: optax.GradientTransformation, matching: Matching | None = None) -> Trained:
    """A model's parameters and learned projections, under an optimizer that was built for all `leaves_of` them."""
    return Trained(
        leaves_of(config, matching), config.sizes if matching is None else projection_sizes(matching), optimizer
    )


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    teacher: tuple[Any, optax.GradientTransformation] | None = None,
) -> TrainState:
    """The state before the first step; `params` become float32 masters, and so do those of a teacher that learns."""
    masters = _masters(params)
    learning = None
    if teacher is not None:
        own = _masters(teacher[0])
        learning = TeacherState(own, teacher[1].init(own))
    return TrainState(jnp.zeros((), jnp.int32), masters, optimizer.init(masters), learning)


def state_shardings(
    student: Trained, mesh: Mesh, fallbacks: Sequence[str] = (), teacher: Trained | None = None
) -> TrainState:
    """A `TrainState` of shardings: parameters by the rules, the optimizer's state like its parameters."""
    params, opt_state = _shardings(student, mesh, fallbacks)
    learning = None if teacher is None else TeacherState(*_shardings(teacher, mesh, fallbacks))
    return TrainState(replicated(mesh), params, opt_state, learning)


def abstract_state(
    student: Trained, mesh: Mesh, fallbacks: Sequence[str] = (), teacher: Trained | None = None
) -> TrainState:
    """A `TrainState` of shapes with their shardings."""

    def start(params: Any, of_teacher: Any) -> TrainState:
        own = None if teacher is None else (of_teacher, teacher.optimizer)
        return init_state(params, student.optimizer, own)

    shapes = jax.eval_shape(start, student.abstract, None if teacher is None else teacher.abstract)
    shardings = state_shardings(student, mesh, fallbacks, teacher)
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings)


def _shardings(trained: Trained, mesh: Mesh, fallbacks: Sequence[str]) -> tuple[Any, Any]:
    params = leaf_shardings(trained.leaves, trained.sizes, mesh, fallbacks)
    return params, optimizers.state_shardings(trained.optimizer, trained.abstract, params, replicated(mesh))


def _masters(params: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), params)
