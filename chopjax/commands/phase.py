"""Steps on a model of one shape, from one state to another; resumable at any moment."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from chopjax.chop.dimchop import DimChop
from chopjax.distill.config import LossConfig
from chopjax.distill.matching import Matching
from chopjax.distill.on_policy_config import OnPolicyConfig
from chopjax.models.config import ModelConfig
from chopjax.train.config import OptimizerConfig
from chopjax.train.state import TrainState

TeacherPlace = Literal["none", "beside", "learning", "cached"]


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps on a model of one shape.

    Attributes:
        folder: of its checkpoints, under the workdir.
        config: the model.
        loss: what is minimised on logits.
        until: steps of the whole run that are done when it ends.
        begin: makes the state that it begins with, where no checkpoint of it exists; called with the phase.
        optimizer: how gradients become updates.
        dimchop: what masks dimensions meanwhile; None for nothing.
        teacher: whether there is one: `beside` the student on the mesh, `learning` itself as part of the state, or
            `cached`, run before.
        matching: which activations are compared with the teacher's; None for none.
        on_policy: which batches the student writes itself.
        metrics: folder of its metrics, under the workdir.
    """

    folder: str
    config: ModelConfig
    loss: LossConfig
    until: int
    begin: Callable[["Phase"], TrainState]
    optimizer: OptimizerConfig
    dimchop: DimChop | None = None
    teacher: TeacherPlace = "none"
    matching: Matching | None = None
    on_policy: OnPolicyConfig = OnPolicyConfig()
    metrics: str = ""
