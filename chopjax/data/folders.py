"""Folders that appear whole or not at all."""

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator

from chopjax.errors import UserError


@contextlib.contextmanager
def written_whole(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty sibling folder to write into; when the block ends well it takes the place of `folder`.

    Everything is fsynced before the rename. If the block raises, the sibling is removed and `folder` stays as it was;
    if the process is killed, `folder` stays too, and the next writer clears the sibling away.

    Raises:
        UserError: another live process is writing the same folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sibling = folder.parent / f".{folder.name}.writing"
    sibling.mkdir(exist_ok=True)
    lock = os.open(sibling, os.O_RDONLY)
    try:
        _take(lock, folder)
        _clear(sibling)
        try:
            yield sibling
            _sync(sibling)
            _replace(sibling, folder)
        except BaseException:
            shutil.rmtree(sibling, ignore_errors=True)
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


def _clear(folder: pathlib.Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync(folder: pathlib.Path) -> None:
    for parent, _, names in os.walk(folder):
        for path in [*(os.path.join(parent, name) for name in names), parent]:
            _sync_path(path)


def _sync_path(path: str | pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(sibling: pathlib.Path, folder: pathlib.Path) -> None:
    """Renames over `folder`. A folder cannot be renamed over a full one, so the old one steps aside first."""
    old = folder.parent / f".{folder.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    sibling.rename(folder)
    _sync_path(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
