"""Temporary names of what is not complete yet, and the removal of what killed processes left under such names.

All of them are hidden names in the folder of the final name:

.NAME.PID.tmp   a file that is being written
.NAME.writing   a folder that is being written
.NAME.old       a folder that is being replaced
.NAME.before    what a stage made earlier, until it has made NAME again

A process holds a lock (`flock`) on what it writes until it has been renamed. The lock ends with the process, also when
it is killed, and other hosts see it where storage is shared (NFS since Linux 2.6.12). So whatever can be locked was
left by a process that is gone. A process id would not say so: it belongs to one host or container, and is used again.
On storage without locks only files older than a day are removed.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import time
from collections.abc import Iterator

from chopjax import paths

DAY = 86400.0


def writing(folder: pathlib.Path) -> pathlib.Path:
    """The name under which a folder is written."""
    return folder.with_name(f".{folder.name}.writing")


def old(folder: pathlib.Path) -> pathlib.Path:
    """The name of a folder while another takes its place."""
    return folder.with_name(f".{folder.name}.old")


def before(path: pathlib.Path) -> pathlib.Path:
    """The name of what a stage made earlier, until the stage has ended well."""
    return path.with_name(f".{path.name}.before")


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty temporary file, which takes the place of `path` when the block ends well.

    Its content is on disk before the rename. What killed processes left of the same file is removed first.
    """
    clear(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    lock = -1
    try:
        lock = _opened(unfinished)
        yield unfinished
        os.fsync(lock)
        os.replace(unfinished, path)
    except BaseException:  # SIGTERM and Ctrl-C too
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    finally:
        if lock >= 0:
            os.close(lock)
    sync(path.parent)


def sync(path: str | os.PathLike[str]) -> None:
    """Makes a file's contents, or the names inside a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear(path: pathlib.Path) -> None:
    """Removes the temporary files of `path` that killed processes left."""
    clear_inside(path.parent, re.escape(path.name))


def clear_inside(folder: pathlib.Path, names: str) -> None:
    """Removes the temporary files in a folder that killed processes left, of files whose names match a pattern."""
    if paths.is_remote(folder) or not folder.is_dir():  # stores have no temporary names
        return
    for name in os.listdir(folder):
        if re.fullmatch(rf"\.({names})(\.\d+)?\.tmp", name) and not (folder / name).is_dir():
            _remove_abandoned(folder / name)


def _remove_abandoned(file: pathlib.Path) -> None:
    """Removes a file unless a live process writes it."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # gone by now, or not ours
        return
    try:
        if lock(descriptor, time.time() - os.fstat(descriptor).st_mtime > DAY):
            file.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def lock(descriptor: int, unknown: bool) -> bool:
    """Locks a file or folder until the descriptor is closed; False if another process holds it.

    Args:
        descriptor: of the file or folder.
        unknown: the answer on storage without locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return unknown
    return True


def _opened(file: pathlib.Path) -> int:
    """A descriptor of the empty file, made if need be, locked by this process."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if is_open(file, descriptor):
                os.ftruncate(descriptor, 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # removed or renamed between the opening and the lock


def is_open(path: pathlib.Path, descriptor: int) -> bool:
    """Whether a descriptor is of what has this name now."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
