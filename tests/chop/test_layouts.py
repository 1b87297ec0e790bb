"""The layouts of Just CHOP against its figure 5 (12 of 24 layers) and the indices that Minitron prints."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.chop.layouts import LAYOUTS, kept_layers
from chopjax.errors import UserError


@pytest.mark.parametrize(
    ("layout", "removed"),
    [
        ("input", range(1, 13)),
        ("output", range(11, 23)),
        ("middle", range(6, 18)),
        ("both", [*range(1, 7), *range(17, 23)]),
        ("last", range(12, 24)),
    ],
)
def test_figure_5(layout: str, removed: list[int]) -> None:
    assert kept_layers(layout, 24, 12) == sorted(set(range(24)) - set(removed))


def test_max_gap_is_evenly_spaced() -> None:
    assert kept_layers("max_gap", 24, 12) == [0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 23]


def test_llama_31_8b_output_block_as_in_minitron() -> None:
    assert kept_layers("output", 32, 16) == [*range(15), 31]


def test_both_gives_an_odd_layer_to_the_input_side() -> None:
    assert kept_layers("both", 9, 3) == [0, 3, 4, 5, 6, 8]


@given(st.sampled_from(sorted(LAYOUTS)), st.integers(2, 61), st.data())
def test_counts_and_ends(layout: str, layers: int, data: st.DataObject) -> None:
    removed = data.draw(st.integers(0, layers - 2))
    kept = kept_layers(layout, layers, removed)
    assert len(set(kept)) == len(kept) == layers - removed
    assert kept == sorted(kept) and kept[0] == 0 and 0 <= kept[-1] < layers
    if layout != "last":
        assert kept[-1] == layers - 1


@pytest.mark.parametrize(("layout", "removed"), [("middle", 7), ("input", -1), ("last", 8), ("sideways", 2)])
def test_refusals(layout: str, removed: int) -> None:
    with pytest.raises(UserError, match="plan\\."):
        kept_layers(layout, 8, removed)
