"""Digests of arrays are the same on any mesh, and no flipped bit or moved block leaves one as it was."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from chopjax.train import digests

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "bool"]


def digest(array: Any) -> str:
    return digests.of_arrays({"x": array})["x"]


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_same_on_any_mesh(dtype: str) -> None:
    array = np.asarray(jax.random.randint(jax.random.key(0), (2, 8, 4), 0, 99).astype(dtype))
    placed = []
    for shape, spec in (((1, 1), ()), ((4, 2), (None, "a", "b")), ((2, 4), ("a", "b")), ((2, 4), (None, ("a", "b")))):
        mesh = jax.make_mesh(
            shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: shape[0] * shape[1]]
        )
        placed.append(jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec))))
    assert {digest(one) for one in placed} == {digest(array)}


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "bool"])
def test_every_flipped_bit_changes_both_halves(dtype: str) -> None:
    array = np.asarray(jax.random.normal(jax.random.key(1), (3, 5)).astype(dtype))
    before = digest(array)
    for place in range(array.nbytes):
        for bit in range(8):
            other = array.copy()
            bits(other).reshape(-1)[place] ^= 1 << bit
            after = digest(other)
            assert after[:8] != before[:8] and after[8:] != before[8:]


def test_what_is_moved_changes_it() -> None:
    array = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8)
    moved = [
        array[::-1],
        array[:, ::-1],
        array[..., ::-1],
        np.roll(array, 1),
        array.reshape(4, 8, 6),
        array[:2],
        -array,
    ]
    swapped = array.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert len({digest(one) for one in (array, *moved, swapped)}) == len(moved) + 2
    zeros = np.zeros((4, 6), np.float32)
    assert digest(zeros) != digest(-zeros) != digest(zeros.T)


def test_it_holds_no_copy_of_an_array() -> None:
    array = jax.ShapeDtypeStruct((256, 1024), jnp.float32)
    memory = jax.jit(lambda array: digests.of_traced([array])).lower(array).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4096


def test_json_is_digested_by_its_content() -> None:
    assert digests.of_json({"a": 1, "b": [2.5, None]}) == digests.of_json({"b": [2.5, None], "a": 1})
    assert digests.of_json({"a": 1}) != digests.of_json({"a": 3})
