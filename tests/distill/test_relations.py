"""Divergence of relations against a dense float64 reference, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.distill.relations import relation_divergence

SEGMENTS = np.asarray([[1, 1, 1, 2, 2, 3, 3, 3, 3, 0, 0], [1] * 10 + [0]], np.int32)
RNG = np.random.default_rng(0)
STUDENT = RNG.normal(size=(2, 11, 3, 2, 4)).astype(np.float32)  # 24 wide: 6 relation heads of 4
TEACHER = RNG.normal(size=(2, 11, 3, 10)).astype(np.float32)  # 30 wide: 6 relation heads of 5
WEIGHTS = RNG.random((2, 11)).astype(np.float32)


def dense(student, teacher, heads: int):
    """All pairs of tokens at once, one head after the other."""
    later = np.arange(11)[:, None] < np.arange(11)[None]
    unseen = (SEGMENTS[:, :, None] != SEGMENTS[:, None, :]) | later[None]
    total = 0
    for head in range(heads):
        log_q, log_p = (
            jax.nn.log_softmax(jnp.where(unseen, -1e30, jnp.einsum("bid,bjd->bij", x, x) / np.sqrt(x.shape[-1])))
            for x in (side.reshape(2, 11, heads, -1)[:, :, head] for side in (student, teacher))
        )
        total += jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return total / heads


@pytest.fixture(scope="module")
def reference() -> tuple[np.ndarray, np.ndarray]:
    """Values and the gradient of their weighted sum, in float64."""
    with jax.enable_x64(True):
        student, teacher, weights = (jnp.asarray(x, jnp.float64) for x in (STUDENT, TEACHER, WEIGHTS))

        def loss(student):
            values = dense(student, teacher, 6)
            return jnp.sum(values * weights), values

        options = {"xla_backend_optimization_level": 0}
        gradient, values = jax.jit(jax.grad(loss, has_aux=True), compiler_options=options)(student)
        return np.asarray(values), np.asarray(gradient)


@pytest.mark.parametrize("block", [1, 4, 11, 128])
def test_equals_dense_reference(block: int, reference: tuple[np.ndarray, np.ndarray]) -> None:
    def loss(student):
        values = relation_divergence(student, jnp.asarray(TEACHER), jnp.asarray(SEGMENTS), 6, block)
        return jnp.sum(values * jnp.asarray(WEIGHTS)), values

    gradient, values = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(STUDENT))
    for got, wanted in zip((values, gradient), reference, strict=True):
        assert np.max(np.abs(np.asarray(got, np.float64) - wanted)) <= 1e-5 * np.max(np.abs(wanted))


def test_by_hand() -> None:
    # One head of width 1. The second token's scores are x1 x0 and x1 x1: 0 and 0 in the student, log 3 + 1 and 1 in the
    # teacher. The first token sees itself alone.
    student = jnp.asarray([[[0.0], [0.0]]])
    teacher = jnp.asarray([[[np.log(3.0) + 1.0], [1.0]]], jnp.float32)
    divergence = relation_divergence(student, teacher, jnp.ones((1, 2), jnp.int32), 1)
    wanted = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    np.testing.assert_allclose(divergence, [[0.0, wanted]], rtol=1e-6)


def test_a_segment_does_not_see_another() -> None:
    segments = jnp.asarray(SEGMENTS)
    before = relation_divergence(jnp.asarray(STUDENT), jnp.asarray(TEACHER), segments, 6, 4)
    changed = relation_divergence(jnp.asarray(STUDENT).at[0, 3:5].multiply(3.0), jnp.asarray(TEACHER), segments, 6, 4)
    differs = np.asarray(before != changed)
    assert differs[0, 3:5].any() and not differs[0, :3].any() and not differs[0, 5:].any() and not differs[1].any()


def test_no_array_of_all_pairs_of_tokens_is_made() -> None:
    length, heads = 512, 6

    def loss(x):
        return jnp.sum(relation_divergence(x, x + 1.0, jnp.ones((1, length), jnp.int32), heads, block=64))

    x = jax.ShapeDtypeStruct((1, length, heads, 4), jnp.float32)
    temporary = jax.jit(jax.grad(loss)).lower(x).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 4 * heads * length * length, temporary
