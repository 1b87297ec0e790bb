"""Hidden losses against a dense float64 reference, gradients too; exact zeros; weights by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.random_params import random_params

from chopjax.distill.hidden import distance, hidden_loss, hidden_sums
from chopjax.distill.hidden_config import HiddenConfig
from chopjax.distill.matching import Matching, declare_projections, match, projection_sizes
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Output, forward
from chopjax.sharding.mesh import Constrain, make_mesh
from chopjax.sharding.rules import MeshConfig

TEACHER = ModelConfig(layers=5, embed=13, kv_heads=3, q_per_kv=2, head_dim=4, mlp=11, vocab=29, positions=32)
DEPTH = dataclasses.replace(TEACHER, layers=3, kind_of_layer=())
NARROW = dataclasses.replace(DEPTH, embed=7, vocab=26)
KEPT = {"layers": np.asarray([0, 3, 4])}
CHANNELS = np.asarray([12, 0, 5, 3, 4, 9, 1])
SEGMENTS = np.asarray([[1, 1, 1, 2, 2, 3, 3, 3, 0], [1] * 9], np.int32)
WEIGHTS = np.asarray([[1, 1, 0, 1, 0, 1, 0.5, 0, 0], [1] * 8 + [0]], np.float32)
WIDE = {"block_output": 0.7, "mlp_input": 1.3, "embedding": 0.4, "embedding_table": 0.2}


def activations(config: ModelConfig, keep: dict, seed: int) -> dict:
    """Random arrays in place of a forward pass; `all` has every layer of what is kept."""
    rng = np.random.default_rng(seed)
    heads = (config.kv_heads, config.q_per_kv, config.head_dim)
    rest = {"heads": heads, "q": heads, "k": heads[::2], "v": heads[::2]}

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "hidden": normal(2, 9, config.embed),
        "embedded": normal(2, 9, config.embed),
        "table": normal(config.vocab, config.embed),
        "all": {name: normal(config.layers, 2, 9, *rest.get(name, (config.embed,))) for name in keep},
    }


def output(arrays: dict, keep: dict) -> Output:
    kept = {name: arrays["all"][name][np.asarray(layers)] for name, layers in keep.items()}
    return Output(arrays["hidden"], arrays["embedded"], None, None, kept)


def dense_distance(name: str, s, t):
    if name == "cosine":
        return 1 - jnp.sum(s * t, -1) / jnp.sqrt(jnp.sum(s * s, -1) * jnp.sum(t * t, -1))
    squares = jnp.sum((s - t) ** 2, -1)
    return squares / {"mse": s.shape[-1], "squared": 1}.get(name, jnp.sum(t * t, -1))


def dense(matching: Matching, student: dict, teacher: dict, kernels: dict) -> dict:
    """Term by term and pair by pair, as the formulas say it, from all layers of both models."""
    config = matching.config
    layer_terms = [term for term in config.terms if term in ("block_output", "mlp_input", "heads")]
    weights = WEIGHTS.astype(np.float64)

    def bridged(term: str, s, t, place=None):
        if config.project in ("shared", "per_layer"):
            kernel = kernels["shared" if config.project == "shared" else term]["kernel"]
            return s @ (kernel if place is None or kernel.ndim == 2 else kernel[place]), t
        return s, t[..., CHANNELS] if config.project == "gather" and matching.kept_embed else t

    def at(arrays: dict, term: str, layer: int, layers: int):
        if term == "mlp_input":
            return arrays["all"]["mlp_norm"][layer]
        if term == "heads":
            return arrays["all"]["heads"][layer].reshape(2, 9, -1)
        if not config.after_norm:
            return arrays["all"]["block_output"][layer]
        return arrays["hidden"] if layer + 1 == layers else arrays["all"]["attention_norm"][layer + 1]

    sums = {}
    for term in layer_terms:
        sums[term] = 0
        for place, (one, other) in enumerate(matching.pairs):
            s = at(student, term, one, matching.student.layers)
            t = at(teacher, term, other, matching.teacher.layers)
            pair = (s, t) if term == "heads" else bridged(term, s, t, place)
            sums[term] += jnp.sum(dense_distance(config.distance, *pair) * weights)
    if config.embedding:
        pair = bridged("embedding", student["embedded"], teacher["embedded"])
        sums["embedding"] = jnp.sum(dense_distance(config.distance, *pair) * weights)
    if config.embedding_table:
        s, t = bridged("embedding_table", student["table"], teacher["table"][: matching.student.vocab])
        sums["embedding_table"] = jnp.sum((t - s) ** 2) * weights.sum()
    return sums


CASES = {
    "shared": (NARROW, {**WIDE, "project": "shared"}, {}),
    "per_layer": (NARROW, {**WIDE, "project": "per_layer", "distance": "mse"}, {}),
    "some_layers": (NARROW, {**WIDE, "project": "per_layer", "layers": (-3, -1), "distance": "normalised_mse"}, {}),
    "gather": (NARROW, {**WIDE, "heads": 0.3, "distance": "normalised_mse"}, {"embed": CHANNELS}),
    "none": (DEPTH, {**WIDE, "heads": 1.0, "project": "none", "distance": "squared"}, {}),
    "explicit": (DEPTH, {**WIDE, "layer_map": "explicit", "pairs": ((2, 1), (0, 4), (1, 0))}, {}),
    "just_chop": (
        DEPTH,
        {"block_output": 1.0, "after_norm": False, "heads": 1.0, "embedding_table": 1.0}
        | {"project": "per_layer", "distance": "squared"},
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_dense_reference(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, fields, kept = CASES[case]
    monkeypatch.setattr("chopjax.distill.hidden.TABLE_ROWS", 8)
    matching = match(HiddenConfig(**fields), model, TEACHER, KEPT | kept)
    student = activations(model, matching.student_keep, 1)
    teacher = activations(TEACHER, matching.teacher_keep, 2)
    rng = np.random.default_rng(3)
    sizes = projection_sizes(matching)
    kernels = {
        path.split("/")[1]: {"kernel": rng.normal(size=leaf.shape(sizes)).astype(np.float32)}
        for path, leaf in declare_projections(matching).items()
    }

    def ours(student, kernels):
        sums = hidden_sums(
            matching,
            output(student, matching.student_keep),
            output(jax.tree.map(jnp.asarray, teacher), matching.teacher_keep),
            jnp.asarray(WEIGHTS),
            jnp.asarray(SEGMENTS),
            kernels,
            (student["table"], jnp.asarray(teacher["table"])),
        )
        return hidden_loss(matching.config, sums, jnp.zeros(()))[0], sums

    def reference(student, kernels):
        with_teacher = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), teacher)
        sums = dense(matching, student, with_teacher, kernels)
        return sum(getattr(matching.config, term) * value for term, value in sums.items()), sums

    options = {"xla_backend_optimization_level": 0}
    arguments = (student, kernels)
    got = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True), compiler_options=options)(
        *jax.tree.map(jnp.asarray, arguments)
    )
    with jax.enable_x64(True):
        wanted = jax.jit(jax.value_and_grad(reference, (0, 1), has_aux=True), compiler_options=options)(
            *jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), arguments)
        )
        wanted = jax.tree.map(np.asarray, wanted)
    assert set(got[0][1]) == set(matching.config.terms)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert np.max(np.abs(np.asarray(g, np.float64) - w)) <= 1e-5 * np.max(np.abs(w))


TOKENS = np.random.default_rng(0).integers(0, 29, (2, 9)).astype(np.int32)
POSITIONS = np.asarray([[0, 1, 2, 0, 1, 0, 1, 2, 0], list(range(9))], np.int32)


@pytest.mark.parametrize(
    ("distance_name", "project"),
    [("cosine", "gather"), ("mse", "none"), ("normalised_mse", "gather"), ("squared", "none")],
)
def test_an_unchopped_student_loses_exactly_nothing(distance_name: str, project: str) -> None:
    every = {**WIDE, "heads": 1.0, "relation": 1.0}
    matching = match(HiddenConfig(**every, project=project, distance=distance_name), TEACHER, TEACHER, {})
    params = random_params(TEACHER)

    @jax.jit
    def sums(params, teacher):
        inputs = (jnp.asarray(TOKENS), jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS))
        outputs = (
            forward(TEACHER, params, *inputs, keep=matching.student_keep, remat="full"),
            forward(TEACHER, teacher, *inputs, keep=matching.teacher_keep),
        )
        tables = params["embed"]["table"], teacher["embed"]["table"]
        return hidden_sums(matching, *outputs, jnp.asarray(WEIGHTS), jnp.asarray(SEGMENTS), tables=tables)

    assert {name: float(value) for name, value in sums(params, params).items()} == dict.fromkeys(every, 0.0)


def test_a_mesh_changes_nothing() -> None:
    matching = match(HiddenConfig(**WIDE, relation=1.0, project="shared"), NARROW, TEACHER, KEPT)
    student = activations(NARROW, matching.student_keep, 1)
    teacher = activations(TEACHER, matching.teacher_keep, 2)
    kernels = {"shared": {"kernel": np.random.default_rng(3).normal(size=(7, 13)).astype(np.float32)}}
    constrain = Constrain(make_mesh(MeshConfig(data=2, fsdp=1, tensor=1), devices=jax.devices()[:2]))

    def total(constrain, student, kernels):
        outputs = output(student, matching.student_keep), output(teacher, matching.teacher_keep)
        tables = student["table"], teacher["table"]
        options = {} if constrain is None else {"constrain": constrain}
        segments = jnp.asarray(SEGMENTS)
        return sum(hidden_sums(matching, *outputs, jnp.asarray(WEIGHTS), segments, kernels, tables, **options).values())

    (student, teacher, kernels) = jax.tree.map(jnp.asarray, (student, teacher, kernels))
    wanted = jax.jit(jax.value_and_grad(functools.partial(total, None), (0, 1)))(student, kernels)
    got = jax.jit(jax.value_and_grad(functools.partial(total, constrain), (0, 1)))(student, kernels)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()), got, wanted)


def test_distances_by_hand() -> None:
    s, t = jnp.asarray([[3.0, 4.0]]), jnp.asarray([[0.0, 2.0]])
    wanted = {"cosine": 1 - 0.8, "mse": (9 + 4) / 2, "normalised_mse": 13 / 4, "squared": 13.0}
    assert {name: float(distance(name, s, t)[0]) for name in wanted} == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", ["cosine", "normalised_mse"])
def test_vectors_of_zeros_have_finite_gradients(name: str) -> None:
    zeros = jnp.zeros((1, 3))
    assert np.isfinite(jax.grad(lambda s: distance(name, s, zeros)[0])(zeros)).all()


def test_dynamic_weight_has_the_value_of_the_logits_loss_and_no_gradient() -> None:
    config = HiddenConfig(block_output=2.0, heads=1.0, dynamic=True)

    def total(x, logits_loss):
        return hidden_loss(config, {"block_output": x, "heads": 3 * x}, logits_loss)

    (value, alpha), slopes = jax.value_and_grad(total, (0, 1), has_aux=True)(jnp.asarray(0.5), jnp.asarray(10.0))
    assert (float(value), float(alpha)) == (10.0, 4.0)
    assert [float(slope) for slope in slopes] == [4.0 * 5.0, 0.0]
    value, alpha = total(jnp.asarray(0.0), jnp.asarray(10.0))
    assert (float(value), float(alpha)) == (0.0, 0.0)
