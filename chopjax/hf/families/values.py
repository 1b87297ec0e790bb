"""Numbers and switches out of config.json, checked one by one."""

import math
from collections.abc import Mapping
from typing import Any

from chopjax.errors import UserError, short

# Far above any model: what is larger is a mistake, and would cost minutes or memory before it shows.
LARGEST: Mapping[str, int] = {
    "num_hidden_layers": 10_000,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "vocab_size": 2**24,
}
_LARGEST_NUMBER = 2**31 - 1


def integer(values: Mapping[str, Any], key: str, least: int = 1) -> int:
    """A whole number out of config.json.

    Raises:
        UserError: it is something else, below `least` or above any size that a model has.
    """
    value = values.get(key)
    if type(value) is not int or value < least:
        kind = "a positive integer" if least == 1 else f"an integer from {least} on"
        raise UserError(f"config.json: {key} must be {kind}, found {short(value)}")
    largest = LARGEST.get(key, _LARGEST_NUMBER)
    if value > largest:
        raise UserError(f"config.json: {key} is {short(value)}, but no more than {largest} is supported")
    return value


def flag(values: Mapping[str, Any], key: str) -> bool:
    """True or false out of config.json; false where it is missing or null.

    Raises:
        UserError: it is something else, such as the text "false".
    """
    value = values.get(key)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"config.json: {key} must be true or false, found {value!r:.120}")
    return bool(value)


def positive(values: Mapping[str, Any], key: str, shown: str = "") -> float:
    """A number above 0 out of config.json.

    Args:
        shown: its name in the message; `key` if empty.

    Raises:
        UserError: it is something else.
    """
    value = values[key]
    try:
        found = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        found = math.nan
    if not 0 < found < math.inf:
        raise UserError(f"config.json: {shown or key} must be a number above 0, found {value!r:.120}")
    return found
