"""The model card: what the model is made of, how, and how well it does, as README.md. Imports without jax."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from chopjax.models.config import ModelConfig
from chopjax.models.parameters import count


def model_card(
    source: str,
    config: ModelConfig,
    source_config: ModelConfig,
    plan: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
    losses: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The text of README.md.

    Args:
        source: path or hub id of the model that was chopped.
        config: the model described.
        source_config: the model that it was made of.
        plan: what was taken away, a line for each axis.
        training: how it was healed: `{"tokens": ..., "steps": ..., ...}`.
        losses: figures by name, as measured on held-out text.
        notes: what a user should know.
    """
    hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source)
    front = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [chopjax, pruned]"]
    front += [f"base_model: {source}"] if hub_id else []
    healed = " and training what remains" if training else ""
    rows = [
        ("parameters", f"{count(source_config):,}", f"{count(config):,}"),
        *((name, str(getattr(source_config, key)), str(getattr(config, key))) for name, key in _SIZES),
    ]
    parts = [
        "\n".join(["---", *front, "---"]),
        f"# A smaller {source.rstrip('/').rpartition('/')[2]}",
        f"Made from `{source}` with chopjax by removing parts of it{healed}. It is an ordinary checkpoint and needs no "
        "special code.",
        "\n".join(["| | source | this model |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]),
        _section("What was removed", [f"- {line}" for line in plan] or ["- nothing"]),
        _section("Training", [f"- {name}: {_figure(value)}" for name, value in (training or {}).items()]),
        _section("Measured", [f"- {name}: {_figure(value)}" for name, value in (losses or {}).items()]),
        _section("Notes", [f"- {note}" for note in notes]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_SIZES = (
    ("layers", "layers"),
    ("hidden size", "embed"),
    ("query heads", "q_heads"),
    ("key/value heads", "kv_heads"),
    ("MLP width", "mlp"),
    ("vocabulary", "vocab"),
)


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"## {title}", "", *lines]) if lines else ""


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
