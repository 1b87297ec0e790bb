"""Values and gradients of the chunked loss against a dense float64 reference; memory of the compiled program."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.distill.losses import LossConfig, chunked_loss, token_losses
from chopjax.errors import UserError

RTOL = 1e-5
ALL = {"next_token": 0.7, "kl": 1.3, "z_loss": 1e-2}


def make(batch: int, length: int, vocab: int, teacher_vocab: int | None = None, embed: int = 7, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    teacher_embed = embed + 4

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "hidden": normal(batch, length, embed),
        "unembed": normal(embed, vocab),
        "labels": rng.integers(0, min(vocab, teacher_vocab or vocab) // 2, (batch, length)).astype(np.int32),
        "weights": (rng.random((batch, length)) < 0.8).astype(np.float32),
        "teacher_hidden": normal(batch, length, teacher_embed),
        "teacher_unembed": normal(teacher_embed, teacher_vocab or vocab),
    }


def compiled(loss):
    """Values and gradients; unoptimised code compiles in half the time."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), compiler_options=options)


def dense(config: LossConfig, tokens: int, arrays: dict) -> tuple[float, dict, np.ndarray, np.ndarray]:
    """Total, parts and both gradients in float64, from whole logits and JAX's own differentiation."""

    def loss(hidden, unembed):
        logits = (hidden @ unembed)[..., :tokens]
        teacher = (arrays["teacher_hidden"] @ arrays["teacher_unembed"])[..., :tokens]
        log_q = jax.nn.log_softmax(logits)
        nll = -jnp.take_along_axis(log_q, arrays["labels"][..., None], axis=-1)[..., 0]
        log_p_soft = jax.nn.log_softmax(teacher / config.temperature)
        log_q_soft = jax.nn.log_softmax(logits / config.temperature)
        kl = config.temperature**2 * jnp.sum(jnp.exp(log_p_soft) * (log_p_soft - log_q_soft), -1)
        z_loss = jax.nn.logsumexp(logits, axis=-1) ** 2
        values = {"next_token": nll, "kl": kl, "z_loss": z_loss}
        parts = {name: jnp.sum(value * arrays["weights"]) for name, value in values.items()}
        return sum(getattr(config, name) * part for name, part in parts.items()), parts

    with jax.enable_x64(True):
        arrays = {k: jnp.asarray(v, jnp.float64 if v.dtype == np.float32 else v.dtype) for k, v in arrays.items()}
        (total, parts), gradients = compiled(loss)(arrays["hidden"], arrays["unembed"])
        return jax.tree.map(np.asarray, (total, parts, *gradients))


def chunked(config: LossConfig, arrays: dict, **options) -> tuple:
    rest = {k: v for k, v in arrays.items() if k not in ("hidden", "unembed")}

    def loss(hidden, unembed):
        return chunked_loss(config, hidden, unembed, **rest, **options)

    arrays = {k: jnp.asarray(v) for k, v in arrays.items()}
    (total, parts), gradients = compiled(loss)(arrays["hidden"], arrays["unembed"])
    return total, parts, *gradients


def assert_close(got, wanted) -> None:
    """Within RTOL of the reference's largest element."""
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert np.max(np.abs(np.asarray(g, np.float64) - w)) <= RTOL * np.max(np.abs(w))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("chunk", [1, 8, 1000])
def test_equals_dense_reference(chunk: int, temperature: float) -> None:
    config = LossConfig(**ALL, temperature=temperature, chunk=chunk)
    arrays = make(batch=3, length=11, vocab=53)
    assert_close(chunked(config, arrays), dense(config, 53, arrays))


@settings(max_examples=5, deadline=None)
@given(
    chunk=st.integers(1, 40),
    batch=st.integers(1, 6),
    length=st.integers(1, 9),
    terms=st.sampled_from([{"kl": 1.0}, {"kl": 0.0, "next_token": 1.0}, ALL]),
    vocabs=st.sampled_from([(17, 17, None), (17, 20, None), (23, 17, 15), (17, 17, 12)]),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_equals_dense_reference_everywhere(chunk, batch, length, terms, vocabs, temperature) -> None:
    student, teacher, tokens = vocabs
    config = LossConfig(**terms, temperature=temperature, chunk=chunk)
    arrays = make(batch, length, student, teacher)
    arrays["weights"][0, 0] = 0.5
    assert_close(chunked(config, arrays, vocab_tokens=tokens), dense(config, tokens or min(student, teacher), arrays))


@pytest.mark.parametrize("shards", [2, 4])
def test_sums_by_shard_change_nothing(shards: int) -> None:
    config = LossConfig(**ALL, chunk=5)
    arrays = make(batch=12, length=5, vocab=31)
    assert_close(chunked(config, arrays, shards=shards), dense(config, 31, arrays))


def test_primal_equals_differentiated() -> None:
    config = LossConfig(**ALL, temperature=2.0, chunk=8)
    arrays = make(batch=4, length=7, vocab=29)
    total, parts = jax.jit(lambda kw: chunked_loss(config, **kw))(arrays)
    assert_close((total, parts), chunked(config, arrays)[:2])


def test_no_gradient_to_teacher_weights_or_parts() -> None:
    arrays = {k: jnp.asarray(v) for k, v in make(batch=2, length=5, vocab=13).items()}
    config = LossConfig(**ALL, chunk=4)
    for name in ("teacher_unembed", "weights"):
        gradient = jax.jit(jax.grad(lambda x, name=name: chunked_loss(config, **(arrays | {name: x}))[0]))(arrays[name])
        assert not np.any(gradient)
    gradient = jax.jit(jax.grad(lambda x: chunked_loss(config, **(arrays | {"hidden": x}))[1]["kl"]))(arrays["hidden"])
    assert not np.any(gradient)


def test_student_equal_to_teacher_has_no_divergence() -> None:
    arrays = make(batch=2, length=5, vocab=13)
    arrays |= {"teacher_hidden": arrays["hidden"], "teacher_unembed": arrays["unembed"]}
    total, parts, d_hidden, d_unembed = chunked(LossConfig(chunk=4), arrays)
    assert total == 0 and parts["kl"] == 0
    assert np.max(np.abs(d_hidden)) == 0 and np.max(np.abs(d_unembed)) == 0


def test_bfloat16_accumulates_in_float32() -> None:
    arrays = make(batch=4, length=64, vocab=37, embed=8)
    rounded = {k: jnp.asarray(v, jnp.bfloat16) if "hidden" in k or "unembed" in k else v for k, v in arrays.items()}
    config = LossConfig(**ALL, chunk=16)
    total, parts, d_hidden, d_unembed = chunked(config, rounded)
    assert total.dtype == jnp.float32 and d_hidden.dtype == d_unembed.dtype == jnp.bfloat16
    exact = {k: np.asarray(v, np.float32) if "hidden" in k or "unembed" in k else v for k, v in rounded.items()}
    wanted = dense(config, 37, exact)
    np.testing.assert_allclose(total, wanted[0], rtol=1e-5)
    # One rounding of d_logits and one of the sum, each of 2^-8 at most.
    assert np.max(np.abs(np.asarray(d_unembed, np.float64) - wanted[3])) < 2**-7 * np.max(np.abs(wanted[3]))


def compiled_gradient(tokens: int, chunk: int, embed: int, vocab: int) -> jax.stages.Compiled:
    config = LossConfig(**ALL, temperature=2.0, chunk=chunk)
    shape = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in make(8, tokens // 8, vocab, embed=embed).items()}

    def loss(hidden, unembed, rest):
        return chunked_loss(config, hidden, unembed, **rest)[0]

    hidden, unembed = shape.pop("hidden"), shape.pop("unembed")
    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(hidden, unembed, shape).compile()


def buffer_sizes(compiled: jax.stages.Compiled) -> set[int]:
    shapes = re.findall(r"(?:f64|f32|bf16|f16|s64|s32|u32|s8|u8|pred)\[([\d,]+)\]", compiled.as_text())
    return {int(np.prod([int(size) for size in shape.split(",")])) for shape in shapes}


def test_no_buffer_holds_more_logits_than_a_chunk() -> None:
    vocab, chunk = 4099, 64
    compiled = compiled_gradient(tokens=1024, chunk=chunk, embed=32, vocab=vocab)
    sizes = buffer_sizes(compiled)
    assert chunk * vocab in sizes  # the parser sees the chunk's logits
    assert max(sizes) < 2 * chunk * vocab


def test_memory_hardly_grows_with_tokens() -> None:
    vocab, tokens = 4099, 1024
    temporary = [
        compiled_gradient(n, chunk=64, embed=32, vocab=vocab).memory_analysis().temp_size_in_bytes
        for n in (tokens, 2 * tokens)
    ]
    assert temporary[1] - temporary[0] < tokens * vocab * 4 / 10


@pytest.mark.parametrize(
    "options",
    [{"kl": -1.0}, {"kl": 0.0}, {"temperature": 0.0}, {"chunk": 0}, {"z_loss": float("nan")}],
)
def test_config_refuses(options: dict) -> None:
    with pytest.raises(UserError, match="loss\\."):
        LossConfig(**options)


def test_refuses_missing_teacher_and_too_many_tokens() -> None:
    arrays = make(batch=1, length=3, vocab=13)
    with pytest.raises(UserError, match="14 tokens"):
        chunked_loss(LossConfig(), **arrays, vocab_tokens=14)
    alone = {k: v for k, v in arrays.items() if not k.startswith("teacher")}
    with pytest.raises(UserError, match="no teacher"):
        chunked_loss(LossConfig(), **alone)


@pytest.mark.parametrize("with_teacher", [False, True])
def test_losses_of_tokens_add_up_to_the_sums(with_teacher: bool) -> None:
    arrays = make(batch=3, length=7, vocab=11, teacher_vocab=13)
    weights = arrays.pop("weights")
    if not with_teacher:
        arrays = {name: array for name, array in arrays.items() if not name.startswith("teacher")}
    config = LossConfig(**ALL | {"kl": 1.3 * with_teacher}, temperature=1.7, chunk=5)
    by_token = token_losses(config, **arrays, vocab_tokens=9)
    _, parts = chunked_loss(config, **arrays, weights=weights, vocab_tokens=9)
    assert by_token.keys() == parts.keys() and ("kl" in parts) == with_teacher
    for name, values in by_token.items():
        assert values.shape == weights.shape and values.dtype == np.float32
        np.testing.assert_allclose((values * weights).sum(), parts[name], rtol=RTOL)
    # Which token is whose: each row by itself has what it has among the others.
    for row in range(3):
        alone = {name: array if "unembed" in name else array[row : row + 1] for name, array in arrays.items()}
        for name, values in token_losses(config, **alone, vocab_tokens=9).items():
            np.testing.assert_allclose(values[0], by_token[name][row], rtol=RTOL)
