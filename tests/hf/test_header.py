"""Every damaged header that the safetensors library refuses is refused, and no tensor is read from elsewhere."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save

from chopjax.errors import UserError
from chopjax.hf.header import BITS
from chopjax.hf.safetensors import read_header

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(6, 12, dtype=np.float32).reshape(2, 3),
    "c": np.arange(4, dtype=np.float16),
    "empty": np.zeros((0, 5), np.float32),
}
WHOLE = save(ARRAYS, {"format": "pt"})
LENGTH = int.from_bytes(WHOLE[:8], "little")
DATA = WHOLE[8 + LENGTH :]


def fields(**changes: Any) -> dict[str, Any]:
    """The header of `ARRAYS` with changed fields; `a__dtype="I8"` sets the dtype of `a`."""
    header = json.loads(WHOLE[8 : 8 + LENGTH])
    for name, value in changes.items():
        tensor, _, field = name.partition("__")
        header[tensor][field] = value
    return header


def packed(header: Any, data: bytes = DATA) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def refusal(tmp_path: Path, content: bytes) -> str:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_header(file)
    return str(caught.value).removeprefix(f"{file}: ")


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    a, b = (fields()[name]["data_offsets"] for name in "ab")
    again = "; download it again"
    for header, data, message in (
        (fields(b__data_offsets=a), DATA, "tensor b overlaps the tensor before it"),
        (fields(b__data_offsets=[b[0] + 4, b[1] + 4]), DATA, "tensor b follows 4 bytes that belong to no tensor"),
        (fields(a__data_offsets=[24 * 9, 24 * 10]), DATA, "tensor b follows 24 bytes that belong to no tensor"),
        (fields(), DATA[:-1], f"truncated, {len(DATA) - 1} bytes of data instead of {len(DATA)}"),
        (fields(), DATA + b"12", "2 bytes follow the last tensor"),
        (fields(a__dtype="F64"), DATA, "tensor a has 24 bytes for shape (2, 3) of F64"),
        (fields(a__shape=[2**62, 2**62, 0]), DATA, f"tensor a has 24 bytes for shape ({2**62}, {2**62}, 0) of F32"),
        (fields(a__dtype="f32"), DATA, "tensor a is stored as f32, which is no dtype of safetensors"),
        (fields(a__shape=[2.0, 3]), DATA, "tensor a has a broken header entry"),
        (fields() | {"__metadata__": {"format": 1}}, DATA, "not a safetensors file"),
        (fields() | {"__metadata__": {"format": "\ud800"}}, DATA, "not a safetensors file"),
        (b" " + json.dumps(fields()).encode(), DATA, "not a safetensors file"),
        (b'{"a":0,' + json.dumps(fields()).encode()[1:], DATA, "not a safetensors file"),
        (b"[" * 100_000, DATA, "not a safetensors file"),
    ):
        assert refusal(tmp_path, packed(header, data)) == message + again
    long = "x" * 5000 + "\n"
    found = refusal(tmp_path, packed(fields() | {long: {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]}}))
    assert len(found) < 250 and "\n" not in found


def test_every_dtype_of_the_library(tmp_path: Path) -> None:
    for code, bits in BITS.items():
        header = {"a": {"dtype": code, "shape": [8], "data_offsets": [0, bits]}}
        (tmp_path / "x.safetensors").write_bytes(packed(header, bytes(bits)))
        with safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
            assert file.get_slice("a").get_dtype() == code
        assert read_header(tmp_path / "x.safetensors")["a"].code == code
    with pytest.raises(SafetensorError):
        deserialize(packed({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, b"1"))
    assert "tensor a has 1 bytes" in refusal(
        tmp_path, packed({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, b"1")
    )


def mutated(rng: random.Random) -> bytes:
    """One random fault of a kind that disks, networks and careless scripts make."""
    header = fields()
    tensor = header[rng.choice(list(ARRAYS))]
    number = rng.choice([-4, -1, 0, 1, 2, 4, 24, 48, 2**31, 2**63, 2**64, 2.0, True, None, "4"])
    kind = rng.randrange(8)
    if kind == 0:
        tensor["data_offsets"] = header[rng.choice(list(ARRAYS))]["data_offsets"]
    elif kind == 1:
        shift = rng.choice([-8, -4, 2, 4, 24])
        tensor["data_offsets"] = [place + shift for place in tensor["data_offsets"]]
    elif kind == 2:
        tensor["data_offsets"][rng.randrange(2)] = number
    elif kind == 3:
        tensor["shape"] = rng.choice([[number], [number, 0], [0, number, number], tensor["shape"] + [number]])
    elif kind == 4:
        tensor["dtype"] = rng.choice([*BITS, "f32", "", None, 3, ["F32"]])
    elif kind == 5:
        del tensor[rng.choice(list(tensor))]
    elif kind == 6:
        raw = bytearray(WHOLE)
        raw[rng.randrange(8 + LENGTH)] ^= 1 << rng.randrange(8)
        return bytes(raw)
    else:
        return WHOLE[: rng.randrange(len(WHOLE))] if rng.random() < 0.5 else WHOLE + bytes(rng.randrange(1, 9))
    return packed(header)


def test_random_damage_is_refused_wherever_the_library_refuses_it(tmp_path: Path) -> None:
    rng, file = random.Random(5), tmp_path / "x.safetensors"
    refused = 0
    for _ in range(600):
        content = mutated(rng)
        file.write_bytes(content)
        try:
            ours = read_header(file)
        except UserError:
            refused += 1
            continue
        theirs = dict(deserialize(content))  # raises where the library refuses
        assert ours.keys() == theirs.keys()
        for name, entry in ours.items():
            assert list(entry.shape) == theirs[name]["shape"] and entry.code == theirs[name]["dtype"]
            assert content[entry.offset : entry.offset + entry.nbytes] == bytes(theirs[name]["data"])
    assert 400 < refused < 600
