import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings

from chopjax.data.labels import next_token_labels
from chopjax.data.packing import Packer


def test_a_row_by_hand():
    tokens = jnp.array([[7, 8, 9, 4, 5, 0, 0]], jnp.int32)
    segments = jnp.array([[1, 1, 1, 2, 2, 0, 0]], jnp.int32)
    labels, weights = jax.jit(next_token_labels)(tokens, segments)
    np.testing.assert_array_equal(weights, [[1, 1, 0, 1, 0, 0, 0]])
    np.testing.assert_array_equal(labels[weights > 0], [8, 9, 5])
    assert labels.dtype == jnp.int32 and weights.dtype == jnp.float32


@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_one_prediction_less_than_tokens_in_each_segment(lengths):
    packer = Packer(5)
    rows = [row for size in lengths for row in packer.add(np.arange(1, size + 1, dtype=np.int32))]
    rows += list(packer.finish())
    tokens, segments = (np.stack(part) for part in zip(*rows, strict=True))
    labels, weights = next_token_labels(jnp.asarray(tokens), jnp.asarray(segments))
    assert float(weights.sum()) == sum((row > 0).sum() - row.max() for row in segments)
    # Tokens of a document count up by one, so each true label is its token plus one.
    np.testing.assert_array_equal(np.asarray(labels)[np.asarray(weights) > 0], tokens[np.asarray(weights) > 0] + 1)


def test_only_targets_are_predicted():
    tokens = jnp.array([[7, 8, 9, 4, 5, 6, 0], [1, 2, 3, 4, 5, 6, 7]], jnp.int32)
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1]], jnp.int32)
    # The first of a document is never predicted, target or not; nor is padding.
    targets = jnp.array([[1, 0, 1, 1, 1, 0, 1], [1, 1, 0, 0, 1, 1, 0]], bool)
    labels, weights = jax.jit(next_token_labels)(tokens, segments, targets)
    np.testing.assert_array_equal(weights, [[0, 1, 0, 1, 0, 0, 0], [1, 0, 0, 1, 1, 0, 0]])
    np.testing.assert_array_equal(labels[weights > 0], [9, 5, 2, 5, 6])
    plain = next_token_labels(tokens, segments)
    for ours, wanted in zip(next_token_labels(tokens, segments, jnp.ones_like(targets)), plain, strict=True):
        np.testing.assert_array_equal(ours, wanted)
