"""The header of a safetensors file, checked against its data as the safetensors library checks it.

Tensors must follow one another from the first byte of the data to the last: no gap, no overlap, nothing behind. Where
the library is lenient (a name given twice, space before the header) the file is refused: no writer makes such files.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chopjax.errors import UserError, short

# Bits of one element, for every dtype of the format.
BITS: Mapping[str, int] = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
MAX_BYTES = 100_000_000
_MAX_COUNT = 2**64 - 1  # sizes are unsigned 64-bit numbers in the library


@dataclasses.dataclass(frozen=True)
class Field:
    """What a header records of one tensor; `start` and `end` count from the first byte of the data."""

    code: str
    shape: tuple[int, ...]
    start: int
    end: int


def parse(file: Path, text: bytes, data_bytes: int) -> dict[str, Field]:
    """The tensors of a header, by name, in the header's order.

    Args:
        file: for messages.
        text: the header, without its length.
        data_bytes: bytes in the file after the header.

    Raises:
        UserError: the header is damaged, or does not describe the data.
    """
    fields = {name: _field(file, name, entry) for name, entry in _tensors(file, text).items()}
    end = 0
    for name, field in sorted(fields.items(), key=lambda item: (item[1].start, item[1].end)):
        if field.start != end:
            gap = f"follows {field.start - end} bytes that belong to no tensor"
            problem = "overlaps the tensor before it" if field.start < end else gap
            raise UserError(f"{file}: tensor {short(name)} {problem}; download it again")
        end = field.end
    if end > data_bytes:
        raise UserError(f"{file}: truncated, {data_bytes} bytes of data instead of {end}; download it again")
    if end < data_bytes:
        raise UserError(f"{file}: {data_bytes - end} bytes follow the last tensor; download it again")
    return fields


def _tensors(file: Path, text: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        if b"\\u" in text:
            json.dumps(parsed, ensure_ascii=False).encode()  # halves of surrogate pairs
        sound = text.startswith(b"{") and isinstance(parsed, dict) and _sound_metadata(parsed.pop("__metadata__", None))
    except (ValueError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{file}: not a safetensors file; download it again")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _sound_metadata(metadata: Any) -> bool:
    return metadata is None or (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    )


def _field(file: Path, name: str, entry: Any) -> Field:
    try:
        code, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = isinstance(code, str) and all(
            type(number) is int and 0 <= number <= _MAX_COUNT for number in (*shape, start, end)
        )
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise UserError(f"{file}: tensor {short(name)} has a broken header entry; download it again")
    if code not in BITS:
        raise UserError(
            f"{file}: tensor {short(name)} is stored as {short(code)}, which is no dtype of safetensors; "
            f"download it again"
        )
    count = 1
    for size in shape:
        count = min(count * size, _MAX_COUNT + 1)
    if count > _MAX_COUNT or (end - start) * 8 != count * BITS[code]:
        raise UserError(
            f"{file}: tensor {short(name)} has {end - start} bytes for shape {short(shape)} of {code}; "
            f"download it again"
        )
    return Field(code, shape, start, end)
