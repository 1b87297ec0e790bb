"""Paths on a disk, or in an object store: `gs://bucket/folder` and the like.

A path on a disk is pathlib's, and nothing about it changes. A path in a store is epath's, which has the same methods
over fsspec (with gcsfs for `gs://`); it is typed as pathlib's too. What a store has otherwise is here: no folders, only
objects whose names share a beginning; no renames, only copies; an object that appears whole or not at all; reads of
ranges, each a request. Imports neither library until a store is named.
"""

import functools
import logging
import os
import pathlib
import posixpath
import shutil
import tempfile
import typing
from typing import Any

from chopjax.errors import UserError

# Scheme → what has to be installed for it.
SCHEMES = {"gs": "chopjax[gcs]", "s3": "s3fs", "az": "adlfs"}


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in an object store."""
    if isinstance(path, pathlib.PurePath):
        return not isinstance(path, pathlib.Path)
    return "://" in os.fspath(path)


def scheme(path: str | os.PathLike[str]) -> str:
    """`gs` of `gs://bucket`; empty for a path on a disk."""
    return str(path).partition("://")[0] if is_remote(path) else ""


def make(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path of either kind.

    Raises:
        UserError: its scheme is not known, or lacks a package.
    """
    if isinstance(path, pathlib.PurePath):
        return typing.cast(pathlib.Path, path)
    if not is_remote(path):
        return pathlib.Path(path)
    if scheme(path) not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise UserError(f"{path}: {scheme(path)}:// is not read; give a path on a disk, or one of {known}")
    _filesystem(scheme(path), os.fspath(path))
    from etils import epath

    return typing.cast(pathlib.Path, epath.Path(path))


def absolute(path: pathlib.Path) -> pathlib.Path:
    """The path, not relative to where the process happens to run."""
    return path if is_remote(path) else path.absolute()


def join(folder: pathlib.Path, name: str) -> pathlib.Path:
    """`folder / name`, where `name` may also be absolute or in a store."""
    if is_remote(name):
        return make(name)
    if not is_remote(folder) and name.startswith(".."):
        # `folder` may not be there yet, or be a link: the system would not find, or follow, the parent that is meant.
        return pathlib.Path(os.path.normpath(folder.absolute() / name))
    if not is_remote(folder):
        return folder / name
    return pathlib.Path(name) if os.path.isabs(name) else folder / name


def relative(path: pathlib.Path, folder: pathlib.Path) -> str:
    """The name that `join` makes `path` of again: relative to `folder` where that can be said."""
    if not is_remote(path) and not is_remote(folder):
        return os.path.relpath(path, folder)
    if is_remote(path) and path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    return str(absolute(path))


def shown(path: pathlib.Path) -> str:
    """The path for people, without `a/../b`."""
    return str(path) if is_remote(path) else os.path.normpath(path)


def size(file: pathlib.Path) -> int:
    """Bytes of a file.

    Raises:
        FileNotFoundError: there is none.
    """
    return typing.cast(Any, file.stat()).length if is_remote(file) else file.stat().st_size


def version(file: pathlib.Path) -> tuple[str, ...]:
    """Changes when the contents of a file do: size and time of the last write, in a store also the write's number.

    The inode is not part of it: file systems in user space, such as gcsfuse, renumber files that did not change.
    Empty where there is no such file.
    """
    try:
        if not is_remote(file):
            found = file.stat()
            return str(found.st_size), str(found.st_mtime_ns)
        filesystem, place = _at(file)
        info = filesystem.info(place)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return tuple(str(info.get(key)) for key in ("size", "generation", "etag", "ETag", "LastModified", "updated"))


def inside(folder: pathlib.Path, nested: bool = True) -> dict[str, int]:
    """The files in a folder, by name relative to it, with their sizes; of its sub-folders too if `nested`.

    In a store this is one listing.
    """
    if not is_remote(folder):
        found = folder.rglob("*") if nested else folder.iterdir()
        return {file.relative_to(folder).as_posix(): size(file) for file in found if file.is_file()}
    filesystem, place = _at(folder)
    listed = filesystem.find(place, detail=True, maxdepth=None if nested else 1)
    names = {posixpath.relpath(name, place): info for name, info in listed.items()}
    return {name: int(info["size"]) for name, info in sorted(names.items()) if info.get("type") == "file"}


def matching(pattern: str) -> list[pathlib.Path]:
    """The objects in a store whose names match a pattern with `*`, `?`, `[...]` or `**`."""
    make(pattern)
    filesystem, place = _at(pattern)
    return [make(f"{scheme(pattern)}://{name}") for name in sorted(filesystem.glob(place)) if filesystem.isfile(name)]


class Ranges:
    """Ranged reads of one object in a store; safe to use from several threads.

    Attributes:
        best: bytes that are worth one request.
    """

    best = 64 << 20

    def __init__(self, file: pathlib.Path) -> None:
        self._filesystem, self._place = _at(file)

    def read(self, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, fewer where the object ends."""
        try:
            return self._filesystem.cat_file(self._place, start=start, end=start + length) if length else b""
        except Exception as error:  # each store's client has its own kinds; this is HTTP's word for "it ends before"
            if str(getattr(error, "code", "")) == "416":
                return b""
            raise


def remove(path: pathlib.Path) -> None:
    """Removes a file, a link or a whole folder; nothing happens where there is none."""
    if is_remote(path):
        filesystem, place = _at(path)
        if found := filesystem.find(place):
            filesystem.rm(found)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def move(path: pathlib.Path, to: pathlib.Path) -> None:
    """Renames a file or folder to where nothing is; in a store copies its objects, then removes them."""
    if not is_remote(path):
        path.rename(to)
        return
    filesystem, place = _at(path)
    target = _at(to)[1]
    found = filesystem.find(place)
    for name in found:
        filesystem.cp_file(name, target + name[len(place) :])
    filesystem.rm(found)


def upload(file: pathlib.Path, to: pathlib.Path) -> None:
    """Puts a file of this machine into a store, where it appears whole."""
    filesystem, place = _at(to)
    filesystem.put_file(str(file), place)


def here(file: pathlib.Path) -> pathlib.Path:
    """A file of a store, as it is now, copied to this machine for as long as this process lives."""
    return folder_here(file.parent, [file.name]) / file.name


def folder_here(folder: pathlib.Path, names: list[str]) -> pathlib.Path:
    """Some files of a folder in a store, copied to a folder of this machine for as long as this process lives."""
    filesystem, place = _at(folder)
    target = pathlib.Path(tempfile.mkdtemp(dir=_scratch())) / folder.name
    target.mkdir()
    for name in names:
        (target / name).parent.mkdir(exist_ok=True)
        filesystem.get_file(f"{place}/{name}", str(target / name))
    return target


def for_array_record(file: pathlib.Path) -> str:
    """The name under which ArrayRecord opens a file: it reads disks and `gs://` by itself."""
    return str(file) if scheme(file) in ("", "gs") else str(here(file))


def reach(path: pathlib.Path, field: str) -> None:
    """Asks a store for something, so that missing permissions are said before any work.

    Raises:
        UserError: the store does not answer, or not this user.
    """
    if not is_remote(path):
        return
    client = logging.getLogger("gcsfs")
    before, client.disabled = client.disabled, True  # it would print a traceback before the one line
    try:
        path.exists()
    except Exception as error:  # each store's client has its own kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{field}: {path} cannot be reached ({reason}); see to the name and the credentials") from error
    finally:
        client.disabled = before


@functools.cache
def _scratch() -> pathlib.Path:
    # Kept by the cache, and removed when the process ends.
    holder = tempfile.TemporaryDirectory(prefix="chopjax-")
    _HELD.append(holder)
    return pathlib.Path(holder.name)


_HELD: list[Any] = []


def _at(path: str | os.PathLike[str]) -> tuple[Any, str]:
    """The file system of a path in a store, and the path's name there."""
    filesystem = _filesystem(scheme(path), str(path))
    return filesystem, filesystem._strip_protocol(str(path))


@functools.cache
def _opened(name: str) -> Any:
    import fsspec

    # Listings that are remembered would hide what other hosts write. This holds for epath's file systems too.
    fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem(name)


def _filesystem(name: str, path: str) -> Any:
    try:
        return _opened(name)
    except ImportError as error:
        raise UserError(f"{path}: {name}:// needs a package; pip install '{SCHEMES[name]}'") from error
