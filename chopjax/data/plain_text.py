"""A plain text file as one document, or in pieces where it is too long to be held as one."""

import pathlib
from collections.abc import Iterator
from typing import IO

from chopjax.errors import UserError

LONGEST = 1 << 30  # bytes of one document; a longer file is read in pieces
PIECE = 16 << 20  # bytes of a piece, at most
BLOCK = 1 << 20  # bytes read at a time

Found = tuple[str, str]  # the document's place for messages, and its text


def plain_text(path: pathlib.Path, file: IO[bytes]) -> Iterator[Found]:
    """The text of a file; of a long one in pieces that end with a paragraph, else a line or a word.

    Raises:
        UserError: names the line with a byte that is not UTF-8, or a NUL.
    """
    data = bytearray()
    while len(data) <= LONGEST and (block := file.read(BLOCK)):
        data += block
    if len(data) <= LONGEST:
        yield str(path), _decoded(data, path, 1, 0)
        return
    number, line, start = 1, 1, 0
    while data:
        piece = data[: _end(data)]
        del data[: len(piece)]
        yield f"{path}, part {number}", _decoded(piece, path, line, start)
        number, line, start = number + 1, line + piece.count(b"\n"), start + len(piece)
        while len(data) <= PIECE and (block := file.read(BLOCK)):
            data += block


def _end(data: bytearray) -> int:
    """Where the first piece of `data` ends, never inside a character."""
    if len(data) <= PIECE:
        return len(data)
    for boundary in (b"\n\n", b"\n", b" "):
        if (place := data.rfind(boundary, PIECE // 2, PIECE)) >= 0:
            return place + len(boundary)
    # The bytes of a character after its first begin with the bits 10. There are three at most.
    return next((place for place in range(PIECE, PIECE - 4, -1) if data[place] & 0xC0 != 0x80), PIECE)


def _decoded(data: bytearray, path: pathlib.Path, line: int, start: int) -> str:
    try:
        text = data.decode("utf-8" if start else "utf-8-sig")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise UserError(f"{path}, line {line}: not UTF-8 (byte {start + error.start}); convert the file") from error
    if (place := text.find("\0")) >= 0:
        line += text.count("\n", 0, place)
        raise UserError(f"{path}, line {line}: holds a NUL character, so it is no plain text; leave it out")
    return text
