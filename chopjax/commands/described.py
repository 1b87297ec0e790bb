"""What a run trains with, in words for the model card. Imports without jax."""

from typing import Any

from chopjax.commands.settings import Settings
from chopjax.distill.config import TERMS, LossConfig

LOGITS = {
    "next_token": "next-token loss",
    "z_loss": "z-loss",
    "kl": "KL to the teacher",
    "reverse_kl": "reverse KL to the teacher",
    "jsd": "Jensen-Shannon divergence from the teacher (beta {beta:g})",
    "mse": "squared distance from the teacher's {compared}",
    "cosine": "cosine distance from the teacher's {compared}",
    "wsl": "weighted soft labels",
}
ACTIVATIONS = {
    "block_output": "block outputs ({distance})",
    "mlp_input": "MLP inputs ({distance})",
    "heads": "heads ({distance})",
    "relation": "attention relations (KL)",
    "embedding": "embedding outputs ({distance})",
    "embedding_table": "embedding tables (squared)",
}


def training(settings: Settings, steps: int, length: int) -> dict[str, Any]:
    """How a student was trained: every loss that had a weight, the teacher, and what it learnt from.

    Args:
        settings: of the run.
        steps: steps done.
        length: tokens of a row.
    """
    loss, hidden = settings.loss, settings.hidden
    compared = bool(loss.teacher_terms or hidden.terms)
    found = {
        "steps": steps,
        "tokens": steps * settings.train.batch * length,
        "loss": " + ".join([*_logits(loss), *_activations(settings)]),
        "temperature": _value(loss, "temperature") if loss.teacher_terms and loss.softened else "",
        "teacher": _teacher(settings) if compared else "none",
        "on-policy": f"{settings.on_policy.share:.0%} of the batches" if settings.on_policy.share else "",
        "learning rate": settings.optimizer.schedule.learning_rate,
    }
    return {name: value for name, value in found.items() if value != ""}


def _logits(loss: LossConfig) -> list[str]:
    words = {"beta": loss.jsd_beta, "compared": loss.distance_of}
    return [f"{_value(loss, name)} · {LOGITS[name].format(**words)}" for name in TERMS if name in loss.active]


def _activations(settings: Settings) -> list[str]:
    hidden = settings.hidden
    distance = hidden.distance.replace("_", " ")
    terms = [f"{getattr(hidden, name):g} · {ACTIVATIONS[name].format(distance=distance)}" for name in hidden.terms]
    return [f"alpha · ({' + '.join(terms)})"] if hidden.dynamic and terms else terms


def _value(loss: LossConfig, field: str) -> str:
    """A weight or the temperature, and what it becomes."""
    first = f"{getattr(loss, field):g}"
    for schedule in loss.schedules:
        if schedule.field == field:
            return f"{schedule.final:g}" if schedule.kind == "constant" else f"({first} to {schedule.final:g})"
    return first


def _teacher(settings: Settings) -> str:
    name, correction, cache = settings.teacher or settings.source, settings.correction, settings.cache
    if cache.kind != "off":
        kept = f"the {cache.k} most probable tokens" if cache.kind == "top_k" else f"{cache.samples} random draws"
        return f"{name} ({kept} a position, cached)"
    if correction.mode == "before":
        return f"{name}, after {correction.steps:,} steps on the same text"
    return f"{name}, learning alongside" if correction.mode == "alongside" else name
