"""What chopjax wrote earlier, read and compared with what it would write now. Imports without jax."""

from collections.abc import Mapping
from typing import Any


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
