"""Maps of layers by hand, and maps that cannot be."""

import pytest

from chopjax.distill.hidden_config import HiddenConfig
from chopjax.distill.layer_maps import layer_pairs, uniform
from chopjax.errors import UserError


def config(**fields) -> HiddenConfig:
    return HiddenConfig(block_output=1.0, **fields)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, ((0, 0), (1, 2), (2, 3), (3, 7))),
        ({"layers": (-3,)}, ((1, 2),)),
        ({"layer_map": "last"}, ((0, 4), (1, 5), (2, 6), (3, 7))),
        ({"layer_map": "last", "layers": (-3,)}, ((1, 5),)),
        ({"layer_map": "uniform"}, ((0, 1), (1, 3), (2, 5), (3, 7))),
        ({"layer_map": "uniform", "layers": (3, 0)}, ((0, 1), (3, 7))),
        ({"layer_map": "explicit", "pairs": ((-1, -1), (1, 6))}, ((1, 6), (3, 7))),
        ({"layer_map": "explicit", "pairs": ((3, 7), (1, 6)), "layers": (1,)}, ((1, 6),)),
    ],
)
def test_maps_of_four_layers_to_eight(fields: dict, wanted: tuple) -> None:
    assert layer_pairs(config(**fields), 4, 8, kept=[0, 2, 3, 7]) == wanted


def test_minitrons_map_of_16_layers_to_32() -> None:
    # Third from last to third from last: teacher 29, student 13.
    assert layer_pairs(config(layer_map="last", layers=(-3,)), 16, 32, None) == ((13, 29),)


def test_uniform_where_numbers_do_not_divide() -> None:
    assert uniform(3, 5) == [0, 2, 4]
    assert uniform(4, 4) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "kept", "says"),
    [
        ({}, None, "hidden.layer_map is 'plan' but no plan"),
        ({}, [0, 1, 2], "3 layers are not those of a student of 4"),
        ({}, [0, 1, 2, 8], "not those of a student of 4 and a teacher of 8"),
        ({"layers": (4,)}, [0, 1, 2, 3], "student layer 4; the student has layers -4..3"),
        ({"layers": (-1, 3)}, [0, 1, 2, 3], "each student layer once"),
        ({"layer_map": "explicit", "pairs": ((0, 8),)}, None, "teacher layer 8; the teacher has layers -8..7"),
        ({"layer_map": "explicit", "pairs": ((0, 1), (-4, 2))}, None, "each student layer once"),
        ({"layer_map": "explicit", "pairs": ((0, 1),), "layers": (2,)}, None, "student layer 2"),
    ],
)
def test_maps_that_cannot_be_are_refused(fields: dict, kept: list | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        layer_pairs(config(**fields), 4, 8, kept)


@pytest.mark.parametrize("layer_map", ["last", "uniform"])
def test_a_deeper_student_needs_explicit_pairs(layer_map: str) -> None:
    with pytest.raises(UserError, match="has 5 layers and the teacher only 4"):
        layer_pairs(config(layer_map=layer_map), 5, 4, None)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"heads": -1.0}, "hidden.heads is -1.0"),
        ({"relation": float("nan")}, "hidden.relation is nan"),
        ({"relation": float("inf")}, "hidden.relation is inf"),
        ({"distance": "l1"}, "hidden.distance is 'l1'; choose one of 'cosine'"),
        ({"pairs": ((0, 1),)}, "hidden.layer_map is 'plan' and hidden.pairs"),
        ({"layer_map": "explicit"}, "'explicit' goes with pairs"),
        ({"dynamic": True}, "hidden.dynamic scales terms"),
        ({"layer_map": "explicit", "pairs": ((0, 1, 2),)}, "give pairs"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        HiddenConfig(**fields)
