"""The format of a text file, by its name and its first bytes."""

import codecs
import dataclasses
import json
import pathlib
import re

CUT = 16  # characters; nothing but a string that ends too early is found to be wrong so far before the end
HEAD_BYTES = 64 << 10  # bytes of a file that decide its format where the name does not

FORMATS = ("text", "jsonl", "json", "parquet", "arrayrecord")
READABLE = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrayrecord": "arrayrecord",
    ".array_record": "arrayrecord",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}
MAGIC = {
    rb"\x1f\x8b": "gzip",
    rb"BZh[1-9]1AY&SY": "bz2",
    rb"\xfd7zXZ\x00": "xz",
    rb"\x28\xb5\x2f\xfd": "zstd",
}
MAGIC_BYTES = 10

_AS_IT_IS = "or set format='text' to read the file as it is"
_TABLE = f"convert it to JSON lines or Parquet, {_AS_IT_IS}"
_MARKUP = f"extract its text into .txt files or JSON lines, {_AS_IT_IS}"
_DOCUMENT = "extract its text into .txt files or JSON lines, or leave it out with a glob"
_ARCHIVE = "unpack it, or leave it out with a glob"
_BINARY = "convert it to JSON lines or Parquet, or leave it out with a glob"
_MEDIA = "leave it out with a glob"

# What is refused by name, and how to fix it.
_ADVICE = {
    "csv tsv": _TABLE,
    "html htm xhtml xml svg": _MARKUP,
    "pdf ps doc docx ppt pptx xls xlsx odt ods odp epub mobi rtf djvu": _DOCUMENT,
    "zip tar tgz tbz2 txz 7z rar jar whl iso": _ARCHIVE,
    "arrow feather avro orc tfrecord lmdb sqlite sqlite3 db h5 hdf5 npy npz pkl pickle mat": _BINARY,
    "bin pt pth ckpt safetensors gguf onnx exe dll so dylib o a pyc class wasm png jpg jpeg gif bmp tif tiff webp ico "
    "mp3 wav flac ogg m4a mp4 avi mkv mov webm ttf otf woff woff2": _MEDIA,
}
REFUSED = {kind: advice for kinds, advice in _ADVICE.items() for kind in kinds.split()}

# What is refused or read as records by name, and can be read as plain text where the user says so.
AS_TEXT = {"text", "json", "jsonl"} | {kind for kind, advice in REFUSED.items() if advice in (_TABLE, _MARKUP)}


@dataclasses.dataclass(frozen=True)
class Name:
    """What a file's name tells.

    Attributes:
        suffix: the last suffix in lower case, that of compression aside; "" for none.
        compression: `gzip`, `bz2`, `xz`, `zstd` or "".
    """

    suffix: str
    compression: str

    @property
    def format(self) -> str:
        """The format that the suffix stands for; "" where the contents decide."""
        return READABLE.get(self.suffix, "")

    @property
    def refused(self) -> str:
        """Why a file of this name is not read and how to fix it; "" where it may be read."""
        kind = self.suffix.removeprefix(".")
        if self.compression and self.suffix in COMPRESSIONS:
            return "it is compressed twice; decompress it once"
        if self.compression and self.format in ("parquet", "arrayrecord"):
            return f"a compressed {self.format} file is not read; decompress it"
        return f"{kind.upper()} files are not read; {REFUSED[kind]}" if kind in REFUSED else ""


def name_of(path: pathlib.PurePath) -> Name:
    """What the name of a file tells, in whatever case it is written."""
    name = pathlib.PurePosixPath(path.name.lower())
    compression = COMPRESSIONS.get(name.suffix, "")
    return Name(pathlib.PurePosixPath(name.stem).suffix if compression else name.suffix, compression)


def compressed_as(head: bytes) -> str:
    """The compression that a file's first bytes show; "" for none."""
    return next((kind for magic, kind in MAGIC.items() if re.match(magic, head)), "")


def format_of(head: bytes, whole: bool) -> str:
    """`text`, `jsonl` or `json` by a file's first bytes; "" for what cannot be text, since it holds NUL bytes.

    Other bytes that are not UTF-8 are left to the reader of text, which names their line.

    Args:
        head: the first `HEAD_BYTES` bytes, decompressed.
        whole: whether that is all of the file.
    """
    if b"\0" in head:
        return ""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head, final=whole)
    except UnicodeDecodeError:
        return "text"
    text = text.lstrip()
    first, _, rest = text.partition("\n")
    # One whole record decides, so that a damaged one further on is an error and does not make the file plain text.
    if (record := _value(first)) and isinstance(record, dict):
        return "jsonl"
    if record and isinstance(record, list) and isinstance(_value(rest.lstrip().partition("\n")[0]), list):
        return "jsonl"
    return "json" if text[:1] in ("{", "[") and _begins_json(text, whole) else "text"


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _begins_json(text: str, whole: bool) -> bool:
    """Whether `text` is JSON, or may be the beginning of it: its only fault is that it ends too early."""
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        # What is cut at the end is a string or, much shorter, a number, a name or an escape.
        at_end = error.pos >= len(text) - CUT or error.msg.startswith("Unterminated string")
        return not whole and at_end
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets nested without end
        return True
    return bool(value and isinstance(value, dict)) or not text[end:].strip()
