"""Budgets as people write them: "4.5B", "16 GB", "half", "7.8e9..8.5e9"."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from chopjax.errors import UserError

_COUNT = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_WORDS = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_FLOPS = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}
_BYTES = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}

# Kind of quantity → unit in lower case → factor. GB is 10^9 bytes and GiB is 2^30.
UNITS: Mapping[str, Mapping[str, float]] = {
    "count": _COUNT | _WORDS,
    "flops": _COUNT | _FLOPS | {f"{unit}{word}": n for unit, n in _FLOPS.items() for word in ("flop", "flops")},
    "bytes": {"": 1, "b": 1, "bytes": 1} | _BYTES | {f"{unit}b": n for unit, n in _BYTES.items()},
    "milliseconds": {"": 1, "ms": 1, "s": 1e3, "us": 1e-3, "µs": 1e-3},
}
_EXAMPLES = {"count": "4.5B", "flops": "9 GFLOPs", "bytes": "16 GB", "milliseconds": "12 ms"}
_SHARES = {"half": 1 / 2, "third": 1 / 3, "a third": 1 / 3, "quarter": 1 / 4, "a quarter": 1 / 4}
_NUMBER = re.compile(r"(\d+(?:_\d+)*(?:\.\d*)?|\.\d+)(e[+-]?\d+)?\s*(.*)")


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a figure may be at most, and at least where a window was given.

    Attributes:
        high: the upper end, included.
        low: the lower end, included; None where none was given.
        share: whether both are shares of the source's own figure.
        said: the words in which it was given.
    """

    high: float
    low: float | None
    share: bool
    said: str


def quantity(value: Any, field: str = "quantity", kind: str = "count") -> float:
    """A number, or a text such as `"4.5B"`, `"16 GB"` or `"7_000_000"`, in the kind's base unit.

    Args:
        value: number or text.
        field: the field that it was given for, for the message.
        kind: a key of `UNITS`.

    Raises:
        UserError: not a positive finite number, or a unit that the kind does not have.
    """
    if isinstance(value, str):
        matched = _NUMBER.fullmatch(value.strip().lower())
        factor = UNITS[kind].get(matched[3]) if matched else None
        number = float(f"{matched[1]}{matched[2] or ''}") * factor if matched and factor else math.nan
    else:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and number > 0):
        raise UserError(
            f'{field} is {value!r}; give a positive number such as "{_EXAMPLES[kind]}", a share of the source such as '
            '"half" or "60%", or a window with two dots, LOW..HIGH'
        )
    return number


def budget(value: Any, field: str, kind: str = "count") -> Budget:
    """A quantity, a share of the source's (`"half"`, `"60%"`; a bare number up to 1, except of time), or a window.

    Raises:
        UserError: as in `quantity`; a window that ends before it begins, or has one end as a share.
    """
    low, dots, high = value.partition("..") if isinstance(value, str) else ("", "", value)
    (upper, share), said = _end(high if dots else value, field, kind), str(value).strip()
    if not dots:
        return Budget(upper, None, share, said)
    lower, also = _end(low, field, kind)
    if lower > upper or also != share:
        raise UserError(f"{field} is {value!r}; give a window as LOW..HIGH, both numbers or both shares of the source")
    return Budget(upper, lower, share, said)


def _end(value: Any, field: str, kind: str) -> tuple[float, bool]:
    """One end of a window, and whether it is a share."""
    text = value.strip().lower() if isinstance(value, str) else ""
    if text in _SHARES:
        return _SHARES[text], True
    if text.endswith("%"):
        return quantity(text[:-1].strip(), field, "count") / 100, True
    number = quantity(value, field, kind)
    bare = not text or text[-1].isdigit() or text[-1] == "."
    return number, bare and number <= 1 and kind != "milliseconds"
