"""The frontier by brute force, and the rule by which candidates are chosen."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search.sources import SMOLLM2

from chopjax.search.config import SearchConfig
from chopjax.search.enumerate import Found, find
from chopjax.search.frontier import increases, pareto, probes, select, surrogate
from chopjax.search.space import make_space

POINTS = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6).map(float) | st.just(float("nan"))), min_size=1, max_size=20
)


@given(POINTS)
def test_frontier_equals_its_definition(points: list[tuple[int, float]]) -> None:
    size, loss = (np.array(column, float) for column in zip(*points, strict=True))
    expected = [
        not np.isnan(y) and not any((a <= x and b < y) or (a < x and b <= y) for a, b in points) for x, y in points
    ]
    assert pareto(size, loss).tolist() == expected


@pytest.fixture(scope="module")
def found() -> Found:
    return find(SearchConfig(params="100M", least_width=0.5, multiple=32), SMOLLM2)


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[int, float]]:
    """Losses that make depth dearest, heads next, and MLP cheap."""
    return {
        "layers": {15: 6.0, 22: 2.0, 29: 0.25},
        "embed": {320: 2.0, 512: 0.5},
        "mlp": {768: 0.7, 1408: 0.05},
        "q_per_kv": {2: 0.4},
    }


def test_probes_spread_over_each_axis() -> None:
    space = make_space(SearchConfig(layers=(30, 28, 26, 24, 22), mlp=(1536,), embed=(512, 256)), SMOLLM2)
    assert probes(space, SMOLLM2.sizes, most=3) == {"layers": (28, 24, 22), "embed": (512, 256), "q_per_kv": (2,)}
    assert probes(space, SMOLLM2.sizes, most=1) == {"layers": (22,), "embed": (256,), "q_per_kv": (2,)}


def test_losses_between_probes_by_hand(found: Found, measured: dict[str, dict[int, float]]) -> None:
    table = increases(found.space, SMOLLM2.sizes, measured)
    assert {axis: len(array) for axis, array in table.items()} == {a: len(c) for a, c in found.space.choices.items()}
    by_layers = dict(zip(found.space.choices["layers"], table["layers"], strict=True))
    assert by_layers[30] == 0
    assert by_layers[29] == 0.25
    assert by_layers[22] == 2.0
    assert by_layers[23] == pytest.approx(2.0 - 1.75 / 7)
    by_embed = dict(zip(found.space.choices["embed"], table["embed"], strict=True))
    assert by_embed[448] == pytest.approx(1.0)
    assert table["kv_heads"].tolist() == [0]


def test_the_surrogate_sums_over_axes(found: Found, measured: dict[str, dict[int, float]]) -> None:
    table = increases(found.space, SMOLLM2.sizes, measured)
    total = surrogate(found, table)
    for place in (0, len(found) // 3, len(found) - 1):
        sizes = found.candidate(place).sizes
        expected = sum(table[axis][found.space.choices[axis].index(size)] for axis, size in sizes.items())
        assert total[place] == pytest.approx(expected)
    assert surrogate(found, {"layers": table["layers"]}).max() <= table["layers"].max()
    with pytest.raises(ValueError, match="embed: 2 values for"):
        surrogate(found, {"embed": np.zeros(2)})


def chosen_by_loop(found: Found, number: int, rank: list[int]) -> list[int]:
    """The rule of `select` in a plain loop."""
    sizes = [found.candidate(place).sizes for place in range(len(found))]
    seen: set[tuple[int, ...]] = set()
    best = []
    for place in rank:
        family = tuple(size for axis, size in sizes[place].items() if axis != "mlp")
        if family not in seen:
            best.append(place)
        seen.add(family)
    taken: list[int] = []
    for place in best:
        same = sum(sizes[other]["layers"] == sizes[place]["layers"] for other in taken)
        if same < -(-number // 4):
            taken.append(place)
    rest = [place for place in best if place not in taken] + [place for place in rank if place not in best]
    taken = (taken + rest)[:number]
    return sorted(taken, key=rank.index)


@pytest.mark.parametrize("number", [1, 2, 5, 16, 60, 10_000])
def test_selected_by_the_stated_rule(found: Found, measured: dict[str, dict[int, float]], number: int) -> None:
    assert 100 < len(found) < 1000
    total = surrogate(found, increases(found.space, SMOLLM2.sizes, measured))
    params = found.figures["params"]
    rank = sorted(range(len(found)), key=lambda place: (total[place], -params[place], place))
    picked = select(found, number, total)
    assert picked.tolist() == chosen_by_loop(found, number, rank)
    assert picked[0] == rank[0]
    largest = sorted(range(len(found)), key=lambda place: (-params[place], place))
    assert select(found, number).tolist() == chosen_by_loop(found, number, largest)


def test_no_depth_takes_more_than_a_quarter(found: Found, measured: dict[str, dict[int, float]]) -> None:
    total = surrogate(found, increases(found.space, SMOLLM2.sizes, measured))
    picked = select(found, 16, total)
    layers = found.space.sizes(found.numbers[picked])["layers"]
    assert np.bincount(layers).max() == 4
    assert (np.diff(total[picked]) >= 0).all()


def test_one_depth_alone_may_fill_every_place() -> None:
    only = find(SearchConfig(params="100M", layers=(30,)), SMOLLM2)
    assert len(select(only, len(only) - 1)) == len(only) - 1
    assert len(select(only, 1000)) == len(only)


def test_a_cache_budget_is_spent_before_anything_else_is_cut() -> None:
    config = dataclasses.replace(SearchConfig(kv_cache="half", tolerance=0.2), evaluate=4)
    halved = find(config, SMOLLM2)
    first = halved.candidate(int(select(halved, 4)[0]))
    assert first.sizes == {"layers": 15, "embed": 576, "mlp": 1536, "kv_heads": 3, "q_per_kv": 3}
