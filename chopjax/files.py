"""Files that appear whole or not at all, and digests of what lies on disk."""

import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from chopjax import paths, temporary
from chopjax.errors import UserError

# A file up to this size is read whole for its fingerprint; a bigger one is known by its size, head and tail. The head
# of a safetensors file holds every tensor's name, dtype, shape and place.
WHOLE_BYTES = 64 << 20
EDGE_BYTES = 1 << 20


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 file, as `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file atomically: temporary file, fsync, rename; in a store by one put. Parent folders are made.

    Raises:
        OSError: the disk or the store refuses it.
    """
    path = paths.make(path)
    if paths.is_remote(path):
        _put(path, content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.replacing(path) as place:
        place.write_bytes(content)


def _put(path: pathlib.Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except Exception as error:  # the clients of stores have kinds of their own, and no numbers
        reason = " ".join(str(error).split())[:200]
        number = (
            errno.EACCES if "orbidden" in reason or str(getattr(error, "code", "")) in ("401", "403") else errno.EIO
        )
        raise OSError(number, reason, str(path)) from error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes indented JSON atomically; `NaN` and infinities are refused, for no other reader takes them.

    Raises:
        ValueError: `value` holds a number that JSON has no word for.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_object(path: pathlib.Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file.

    Raises:
        UserError: the file holds something else.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object")
    return found


def digest(value: Mapping[str, Any]) -> str:
    """A content digest of JSON-able data: the same for every process, order of keys and run."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(path: str | os.PathLike[str], nested: bool = True) -> str:
    """A digest of a file, or of all files in a folder, by names, sizes and contents; of its sub-folders if `nested`.

    Times do not enter, so a copy has the same fingerprint. Of files above 64 MiB only the size and the first and last
    MiB are read. A path that does not exist has the fingerprint `"absent"`.
    """
    path = paths.make(path)
    if not path.exists():
        return "absent"
    if path.is_file():
        return _file_digest(path, paths.size(path))
    return digest({name: _file_digest(path / name, size) for name, size in paths.inside(path, nested).items()})


def _file_digest(path: pathlib.Path, size: int) -> str:
    hasher = hashlib.sha256(str(size).encode())
    if paths.is_remote(path):
        ranges = paths.Ranges(path)
        edges = [(0, size)] if size <= WHOLE_BYTES else [(0, EDGE_BYTES), (size - EDGE_BYTES, EDGE_BYTES)]
        for start, length in edges:
            hasher.update(ranges.read(start, length))
        return hasher.hexdigest()[:16]
    with open(path, "rb") as file:
        if size <= WHOLE_BYTES:
            while block := file.read(EDGE_BYTES):
                hasher.update(block)
        else:
            hasher.update(file.read(EDGE_BYTES))
            file.seek(-EDGE_BYTES, os.SEEK_END)
            hasher.update(file.read(EDGE_BYTES))
    return hasher.hexdigest()[:16]
