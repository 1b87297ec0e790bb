"""What is kept of the teacher's distributions when they are written to disk. Apart, so that it is read without jax."""

import dataclasses
from typing import Literal

from chopjax import checks
from chopjax.distill.config import TEACHER_TERMS, LossConfig
from chopjax.errors import UserError

Kind = Literal["off", "top_k", "samples"]
RowsKept = Literal["reached", "all"]

MOST = 65535  # records count entries in two bytes


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """Targets of a teacher that is run once, before training. Their temperature is `loss.temperature`.

    Attributes:
        kind: `off`: the teacher runs beside the student. `top_k`: the most probable tokens and the probability of all
            others together, which is biased but exact on those tokens. `samples`: random draws from the teacher's
            distribution, whose gradient is unbiased (Sparse Logit Sampling, arXiv:2503.16870).
        k: tokens kept at each position by `top_k`. A run may read fewer than a cache holds.
        samples: draws at each position by `samples`.
        path: folder of the cache; empty for `cache` in the workdir. It may be that of another run.
        rows: whose targets are written: `reached`: the rows that this run's steps and evaluations read; `all`: every
            row of its text, so that runs of other seeds, batches and steps can read the same cache.
        shard_rows: rows in one file. A command that was cut off goes on at the first file that is not whole.
    """

    kind: Kind = "off"
    k: int = 64
    samples: int = 50
    path: str = ""
    rows: RowsKept = "reached"
    shard_rows: int = 1024

    def __post_init__(self) -> None:
        checks.choices(self, "cache")
        checks.within(self, "cache", 1, MOST, "k", "samples")
        checks.at_least(self, "cache", 1, "shard_rows")

    @property
    def count(self) -> int:
        """Entries of each position: `k` or `samples`."""
        return self.samples if self.kind == "samples" else self.k


def check_loss(cache: CacheConfig, loss: LossConfig) -> None:
    """Refuses losses that cannot be made of what is kept.

    Raises:
        UserError: a term other than `kl` compares with the teacher, or the temperature changes.
    """
    if cache.kind == "off":
        return
    for name in TEACHER_TERMS:
        if name != "kl" and (getattr(loss, name) or any(schedule.field == name for schedule in loss.schedules)):
            raise UserError(
                f"loss.{name} needs the whole distribution of the teacher, and cache.kind is {cache.kind!r}; "
                "use loss.kl, or cache.kind 'off'"
            )
    if loss.top_k:
        raise UserError(f"loss.top_k is {loss.top_k}, which is for a teacher that is not cached; set it to 0")
    if any(schedule.field == "temperature" for schedule in loss.schedules):
        raise UserError("loss.schedules: a cache is of one temperature; leave temperature out, or set cache.kind 'off'")


def check_vocab(cache: CacheConfig, tokens: int) -> None:
    """Refuses to keep more tokens of each distribution than it has.

    Raises:
        UserError: `cache.k` is more than `tokens`.
    """
    if cache.kind == "top_k" and cache.k > tokens:
        raise UserError(f"cache.k is {cache.k}, but the tokenizer has only {tokens} tokens; keep {tokens} or fewer")
