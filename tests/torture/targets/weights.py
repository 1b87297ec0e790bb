"""safetensors files and their index. What is accepted must be what the safetensors library reads."""

import copy
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torture import mutate
from torture.sandbox import Reader
from torture.targets.target import Draw, Target, json_bytes

Header = dict[str, Any]


def split(raw: bytes) -> tuple[Header, bytes]:
    """The header and the data of a file."""
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def join(header: bytes, data: bytes, length: int | None = None) -> bytes:
    """A file again."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def _overlap(draw: Draw, header: Header, data: bytes) -> bytes:
    one, other = _two(draw, header)
    header[one]["data_offsets"] = header[other]["data_offsets"]
    return join(json_bytes(header), data)


def _overlap_of_one_shape(draw: Draw, header: Header, data: bytes) -> bytes:
    one = draw.rng.choice(_names(header))
    alike = [name for name in _names(header) if header[name]["shape"] == header[one]["shape"] and name != one]
    header[one]["data_offsets"] = list(header[draw.rng.choice(alike or [one])]["data_offsets"])
    return join(json_bytes(header), data)


def _shift(draw: Draw, header: Header, data: bytes) -> bytes:
    one, by = draw.rng.choice(_names(header)), draw.rng.choice([-4, 4, 2, -8])
    header[one]["data_offsets"] = [offset + by for offset in header[one]["data_offsets"]]
    return join(json_bytes(header), data)


def _hole(draw: Draw, header: Header, data: bytes) -> bytes:
    one, end = draw.rng.choice(_names(header)), len(data) + 4096
    first, last = header[one]["data_offsets"]
    header[one]["data_offsets"] = [end - (last - first), end]
    return join(json_bytes(header), data + bytes(4096))


def _twice(draw: Draw, header: Header, data: bytes) -> bytes:
    one, other = _two(draw, header)
    again = json.dumps({one: header[draw.rng.choice([one, other])]})[1:-1]
    return join(("{" + again + "," + json.dumps(header)[1:]).encode(), data)


def _dtype(draw: Draw, header: Header, data: bytes) -> bytes:
    codes = ["F64", "BF16", "I8", "f32", "", "F16", "F8_E4M3", None, 3, ["F32"]]
    header[draw.rng.choice(_names(header))]["dtype"] = draw.rng.choice(codes)
    return join(json_bytes(header), data)


def _shape(draw: Draw, header: Header, data: bytes) -> bytes:
    one = header[draw.rng.choice(_names(header))]
    huge = [[2**62, 2**62], [2**63], [10**30], [0, 2**62], [2**31, 2**31], [1] * 10_000]
    one["shape"] = draw.rng.choice([*huge, [*one["shape"], 1], [float(size) for size in one["shape"]]])
    return join(json_bytes(header), data)


def _offsets(draw: Draw, header: Header, data: bytes) -> bytes:
    one = header[draw.rng.choice(_names(header))]
    as_floats = [float(offset) for offset in one["data_offsets"]]
    one["data_offsets"] = draw.rng.choice([[-4, 4], [0, -1], [-(10**30), 0], [4, 0], [0, 0], as_floats])
    one["shape"] = draw.rng.choice([one["shape"], [-1], [-2, -2], [0], [0, 36], []])
    return join(json_bytes(header), data)


def _length(draw: Draw, header: Header, data: bytes) -> bytes:
    text = json_bytes(header)
    lengths = [2**63, 2**64 - 1, 8 * 2**60, 10**8, 10**8 + 1, 0, 1, len(text) - 1, len(text) + 1, 99_999_999]
    return join(text, data, draw.rng.choice(lengths))


def _not_utf8(draw: Draw, header: Header, data: bytes) -> bytes:
    return join(json_bytes(header).replace(b"model", b"mo\xffel", 1), data)


def _more_names(draw: Draw, header: Header, data: bytes) -> bytes:
    name = draw.rng.choice(["x", "../x", "\x00", "model.layers.99.mlp.up_proj.weight", "lm_head.weight"])
    header[name] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return join(json_bytes(header), data)


def _metadata(draw: Draw, header: Header, data: bytes) -> bytes:
    values: list[Any] = [{"a": 1}, [], "x", {"format": {"a": 1}}, None]
    header["__metadata__"] = draw.rng.choice(values)
    return join(json_bytes(header), data)


def _mutated(draw: Draw, header: Header, data: bytes) -> bytes:
    return join(mutate.json_bytes(draw.rng, mutate.json_value(draw.rng, header)), data)


def _header_bytes(draw: Draw, header: Header, data: bytes) -> bytes:
    return mutate.changed_bytes(draw.rng, join(json_bytes(header), b"")) + data


def _data_bytes(draw: Draw, header: Header, data: bytes) -> bytes:
    return join(json_bytes(header), mutate.changed_bytes(draw.rng, data))


def _more_bytes(draw: Draw, header: Header, data: bytes) -> bytes:
    return join(json_bytes(header), data + draw.rng.randbytes(100))


DAMAGE: Mapping[str, Callable[[Draw, Header, bytes], bytes]] = {
    "two tensors share bytes": _overlap,
    "two tensors of one shape share bytes": _overlap_of_one_shape,
    "shifted offsets": _shift,
    "bytes of no tensor": _hole,
    "a name twice": _twice,
    "another dtype": _dtype,
    "another shape": _shape,
    "other offsets": _offsets,
    "another header length": _length,
    "a header that is not UTF-8": _not_utf8,
    "one more name": _more_names,
    "other metadata": _metadata,
    "a changed header": _mutated,
    "more changes of the header": _mutated,
    "changed bytes of the header": _header_bytes,
    "changed bytes of the data": _data_bytes,
    "bytes after the end": _more_bytes,
}


def safetensors_header(draw: Draw) -> Reader:
    model = draw.model()
    file = model / "model.safetensors"
    header, data = split(file.read_bytes())
    raw = DAMAGE[draw.kind](draw, copy.deepcopy(header), data)
    file.write_bytes(raw)

    def read() -> str:
        from safetensors.numpy import load

        arrays = _tensors(model)
        try:
            stock = load(raw)
        except Exception as error:
            return f"accepted, but the safetensors library refuses it ({str(error)[:100]})"
        return _differing(arrays, {name: stock[name] for name in arrays if name in stock})

    return read


def safetensors_index(draw: Draw) -> Reader:
    model, shard = draw.model(), "model-00001-of-00001.safetensors"
    (model / "model.safetensors").rename(model / shard)
    header, data = split((model / shard).read_bytes())
    place: dict[str, Any] = dict.fromkeys(_names(header), shard)
    one, index = draw.rng.choice(_names(header)), model / "model.safetensors.index.json"
    whole: dict[str, Any] = {"metadata": {"total_size": len(data)}, "weight_map": place}
    match draw.kind:
        case "a shard elsewhere":
            shutil.copyfile(model / shard, draw.folder / "elsewhere.safetensors")
            names = ["../elsewhere.safetensors", str(draw.folder / "elsewhere.safetensors"), "..", ".", f"a/../{shard}"]
            place[one] = draw.rng.choice(names)
        case "no such shard":
            place[one] = "gone.safetensors"
        case "a name that is no file name":
            place[one] = draw.rng.choice(["a\x00b", "\ud800", "x" * 5000, "..\\x", "", "/dev/zero"])
        case "a shard that is no file":
            place[one] = "x.safetensors"
            _no_file(draw, model / "x.safetensors")
        case "a shard that links elsewhere":
            (model / shard).unlink()
            (model / shard).symlink_to("/etc/passwd")
        case "a tensor in two shards":
            shutil.copyfile(model / shard, model / "model-2.safetensors")
            place[one] = "model-2.safetensors"
        case "no map":
            maps: list[Any] = [[], None, "x", {}, {one: None}, {one: 1}, [[one, "x"]]]
            whole["weight_map"] = draw.rng.choice(maps)
        case "nested too deep":
            index.write_text('{"weight_map":' + "[" * 100_000)
    if draw.kind == "changed":
        index.write_bytes(mutate.json_bytes(draw.rng, mutate.json_value(draw.rng, whole)))
    elif not index.exists():
        index.write_bytes(json_bytes(whole))

    def read() -> str:
        from safetensors.numpy import load_file

        return _differing(_tensors(model), load_file(draw.bench.place.source / "model.safetensors"))

    return read


def _no_file(draw: Draw, path: pathlib.Path) -> None:
    make: list[Callable[[], Any]] = [path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to(path.name)]
    draw.rng.choice(make)()


def _tensors(model: pathlib.Path) -> dict[str, np.ndarray]:
    from chopjax.hf import safetensors
    from chopjax.hf.checkpoint import open_checkpoint

    return {name: safetensors.read_tensor(entry) for name, entry in open_checkpoint(model).tensors.items()}


def _differing(arrays: Mapping[str, np.ndarray], stock: Mapping[str, np.ndarray]) -> str:
    """The tensors that differ, bit for bit."""
    names = [name for name in arrays if name not in stock or arrays[name].tobytes() != stock[name].tobytes()]
    return f"{len(names)} tensors differ from what is stored, {names[0]} first" if names else ""


def _names(header: Header) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def _two(draw: Draw, header: Header) -> list[str]:
    return draw.rng.sample(_names(header), 2)


INDEX_KINDS = (
    *("a shard elsewhere", "no such shard", "a name that is no file name", "a shard that is no file"),
    *("a shard that links elsewhere", "a tensor in two shards", "no map", "nested too deep", "changed", "changed"),
)
TARGETS = (
    Target("safetensors_header", safetensors_header, list(DAMAGE)),
    Target("safetensors_index", safetensors_index, INDEX_KINDS),
)
