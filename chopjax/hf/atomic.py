"""Folders that appear whole or not at all: written beside, fsynced, renamed."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from chopjax.errors import UserError


@contextlib.contextmanager
def new_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """Gives an empty sibling folder to write into, and renames it to `folder` when the block ends well.

    If the block raises, or the process dies, `folder` is as it was. What a killed process left behind is removed, or
    put back, by the next call.

    Args:
        replace: whether an existing folder is replaced. The old one is kept aside until the new one is in place.

    Raises:
        UserError: `folder` exists and is not to be replaced.
    """
    folder = Path(os.path.abspath(folder))
    recover(folder)
    if folder.exists() and not replace and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: exists already; name another folder, or remove it")
    partial = _beside(folder, "partial", os.getpid())
    partial.mkdir(parents=True)
    try:
        yield partial
        _sync(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    old = _beside(folder, "old", os.getpid())
    if folder.exists():
        os.rename(folder, old)
    os.rename(partial, folder)
    _sync_directory(folder.parent)
    if old.exists():
        _remove(old)


def recover(folder: Path) -> None:
    """Puts back what a killed process had set aside, and removes what it had half written beside `folder`."""
    folder = Path(os.path.abspath(folder))
    if not folder.parent.is_dir():
        return
    for old in sorted(folder.parent.glob(f".{_escaped(folder)}.old-*")):
        if not folder.exists():
            os.rename(old, folder)
        elif _is_stale(old):
            _remove(old)
    for partial in folder.parent.glob(f".{_escaped(folder)}.partial-*"):
        if _is_stale(partial):
            _remove(partial)


def _beside(folder: Path, what: str, process: int) -> Path:
    return folder.parent / f".{folder.name}.{what}-{process}"


def _escaped(folder: Path) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in folder.name)


def _is_stale(leftover: Path) -> bool:
    number = leftover.name.rpartition("-")[2]
    if not number.isdigit():
        return False
    if int(number) == os.getpid():
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
    _sync_directory(folder)


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
