"""Which sizes to consider, what they may cost, and how many to try."""

import dataclasses
import math
from typing import Any

from chopjax import checks
from chopjax.errors import UserError
from chopjax.search.quantity import Budget, budget
from chopjax.search.roofline import chip_named

Amount = Any
"""A text such as "4.5B", "16 GB", "half", "60%" or "7.8e9..8.5e9", or a number; "" for none. See `quantity`."""

# Fields that hold a budget → the kind of quantity. The first one that is given is the primary one.
BUDGETS = {
    "params": "count",
    "non_embedding_params": "count",
    "flops": "flops",
    "bytes": "bytes",
    "kv_cache": "bytes",
    "latency": "milliseconds",
}
CHOICES = ("layers", "embed", "mlp", "kv_heads", "q_per_kv")


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The space of student sizes, budgets, and the effort. Without a budget there is no search.

    A candidate must meet every budget. A budget is a number with a unit, a share of the source's own figure, or a
    window LOW..HIGH. Weights and cache count two bytes a value.

    Attributes:
        params: parameters.
        non_embedding_params: parameters without the embedding and unembedding tables.
        flops: forward FLOPs of a token, on average over `context` tokens.
        bytes: weights and KV cache of `sequences` sequences of `context` tokens.
        kv_cache: KV cache alone.
        latency: milliseconds to decode one token of each sequence on `chip`, at best (`roofline`).
        chip: `v4`, `v5e`, `v5p`, `v6e`, `tpu7x`, `a100`, `h100`, `h200`, `b200`, `l4` or `l40s`; weights and KV cache
            must fit into its memory.
        chips: number of such chips that share the model evenly.
        context: tokens of a sequence in the cache.
        sequences: sequences decoded together.
        tolerance: how far the primary budget, the first given of those above, may be underspent, as a share of it.
            A window says so itself.
        layers: numbers of layers to consider; none for all from `least_depth` of the source's upwards.
        embed: widths to consider; none for the multiples of `multiple` from `least_width` of the source's upwards.
        mlp: MLP widths to consider; none as for `embed`.
        mlp_factor: MLP widths as multiples of `embed`, rounded down to a multiple of `multiple`; instead of `mlp`.
        kv_heads: numbers of key/value heads to consider; none for the divisors of the source's number, or, where each
            has one query head alone, for about eight steps.
        q_per_kv: numbers of query heads for each key/value head to consider; none for all from `least_width` upwards.
        multiple: step of the widths; 0 for the largest of 128, 64 and 8 that divides the source's. In either case
            the mesh must divide them too.
        least_width: smallest share of a width or of heads that is considered.
        least_depth: smallest share of the layers that is considered.
        evaluate: candidates that are scored by masks on held-out rows.
        distill: candidates, the best of those, that get a short distillation; 0 for none.
        distill_steps: steps of it (Minitron: 400, after which the order no longer changes).
    """

    params: Amount = ""
    non_embedding_params: Amount = ""
    flops: Amount = ""
    bytes: Amount = ""
    kv_cache: Amount = ""
    latency: Amount = ""
    chip: str = ""
    chips: int = 1
    context: int = 4096
    sequences: int = 1
    tolerance: float = 0.05
    layers: tuple[int, ...] = ()
    embed: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()
    mlp_factor: tuple[float, ...] = ()
    kv_heads: tuple[int, ...] = ()
    q_per_kv: tuple[int, ...] = ()
    multiple: int = 0
    least_width: float = 0.4
    least_depth: float = 0.5
    evaluate: int = 32
    distill: int = 4
    distill_steps: int = 400

    def __post_init__(self) -> None:
        checks.at_least(self, "search", 1, "chips", "context", "sequences", "evaluate", "distill_steps")
        checks.at_least(self, "search", 0, "multiple", "distill")
        checks.within(self, "search", 0, 1, "tolerance", "least_width", "least_depth")
        for name in CHOICES:
            if any(size < 1 for size in getattr(self, name)):
                raise UserError(f"search.{name} is {getattr(self, name)}; give sizes of 1 or more")
        if not all(math.isfinite(factor) and factor > 0 for factor in self.mlp_factor):
            raise UserError(f"search.mlp_factor is {self.mlp_factor}; give positive multiples of embed such as 3.5")
        if self.mlp and self.mlp_factor:
            raise UserError("search.mlp and search.mlp_factor are both set; give one of them")
        if self.chip:
            chip_named(self.chip)
        if "latency" in self.budgets and not self.chip:
            raise UserError('search.latency needs a chip; set search.chip, such as "v5e"')

    @property
    def budgets(self) -> dict[str, Budget]:
        """The budgets that are given, by field, the primary one first; `chip`'s memory is none of them."""
        given = {name: kind for name, kind in BUDGETS.items() if getattr(self, name) not in ("", None)}
        return {name: budget(getattr(self, name), f"search.{name}", kind) for name, kind in given.items()}

    @property
    def wanted(self) -> bool:
        """Whether there is anything to search for."""
        return bool(self.budgets or self.chip)

    @property
    def primary(self) -> str:
        """The figure to be spent in full: the first budget's, or `bytes` where only a chip is given."""
        return next(iter(self.budgets), "bytes")
