"""cuDNN's attention: its mask against the reference by the same call without cuDNN; that it lowers; and on a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from models.test_splash import example

from chopjax.errors import UserError
from chopjax.models.attention import attention
from chopjax.models.cudnn import cudnn_attention, refuse_unsupported, supported


@pytest.mark.parametrize(
    ("length", "kv_heads", "q_per_kv", "head_dim", "window"), [(37, 3, 3, 6, None), (64, 1, 5, 20, 9), (41, 2, 1, 8, 1)]
)
@pytest.mark.parametrize("in_order", [True, False])
def test_as_the_reference(
    length: int, kv_heads: int, q_per_kv: int, head_dim: int, window: int | None, in_order: bool
) -> None:
    (q, k, v, cotangent), places = example(length, kv_heads, q_per_kv, head_dim)
    wanted, wanted_back = jax.vjp(lambda *qkv: attention(*qkv, places, places, window), q, k, v)
    found, found_back = jax.vjp(lambda *qkv: cudnn_attention(*qkv, places, places, window, in_order, "xla"), q, k, v)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    for one, other in zip(found_back(cotangent), wanted_back(cotangent), strict=True):
        np.testing.assert_allclose(one, other, atol=4e-6)


def test_queries_that_are_a_part_of_the_row() -> None:
    (q, k, v, _), places = example(39, 2, 3, 10)
    wanted = attention(q, k, v, places, places, 7)[:, 13:26]
    found = cudnn_attention(q[:, 13:26], k, v, places.between(13, 26), places, 7, implementation="xla")
    np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize("window", [None, 9])
def test_lowers_for_gpus_forward_and_backward(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An odd length and an odd head, which are filled up; no window beside the mask, which cuDNN would refuse."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    arrays, places = example(37, 2, 3, 20)
    q, k, v, cotangent = (array.astype(jnp.bfloat16) for array in arrays)

    def both(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
        out, back = jax.vjp(lambda *qkv: cudnn_attention(*qkv, places, places, window, True), q, k, v)
        return out, *back(cotangent)

    text = jax.jit(both).trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text and "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text
    assert "tensor<2x38x6x24xbf16>" in text and "tensor<2x1x38x38xbf16>" in text
    assert text.count("CAUSAL") == 2
    assert "sliding_window_length\\22: 0" in text and "sliding_window_length\\22: 9" not in text


def error(found: jax.Array, wanted: jax.Array) -> float:
    """Of a result in few bits: its distance from the reference over the length of the latter."""
    difference = np.asarray(found, np.float64) - np.asarray(wanted, np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(np.asarray(wanted, np.float64)))


# Odd lengths, groups and heads; a window within a segment and one over many blocks.
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("length", "kv_heads", "q_per_kv", "head_dim", "window", "dtype"),
    [
        (37, 3, 3, 6, None, jnp.float16),
        (300, 4, 1, 128, 37, jnp.bfloat16),
        (777, 2, 3, 80, 100, jnp.float16),
        (1024, 8, 4, 64, None, jnp.bfloat16),
        (1537, 1, 7, 96, 1000, jnp.bfloat16),
    ],
)
@pytest.mark.parametrize("in_order", [True, False])
def test_on_a_gpu(
    length: int, kv_heads: int, q_per_kv: int, head_dim: int, window: int | None, dtype: jnp.dtype, in_order: bool
) -> None:
    """As near to float32 as the reference in the same few bits, in the outcome and in all gradients."""
    arrays, places = example(length, kv_heads, q_per_kv, head_dim)

    def results(function, dtype):
        q, k, v, cotangent = (array.astype(dtype) for array in arrays)

        @jax.jit
        def both(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
            out, back = jax.vjp(function, q, k, v)
            return out, *back(cotangent)

        return both(q, k, v)

    exact = results(lambda *qkv: attention(*qkv, places, places, window), jnp.float32)
    rounded = results(lambda *qkv: attention(*qkv, places, places, window), dtype)
    found = results(lambda *qkv: cudnn_attention(*qkv, places, places, window, in_order), dtype)
    for name, one, reference, wanted in zip(("out", "q", "k", "v"), found, rounded, exact, strict=True):
        assert error(one, wanted) < 1.5 * error(reference, wanted) + 1e-4, name


def test_what_is_supported() -> None:
    assert supported(jnp.bfloat16, 128, "8.0") and supported(jnp.float16, 6, "10.3")
    assert not supported(jnp.float32, 64, "9.0")
    assert not supported(jnp.bfloat16, 130, "9.0")
    assert not supported(jnp.bfloat16, 64, "7.5") and not supported(jnp.bfloat16, 64, "")
    with pytest.raises(UserError, match="bfloat16 and float16, not float32"):
        refuse_unsupported(jnp.float32, 64)
    with pytest.raises(UserError, match="at most 256, not 320"):
        refuse_unsupported(jnp.bfloat16, 320)
