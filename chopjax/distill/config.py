"""Which losses are summed. Apart from the losses themselves, so that a config is read without jax."""

import dataclasses

from chopjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Which losses are summed, and with what weight.

    Attributes:
        next_token: weight of the cross entropy with the next token.
        kl: weight of T² · KL(teacher ‖ student), both softened by `temperature`. The factor T² keeps the size of its
            gradient beside the other terms whatever T is (Hinton et al. 2015, arXiv:1503.02531, section 2).
        temperature: T, by which the logits of both sides are divided in the KL term, and only there.
        z_loss: weight of (log Σ exp logits)², which keeps logits from drifting (PaLM, arXiv:2204.02311, section 5).
        chunk: tokens of the whole batch, over all devices, whose logits exist at one time.
    """

    next_token: float = 0.0
    kl: float = 1.0
    temperature: float = 1.0
    z_loss: float = 0.0
    chunk: int = 512

    def __post_init__(self) -> None:
        for name in ("next_token", "kl", "z_loss"):
            if not getattr(self, name) >= 0:
                raise UserError(f"loss.{name} is {getattr(self, name)}; give a weight of 0 or more")
        if not self.next_token + self.kl > 0:
            raise UserError("loss.next_token and loss.kl are both 0; give at least one of them a weight")
        if not self.temperature > 0:
            raise UserError(f"loss.temperature is {self.temperature}; give a number above 0")
        if self.chunk < 1:
            raise UserError(f"loss.chunk is {self.chunk}; give at least 1 token")
