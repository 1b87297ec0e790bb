"""The families that can be read and written, by `model_type`."""

from collections.abc import Mapping
from typing import Any

from chopjax.errors import UserError, short
from chopjax.hf.families.llama import LLAMA
from chopjax.hf.families.mistral import MISTRAL
from chopjax.hf.families.nemotron import NEMOTRON
from chopjax.hf.families.qwen2 import QWEN2
from chopjax.hf.families.qwen3 import QWEN3
from chopjax.hf.families.table import Family, Rule, Tensor
from chopjax.models.config import ModelConfig

FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, NEMOTRON)}

__all__ = ["FAMILIES", "Family", "Rule", "Tensor", "family_of", "target_family"]


def family_of(raw: Mapping[str, Any]) -> Family:
    """The family of a config.json.

    Raises:
        UserError: the architecture is not supported; names it and those that are.
    """
    model_type = raw.get("model_type")
    architectures = raw.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise UserError(f"config.json: architectures is {architectures!r:.120}; it must be a list of names")
    family = FAMILIES.get(str(model_type))
    if family is not None and (not architectures or family.architecture in architectures):
        return family
    named = short(", ".join(architectures) or "no architecture")
    supported = ", ".join(f"{f.architecture} ({f.model_type})" for f in FAMILIES.values())
    raise UserError(f"config.json: unsupported model_type {model_type!r:.120} with {named}; supported: {supported}")


def target_family(family: Family, config: ModelConfig) -> tuple[Family, str | None]:
    """The family as which `config`, a chop of a member of `family`, can be loaded by stock transformers.

    Returns:
        The family, and a note for the user where it is not the one that went in or other runtimes may stumble.

    Raises:
        UserError: no stock class takes it; says why and the mend.
    """
    reason = family.misfit(config)
    if reason is None:
        odd = config.head_dim * config.q_heads != config.embed
        return family, family.head_dim_note if odd else None
    stand_in = FAMILIES.get(family.stand_in or "")
    if stand_in is None:
        raise UserError(f"stock transformers cannot load this as {family.architecture}: it {reason}")
    still = stand_in.misfit(config)
    if still is not None:
        raise UserError(
            f"stock transformers cannot load this as {family.architecture}: it {reason}; nor as "
            f"{stand_in.architecture}: it {still}; choose sizes that {family.architecture} takes"
        )
    note = f"exported as {stand_in.architecture} (same tensors, same logits), since {family.architecture} {reason}"
    return stand_in, note
