"""What to score and what to keep."""

import dataclasses
from typing import Literal

from chopjax import checks
from chopjax.errors import UserError

Layout = Literal["max_gap", "input", "output", "middle", "both", "last"]


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """Forward passes over calibration text.

    Attributes:
        rows: packed rows of calibration text to read.
        batch: rows in one forward pass, over all devices.
    """

    rows: int = 64
    batch: int = 8

    def __post_init__(self) -> None:
        checks.at_least(self, "score", 1, "rows", "batch")


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What is kept on every axis. A width of 0 keeps the axis as it is.

    Attributes:
        layout: which layers go, when `remove_layers` says how many (Just CHOP, section 3; `last` drops the end).
        remove_layers: number of layers to remove by `layout`.
        layers: the kept layers themselves, numbered from 0, ascending; overrides `layout`.
        mlp: MLP neurons to keep in each layer.
        embed: channels of the residual stream to keep.
        kv_heads: key/value heads to keep in each layer.
        q_per_kv: query heads to keep for each key/value head.
        vocab: rows of the embedding table to keep; only rows beyond the tokenizer may go.
        file: a plan written by hand or by an earlier run; overrides all of the above.
    """

    layout: Layout = "middle"
    remove_layers: int = 0
    layers: tuple[int, ...] = ()
    mlp: int = 0
    embed: int = 0
    kv_heads: int = 0
    q_per_kv: int = 0
    vocab: int = 0
    file: str = ""

    def __post_init__(self) -> None:
        checks.choices(self, "plan")
        checks.at_least(self, "plan", 0, "remove_layers", "mlp", "embed", "kv_heads", "q_per_kv", "vocab")
        if (
            any(late <= early for early, late in zip(self.layers, self.layers[1:], strict=False))
            or min(self.layers, default=0) < 0
        ):
            raise UserError(f"plan.layers is {self.layers}; give kept layers from 0, ascending, each once")
        if self.layers and self.remove_layers:
            raise UserError("plan.layers and plan.remove_layers are both set; give one of them")
