import base64
import io
import re

import matplotlib.image
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from report.made_up_runs import SIZES, draws, middle_plan

from chopjax.chop.apply import mask
from chopjax.chop.plan import Plan
from chopjax.report.plan_drawing import COLUMN_PIXELS, MLP_CELLS, describe, draw, shares


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_every_layer_appears_once_as_kept_or_removed(case: tuple[int, set[int]]) -> None:
    count, kept = case
    svg = draw(Plan(SIZES | {"layers": count}, {"layers": np.array(sorted(kept))}))
    notes = re.findall(r"<title>layer (\d+): (removed|kept, layer (\d+) of the student)</title>", svg)
    assert [int(layer) for layer, _, _ in notes] == list(range(count))
    assert [int(layer) for layer, _, student in notes if student] == sorted(kept)
    assert [int(student) for _, _, student in notes if student] == list(range(len(kept)))
    assert svg.count('class="kept"') == len(kept)


def test_layers_that_go_are_crossed_out() -> None:
    svg = draw(Plan(SIZES, {"layers": np.array([*range(12), *range(18, 30)])}))
    assert svg.count('<path d="M') == 6


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 700), st.integers(1, 300), st.integers(0, 99))
def test_shares_count_each_index_in_its_cell(size: int, cells: int, seed: int) -> None:
    kept = draws((), size, 1 + seed % size, seed)
    found = shares(kept, size, cells)
    cell_of = np.arange(size) * len(found) // size
    for cell, share in enumerate(found):
        members = np.flatnonzero(cell_of == cell)
        assert share == np.isin(members, kept).mean()
    assert len(found) == min(size, cells)


def test_neurons_are_drawn_in_the_column_of_their_source_layer() -> None:
    plan = Plan(
        SIZES | {"layers": 4, "mlp": 12}, {"layers": np.array([0, 3]), "mlp": np.array([[0, 1, 2], [0, 6, 11]])}
    )
    columns = _picture(draw(plan))[:, ::COLUMN_PIXELS]
    expected = np.zeros((12, 4))
    expected[[0, 1, 2], 0] = 1
    expected[[0, 6, 11], 3] = 1
    np.testing.assert_array_equal(columns, expected)


def test_a_wide_mlp_is_drawn_by_shares() -> None:
    picture = _picture(draw(middle_plan()))
    assert picture.shape == (MLP_CELLS, 30 * COLUMN_PIXELS)
    column = picture[:, 5 * COLUMN_PIXELS]
    np.testing.assert_allclose(column.mean(), 0.75, atol=0.005)
    assert not picture[:, 12 * COLUMN_PIXELS : 18 * COLUMN_PIXELS].any()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 999))
def test_heads_agree_with_the_plan_read_one_by_one(layers: int, groups: int, queries: int, seed: int) -> None:
    few = [1 + seed % size for size in (layers, groups, queries)]
    kept = {
        "layers": draws((), layers, few[0], seed),
        "kv_heads": draws((few[0],), groups, few[1], seed + 1),
        "q_per_kv": draws((few[0], few[1]), queries, few[2], seed + 2),
    }
    chosen = {axis: rows for i, (axis, rows) in enumerate(kept.items()) if axis != "kv_heads" or few[1] < groups}
    expected = np.zeros((layers, groups, queries), bool)
    for student, layer in enumerate(kept["layers"]):
        for place, group in enumerate(kept["kv_heads"][student]):
            expected[layer, group, kept["q_per_kv"][student, place]] = True
    sizes = SIZES | {"layers": layers, "kv_heads": groups, "q_per_kv": queries}
    np.testing.assert_array_equal(mask(Plan(sizes, chosen), "q_per_kv"), expected)


def test_heads_are_drawn_as_kept_or_hollow() -> None:
    svg = draw(middle_plan(kv_heads=draws((24,), 3, 2)))
    # One path each for all heads that stay and all that go; the six others are crosses of a single stroke.
    paths = re.findall(r'<path d="([^"]*)" class="(kept|gone)">', svg)
    squares = {kind: path.count("M") for path, kind in paths if path.endswith("z")}
    assert squares == {"kept": 24 * 2 * 3, "gone": 24 * 3}
    assert len(paths) == 2 + 6


def test_description_names_every_width_that_is_cut() -> None:
    text = describe(middle_plan(embed=draws((), 576, 448)))
    assert text == (
        "Of 30 layers, 24 stay (0–11, 18–29) and 6 go (12–17). "
        "Widths that stay: 1,152 of 1,536 MLP neurons, 448 of 576 residual channels."
    )
    assert describe(Plan(SIZES, {})) == "Of 30 layers, 30 stay (0–29) and 0 go."


def _picture(svg: str) -> np.ndarray:
    """The share that each pixel of the drawing's first picture shows."""
    found = re.search(r"data:image/png;base64,([^\"]*)", svg)
    assert found is not None
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(found[1])))[..., 3]
