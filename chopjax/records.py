"""JSON files that chopjax wrote earlier, checked against a shape as they are read. Imports without jax.

A shape is a frozen dataclass. Its annotations are the types of the fields, and with `Annotated` their bounds. Anything
else than the shape is a `UserError` of one line: the file, the field, its value, what it should be, how to fix it.
"""

import collections.abc
import dataclasses
import json
import math
import pathlib
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from chopjax.errors import UserError

Shape = TypeVar("Shape")
MOST = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Within:
    """Bounds of a number, both included."""

    low: float
    high: float = MOST

    def __str__(self) -> str:
        return f" of {self.low} or more" if self.high == MOST else f" from {self.low} to {self.high}"


@dataclasses.dataclass(frozen=True)
class PlainName:
    """Marks the name of a file or folder inside a folder: no way out of it."""


Count = Annotated[int, Within(0)]
Positive = Annotated[int, Within(1)]
NotNegative = Annotated[float, Within(0)]
Name = Annotated[str, PlainName()]


def read_object(path: pathlib.Path, fix: str) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no such file.

    Args:
        path: the file.
        fix: what to do about a damaged file, the end of the message.

    Raises:
        UserError: it holds something else.
    """
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return parse_object(text, str(path), fix)


def parse_object(text: str | bytes, where: str, fix: str) -> dict[str, Any]:
    """The JSON object in a text.

    Raises:
        UserError: it holds something else.
    """
    value = parse(text, where, fix)
    if not isinstance(value, dict):
        raise UserError(f"{where}: not a JSON object; {fix}")
    return value


def parse(text: str | bytes, where: str, fix: str) -> Any:
    """The JSON value in a text of UTF-8; NaN and infinities, which JSON does not have, are refused.

    Raises:
        UserError: it is not JSON.
    """
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({_one_line(error)}); {fix}") from error


def check_format(body: dict[str, Any], newest: int, where: str, fix: str, prefix: str = "") -> None:
    """Takes the format out of an object, and refuses another than this version reads.

    Args:
        body: the object.
        newest: the newest format that is known.
        where: the file, for messages.
        fix: how to have it made again.
        prefix: the words before the number. A file without any format is of format 1 if there are none.

    Raises:
        UserError: a newer chopjax wrote it, or none.
    """
    value = body.pop("format", None if prefix else 1)
    found = None if prefix else value
    if prefix and isinstance(value, str) and (match := re.fullmatch(rf"{re.escape(prefix)} (\d{{1,9}})", value)):
        found = int(match[1])
    if type(found) is int and found > newest:
        raise UserError(
            f"{where}: written by a newer chopjax (format {found}, this one reads up to {newest}); "
            f"update chopjax, or {fix}"
        )
    if type(found) is not int or found < 1:
        wanted = f"{prefix} {newest}" if prefix else newest
        raise UserError(f"{where}: format is {_shown(value)}, not {wanted!r}; {fix}")


def shaped(value: Any, shape: type[Shape], where: str, fix: str, extra: bool = False) -> Shape:
    """A parsed JSON value as a shape: a dataclass, or any annotation that its fields may have.

    Args:
        value: the value.
        shape: `int`, `float`, `str`, `bool`, `Any`, `Literal`, a dataclass, and of these `X | None`, `Mapping[str, X]`,
            `tuple[X, ...]`, `Sequence[X]` and `Annotated[X, Within(...)]`.
        where: the file, for messages.
        fix: how to fix it, the end of the message.
        extra: whether objects may hold fields that their dataclass lacks.

    Raises:
        UserError: names the first field that does not fit.
    """
    return typing.cast(Shape, _Checked(where, fix, extra).value(value, shape, ""))


@dataclasses.dataclass(frozen=True)
class _Checked:
    where: str
    fix: str
    extra: bool

    def value(self, value: Any, hint: Any, place: str, bounds: str = "") -> Any:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is Annotated:
            return self._annotated(value, arguments[0], arguments[1], place)
        if origin in (typing.Union, types.UnionType):
            one = next(argument for argument in arguments if argument is not types.NoneType)
            return None if value is None else self.value(value, one, place)
        if origin is Literal:
            return value if value in arguments else self._refuse(value, place, f"one of {', '.join(arguments)}")
        if dataclasses.is_dataclass(hint):
            return self._object(value, typing.cast(type, hint), place)
        if origin is collections.abc.Mapping:
            return {name: self.value(item, arguments[1], f"{place}.{name}") for name, item in self._items(value, place)}
        if origin in (tuple, collections.abc.Sequence):
            items = value if isinstance(value, list) else self._refuse(value, place, "a list")
            return tuple(self.value(item, arguments[0], f"{place}[{index}]") for index, item in enumerate(items))
        return value if hint is Any else self._plain(value, hint, place, bounds)

    def _plain(self, value: Any, hint: type, place: str, bounds: str) -> Any:
        """A number, text, or true or false."""
        number = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST
        if hint is int:
            return value if number else self._refuse(value, place, f"a whole number{bounds}")
        if hint is float:
            number |= isinstance(value, float) and math.isfinite(value)
            return float(value) if number else self._refuse(value, place, f"a number{bounds}")
        if hint is bool:
            return value if isinstance(value, bool) else self._refuse(value, place, "true or false")
        return value if _is_text(value) else self._refuse(value, place, "text")

    def _annotated(self, value: Any, hint: Any, check: Within | PlainName, place: str) -> Any:
        found = self.value(value, hint, place, str(check) if isinstance(check, Within) else "")
        if isinstance(check, Within):
            kind = "a whole number" if hint is int else "a number"
            return found if check.low <= found <= check.high else self._refuse(value, place, f"{kind}{check}")
        plain = found not in ("", ".", "..") and not any(mark in found for mark in "/\\\0\n")
        return found if plain else self._refuse(value, place, "a plain name")

    def _object(self, value: Any, cls: type, place: str) -> Any:
        hints, items = typing.get_type_hints(cls, include_extras=True), dict(self._items(value, place))
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in items.keys() - fields.keys() if not self.extra else ():
            raise UserError(f"{self.where}: {_joined(f'{place}.{name}')} is not a known field; {self.fix}")
        for name, field in fields.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and name not in items:
                raise UserError(f"{self.where}: {_joined(f'{place}.{name}')} is missing; {self.fix}")
        known = {name: item for name, item in items.items() if name in fields}
        return cls(**{name: self.value(item, hints[name], f"{place}.{name}") for name, item in known.items()})

    def _items(self, value: Any, place: str) -> collections.abc.ItemsView[str, Any]:
        if not isinstance(value, dict):
            self._refuse(value, place, "an object")
        for name in value:
            if not _is_text(name):
                self._refuse(name, place, "a name")
        return value.items()

    def _refuse(self, value: Any, place: str, kind: str) -> NoReturn:
        raise UserError(f"{self.where}: {_joined(place) or 'it'} is {_shown(value)}, not {kind}; {self.fix}")


def _joined(place: str) -> str:
    """The place of a field in a file, such as `parts[0].rows.train`, in one line."""
    text = repr(place.removeprefix("."))[1:-1]
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_text(value: Any) -> bool:
    """Whether a value is text that a file can hold; JSON can also name halves of characters."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return "deeply nested"
    return text if len(text) <= 40 else f"{text[:37]}..."


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def with_defaults(record: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A record of config fields, completed by the defaults of fields that are newer than the record.

    An earlier version of chopjax did not know these fields and did what the defaults do. So a record that lacks them is
    of the same settings as long as they keep their defaults.

    Args:
        record: values by dotted name, as they were written.
        now: values of the same kind, as they would be written now.
        defaults: default of each field by its dotted name; under `NAME[]` those of the entries of a list of mappings.
    """
    missing = {name: defaults[name] for name in now if name not in record and name in defaults}
    return {name: _entries(value, defaults.get(f"{name}[]")) for name, value in record.items()} | missing


def _entries(value: Any, defaults: Mapping[str, Any] | None) -> Any:
    if defaults is None or not isinstance(value, list):
        return value
    return [{**defaults, **entry} if isinstance(entry, dict) else entry for entry in value]
