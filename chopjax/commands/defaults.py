"""The ConfigDict that recipes start from, made from the rooms' dataclasses, which hold the defaults."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from chopjax import checks
from chopjax.commands import settings


def default_config() -> config_dict.ConfigDict:
    """All fields with their defaults, locked: a recipe that sets a field that does not exist fails at that line.

    A recipe is `def get_config(arg=""): config = default_config(); config.train.steps = 200; return config`.
    """
    defaults = settings.Settings()
    nested: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(settings.Settings).items():
        value = getattr(defaults, name)
        if not dataclasses.is_dataclass(value):
            nested[name] = value
            continue
        section = settings.section_of(name)
        hints = typing.get_type_hints(hint)
        for dotted, default in checks.fields(value, section).items():
            field = dotted.rpartition(".")[2]
            nested.setdefault(section, {})[field] = _leaf(default, hints[field])
    return config_dict.ConfigDict(nested).lock()


def _leaf(default: Any, hint: Any) -> Any:
    """A default as a ConfigDict field that keeps its type, also where the default is None."""
    if default is None and typing.get_origin(hint) in (typing.Union, types.UnionType):
        kind = next(kind for kind in typing.get_args(hint) if kind is not type(None))
        return config_dict.placeholder(typing.get_origin(kind) or kind)
    if isinstance(default, Mapping) or dataclasses.is_dataclass(default):
        raise TypeError(f"{hint}: a section holds plain values only")
    return default
