"""How long and how to train; imports without jax.

All fields are set flat under `train` in a config, some under the name that their metadata calls `alias`: the name of
the optimizer is `train.optimizer`, the kind of the schedule is `train.schedule`.
"""

import dataclasses
from typing import Literal, get_args

from chopjax import checks
from chopjax.errors import UserError

OptimizerName = Literal["adamw", "lion"]
ScheduleKind = Literal["constant", "cosine", "wsd"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop.

    Attributes:
        steps: optimizer steps, those before the chop not counted.
        batch: rows in one step, over all devices and accumulation steps.
        accumulate: parts into which a batch is split, to save memory.
        compute_dtype: dtype of activations and of the teacher; master weights stay float32.
        remat: what the backward pass recomputes: `none`; `full`, all of a block but its input; `dots`, all but its
            input and matrix products. With `offload` and `offload_dots` what is not recomputed waits in the memory of
            the host: slower, for rows or batches that do not fit otherwise.
        steps_before_chop: ordinary steps on the whole model, which fill the optimizer state that the chop then cuts
            (Just CHOP takes 500).
        log_every: steps between lines of `metrics.jsonl`.
        evaluate_every: steps between evaluations on held-out rows; 0 for only at the end.
        save_every: steps between checkpoints; 0 for only at the end.
        keep: newest checkpoints that are kept.
        keep_best: checkpoints of lowest held-out loss that are kept besides.
        tensorboard: whether metrics also go to `WORKDIR/tensorboard`.
        wandb: project on Weights & Biases that they also go to; empty for none.
        skip_limit: steps in a row with gradients that are not finite, each of them skipped, that end the run; 0 for
            never.
        hang_seconds: seconds without a step that ends, after which the processes that lag are named; 0 for never.
        hang_ends: whether the processes that wait end then, with status 1, so that what started them may do so again.
    """

    steps: int = 1000
    batch: int = 32
    accumulate: int = 1
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Literal["none", "full", "dots", "offload", "offload_dots"] = "full"
    steps_before_chop: int = 0
    log_every: int = 10
    evaluate_every: int = 0
    save_every: int = 500
    keep: int = 2
    keep_best: int = 1
    tensorboard: bool = True
    wandb: str = ""
    skip_limit: int = 10
    hang_seconds: float = 1800.0
    hang_ends: bool = False

    def __post_init__(self) -> None:
        checks.choices(self, "train")
        checks.at_least(self, "train", 1, "steps", "batch", "accumulate", "log_every", "keep")
        checks.at_least(self, "train", 0, "steps_before_chop", "evaluate_every", "save_every", "keep_best")
        checks.at_least(self, "train", 0, "skip_limit", "hang_seconds")
        if self.batch % self.accumulate:
            raise UserError(f"train.batch is {self.batch}, which train.accumulate = {self.accumulate} does not divide")


@dataclasses.dataclass(frozen=True)
class CorrectionConfig:
    """Teacher correction: the teacher learns from the text that it is to teach on (Minitron in practice, arXiv
    2408.11796, section 2).

    Attributes:
        mode: `before` the student's training, in steps of its own; or `alongside`, from each batch that the student
            learns from too, in the same forward pass.
        steps: steps `before`.
        learning_rate: the peak; the schedule is otherwise that of `train`. The paper took a fifth of the rate that the
            teacher was trained with.
        warmup_steps: steps of the linear rise.
    """

    mode: Literal["off", "before", "alongside"] = "off"
    steps: int = 100
    learning_rate: float = 2e-5
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        checks.choices(self, "correction")
        checks.at_least(self, "correction", 1, "steps")
        checks.at_least(self, "correction", 0, "learning_rate", "warmup_steps")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """A learning rate for each step from 0.

    Attributes:
        kind: what follows the warm-up. `constant` stays at the peak; `cosine` falls along half a cosine until the
            last step; `wsd` stays and then falls linearly (Hu et al. 2024, arXiv:2404.06395, section 4.2).
        learning_rate: the peak.
        steps: steps of the run.
        warmup_steps: steps of the linear rise; step 0 already has a share of 1 / warmup_steps.
        final_fraction: learning rate at the end, as a fraction of the peak (`cosine`, `wsd`).
        decay_fraction: share of `steps` in which `wsd` falls.
    """

    kind: ScheduleKind = dataclasses.field(default="cosine", metadata={"alias": "schedule"})
    learning_rate: float = 1e-4
    steps: int = 1000
    warmup_steps: int = 0
    final_fraction: float = 0.1
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScheduleKind):
            raise UserError(f"train.schedule is {self.kind!r}; give one of {', '.join(get_args(ScheduleKind))}")
        if self.steps < 1:
            raise UserError(f"train.steps is {self.steps}; give at least 1")
        if not self.learning_rate >= 0:
            raise UserError(f"train.learning_rate is {self.learning_rate}; give a number of 0 or more")
        for name in ("final_fraction", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"train.{name} is {getattr(self, name)}; give a fraction from 0 to 1")
        if not 0 <= self.warmup_steps <= self.steps - self.decay_steps:
            raise UserError(
                f"train.warmup_steps is {self.warmup_steps}, but {self.steps} steps less the decay leave only "
                f"{self.steps - self.decay_steps}; warm up for fewer steps"
            )

    @property
    def decay_steps(self) -> int:
        """Steps at the end in which `wsd` falls."""
        return round(self.decay_fraction * self.steps) if self.kind == "wsd" else 0


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates.

    Attributes:
        name: `adamw` (Loshchilov & Hutter 2019, arXiv:1711.05101) or `lion` (Chen et al. 2023, arXiv:2302.06675).
        schedule: learning rate by step.
        b1: decay of the mean of gradients.
        b2: decay of the mean of squared gradients (`adamw`), or of the mean kept from step to step (`lion`).
        eps: added to the root of the mean square; unused by `lion`.
        weight_decay: share of a weight, times the learning rate, that is taken off each step; matrices and tables only.
        clip: greatest global norm of the gradient; 0 for no limit.
    """

    name: OptimizerName = dataclasses.field(default="adamw", metadata={"alias": "optimizer"})
    schedule: ScheduleConfig = ScheduleConfig()
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in get_args(OptimizerName):
            raise UserError(f"train.optimizer is {self.name!r}; give one of {', '.join(get_args(OptimizerName))}")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"train.{name} is {getattr(self, name)}; give a number from 0 to below 1")
        for name in ("weight_decay", "clip", "eps"):
            if not getattr(self, name) >= 0:
                raise UserError(f"train.{name} is {getattr(self, name)}; give a number of 0 or more")
