"""Text files as streams of bytes, decompressed as their names tell, with the faults of reading as one line."""

import bz2
import contextlib
import gzip
import io
import lzma
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

import pyarrow as arrow

from chopjax.data.formats import COMPRESSIONS, HEAD_BYTES, MAGIC_BYTES, compressed_as, name_of
from chopjax.errors import UserError

BUFFER = 1 << 20  # bytes of one read


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """Turns what goes wrong while a file is read into a line that names it.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: the compressed file is damaged or ends too early; copy it again") from error
    except OSError as error:
        reason = " ".join(str(error).split())  # pyarrow's have lines
        raise UserError(f"{path}: cannot be read ({reason}); repair or remove the file") from error


def open_bytes(path: pathlib.Path) -> IO[bytes]:
    """Opens a file for reading, decompressed if the name says that it is compressed.

    Raises:
        UserError: it is compressed and the name does not say so.
        OSError: it cannot be opened.
    """
    compression = name_of(path).compression
    file = cast(IO[bytes], io.BufferedReader(cast(io.RawIOBase, path.open("rb")), BUFFER))
    try:
        if compression:
            return cast(IO[bytes], io.BufferedReader(_Decompressed(file, compression), BUFFER))
        head = file.read(MAGIC_BYTES)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    if found := compressed_as(head):
        file.close()
        suffix = next(suffix for suffix, kind in COMPRESSIONS.items() if kind == found)
        raise UserError(f"{path}: holds {found} data, but its name does not end in {suffix}; rename it")
    return file


def read_head(path: pathlib.Path) -> tuple[bytes, bool]:
    """The first `HEAD_BYTES` bytes of a file, decompressed, and whether that is all of it.

    Raises:
        UserError: see `reading`.
    """
    with reading(path), open_bytes(path) as file:
        head = file.read(HEAD_BYTES + 1)
    return head[:HEAD_BYTES], len(head) <= HEAD_BYTES


OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    "gzip": gzip.open,
    "bz2": bz2.open,
    "xz": lzma.open,
    # pyarrow's codec reads a file of many frames to its end.
    "zstd": lambda file: arrow.CompressedInputStream(arrow.PythonFile(file, mode="r"), "zstd"),
}


class _Decompressed(io.RawIOBase):
    """A decompressed stream that closes the file below it too."""

    def __init__(self, file: IO[bytes], compression: str) -> None:
        self._stream, self._file = OPENERS[compression](file), file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return int(self._stream.readinto(buffer))

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._file.close()
        super().close()
