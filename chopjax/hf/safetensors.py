"""The safetensors container: headers, ranged reads and streamed writes, without jax or torch.

Layout: 8 bytes little-endian header length, a JSON header (`name → dtype, shape, data_offsets`), then the data.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np

from chopjax import paths
from chopjax.errors import UserError
from chopjax.hf import header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# Config name of a dtype, safetensors' name, numpy dtype.
_DTYPES = (
    ("float32", "F32", np.dtype(np.float32)),
    ("bfloat16", "BF16", np.dtype(ml_dtypes.bfloat16)),
    ("float16", "F16", np.dtype(np.float16)),
)
DTYPES: Mapping[str, np.dtype] = {name: dtype for name, _, dtype in _DTYPES}
_FROM_CODE = {code: dtype for _, code, dtype in _DTYPES}
_TO_CODE = {dtype: code for _, code, dtype in _DTYPES}

# Bits of the exponent, all of them set in NaN and in both infinities, and nowhere else.
_EXPONENT = {DTYPES["float32"]: 0x7F800000, DTYPES["bfloat16"]: 0x7F80, DTYPES["float16"]: 0x7C00}
_BLOCK = 4 * 2**20
_PAGE = 4096


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor in a file: name, dtype, shape, and its bytes' place in the file.

    `dtype` is None for a stored type that is not one of float32, bfloat16 or float16; `code` names it.
    """

    name: str
    code: str
    dtype: np.dtype | None
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


Source = int | paths.Ranges
"""What tensors are read from: the descriptor of an open file, or an object in a store."""


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Source]:
    """A file for `read_rows`."""
    if paths.is_remote(file):
        yield paths.Ranges(file)
    else:
        with open(file, "rb", buffering=0) as stream:
            yield stream.fileno()


def dtype_name(dtype: np.dtype) -> str:
    """`"bfloat16"` and the like, as config.json has it."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def all_finite(array: np.ndarray) -> bool:
    """Whether a float32, bfloat16 or float16 array holds neither NaN nor infinity."""
    mask = _EXPONENT[array.dtype]
    bits: Any = array.view(np.uint32 if array.dtype.itemsize == 4 else np.uint16)
    return not bool(np.any((bits & bits.dtype.type(mask)) == mask))


def read_header(file: Path) -> dict[str, Entry]:
    """Names, dtypes, shapes and byte ranges of a file, checked against the file's size.

    Raises:
        UserError: the file is missing, no regular file, truncated, damaged, or not safetensors.
    """
    if not paths.is_remote(file) and file.exists() and not file.is_file():
        raise UserError(f"{file}: not a file; download the checkpoint again")
    try:
        size = paths.size(file)
        with opened(file) as source:
            length = int.from_bytes(_read(source, 0, 8), "little")
            if size < 8 or not 0 < length <= header.MAX_BYTES:
                raise UserError(f"{file}: not a safetensors file; download it again")
            text = _read(source, 8, min(length, size - 8))
    except FileNotFoundError:
        raise UserError(f"{file}: missing; download the checkpoint again") from None
    if len(text) < length:
        raise UserError(f"{file}: truncated inside its header; download it again")
    return {
        name: Entry(
            name,
            field.code,
            _FROM_CODE.get(field.code),
            field.shape,
            file,
            8 + length + field.start,
            field.end - field.start,
        )
        for name, field in header.parse(file, text, size - 8 - length).items()
    }


def read_rows(
    source: Source, entry: Entry, rows: slice | None = None, columns: slice | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Some rows and columns of a tensor, as blocks of at most 4 MB (of a store 64) and at least one row.

    The tensor counts as a matrix of its first dimension by all others. Where the wanted part of a row is at least a
    page and at most half of it, only that part is read; of a store always whole rows, for each read is a request.

    Yields:
        The number of the block's first row, counted from the first wanted one, and the block `[rows, columns]`.
    """
    dtype = _known(entry)
    height = entry.shape[0] if entry.shape else 1
    width = math.prod(entry.shape[1:])
    first, last, _ = (rows or slice(None)).indices(height)
    left, right, _ = (columns or slice(None)).indices(width)
    row_bytes = width * dtype.itemsize
    part_bytes = (right - left) * dtype.itemsize
    local = isinstance(source, int)
    narrow = local and _PAGE <= part_bytes <= row_bytes // 2
    step = max(1, (_BLOCK if local else paths.Ranges.best) // max(1, part_bytes if narrow else row_bytes))
    for start in range(first, last, step):
        count = min(step, last - start)
        if narrow:
            block = np.empty((count, right - left), dtype)
            for row in range(count):
                _read_into(source, entry, (start + row) * row_bytes + left * dtype.itemsize, block[row])
        else:
            block = np.empty((count, width), dtype)
            _read_into(source, entry, start * row_bytes, block)
            block = block[:, left:right]
        yield start - first, block


def read_tensor(entry: Entry) -> np.ndarray:
    """A whole tensor.

    Raises:
        UserError: it is stored in a dtype that is not read.
    """
    array = np.empty(entry.shape, _known(entry))
    with opened(entry.file) as source:
        _read_into(source, entry, 0, array)
    return array


class Writer:
    """Writes one file tensor by tensor; the header, and so every size, is known before the first.

    Tensors are to be written in the order of `entries` after sorting by falling item size, which `order` gives:
    readers that map the file want every tensor aligned to its own item size.
    """

    def __init__(self, file: Path, specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> None:
        self.order = write_order(specs)
        fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in self.order:
            dtype, shape = specs[name]
            end = offset + math.prod(shape) * dtype.itemsize
            fields[name] = {"dtype": _TO_CODE[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(fields, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._specs = specs
        self._waiting = list(reversed(self.order))
        self._stream = open(file, "xb")  # noqa: SIM115 (closed by __exit__)
        self._stream.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, array: np.ndarray) -> None:
        """Appends the next tensor; it must be the next in `order`, with the dtype and shape that were announced."""
        if self._waiting.pop() != name or (array.dtype, array.shape) != self._specs[name]:
            raise ValueError(f"{name}: not the tensor that was announced here")
        self._stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stream:
            if kind is None:
                if self._waiting:
                    raise ValueError(f"{self._waiting[-1]} was announced and not written")
                self._stream.flush()
                os.fsync(self._stream.fileno())


def write_order(specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> Sequence[str]:
    """Names by falling item size, otherwise in the order given."""
    return sorted(specs, key=lambda name: -specs[name][0].itemsize)


def _known(entry: Entry) -> np.dtype:
    if entry.dtype is None:
        raise UserError(
            f"{entry.file}: tensor {entry.name} is stored as {entry.code}, which is not read; "
            f"convert the checkpoint to float32, bfloat16 or float16"
        )
    return entry.dtype


def _read(source: Source, start: int, length: int) -> bytes:
    return os.pread(source, length, start) if isinstance(source, int) else source.read(start, length)


def _read_into(source: Source, entry: Entry, offset: int, array: np.ndarray) -> None:
    view = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        start = entry.offset + offset + done
        # One system call moves at most 2 GB.
        if isinstance(source, int):
            count = os.preadv(source, [view[done:]], start)
        else:
            part = source.read(start, min(len(view) - done, paths.Ranges.best))
            count = len(part)
            view[done : done + count] = part
        if count == 0:
            raise UserError(f"{entry.file}: ended inside tensor {entry.name}; download it again")
        done += count
