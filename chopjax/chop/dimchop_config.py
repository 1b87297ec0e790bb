"""How DimCHOP is done; imports without jax."""

import dataclasses
from typing import Literal

from chopjax import checks
from chopjax.errors import UserError

DimChopMode = Literal["off", "matrix", "pooled"]


@dataclasses.dataclass(frozen=True)
class DimChopConfig:
    """DimCHOP (Just CHOP, arXiv 2305.14864, section 3.2): dimensions are masked while training goes on, and may return.

    The paper prints no constants. The decays are those of the commands in PLATON's repository (QingruZhang/PLATON);
    `start` is the number of ordinary steps that Just CHOP takes before any compression.

    Attributes:
        mode: `off`; `matrix`, as printed: every matrix loses the same share of its own output dimensions, weights stay
            full-size, and the export has columns of zeros; or `pooled`: scores are pooled by the names of axes, what
            is masked are the widths that the plan cuts, and the model is cut for good after
            `train.steps_before_chop`.
        share: of each matrix' dimensions that are masked in the end (`matrix`; the plan's sizes say it for `pooled`).
        start: steps before the first mask.
        steps: steps from then on until the whole share is masked.
        every: steps between new masks.
        beta1: decay of the moving mean of sensitivity.
        beta2: decay of the moving mean of uncertainty.
    """

    mode: DimChopMode = "off"
    share: float = 0.5
    start: int = 500
    steps: int = 1000
    every: int = 1
    beta1: float = 0.85
    beta2: float = 0.95

    def __post_init__(self) -> None:
        checks.choices(self, "dimchop")
        checks.at_least(self, "dimchop", 0, "start")
        checks.at_least(self, "dimchop", 1, "steps", "every")
        for name in ("share", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"dimchop.{name} is {getattr(self, name)}; give a number from 0 to below 1")
