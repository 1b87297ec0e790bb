"""How tokens are cut into chunks."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.distill.chunked import Chunking


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 50), st.integers(1, 6), st.sampled_from([1, 2, 3]), st.integers(1, 13))
def test_split_and_join(chunk: int, rows_of_shard: int, shards: int, length: int) -> None:
    batch = rows_of_shard * shards
    chunking = Chunking.make(chunk, (batch, length), shards)
    array = np.arange(1, batch * length * 2 + 1).reshape(batch, length, 2)
    chunks = np.asarray(chunking.split(jnp.asarray(array), lambda x, axes: x))
    assert chunks.shape[1] <= max(chunk, shards)
    np.testing.assert_array_equal(chunking.join(jnp.asarray(chunks), length), array)
    assert chunks.size - array.size == np.sum(chunks == 0)
    # Every chunk's tokens come in `shards` runs, each from one shard's own rows.
    rows = (chunks.reshape(len(chunks), shards, -1, 2)[..., 0] - 1) // (2 * length)
    for shard in range(shards):
        own = chunks.reshape(len(chunks), shards, -1, 2)[:, shard, :, 0] > 0
        assert set(rows[:, shard][own] // rows_of_shard) == {shard}


def test_padding_is_less_than_a_position_for_each_chunk() -> None:
    chunking = Chunking.make(512, (8, 1025), 8)
    assert (chunking.rows, chunking.length_chunks, chunking.positions) == (8, 17, 61)


def test_refuses_uneven_shards() -> None:
    with pytest.raises(ValueError, match="3 equal parts"):
        Chunking.make(8, (4, 4), 3)
