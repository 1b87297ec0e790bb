"""What a training step costs in arithmetic, by a formula of the model's sizes alone."""

import dataclasses

from chopjax.models.config import ModelConfig
from chopjax.models.parameters import flops_per_token

# A backward pass makes two products for each of the forward pass: one for the weights and one for what came in.
FORWARD, BACKWARD = 1, 2
# Ways of rematerialisation in which the backward pass begins with each block's input alone.
WHOLE = ("full", "offload")


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step over all devices; attention is counted as causal, and sliding windows as such.

    Attributes:
        student: forward and backward pass of the model that is trained.
        teacher: forward pass of a teacher beside it, and the backward pass of one that learns; 0 without.
        recomputed: what the backward pass makes again under full rematerialisation: the forward pass of all blocks,
            not the unembedding, since the loss and its gradients are made in one pass.
    """

    student: float
    teacher: float = 0.0
    recomputed: float = 0.0

    @property
    def model(self) -> float:
        """What the step needs, whatever its memory; model FLOPs utilisation is of these."""
        return self.student + self.teacher

    @property
    def hardware(self) -> float:
        """What the devices do."""
        return self.model + self.recomputed


def step_flops(
    student: ModelConfig,
    teacher: ModelConfig | None,
    tokens: int,
    length: int,
    remat: str = "none",
    learning: bool = False,
) -> StepFlops:
    """FLOPs of a step on `tokens` tokens in rows of `length`.

    A forward pass costs 2 for each weight of a matrix product and 4 q_heads head_dim for each visible key
    (`models.parameters.flops_per_token`); a student's step three times that.

    Args:
        student: the model that is trained.
        teacher: the model that runs beside it; None for none, or one whose targets are cached.
        tokens: of the batch, padding included.
        length: tokens of a row.
        remat: as `train.remat`; where products are kept, nothing counts as made again.
        learning: whether the teacher learns in the same step.
    """
    forward = flops_per_token(student, length)
    blocks = forward - 2 * student.vocab * student.embed
    taught = 0.0 if teacher is None else flops_per_token(teacher, length)
    whole = remat in WHOLE
    again = blocks if whole else 0.0
    if whole and learning and teacher is not None:
        again += taught - 2 * teacher.vocab * teacher.embed
    return StepFlops(
        tokens * forward * (FORWARD + BACKWARD),
        tokens * taught * (FORWARD + BACKWARD if learning else FORWARD),
        tokens * again,
    )
