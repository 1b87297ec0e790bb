"""Budgets as limits, and the nearest candidate where nothing meets them."""

from typing import Any

import numpy as np
import pytest
from search.sources import LLAMA31_8B

from chopjax.errors import UserError
from chopjax.search.budget import Limit, excess, feasible, limits
from chopjax.search.config import CHOICES, SearchConfig
from chopjax.search.enumerate import find

SOURCE = {"params": 8e9, "kv_cache": 4e9, "bytes": 20e9, "latency": 10.0}


def bounds(**fields: Any) -> dict[str, tuple[float, float]]:
    return {limit.field: (limit.low, limit.high) for limit in limits(SearchConfig(**fields), SOURCE)}


def test_only_the_primary_budget_has_to_be_spent() -> None:
    assert bounds(params="4B", kv_cache="half") == {"params": (3.8e9, 4e9), "kv_cache": (0, 2e9)}
    assert bounds(kv_cache="half", tolerance=0.5) == {"kv_cache": (1e9, 2e9)}
    assert bounds(params="60%") == {"params": (pytest.approx(0.95 * 4.8e9), pytest.approx(4.8e9))}


def test_a_window_says_itself_how_much() -> None:
    assert bounds(params="7.8e9..8.5e9", bytes="10GB..12GB") == {"params": (7.8e9, 8.5e9), "bytes": (10e9, 12e9)}


def test_a_chip_alone_must_hold_the_model() -> None:
    assert bounds(chip="h100") == {"chip": (0, pytest.approx(72e9))}
    assert bounds(chip="h100", chips=2, latency="half") == {
        "latency": (4.75, 5.0),
        "chip": (0, pytest.approx(144e9)),
    }


def test_ends_belong_to_the_window() -> None:
    window = [Limit("params", "params", 10, 20, "10..20"), Limit("bytes", "bytes", 0, 8, "8")]
    figures = {"params": np.array([9, 10, 15, 20, 21]), "bytes": np.array([8, 8, 9, 4, 12])}
    assert feasible(figures, window).tolist() == [False, True, False, True, False]
    np.testing.assert_allclose(excess(figures, window), [[0.1, 0, 0, 0, 0.05], [0, 0, 0.125, 0, 0.5]])


# Budget, what the line says of the tightest, the nearest candidate, and how it misses.
NOTHING: tuple[tuple[dict[str, Any], str, tuple[int, ...], str], ...] = (
    # The smallest there is.
    (
        {"params": "0.2B"},
        "search.params = 0.2B (190M to 200M) is met by 0 of 138,720 candidates; nearest: ",
        (16, 1664, 5760, 4, 2),
        "params 968.7M, over search.params; give more",
    ),
    # The source itself.
    (
        {"params": "9B"},
        "search.params = 9B (8.55B to 9B) is met by 0 of 138,720 candidates; nearest: ",
        (32, 4096, 14336, 8, 4),
        "params 8.03B, under search.params; give less",
    ),
    # Each can be met, but not both: half the cache leaves at most half the layers or half the heads.
    (
        {"params": "7.9B..8.1B", "kv_cache": "half", "layers": (32, 16), "multiple": 1024},
        "search.params = 7.9B..8.1B (7.9B to 8.1B) is met by 1 of 324 candidates, and all budgets together by none",
        (32, 4096, 14336, 4, 4),
        "params 7.359B, under search.params; give less",
    ),
    (
        {"non_embedding_params": "9B"},
        "search.non_embedding_params = 9B (8.55B to 9B) is met by 0 of 138,720 candidates; nearest: ",
        (32, 4096, 14336, 8, 4),
        "non_embedding_params 6.98B, under search.non_embedding_params; give less",
    ),
    # At a million tokens the cache alone is more than the chip holds.
    (
        {"chip": "v5e", "context": 2**20},
        "search.chip = 1 x v5e (at most 15.46GB) is met by 0 of 138,720 candidates; nearest: ",
        (16, 1664, 5760, 4, 2),
        "bytes 36.3GB, over search.chip; raise search.chips or lower search.context",
    ),
    (
        {"latency": "1 ms", "chip": "v5e"},
        "search.latency = 1 ms (0.95 ms to 1 ms) is met by 0 of 138,720 candidates, and all budgets together by none",
        (16, 1664, 5760, 4, 2),
        "latency 2.008 ms, over search.latency; give more",
    ),
)


@pytest.mark.parametrize(("fields", "tightest", "nearest", "misses"), NOTHING)
def test_a_budget_that_nothing_meets(
    fields: dict[str, Any], tightest: str, nearest: tuple[int, ...], misses: str
) -> None:
    with pytest.raises(UserError) as caught:
        find(SearchConfig(**fields), LLAMA31_8B)
    sizes = ", ".join(f"{axis} {size}" for axis, size in zip(CHOICES, nearest, strict=True))
    line = str(caught.value)
    assert line.startswith(tightest)
    assert f"nearest: {sizes}, with {misses}" in line
    assert "\n" not in line
