"""Input files must not change while they are read: a result of two versions would be of neither.

Record the versions before the first read and compare them after the last one.
"""

import contextlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from chopjax import paths
from chopjax.errors import UserError

Version = tuple[str, ...]
"""Identifies the contents of a file, see `paths.version`; empty for a file that does not exist."""


_THREADS = 16


def versions(files: Iterable[pathlib.Path]) -> dict[pathlib.Path, Version]:
    """The version of each file at this moment."""
    return _at_once(list(files))


def refuse_changes(recorded: Mapping[pathlib.Path, Version]) -> None:
    """Compares files with their recorded versions.

    Raises:
        UserError: a file was changed, replaced or removed; names the first.
    """
    for file, version in _at_once(list(recorded)).items():
        if version != recorded[file]:
            raise UserError(f"{file}: changed while it was read; run again when no other process writes to it")


@contextlib.contextmanager
def unchanged(files: Iterable[pathlib.Path] | Mapping[pathlib.Path, Version]) -> Iterator[None]:
    """Refuses, when the block ends, files that changed within it; also where the block failed on bad input.

    Args:
        files: what the block reads; with their versions where they were recorded earlier.

    Raises:
        UserError: as `refuse_changes`.
    """
    recorded = files if isinstance(files, Mapping) else versions(files)
    try:
        yield
    except UserError:
        refuse_changes(recorded)
        raise
    refuse_changes(recorded)


def _at_once(files: list[pathlib.Path]) -> dict[pathlib.Path, Version]:
    # In a store each version is a request, and a checkpoint may have hundreds of files.
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(files, pool.map(paths.version, files), strict=True))
