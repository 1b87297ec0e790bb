"""The choices of every axis, and how candidates are numbered."""

import dataclasses
import itertools

import numpy as np
import pytest
from search.sources import LLAMA31_8B, NEMOTRON4_15B, SMOLLM2

from chopjax.errors import UserError
from chopjax.search.config import SearchConfig
from chopjax.search.space import CHUNK, make_space

MINITRON = SearchConfig(embed=(4096, 6144), mlp_factor=(2.5, 4.0), layers=(29, 32), kv_heads=(8,), q_per_kv=(4, 6))


def test_generated_choices_by_hand() -> None:
    space = make_space(SearchConfig(), LLAMA31_8B)
    assert space.choices["layers"] == tuple(range(32, 15, -1))
    assert space.choices["embed"] == tuple(range(4096, 1638, -128))  # 0.4 · 4096 = 1638.4
    assert space.choices["mlp"] == tuple(range(14_336, 5734, -128))
    assert space.choices["kv_heads"] == (8, 4)
    assert space.choices["q_per_kv"] == (4, 3, 2)


def test_a_source_that_is_no_multiple_of_128_takes_smaller_steps() -> None:
    space = make_space(SearchConfig(), SMOLLM2)
    assert space.choices["embed"] == (576, 512, 448, 384, 320, 256)  # 576 = 9 · 64
    assert space.choices["mlp"] == tuple(range(1536, 614, -128))
    assert space.choices["kv_heads"] == (3,)
    assert space.choices["q_per_kv"] == (3, 2)
    assert make_space(SearchConfig(), dataclasses.replace(SMOLLM2, embed=360)).choices["embed"][:2] == (360, 352)
    odd = make_space(SearchConfig(least_width=0.9), dataclasses.replace(SMOLLM2, embed=45))
    assert odd.choices["embed"] == (45, 44, 43, 42, 41)


def test_a_given_multiple_is_kept_to_and_the_sources_own_size_remains() -> None:
    space = make_space(SearchConfig(multiple=250, least_width=0.5), SMOLLM2)
    assert space.choices["embed"] == (576, 500)
    assert make_space(SearchConfig(multiple=10_000), SMOLLM2).choices["embed"] == (576,)


def test_the_mesh_divides_what_is_generated() -> None:
    mesh = {"data": 2, "fsdp": 4, "tensor": 2}
    space = make_space(SearchConfig(least_width=0.1), SMOLLM2, mesh)
    assert all(size % 64 == 0 for size in space.choices["embed"])
    by_three = make_space(SearchConfig(least_width=0.2), SMOLLM2, {"tensor": 3})
    assert by_three.choices["mlp"] == (1536, 1152, 768, 384)
    assert by_three.choices["kv_heads"] == (3,)
    wide = make_space(SearchConfig(least_width=0.1), LLAMA31_8B, {"fsdp": 3, "tensor": 8})
    assert wide.choices["kv_heads"] == (8,)
    assert wide.choices["embed"][:2] == (4096, 3968)  # three parts do not divide the source either
    assert make_space(SearchConfig(least_width=0.1), LLAMA31_8B, {"tensor": 2}).choices["kv_heads"] == (8, 4, 2)
    assert make_space(SearchConfig(), dataclasses.replace(SMOLLM2, embed=768), {"fsdp": 6}).choices["embed"] == (
        768,
        384,
    )


def test_heads_without_groups_go_in_about_eight_steps() -> None:
    heads = {
        whole: make_space(
            SearchConfig(least_width=0.5), dataclasses.replace(LLAMA31_8B, kv_heads=whole, q_per_kv=1)
        ).choices["kv_heads"]
        for whole in (12, 32, 40)
    }
    assert heads[12] == tuple(range(12, 5, -1))
    assert heads[32] == (32, 28, 24, 20, 16)
    assert heads[40] == (40, 36, 32, 28, 24, 20)


def test_mlp_as_multiples_of_embed() -> None:
    space = make_space(MINITRON, NEMOTRON4_15B)
    assert space.choices["mlp"] == (24_576, 16_384, 15_360, 10_240)
    pairs = {(space.choices["embed"][embed], space.choices["mlp"][mlp]) for embed, mlp in space.widths}
    assert pairs == {(6144, 24_576), (6144, 15_360), (4096, 16_384), (4096, 10_240)}
    # Down to a multiple of 128 (2.3 · 512 = 1177.6, 2.666 · 576 = 1535.6), and no larger than the source's 1536.
    rounded = make_space(SearchConfig(embed=(512, 576), mlp_factor=(2.3, 2.666, 4.0)), SMOLLM2)
    pairs = {(rounded.choices["embed"][embed], rounded.choices["mlp"][mlp]) for embed, mlp in rounded.widths}
    assert pairs == {(512, 1152), (512, 1280), (576, 1280), (576, 1408)}


def test_numbers_are_the_product_of_the_choices_in_order() -> None:
    config = SearchConfig(layers=(3, 1), embed=(8, 16), mlp=(5, 9, 7), kv_heads=(2,), q_per_kv=(1, 3))
    space = make_space(config, dataclasses.replace(SMOLLM2, q_per_kv=3))
    sizes = space.sizes(np.arange(len(space)))
    rows = list(zip(*(sizes[axis].tolist() for axis in space.choices), strict=True))
    assert rows == list(itertools.product((3, 1), (16, 8), (9, 7, 5), (2,), (3, 1)))
    assert all(array.dtype == np.int64 for array in sizes.values())


def test_chunks_cover_a_large_space_once() -> None:
    space = make_space(SearchConfig(multiple=32), LLAMA31_8B)
    starts = [(chunk[0], chunk[-1], len(chunk)) for chunk in space.chunks()]
    assert len(space) > 1_000_000
    assert [start for start, _, _ in starts] == list(range(0, len(space), CHUNK))
    assert sum(length for *_, length in starts) == len(space) == starts[-1][1] + 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"embed": (512, 640)}, r"search\.embed lists 640, but the source has 576"),
        ({"layers": (31,)}, r"search\.layers lists 31, but the source has 30"),
        ({"mlp_factor": (0.1,)}, r"search\.mlp_factor .* gives no MLP width from 128 to the source's 1536"),
        (
            {"multiple": 1, "least_width": 0.0, "least_depth": 0.0},
            r"search: the space has [\d,]+ candidates, more than",
        ),
    ],
)
def test_refused(fields: dict, words: str) -> None:
    with pytest.raises(UserError, match=f"^{words}"):
        make_space(SearchConfig(**fields), SMOLLM2)
