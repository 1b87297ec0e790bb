"""Input files must not change while they are read: a result of two versions would be of neither.

Record the versions before the first read and compare them after the last one.
"""

import contextlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping

from chopjax import paths
from chopjax.errors import UserError

Version = tuple[str, ...]
"""Identifies the contents of a file, see `paths.version`; empty for a file that does not exist."""


def versions(files: Iterable[pathlib.Path]) -> dict[pathlib.Path, Version]:
    """The version of each file at this moment."""
    return {file: paths.version(file) for file in files}


def refuse_changes(recorded: Mapping[pathlib.Path, Version]) -> None:
    """Compares files with their recorded versions.

    Raises:
        UserError: a file was changed, replaced or removed; names the first.
    """
    for file, version in recorded.items():
        if paths.version(file) != version:
            raise UserError(f"{file}: changed while it was read; run again when no other process writes to it")


@contextlib.contextmanager
def unchanged(files: Iterable[pathlib.Path]) -> Iterator[None]:
    """Refuses, when the block ends, files that changed within it; also where the block failed on bad input.

    Raises:
        UserError: as `refuse_changes`.
    """
    recorded = versions(files)
    try:
        yield
    except UserError:
        refuse_changes(recorded)
        raise
    refuse_changes(recorded)
