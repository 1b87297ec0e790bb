"""Cosines and sines of every scaling rule against those of transformers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.models.config import ModelConfig, Rope
from chopjax.models.rope import rotate, rotation

POSITIONS = 48
# One longer and one shorter than the model's positions and than the original ones.
LENGTHS = (9, 71)

THETA = st.sampled_from([500.0, 10_000.0, 1e6])
FACTOR = st.sampled_from([1.0, 2.5, 8.0])
ORIGINAL = st.sampled_from([12, 24, POSITIONS])
OPTIONAL_FACTOR = st.sampled_from([None, 0.7, 1.3])


@st.composite
def ropes(draw: st.DrawFn, kind: str, pairs: int) -> dict[str, Any]:
    """`rope_parameters` in the style of transformers 5."""
    fields: dict[str, Any] = {"rope_type": kind, "rope_theta": draw(THETA)}
    if kind != "default":
        fields["factor"] = draw(FACTOR)
    if kind in ("llama3", "yarn", "longrope"):
        fields["original_max_position_embeddings"] = draw(ORIGINAL)
    if kind == "llama3":
        fields["low_freq_factor"] = draw(st.sampled_from([1.0, 2.0]))
        fields["high_freq_factor"] = draw(st.sampled_from([4.0, 7.0]))
    if kind in ("yarn", "longrope"):
        fields["attention_factor"] = draw(OPTIONAL_FACTOR)
    if kind == "yarn":
        fields["beta_fast"] = draw(st.sampled_from([None, 4.0, 32.0]))
        fields["beta_slow"] = draw(st.sampled_from([None, 0.5, 2.0]))
        fields["mscale"] = draw(st.sampled_from([None, 0.8, 1.0]))
        fields["mscale_all_dim"] = draw(st.sampled_from([None, 0.5]))
        fields["truncate"] = draw(st.booleans())
    if kind == "longrope":
        factors = st.lists(st.floats(1, 9, width=16), min_size=pairs, max_size=pairs)
        fields |= {"short_factor": draw(factors), "long_factor": draw(factors)}
    return {name: value for name, value in fields.items() if value is not None}


def _ours(rope: dict[str, Any], fraction: float) -> Rope:
    names = {
        "rope_type": "kind",
        "rope_theta": "theta",
        "original_max_position_embeddings": "original_positions",
    }
    fields: dict[str, Any] = {names.get(name, name): tuple(v) if isinstance(v, list) else v for name, v in rope.items()}
    return Rope(**fields, rotary_fraction=fraction)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "llama3", "yarn", "longrope"])
def test_rotation_equals_transformers(kind: str, fraction: float) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.nemotron.modeling_nemotron import NemotronRotaryEmbedding

    head_dim = 20
    pairs = int(head_dim * fraction) // 2

    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(ropes(kind, pairs))
    def check(rope: dict[str, Any]) -> None:
        hf_config = transformers.NemotronConfig(
            hidden_size=40,
            num_attention_heads=2,
            head_dim=head_dim,
            max_position_embeddings=POSITIONS,
            rope_parameters=dict(rope) | {"partial_rotary_factor": fraction},
        )
        theirs = NemotronRotaryEmbedding(hf_config)
        config = ModelConfig(
            layers=1,
            embed=40,
            kv_heads=1,
            q_per_kv=2,
            head_dim=head_dim,
            mlp=3,
            vocab=3,
            positions=POSITIONS,
            rope=_ours(rope, fraction),
        )
        for length in LENGTHS:
            positions = np.stack([np.arange(length), np.minimum(np.arange(length), 4)]).astype(np.int32)
            expected = theirs(torch.zeros(1), torch.tensor(positions, dtype=torch.int64))
            for mine, reference in zip(rotation(config, jnp.asarray(positions)), expected, strict=True):
                assert mine.shape == (2, length, pairs)
                np.testing.assert_allclose(mine, reference.numpy()[..., :pairs], atol=2e-5, rtol=0)

    check()


@pytest.mark.parametrize("heads", [(3,), (3, 2)])
@pytest.mark.parametrize("pairs", [5, 3])
def test_rotation_is_a_complex_product_and_its_gradient_that_of_the_formula(pairs: int, heads: tuple[int, ...]) -> None:
    angles = jax.random.normal(jax.random.key(0), (2, 7, pairs))
    cos, sin = 1.3 * jnp.cos(angles), 1.3 * jnp.sin(angles)
    x, d_y = jax.random.normal(jax.random.key(1), (2, 2, 7, *heads, 10))
    y, back = jax.vjp(lambda x: rotate(x, cos, sin), x)
    first, second, rest = jnp.split(x, (pairs, 2 * pairs), axis=-1)
    turned = jax.lax.complex(first, second) * jax.lax.complex(cos, sin).reshape(2, 7, *(1 for _ in heads), pairs)
    np.testing.assert_allclose(y, jnp.concatenate([turned.real, turned.imag, rest], axis=-1), rtol=0, atol=1e-6)
    _, jaxs_own = jax.vjp(lambda x: rotate.fun(x, cos, sin), x)
    np.testing.assert_allclose(back(d_y)[0], jaxs_own(d_y)[0], rtol=0, atol=1e-6)
