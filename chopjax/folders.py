"""Folders that appear whole or not at all: written beside, synced, renamed.

A store has no renames. There a folder is written on this machine and its files are put one by one; it counts as whole
by the files that are put last, which are removed first where a folder is replaced.
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence

from chopjax import paths, temporary
from chopjax.errors import UserError


@contextlib.contextmanager
def written_whole(folder: pathlib.Path, replace: bool = True, last: Sequence[str] = ()) -> Iterator[pathlib.Path]:
    """Yields an empty sibling folder to write into; when the block ends well it takes the place of `folder`.

    Everything is fsynced before the rename. If the block raises, the sibling is removed and `folder` stays as it was;
    if the process is killed, `folder` stays too, and the next writer, or `clear`, removes the sibling.

    Args:
        folder: what is to appear.
        replace: whether what lies there, unless it is an empty folder, may be replaced.
        last: names of the files without which a reader does not take the folder for whole; in a store they come last.

    Raises:
        UserError: another live process is writing the same folder (which a store cannot tell); or it exists and is not
            to be replaced.
    """
    folder = paths.make(folder)
    if paths.is_remote(folder):
        with _put_whole(folder, replace, last) as staged:
            yield staged
        return
    folder = pathlib.Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _sibling(folder) as sibling:
        if sibling is None:
            raise _written_by_another(folder)
        if not replace and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UserError(f"{folder}: exists already; name another folder, or remove it")
        yield sibling
        _sync(sibling)
        _put(sibling, folder)


def clear(path: pathlib.Path) -> None:
    """Removes what killed processes left of a file or folder: temporary files, half a folder, a replaced folder.

    A folder whose replacement was cut off between the two renames comes back. What a live process writes is left.
    """
    if paths.is_remote(path):
        return
    temporary.clear(path)
    path = pathlib.Path(os.path.abspath(path))
    if temporary.writing(path).exists() or temporary.old(path).exists():
        with _sibling(path, unknown=False) as sibling:
            if sibling is not None:
                paths.remove(sibling)


@contextlib.contextmanager
def _sibling(folder: pathlib.Path, unknown: bool = True) -> Iterator[pathlib.Path | None]:
    """An empty locked folder next to `folder`, removed if the block raises; None if another process holds it.

    Args:
        folder: the final name.
        unknown: whether to go on where storage has no locks.
    """
    sibling, old = temporary.writing(folder), temporary.old(folder)
    sibling.mkdir(exist_ok=True)
    lock = os.open(sibling, os.O_RDONLY)
    try:
        if not temporary.lock(lock, unknown) or not temporary.is_open(sibling, lock):
            yield None
            return
        try:
            for entry in sibling.iterdir():
                paths.remove(entry)
            if old.exists() and not folder.exists():  # killed between the two renames
                old.rename(folder)
            paths.remove(old)
            yield sibling
        except BaseException:
            paths.remove(sibling)
            raise
    finally:
        os.close(lock)


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out of a folder while the block goes on, if they ask likewise.

    Raises:
        UserError: another live process holds it.
    """
    lock = os.open(folder, os.O_RDONLY)
    try:
        if not temporary.lock(lock, True):
            raise _written_by_another(folder)
        yield
    finally:
        os.close(lock)


def _written_by_another(folder: pathlib.Path) -> UserError:
    return UserError(f"{folder} is being written by another process; wait for it, or use another folder")


def _sync(folder: pathlib.Path) -> None:
    for parent, _, names in os.walk(folder):
        for path in [*(os.path.join(parent, name) for name in names), parent]:
            temporary.sync(path)


def _put(sibling: pathlib.Path, folder: pathlib.Path) -> None:
    """Renames over `folder`. A folder cannot be renamed over a full one, so the old one steps aside first."""
    old = temporary.old(folder)
    if folder.exists():
        folder.rename(old)
    try:
        sibling.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    temporary.sync(folder.parent)
    paths.remove(old)


@contextlib.contextmanager
def _put_whole(folder: pathlib.Path, replace: bool, last: Sequence[str]) -> Iterator[pathlib.Path]:
    """`written_whole` for a store."""
    if not replace and paths.inside(folder):
        raise UserError(f"{folder}: exists already; name another folder, or remove it")
    with tempfile.TemporaryDirectory(prefix="chopjax-") as name:
        staged = pathlib.Path(name)
        _BOUND[staged] = bound = _Bound(folder, last)
        try:
            yield staged
            bound.finish(staged)
        except BaseException:
            bound.withdraw()
            raise
        finally:
            del _BOUND[staged]


class _Bound:
    """A folder of this machine on its way into a store."""

    def __init__(self, folder: pathlib.Path, last: Sequence[str]) -> None:
        self._folder, self._last, self._sent = folder, last, set[str]()

    def send(self, file: pathlib.Path, name: str) -> None:
        """Puts one file; before the first, what made an earlier folder whole goes."""
        if not self._sent:
            self._remove({old for old in paths.inside(self._folder) if self._is_last(old)})
        self._sent.add(name)
        paths.upload(file, self._folder / name)

    def finish(self, staged: pathlib.Path) -> None:
        """Puts what was not sent yet, removes what an earlier folder had besides, and then puts what comes last."""
        made = paths.inside(staged)
        for name in made:
            if not self._is_last(name):
                self.send(staged / name, name)
        self._remove(paths.inside(self._folder).keys() - self._sent)
        for name in made:
            if self._is_last(name):
                self.send(staged / name, name)

    def withdraw(self) -> None:
        """Takes away what was put; where nothing was, the earlier folder stays as it is."""
        self._remove(self._sent)

    def _is_last(self, name: str) -> bool:
        return name.rpartition("/")[2] in self._last

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            paths.remove(self._folder / name)


_BOUND: dict[pathlib.Path, _Bound] = {}


def sent(file: pathlib.Path) -> None:
    """Says that a file in the folder that `written_whole` gave is complete.

    Where that folder is bound for a store the file goes there at once, and its place on this machine is free again;
    elsewhere nothing happens.
    """
    for folder in file.parents if _BOUND else ():
        if folder in _BOUND:
            _BOUND[folder].send(file, file.relative_to(folder).as_posix())
            file.unlink()
