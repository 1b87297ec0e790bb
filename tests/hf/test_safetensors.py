"""Our container code against the safetensors library, and its ranged reads."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from chopjax.hf import safetensors
from chopjax.hf.safetensors import DTYPES, Writer, all_finite, read_header, read_rows, read_tensor

RANDOM = np.random.default_rng(3)
ARRAYS = {
    "matrix": RANDOM.normal(size=(7, 5)).astype(ml_dtypes.bfloat16),
    "half": RANDOM.normal(size=(3,)).astype(np.float16),
    "vector": RANDOM.normal(size=(11,)).astype(np.float32),
    "cube": RANDOM.normal(size=(2, 3, 5)).astype(np.float32),
    "scalar": np.array(2.5, np.float32),
}


def write(file: Path, arrays: dict[str, np.ndarray]) -> None:
    with Writer(file, {name: (array.dtype, array.shape) for name, array in arrays.items()}) as writer:
        for name in writer.order:
            writer.write(name, arrays[name])


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", ARRAYS)
    with safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        assert set(file.keys()) == set(ARRAYS)
        assert file.metadata() == {"format": "pt"}
        for name in ("half", "vector", "cube", "scalar"):
            assert np.array_equal(file.get_tensor(name), ARRAYS[name])
    for name, entry in read_header(tmp_path / "x.safetensors").items():
        # Readers that map the file need every tensor aligned to its item size.
        assert entry.dtype is not None
        assert entry.offset % entry.dtype.itemsize == 0
        assert np.array_equal(read_tensor(entry), ARRAYS[name])
        assert entry.dtype == ARRAYS[name].dtype


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    arrays = {name: array for name, array in ARRAYS.items() if array.dtype != ml_dtypes.bfloat16}
    save_file(arrays, tmp_path / "x.safetensors")
    for name, entry in read_header(tmp_path / "x.safetensors").items():
        assert np.array_equal(read_tensor(entry), arrays[name])


def test_writer_wants_what_was_announced(tmp_path: Path) -> None:
    specs = {"a": (np.dtype(np.float32), (2,)), "b": (np.dtype(np.float32), (2,))}
    with pytest.raises(ValueError, match="not the tensor"), Writer(tmp_path / "1", specs) as writer:
        writer.write("b", np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="not the tensor"), Writer(tmp_path / "2", specs) as writer:
        writer.write("a", np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="b was announced"), Writer(tmp_path / "3", specs) as writer:
        writer.write("a", np.zeros(2, np.float32))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), block=st.sampled_from([1, 300, 10_000]), page=st.sampled_from([1, 64, 10_000]))
def test_ranged_reads(data: st.DataObject, block: int, page: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    array = np.arange(13 * 37, dtype=np.float32).reshape(13, 37)
    file = tmp_path_factory.getbasetemp() / "ranged.safetensors"
    if not file.exists():
        write(file, {"first": np.zeros(3, np.float32), "array": array})
    rows = slice(*sorted(data.draw(st.tuples(st.integers(0, 13), st.integers(0, 13)))))
    columns = slice(*sorted(data.draw(st.tuples(st.integers(0, 37), st.integers(0, 37)))))
    with pytest.MonkeyPatch.context() as patch, open(file, "rb") as stream:
        patch.setattr(safetensors, "_BLOCK", block)
        patch.setattr(safetensors, "_PAGE", page)
        out = np.full((rows.stop - rows.start, columns.stop - columns.start), -1, np.float32)
        for first, part in read_rows(stream.fileno(), read_header(file)["array"], rows, columns):
            out[first : first + len(part)] = part
    assert np.array_equal(out, array[rows, columns])


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_all_finite(dtype: np.dtype) -> None:
    largest = float(ml_dtypes.finfo(dtype).max)
    array = np.array([[0.0, -0.0, 1e-7], [largest, -largest, 3.0]], dtype)
    assert all_finite(array)
    for value in (np.nan, np.inf, -np.inf):
        spoilt = array.copy()
        spoilt[1, 2] = value
        assert not all_finite(spoilt)
        assert all_finite(spoilt[:, :2])
