"""Folders that appear whole or not at all: written beside, synced, renamed."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from chopjax import files
from chopjax.errors import UserError


@contextlib.contextmanager
def written_whole(folder: pathlib.Path, replace: bool = True) -> Iterator[pathlib.Path]:
    """Yields an empty sibling folder to write into; when the block ends well it takes the place of `folder`.

    Everything is fsynced before the rename. If the block raises, the sibling is removed and `folder` stays as it was;
    if the process is killed, `folder` stays too, and the next writer clears the sibling away.

    Args:
        folder: what is to appear.
        replace: whether what lies there, unless it is an empty folder, may be replaced.

    Raises:
        UserError: another live process is writing the same folder; or it exists and is not to be replaced.
    """
    folder = pathlib.Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    sibling, old = folder.with_name(f".{folder.name}.writing"), folder.with_name(f".{folder.name}.old")
    sibling.mkdir(exist_ok=True)
    lock = os.open(sibling, os.O_RDONLY)
    try:
        _take(lock, folder)
        try:
            for entry in sibling.iterdir():
                files.remove(entry)
            if old.exists() and not folder.exists():  # killed between the two renames
                old.rename(folder)
            if not replace and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
                raise UserError(f"{folder}: exists already; name another folder, or remove it")
            yield sibling
            _sync(sibling)
            _put(sibling, folder, old)
        except BaseException:
            files.remove(sibling)
            raise
    finally:
        os.close(lock)


def _take(lock: int, folder: pathlib.Path) -> None:
    """Locks the sibling for as long as this process lives; a file system without locks is let pass."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{folder} is being written by another process; wait for it, or use another folder") from error
    except OSError:
        return


def _sync(folder: pathlib.Path) -> None:
    for parent, _, names in os.walk(folder):
        for path in [*(os.path.join(parent, name) for name in names), parent]:
            files.sync(path)


def _put(sibling: pathlib.Path, folder: pathlib.Path, old: pathlib.Path) -> None:
    """Renames over `folder`. A folder cannot be renamed over a full one, so the old one steps aside first."""
    files.remove(old)
    if folder.exists():
        folder.rename(old)
    sibling.rename(folder)
    files.sync(folder.parent)
    files.remove(old)
