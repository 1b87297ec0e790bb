"""Budgets as people write them."""

from typing import Any

import pytest

from chopjax.errors import UserError
from chopjax.search.quantity import budget, quantity


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("4.5B", "count", 4.5e9),
        ("4.5 billion", "count", 4.5e9),
        ("7_000_000", "count", 7e6),
        ("350m", "count", 350e6),
        ("8e9", "count", 8e9),
        (".5k", "count", 500),
        (1234, "count", 1234),
        (4.5e9, "count", 4.5e9),
        ("16 GB", "bytes", 16e9),
        ("16GiB", "bytes", 16 * 2**30),
        ("512 MiB", "bytes", 2**29),
        ("100 B", "bytes", 100),
        ("9 GFLOPs", "flops", 9e9),
        ("1.5T", "flops", 1.5e12),
        ("12 ms", "milliseconds", 12),
        ("12", "milliseconds", 12),
        ("0.5 s", "milliseconds", 500),
        ("250 us", "milliseconds", 0.25),
    ],
)
def test_quantities(value: Any, kind: str, expected: float) -> None:
    assert quantity(value, kind=kind) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("4.5Q", "count"), ("", "count"), ("B", "count"), ("-3B", "count"), ("0", "count"), ("1e999", "count"),
        ("4__5", "count"), ("4,5B", "count"), ("16 GB", "count"), ("4 GFLOPs", "bytes"), ("3 minutes", "milliseconds"),
        (0, "count"), (-1.0, "count"), (float("nan"), "count"), (float("inf"), "count"), (True, "count"),
        (None, "count"), ([4], "count"),
    ],
)  # fmt: skip
def test_what_is_no_quantity(value: Any, kind: str) -> None:
    with pytest.raises(UserError, match=r"^search\.params is .*give a positive number") as caught:
        quantity(value, "search.params", kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "kind", "low", "high", "share"),
    [
        ("4.5B", "count", None, 4.5e9, False),
        ("7.8e9..8.5e9", "count", 7.8e9, 8.5e9, False),
        ("7.8B .. 8.5B", "count", 7.8e9, 8.5e9, False),
        ("half", "bytes", None, 0.5, True),
        ("a quarter", "bytes", None, 0.25, True),
        ("60%", "count", None, 0.6, True),
        ("40%..half", "count", 0.4, 0.5, True),
        (0.5, "bytes", None, 0.5, True),
        ("0.5", "bytes", None, 0.5, True),
        (0.5, "milliseconds", None, 0.5, False),
        ("0.5", "milliseconds", None, 0.5, False),
        ("0.5 k", "count", None, 500, False),
        (2, "count", None, 2, False),
    ],
)
def test_budgets(value: Any, kind: str, low: float | None, high: float, share: bool) -> None:
    found = budget(value, "search.params", kind)
    assert (found.low, found.high, found.share) == (low, pytest.approx(high), share)


@pytest.mark.parametrize("value", ["9B..8B", "40%..8B", "..8B", "8B..", "half..x"])
def test_what_is_no_window(value: str) -> None:
    with pytest.raises(UserError, match=r"^search\.params is .*LOW\.\.HIGH"):
        budget(value, "search.params")
