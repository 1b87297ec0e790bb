"""What to keep, and by which criterion it is chosen."""

import dataclasses
from typing import Literal

from chopjax import checks
from chopjax.errors import UserError

Layout = Literal["max_gap", "input", "output", "middle", "both", "last"]
LayersBy = Literal[
    "max_gap", "input", "output", "middle", "both", "last",
    "best", "block_importance", "angular", "angular_last_token", "leave_one_out", "leave_block_out", "greedy",
    "taylor", "magnitude", "random",
]  # fmt: skip
WidthsBy = Literal["best", "activation", "taylor", "magnitude", "random"]
Aggregation = Literal["mean", "l2", "var"]
HeadResidual = Literal["off", "minitron", "laco"]


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What is kept on every axis. A width of 0 keeps the axis as it is.

    Attributes:
        layers_by: which layers go, when `remove_layers` says how many. A layout of Just CHOP (section 3): `max_gap`,
            `input`, `output`, `middle`, `both`; `last` drops the end. `best` tries several of what follows and takes
            the one that does best by `metric` on calibration rows. By score: `block_importance` (ShortGPT),
            `angular` (the contiguous block with the least angle between its ends, over all tokens),
            `angular_last_token` (over the last token of each row alone, as in Gromov et al.), `leave_one_out` (the loss
            without each layer, Minitron), `leave_block_out` (the contiguous block without which the loss by `metric` is
            lowest, Minitron in practice), `greedy` (one at a time, scored again after each), `taylor`, `magnitude`,
            `random`.
        remove_layers: number of layers to remove.
        layers: the kept layers themselves, numbered from 0, ascending; instead of `remove_layers`. A recipe or a flag
            may give ranges with both ends: `0-3,12-31`.
        metric: what the loss-based criteria minimise: `next_token`; `kl` (to the uncut model); `choices:FILE`, 1 minus
            the accuracy on questions (`chopjax.evaluate.choices`); or `module:function`, a function of a config and its
            parameters (`chopjax.score.metric.Metric`).
        widths_by: what ranks neurons, heads and channels: `activation` (Minitron), `taylor`, `magnitude`, `random`;
            `best` is `activation` by the aggregation that does best by `metric` on further rows of the text.
        over_batch: aggregation of activations over calibration rows; of `best`, only where sizes are still searched.
        over_sequence: aggregation of activations over the tokens of a row; likewise.
        iterations: rounds of scoring and cutting in which the widths shrink; 1 is single shot.
        mlp: MLP neurons to keep in each layer.
        embed: channels of the residual stream to keep.
        kv_heads: key/value heads to keep in each layer.
        merge_kv_heads: whether key/value heads are averaged in groups, and all query heads stay, instead of dropping
            whole groups.
        q_per_kv: query heads to keep for each key/value head.
        head_residual: whether dropped query heads leave a residual in kept ones: `minitron` adds kept − dropped, as
            printed; `laco` adds dropped − kept.
        refit: whether the output and down projections are fitted anew by least squares on calibration text.
        ridge: of that fit, as a share of the mean squared activation.
        vocab: rows of the embedding table to keep; beyond the padding rows, the tokenizer is rewritten.
        file: a plan written by hand or by an earlier run; overrides all of the above.
    """

    layers_by: LayersBy = "best"
    remove_layers: int = 0
    layers: tuple[int, ...] = ()
    metric: str = "next_token"
    widths_by: WidthsBy = "best"
    over_batch: Aggregation = "l2"
    over_sequence: Aggregation = "mean"
    iterations: int = 1
    mlp: int = 0
    embed: int = 0
    kv_heads: int = 0
    merge_kv_heads: bool = False
    q_per_kv: int = 0
    head_residual: HeadResidual = "off"
    refit: bool = False
    ridge: float = 0.01
    vocab: int = 0
    file: str = ""

    def __post_init__(self) -> None:
        checks.choices(self, "plan")
        checks.at_least(self, "plan", 0, "remove_layers", "mlp", "embed", "kv_heads", "q_per_kv", "vocab", "ridge")
        checks.at_least(self, "plan", 1, "iterations")
        if (
            any(late <= early for early, late in zip(self.layers, self.layers[1:], strict=False))
            or min(self.layers, default=0) < 0
        ):
            raise UserError(f"plan.layers is {self.layers}; give kept layers from 0, ascending, each once")
        if self.iterations > 1 and (self.merge_kv_heads or self.widths_by not in ("best", "activation")):
            raise UserError(
                f"plan.iterations is {self.iterations}, but only activations are scored again, and heads not merged "
                "step by step; set it to 1, or use rounds"
            )
        if self.layers and self.remove_layers:
            raise UserError("plan.layers and plan.remove_layers are both set; give one of them")
