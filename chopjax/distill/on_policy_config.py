"""How much of training is on the student's own samples, and how they are drawn. Imports without jax."""

import dataclasses
import math

from chopjax import checks
from chopjax.distill.cache_config import CacheConfig
from chopjax.distill.config import LossConfig
from chopjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OnPolicyConfig:
    """On-policy distillation: rows that the student goes on with by itself, scored by the teacher.

    Generalised knowledge distillation (Agarwal et al. 2024, arXiv:2306.13649, algorithm 1). No gradient flows through
    the sampling.

    Attributes:
        share: fraction of batches that are sampled (λ of the paper); 0 for none.
        prompt: tokens at the beginning of each row that are kept; the student draws the others.
        temperature: the student's logits are divided by it before a token is drawn; 0 takes the most likely token.
        top_k: draws from this many of the most likely tokens; 0 for all.
        top_p: draws from the fewest most likely tokens whose probabilities sum to at least this, after `top_k`.
        gather: whether each device holds all parameters while it samples, in the compute dtype and save for what
            `mesh.tensor` splits. Without, those that `mesh.fsdp` splits are gathered anew for every token, which takes
            less memory and far more time.
    """

    share: float = 0.0
    prompt: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    gather: bool = True

    def __post_init__(self) -> None:
        checks.within(self, "on_policy", 0, 1, "share")
        checks.at_least(self, "on_policy", 1, "prompt")
        checks.at_least(self, "on_policy", 0, "temperature", "top_k")
        if math.isinf(self.temperature):
            raise UserError("on_policy.temperature is inf; give a number")
        if not 0 < self.top_p <= 1:
            raise UserError(f"on_policy.top_p is {self.top_p}; give a number above 0 and up to 1")


def check_loss(config: OnPolicyConfig, loss: LossConfig, cache: CacheConfig | None = None) -> None:
    """Refuses what a student's own samples cannot teach it.

    Raises:
        UserError: no term compares with a teacher; one has a weight on the next token, or is weighted by it; or the
            teacher's targets are cached, of other tokens.
    """
    if not config.share:
        return
    said = f"on_policy.share is {config.share}, and"
    if not loss.teacher_terms:
        raise UserError(f"{said} no loss compares with a teacher; give loss.jsd, loss.reverse_kl or loss.kl a weight")
    if "next_token" in loss.active:
        raise UserError(
            f"{said} loss.next_token would teach the student its own samples; set it to 0, or on_policy.share to 0"
        )
    if "wsl" in loss.active:
        raise UserError(
            f"{said} loss.wsl weighs tokens by how well the next one is predicted, which the student drew itself; "
            "use loss.kl, loss.reverse_kl or loss.jsd"
        )
    if cache is not None and cache.kind != "off":
        raise UserError(
            f"{said} cache.kind is {cache.kind!r}: a cache has no targets for new samples; set cache.kind 'off'"
        )


def check_length(config: OnPolicyConfig, length: int) -> None:
    """Refuses a prompt that leaves nothing to be sampled of rows of `length` tokens.

    Raises:
        UserError: the prompt is as long as a row, or longer.
    """
    if config.share and config.prompt >= length:
        raise UserError(
            f"on_policy.prompt is {config.prompt}, but rows have {length} tokens (data.length); give fewer than that"
        )
