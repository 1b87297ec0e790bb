"""Values and gradients of the chunked loss against a dense float64 reference; memory of the compiled program."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.distill.config import LossConfig, LossSchedule
from chopjax.distill.losses import chunked_loss, token_losses
from chopjax.distill.schedules import scalars
from chopjax.distill.targets import Sparse
from chopjax.errors import UserError
from chopjax.sharding.mesh import Constrain, make_mesh
from chopjax.sharding.rules import MeshConfig

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
        "teacher": (normal(batch, length, teacher_embed), normal(teacher_embed, teacher_vocab or vocab)),
    }


def compiled(loss):
    """Values and gradients; unoptimised code compiles in half the time."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), compiler_options=options)


def log_sum(values, inside):
    """log Σ exp of some of the values."""
    return jax.nn.logsumexp(jnp.where(inside, values, -jnp.inf), axis=-1)


def kept_kl(log_p, log_q, inside):
    """KL over the tokens inside, and all others as one."""
    top = jnp.sum(jnp.where(inside, jnp.exp(log_p) * (log_p - log_q), 0), -1)
    p, q = log_sum(log_p, ~inside), log_sum(log_q, ~inside)
    return top + jnp.exp(p) * (p - q)


def reference_terms(config: LossConfig, logits, teacher, labels) -> dict:
    """Each term of each token from whole logits, as its formula is printed."""
    temperature = config.temperature
    log_softmax = jax.nn.log_softmax
    log_q, log_p = log_softmax(logits / temperature), log_softmax(teacher / temperature)
    q, p = jnp.exp(log_q), jnp.exp(log_p)

    def nll(logits):
        return -jnp.take_along_axis(log_softmax(logits), labels[..., None], axis=-1)[..., 0]

    kth = jnp.sort(teacher, axis=-1)[..., -min(config.top_k or 10**9, teacher.shape[-1])]
    kl = jnp.sum(p * (log_p - log_q), -1)
    if 0 < config.top_k < teacher.shape[-1]:
        kl = kept_kl(log_p, log_q, teacher >= kth[..., None])
    log_m = jnp.log(config.jsd_beta * p + (1 - config.jsd_beta) * q)
    pairs = (q, p) if config.distance_of == "probabilities" else (logits / temperature, teacher / temperature)
    squares = (pairs[0] - pairs[1]) ** 2
    lengths = [jnp.sqrt(jnp.sum(x * x, -1)) for x in pairs]
    taught = {
        "kl": kl,
        "reverse_kl": jnp.sum(q * (log_q - log_p), -1),
        "jsd": jnp.sum(config.jsd_beta * p * (log_p - log_m) + (1 - config.jsd_beta) * q * (log_q - log_m), -1),
        "mse": squares.sum(-1) if config.distance_of == "probabilities" else squares.mean(-1),
        "cosine": 1 - jnp.sum(pairs[0] * pairs[1], -1) / lengths[0] / lengths[1],
        "wsl": (1 - jnp.exp(-jax.lax.stop_gradient(nll(logits)) / nll(teacher))) * kl,
    }
    scale = temperature**2 if config.scale_by_temperature else 1
    plain = {"next_token": nll(logits), "z_loss": jax.nn.logsumexp(logits, axis=-1) ** 2}
    return plain | {name: scale * value for name, value in taught.items()}


def dense(config: LossConfig, tokens: int, arrays: dict) -> tuple[float, dict, np.ndarray, np.ndarray]:
    """Total, parts and both gradients in float64, from whole logits and JAX's own differentiation."""

    def loss(hidden, unembed):
        logits = (hidden @ unembed)[..., :tokens]
        teacher = (arrays["teacher"][0] @ arrays["teacher"][1])[..., :tokens]
        values = reference_terms(config, logits, teacher, arrays["labels"])
        reported = {"next_token", "z_loss", "kl"} | config.active
        parts = {name: jnp.sum(values[name] * arrays["weights"]) for name in reported}
        return sum(getattr(config, name) * part for name, part in parts.items()), parts

    with jax.enable_x64(True):
        arrays = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64 if v.dtype == np.float32 else v.dtype), arrays)
        (total, parts), gradients = compiled(loss)(arrays["hidden"], arrays["unembed"])
        return jax.tree.map(np.asarray, (total, parts, *gradients))


def chunked(config: LossConfig, arrays: dict, **options) -> tuple:
    arrays = jax.tree.map(jnp.asarray, arrays)
    rest = {k: v for k, v in arrays.items() if k not in ("hidden", "unembed")}

    def loss(hidden, unembed):
        return chunked_loss(config, hidden, unembed, **rest, **options)

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


TERMS_ALONE = [
    {"kl": 0.0, "reverse_kl": 0.8},
    {"kl": 0.0, "jsd": 0.8, "jsd_beta": 0.3},
    {"kl": 0.0, "mse": 0.8},
    {"kl": 0.0, "mse": 0.8, "distance_of": "logits"},
    {"kl": 0.0, "cosine": 0.8},
    {"kl": 0.0, "cosine": 0.8, "distance_of": "logits"},
    {"kl": 0.0, "wsl": 0.8},
    {"kl": 0.8, "top_k": 3},
    {"kl": 0.8, "top_k": 99},
    {"kl": 0.0, "wsl": 0.8, "top_k": 5, "scale_by_temperature": False},
]
EVERY = {"next_token": 0.3, "kl": 0.4, "reverse_kl": 0.5, "jsd": 0.6, "mse": 0.7, "cosine": 0.8, "wsl": 0.9}


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("terms", TERMS_ALONE, ids=lambda terms: "-".join(terms))
def test_every_term_equals_dense_reference(terms: dict, temperature: float) -> None:
    config = LossConfig(**terms, temperature=temperature, chunk=7)
    arrays = make(batch=3, length=5, vocab=23, teacher_vocab=29)
    assert_close(chunked(config, arrays, vocab_tokens=21), dense(config, 21, arrays))


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8), (1, 4, 2)])
def test_every_mesh_gives_the_same(shape: tuple[int, int, int]) -> None:
    constrain = Constrain(make_mesh(MeshConfig(*shape)))
    config = LossConfig(**EVERY, z_loss=1e-2, temperature=1.3, top_k=4, chunk=20)
    arrays = make(batch=8, length=5, vocab=31)
    assert_close(chunked(config, arrays, constrain=constrain), dense(config, 31, arrays))
    rest = {name: array for name, array in arrays.items() if name != "weights"}
    here, there = (jax.jit(partial(token_losses, config, **o))(**rest) for o in ({}, {"constrain": constrain}))
    for name, values in here.items():
        np.testing.assert_allclose(there[name], values, rtol=1e-4, atol=1e-5)


def kept(arrays: dict, k: int, tokens: int) -> tuple[Sparse, np.ndarray]:
    """The teacher's k most probable tokens, with a place left unused, and which they are."""
    log_p = np.asarray(jax.nn.log_softmax((arrays["teacher"][0] @ arrays["teacher"][1])[..., :tokens]), np.float64)
    ids = np.argsort(-log_p, axis=-1)[..., :k]
    top = np.take_along_axis(log_p, ids, axis=-1)
    inside = np.zeros(log_p.shape, bool)
    np.put_along_axis(inside, ids, True, axis=-1)
    tail = np.where(inside, 0, np.exp(log_p)).sum(-1)
    offset = (np.exp(top) * top).sum(-1) + tail * np.log(tail)
    ids = np.pad(ids, ((0, 0), (0, 0), (0, 1)), constant_values=-1).astype(np.int32)
    probs = np.pad(np.exp(top), ((0, 0), (0, 0), (0, 1)))
    return Sparse(ids, *(a.astype(np.float32) for a in (probs, tail, offset))), inside


@pytest.mark.parametrize("shape", [None, (1, 4, 2), (2, 2, 2)])
def test_kept_top_k_equals_the_teachers_own(shape: tuple[int, int, int] | None) -> None:
    options = {} if shape is None else {"constrain": Constrain(make_mesh(MeshConfig(*shape)))}
    arrays = make(batch=8, length=5, vocab=31)
    config = LossConfig(next_token=0.3, kl=1.0, top_k=4, chunk=20)
    wanted = dense(config, 29, arrays)
    arrays["teacher"], inside = kept(arrays, 4, 29)
    assert inside.sum() == 8 * 5 * 4
    assert_close(chunked(config, arrays, vocab_tokens=29, **options), wanted)


def test_draws_give_their_own_gradient() -> None:
    """With counts / N in place of p, the gradient is q - counts / N."""
    arrays = make(batch=2, length=3, vocab=11)
    rng = np.random.default_rng(3)
    counts = rng.multinomial(9, np.full(11, 1 / 11), (2, 3))
    ids = np.where(counts > 0, np.arange(11), -1).astype(np.int32)
    zeros = np.zeros((2, 3), np.float32)
    arrays["teacher"] = Sparse(ids, (counts / 9).astype(np.float32), zeros, zeros + 0.25)
    _, parts, d_hidden, _ = chunked(LossConfig(chunk=4), arrays)
    log_q = jax.nn.log_softmax(arrays["hidden"] @ arrays["unembed"])
    slope = (np.exp(log_q) - counts / 9) * arrays["weights"][..., None]
    np.testing.assert_allclose(d_hidden, slope @ arrays["unembed"].T, rtol=1e-4, atol=1e-6)
    value = 0.25 - (counts / 9 * log_q).sum(-1)
    np.testing.assert_allclose(parts["kl"], (value * arrays["weights"]).sum(), rtol=1e-5)


def test_a_schedule_goes_from_its_first_to_its_last_value() -> None:
    schedules = (
        LossSchedule("temperature", "linear", 1.0),
        LossSchedule("next_token", "cosine", 1.0, steps=5),
        LossSchedule("mse", "constant", 2.0),
    )
    config = LossConfig(kl=0.5, temperature=3.0, schedules=schedules)
    by_step = [scalars(config, step, 11) for step in range(11)]
    np.testing.assert_allclose([s["temperature"] for s in by_step], np.linspace(3, 1, 11), rtol=1e-6)
    np.testing.assert_allclose([s["next_token"] for s in by_step], [0, 0.146447, 0.5, 0.853553] + [1.0] * 7, atol=1e-6)
    assert {float(s["mse"]) for s in by_step} == {2.0} and {float(s["kl"]) for s in by_step} == {0.5}
    assert config.softened and config.active == {"kl", "next_token", "mse"}
    arrays = make(batch=2, length=3, vocab=11)
    now = LossConfig(kl=0.5, next_token=0.5, mse=2.0, temperature=2.0, chunk=4)
    at_six = scalars(config, 5, 11) | {"next_token": jnp.float32(0.5)}
    assert_close(chunked(dataclasses.replace(config, chunk=4), arrays, scalars=at_six), dense(now, 11, arrays))


def test_primal_equals_differentiated() -> None:
    config = LossConfig(**ALL, temperature=2.0, chunk=8)
    arrays = make(batch=4, length=7, vocab=29)
    total, parts = jax.jit(lambda kw: chunked_loss(config, **kw))(arrays)
    assert_close((total, parts), chunked(config, arrays)[:2])


def test_no_gradient_to_teacher_weights_or_parts() -> None:
    arrays = jax.tree.map(jnp.asarray, make(batch=2, length=5, vocab=13))
    config = LossConfig(**ALL, chunk=4)
    for name in ("teacher", "weights"):
        gradient = jax.jit(jax.grad(lambda x, name=name: chunked_loss(config, **(arrays | {name: x}))[0]))(arrays[name])
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    gradient = jax.jit(jax.grad(lambda x: chunked_loss(config, **(arrays | {"hidden": x}))[1]["kl"]))(arrays["hidden"])
    assert not np.any(gradient)


def test_student_equal_to_teacher_has_no_divergence() -> None:
    arrays = make(batch=2, length=5, vocab=13)
    arrays |= {"teacher": (arrays["hidden"], arrays["unembed"])}
    total, parts, d_hidden, d_unembed = chunked(LossConfig(chunk=4), arrays)
    assert total == 0 and parts["kl"] == 0
    assert np.max(np.abs(d_hidden)) == 0 and np.max(np.abs(d_unembed)) == 0


def test_bfloat16_accumulates_in_float32() -> None:
    arrays = make(batch=4, length=64, vocab=37, embed=8)

    def as_dtype(dtype, arrays: dict) -> dict:
        return arrays | {
            k: jax.tree.map(lambda v: jnp.asarray(v, dtype), arrays[k]) for k in ("hidden", "unembed", "teacher")
        }

    rounded = as_dtype(jnp.bfloat16, arrays)
    config = LossConfig(**ALL, chunk=16)
    total, parts, d_hidden, d_unembed = chunked(config, rounded)
    assert total.dtype == jnp.float32 and d_hidden.dtype == d_unembed.dtype == jnp.bfloat16
    exact = jax.tree.map(np.asarray, as_dtype(jnp.float32, rounded))
    wanted = dense(config, 37, exact)
    np.testing.assert_allclose(total, wanted[0], rtol=1e-5)
    # One rounding of d_logits and one of the sum, each of 2^-8 at most.
    assert np.max(np.abs(np.asarray(d_unembed, np.float64) - wanted[3])) < 2**-7 * np.max(np.abs(wanted[3]))


def compiled_gradient(tokens: int, chunk: int, embed: int, vocab: int) -> jax.stages.Compiled:
    config = LossConfig(**ALL, temperature=2.0, chunk=chunk)
    arrays = make(8, tokens // 8, vocab, embed=embed)
    shape = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), arrays)

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
    [{"kl": -1.0}, {"kl": 0.0}, {"temperature": 0.0}, {"chunk": 0}, {"z_loss": float("nan")}, {"jsd_beta": 1.0}]
    + [{"schedules": ({"field": "chunk"},)}, {"schedules": ({"field": "kl"}, {"field": "kl"})}, {"top_k": -1}]
    + [{"schedules": ({"field": "kl", "kind": "constant", "final": 0.0},)}, {"kl": 0.0, "jsd": 1.0, "top_k": 5}],
)
def test_config_refuses(options: dict) -> None:
    with pytest.raises(UserError, match="loss\\."):
        schedules = tuple(LossSchedule(**one) for one in options.pop("schedules", ()))
        LossConfig(**options, schedules=schedules)


def test_refuses_missing_teacher_and_too_many_tokens() -> None:
    arrays = make(batch=1, length=3, vocab=13)
    with pytest.raises(UserError, match="14 tokens"):
        chunked_loss(LossConfig(), **arrays, vocab_tokens=14)
    alone = {k: v for k, v in arrays.items() if k != "teacher"}
    with pytest.raises(UserError, match="no teacher"):
        chunked_loss(LossConfig(), **alone)
    arrays["teacher"], _ = kept(arrays, 3, 13)
    with pytest.raises(UserError, match="loss.jsd needs the whole teacher"):
        chunked_loss(LossConfig(jsd=1.0), **arrays)


@pytest.mark.parametrize("with_teacher", [False, True])
def test_losses_of_tokens_add_up_to_the_sums(with_teacher: bool) -> None:
    arrays = make(batch=3, length=7, vocab=11, teacher_vocab=13)
    weights = arrays.pop("weights")
    if not with_teacher:
        del arrays["teacher"]
    config = LossConfig(**ALL | {"kl": 1.3 * with_teacher}, temperature=1.7, chunk=5)
    by_token = token_losses(config, **arrays, vocab_tokens=9)
    _, parts = chunked_loss(config, **arrays, weights=weights, vocab_tokens=9)
    assert by_token.keys() == parts.keys() and ("kl" in parts) == with_teacher
    for name, values in by_token.items():
        assert values.shape == weights.shape and values.dtype == np.float32
        np.testing.assert_allclose((values * weights).sum(), parts[name], rtol=RTOL)
    # Which token is whose: each row by itself has what it has among the others.
    for row in range(3):
        alone = {
            name: array if "unembed" in name else array[row : row + 1]
            for name, array in arrays.items()
            if name != "teacher"
        }
        if with_teacher:
            alone["teacher"] = (arrays["teacher"][0][row : row + 1], arrays["teacher"][1])
        for name, values in token_losses(config, **alone, vocab_tokens=9).items():
            np.testing.assert_allclose(values[0], by_token[name][row], rtol=RTOL)
