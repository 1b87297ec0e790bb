"""Checks of a config's values, said with the dotted name under which a person sets the field."""

import dataclasses
import difflib
import typing
from collections.abc import Collection
from typing import Any

from chopjax.errors import UserError


def choices(config: Any, section: str) -> None:
    """Checks every field whose type is a `Literal` against what the `Literal` lists.

    Args:
        config: an instance of a dataclass.
        section: where its fields live in the ConfigDict, such as `"train"`.

    Raises:
        UserError: a value is not listed.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is not typing.Literal:
            continue
        value, known = getattr(config, name), typing.get_args(hint)
        if value not in known:
            raise UserError(f"{section}.{name} is {value!r}; choose one of {', '.join(map(repr, known))}")


def at_least(config: Any, section: str, low: float, *names: str) -> None:
    """Checks that each named field is a number not below `low`.

    Raises:
        UserError: one is below, or not a number at all.
    """
    for name in names:
        value = getattr(config, name)
        if not value >= low:  # also true of NaN
            raise UserError(f"{section}.{name} is {value}; give {low} or more")


def within(config: Any, section: str, low: float, high: float, *names: str) -> None:
    """Checks that each named field lies in `[low, high]`.

    Raises:
        UserError: one lies outside, or is not a number at all.
    """
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            raise UserError(f"{section}.{name} is {value}; give a value from {low} to {high}")


def fields(config: Any, section: str) -> dict[str, Any]:
    """The fields of a config as `{"section.name": value}`, those of a config inside it beside its own."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        flat |= fields(value, section) if dataclasses.is_dataclass(value) else {f"{section}.{alias(field)}": value}
    return flat


def alias(field: dataclasses.Field) -> str:
    """The name under which a person sets a field: its own, unless its metadata has an `alias`."""
    return field.metadata.get("alias", field.name)


def near(name: str, known: Collection[str], listed: Collection[str] = ()) -> str:
    """The mend of an unknown name: the nearest known one, or where none is near, those to list (all by default)."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f'did you mean "{close[0]}"?' if close else f"there are {', '.join(sorted(listed or known))}"
