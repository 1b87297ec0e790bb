"""Arrays in a safetensors file with a digest of each, so that no altered one is read."""

import hashlib
import json
import os
from collections.abc import Mapping

import numpy as np
import safetensors.numpy
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open

from chopjax import files, paths
from chopjax.errors import UserError, short

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]


def digests(arrays: Arrays, facts: object = None) -> dict[str, str]:
    """A digest of each array, and under the empty name that of JSON-able facts."""
    found = {"": _digest(json.dumps(facts, sort_keys=True).encode())}
    for name, array in arrays.items():
        found[name] = _digest(f"{array.dtype}{list(array.shape)}".encode(), np.ascontiguousarray(array).data)
    return found


def check(arrays: Arrays, kept: Mapping[str, str], facts: object = None) -> None:
    """Compares arrays and facts with their digests.

    Raises:
        ValueError: names the first that differs.
    """
    found = digests(arrays, facts)
    for name in sorted(found.keys() | kept.keys()):
        if found.get(name) != kept.get(name):
            raise ValueError(f"{name or 'its metadata'} is not what was saved")


def save(path: str | os.PathLike[str], arrays: Arrays) -> None:
    """Writes the arrays and their digests; the file appears whole or not at all."""
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    files.write_bytes(path, safetensors.numpy.save(plain, {"digests": json.dumps(digests(plain))}))


def load(path: str | os.PathLike[str], fix: str) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Reads what `save` wrote; a file of an earlier version has no digests.

    Args:
        path: the file.
        fix: how to get another, for the message.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        local = paths.here(paths.make(path)) if paths.is_remote(path) else path
        with safe_open(local, "numpy") as opened:
            kept = (opened.metadata() or {}).get("digests")
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if kept is not None:
            check(arrays, json.loads(kept))
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({short((str(error).splitlines() or [''])[0])}); {fix}") from error
    return arrays


def _digest(*parts: bytes | memoryview) -> str:
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(part)
    return found.hexdigest()
