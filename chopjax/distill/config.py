"""Which losses are summed. Apart from the losses themselves, so that a config is read without jax."""

import dataclasses
from typing import Literal

from chopjax import checks
from chopjax.errors import UserError

TEACHER_TERMS = ("kl", "reverse_kl", "jsd", "mse", "cosine", "wsl")
TERMS = ("next_token", "z_loss", *TEACHER_TERMS)


@dataclasses.dataclass(frozen=True)
class LossSchedule:
    """How a weight or the temperature changes in the course of training.

    Attributes:
        field: which, such as `kl` or `temperature`; it begins at the value that `loss` gives it.
        kind: the way from there to `final`: a straight line, half a cosine, or `constant`, at `final` from the start.
        final: the value at the end.
        steps: steps until then; 0 for all of the run.
    """

    field: str = ""
    kind: Literal["constant", "linear", "cosine"] = "linear"
    final: float = 0.0
    steps: int = 0

    def __post_init__(self) -> None:
        checks.choices(self, "loss.schedules")
        checks.at_least(self, "loss.schedules", 0, "final", "steps")
        if self.field not in (*TERMS, "temperature"):
            raise UserError(f"loss.schedules: {self.field!r} does not change; give temperature or {', '.join(TERMS)}")
        if self.field == "temperature" and not self.final > 0:
            raise UserError(f"loss.schedules: a temperature of {self.final}; give a number above 0")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Which losses are summed, and with what weight.

    p is the teacher's distribution and q the student's, both softened by `temperature`.

    Attributes:
        next_token: weight of the cross entropy with the next token.
        kl: weight of KL(p ‖ q).
        reverse_kl: weight of KL(q ‖ p).
        jsd: weight of the generalised Jensen-Shannon divergence, `jsd_beta` KL(p ‖ m) + (1 - `jsd_beta`) KL(q ‖ m)
            with m = `jsd_beta` p + (1 - `jsd_beta`) q.
        mse: weight of the squared distance of q and p; see `distance_of`.
        cosine: weight of 1 - cos(p, q); see `distance_of`.
        wsl: weight of weighted soft labels, KL(p ‖ q) times 1 - exp(-cross entropy of the student / of the teacher)
            (Zhou et al. 2021, arXiv:2102.00650).
        jsd_beta: β of `jsd`.
        distance_of: what `mse` and `cosine` compare. `probabilities`, as Minitron does: the squares are summed over the
            vocabulary; `logits`: they are averaged over it.
        temperature: T, by which the logits of both sides are divided in all terms with a teacher, and only there.
        scale_by_temperature: whether those terms are multiplied by T², which keeps the size of their gradients beside
            the others whatever T is (Hinton et al. 2015, arXiv:1503.02531, section 2).
        top_k: tokens of the teacher's distribution that `kl` and `wsl` tell apart; all others count as one. 0 for all.
        z_loss: weight of (log Σ exp logits)², which keeps logits from drifting (PaLM, arXiv:2204.02311, section 5).
        schedules: what changes in the course of training, as `({"field": "temperature", "final": 1.0},)`.
        chunk: tokens of the whole batch, over all devices, whose logits exist at one time.
    """

    next_token: float = 0.0
    kl: float = 1.0
    reverse_kl: float = 0.0
    jsd: float = 0.0
    mse: float = 0.0
    cosine: float = 0.0
    wsl: float = 0.0
    jsd_beta: float = 0.5
    distance_of: Literal["probabilities", "logits"] = "probabilities"
    temperature: float = 1.0
    scale_by_temperature: bool = True
    top_k: int = 0
    z_loss: float = 0.0
    schedules: tuple[LossSchedule, ...] = ()
    chunk: int = 512

    def __post_init__(self) -> None:
        checks.choices(self, "loss")
        for name in TERMS:
            if not getattr(self, name) >= 0:
                raise UserError(f"loss.{name} is {getattr(self, name)}; give a weight of 0 or more")
        if not self.active - {"z_loss"}:
            names = ", ".join(f"loss.{name}" for name in TERMS if name != "z_loss")
            raise UserError(f"{names} are all 0; give at least one of them a weight")
        if not self.temperature > 0:
            raise UserError(f"loss.temperature is {self.temperature}; give a number above 0")
        if not 0 < self.jsd_beta < 1:
            raise UserError(f"loss.jsd_beta is {self.jsd_beta}; give a number between 0 and 1, or use kl or reverse_kl")
        if len({schedule.field for schedule in self.schedules}) < len(self.schedules):
            raise UserError("loss.schedules names one field twice; give it one schedule")
        checks.at_least(self, "loss", 0, "top_k")
        if self.top_k and not self.active & {"kl", "wsl"}:
            raise UserError(
                f"loss.top_k is {self.top_k}, which loss.kl and loss.wsl alone go by, and both are 0; set it to 0 too"
            )
        if self.chunk < 1:
            raise UserError(f"loss.chunk is {self.chunk}; give at least 1 token")

    @classmethod
    def plain(cls, chunk: int) -> "LossConfig":
        """The loss on the next token alone."""
        return cls(next_token=1.0, kl=0.0, chunk=chunk)

    @property
    def active(self) -> frozenset[str]:
        """Terms that have a weight at some time."""
        begins = {name: getattr(self, name) for name in TERMS}
        begins |= {schedule.field: schedule.final for schedule in self.schedules if schedule.kind == "constant"}
        ends = {schedule.field: schedule.final for schedule in self.schedules}
        return frozenset(name for name in TERMS if begins[name] or ends.get(name))

    @property
    def teacher_terms(self) -> tuple[str, ...]:
        """Those of them that compare with a teacher."""
        return tuple(name for name in TEACHER_TERMS if name in self.active)

    @property
    def softened(self) -> bool:
        """Whether the temperature is ever other than 1."""
        finals = [schedule.final for schedule in self.schedules if schedule.field == "temperature"]
        return any(value != 1 for value in (self.temperature, *finals))
