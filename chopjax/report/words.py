"""Numbers as a person reads them."""

import itertools
import math
from collections.abc import Iterable

ABSENT = "–"


def number(value: object) -> float:
    """`value` as a finite float, or NaN for anything else: None, text, NaN or an infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return found if math.isfinite(found) else math.nan


def significant(value: float, digits: int = 3) -> str:
    """`value` to so many significant digits, without an exponent between 0.001 and a million: 12.3, 0.0456, 1,230."""
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if not -4 <= magnitude < 6:
        return f"{value:.{digits - 1}e}"
    return f"{round(value, digits - 1 - magnitude):,.{max(digits - 1 - magnitude, 0)}f}"


def apart(values: Iterable[float], least: int = 3, most: int = 7) -> int:
    """Significant digits with which all these values read differently, where they do and `most` are enough."""
    known = set(values)
    for digits in range(least, most):
        if len({significant(value, digits) for value in known}) == len(known):
            return digits
    return most


def plain(value: float, digits: int = 3) -> str:
    """As `significant`, without zeros at the end of a fraction: 12.3, 0.5, 30."""
    text = significant(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def scaled(value: float, unit: str = "", prefixes: str = "kMBT") -> str:
    """`value` with a decimal prefix: `scaled(134_515_008)` is "135M", `scaled(2.7e8, "B", "kMGT")` is "270 MB"."""
    steps = 0
    # 999.5 would be shown as 1,000, so it is worth the next prefix.
    while abs(value) >= 999.5 and steps < len(prefixes):
        value, steps = value / 1000, steps + 1
    text = plain(value)
    prefix = prefixes[steps - 1] if steps else ""
    return f"{text} {prefix}{unit}" if unit else f"{text}{prefix}"


def percent(share: float) -> str:
    """A share as whole per cent; what is not quite all or not quite nothing is never shown as such."""
    if 0 < share < 0.01:
        return "<1 %"
    if 0.99 < share < 1:
        return ">99 %"
    return f"{share * 100:.0f} %"


def duration(seconds: float) -> str:
    """Seconds as "48 s", "7 min 12 s" or "3 h 20 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def ranges(indices: Iterable[int]) -> str:
    """Ascending integers as "0–11, 18, 20–29"; "none" if there are none."""
    runs = []
    for _, run in itertools.groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        members = [index for _, index in run]
        runs.append(str(members[0]) if len(members) == 1 else f"{members[0]}–{members[-1]}")
    return ", ".join(runs) or "none"
