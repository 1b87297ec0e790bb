"""How long and how to train. `TrainConfig` and `OptimizerConfig` are both set under `train` in a config."""

import dataclasses
from typing import Literal

from chopjax import checks
from chopjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop.

    Attributes:
        steps: optimizer steps, those before the chop not counted.
        batch: rows in one step, over all devices and accumulation steps.
        accumulate: parts into which a batch is split, to save memory.
        compute_dtype: dtype of activations and of the teacher; master weights stay float32.
        remat: what the backward pass recomputes: nothing, all of a block, or all but matrix products.
        steps_before_chop: ordinary steps on the whole model, which fill the optimizer state that the chop then cuts
            (Just CHOP takes 500).
        log_every: steps between lines of `metrics.jsonl`.
        evaluate_every: steps between evaluations on held-out rows; 0 for only at the end.
        save_every: steps between checkpoints; 0 for only at the end.
        keep: newest checkpoints that are kept.
        keep_best: checkpoints of lowest held-out loss that are kept besides.
    """

    steps: int = 1000
    batch: int = 32
    accumulate: int = 1
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Literal["none", "full", "dots"] = "full"
    steps_before_chop: int = 0
    log_every: int = 10
    evaluate_every: int = 0
    save_every: int = 500
    keep: int = 2
    keep_best: int = 1

    def __post_init__(self) -> None:
        checks.choices(self, "train")
        checks.at_least(self, "train", 1, "batch", "accumulate", "log_every", "keep")
        checks.at_least(self, "train", 0, "steps", "steps_before_chop", "evaluate_every", "save_every", "keep_best")
        if self.batch % self.accumulate:
            raise UserError(f"train.batch is {self.batch}, which train.accumulate = {self.accumulate} does not divide")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule; set under `train` in a config.

    Attributes:
        learning_rate: peak of the schedule.
        warmup_steps: steps of the linear rise from 0 to the peak.
        schedule: after the warm-up: a cosine to `final_fraction`, a plateau that decays linearly in the last
            `decay_fraction` of the steps (`wsd`), or the peak throughout.
        final_fraction: learning rate at the last step, as a share of the peak.
        decay_fraction: share of the steps in which `wsd` decays.
        optimizer: the update rule.
        b1: decay of the first moment.
        b2: decay of the second moment; for Lion, of the momentum.
        weight_decay: decoupled decay of matrices and tables; norms and biases have none.
        clip: largest global norm of a gradient; 0 for no clipping.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 100
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    final_fraction: float = 0.1
    decay_fraction: float = 0.2
    optimizer: Literal["adamw", "lion"] = "adamw"
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        checks.choices(self, "train")
        checks.at_least(self, "train", 0, "learning_rate", "warmup_steps", "weight_decay", "clip")
        checks.within(self, "train", 0, 1, "final_fraction", "decay_fraction", "b1", "b2")
