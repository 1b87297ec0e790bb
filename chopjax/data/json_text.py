"""Records of JSON files, one at a time: JSON lines, one list of objects, or objects one after the other."""

import codecs
import json
import pathlib
from collections.abc import Iterator
from typing import IO, Any

from chopjax.data.formats import CUT
from chopjax.errors import UserError

LONGEST = 128 << 20  # bytes or characters of one record; a longer one is taken for a damaged file
BLOCK = 1 << 20  # characters read at a time

Found = tuple[str, dict[str, Any]]  # the record's place for messages, and the record


def json_lines(path: pathlib.Path, file: IO[bytes]) -> Iterator[Found]:
    """The objects of a file with one on each line; empty lines are passed over.

    Raises:
        UserError: names the line that holds something else.
    """
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        where = f"{path}, line {number}"
        if len(line) > LONGEST:
            raise UserError(f"{where}: {_too_long()}")
        if line := line.strip():
            yield where, _line(line, where, number)


def _line(line: bytes, where: str, number: int) -> dict[str, Any]:
    hint = "; for a JSON list, or records of several lines, set format='json'" if number == 1 else ""
    try:
        return json_object(line, where)
    except UserError as error:
        raise UserError(f"{error}{hint if line[:1] in b'[{' else ''}") from error


def json_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object that `data` is.

    Raises:
        UserError: it is something else.
    """
    try:
        record = json.loads(data)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8; convert the file") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested without end
        raise UserError(f"{where}: not JSON that can be read ({error})") from error
    return _object(record, where)


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise UserError(f"{where}: {type(record).__name__} instead of a JSON object")
    return record


def json_records(path: pathlib.Path, file: IO[bytes]) -> Iterator[Found]:
    """The objects of a file that is one list of them, or holds one after the other, on however many lines.

    Raises:
        UserError: names the line where something else is.
    """
    text = _Text(path, file)
    inside = text.peek() == "["
    if inside:
        text.skip()
    count = 0
    while text.peek() not in ("", "]"):
        if inside and count:
            text.expect(",")
        count += 1
        where = f"{path}, line {text.line}, record {count}"
        yield where, _object(text.value(where), where)
    if inside:
        text.expect("]")
    if text.peek():
        raise UserError(f"{path}, line {text.line}: text follows the end of the JSON; remove it")


class _Text:
    """A window on a file's characters that moves forward."""

    def __init__(self, path: pathlib.Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._ended = "", 0, False
        self.line = 1

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._move(self._at + 1)
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read(BLOCK)

    def skip(self) -> None:
        """Passes over one character."""
        self._move(self._at + 1)

    def expect(self, character: str) -> None:
        """Passes over a character that has to be next."""
        if self.peek() != character:
            raise UserError(f"{self._path}, line {self.line}: not valid JSON (no {character!r} in the list)")
        self.skip()

    def value(self, where: str) -> Any:
        """The JSON value that begins here. More is read for as long as its only fault is that it ends too early."""
        self.peek()
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._text) - CUT or error.msg.startswith("Unterminated string")
                if self._ended or not cut:
                    line = self.line + self._text.count("\n", self._at, error.pos)
                    raise UserError(f"{self._path}, line {line}: not valid JSON ({error.msg})") from error
                if len(self._text) - self._at > LONGEST:
                    raise UserError(f"{where}: {_too_long()}") from error
                self._read(max(BLOCK, len(self._text) - self._at))  # twice as much, so that little is scanned again
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not JSON that can be read ({error})") from error
            else:
                self._move(end)
                return value

    def _move(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _read(self, count: int) -> None:
        block = self._file.read(count)
        self._ended = not block
        try:
            more = self._decoder.decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            raise UserError(f"{self._path}: not UTF-8 after line {self.line}; convert the file") from error
        self._text, self._at = self._text[self._at :] + more, 0


def _too_long() -> str:
    return f"a record of more than {LONGEST >> 20} MiB is not read; split it, or repair the file"
