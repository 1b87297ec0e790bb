"""Whole spaces: Minitron's, one against brute force, one of a million."""

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest
from search.sources import LLAMA31_8B, NEMOTRON4_15B, SMOLLM2

from chopjax.errors import UserError
from chopjax.hf.families import FAMILIES, target_family
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import count, flops_per_token, kv_cache_bytes
from chopjax.search import space
from chopjax.search.config import CHOICES, SearchConfig
from chopjax.search.enumerate import Candidate, Found, find
from chopjax.search.frontier import select

# Layers, query heads, MLP width, embedding width: arXiv 2407.14679, table 19.
TABLE_19 = {
    (32, 32, 12800, 5120), (32, 32, 13824, 4608), (32, 48, 11520, 4608), (32, 48, 16384, 4096),
    (31, 32, 12800, 5120), (31, 32, 16128, 4608), (31, 48, 13824, 4608), (31, 48, 16384, 4096),
    (30, 32, 12800, 5120), (30, 32, 16128, 4608), (30, 48, 13824, 4608), (30, 48, 16384, 4096),
    (29, 32, 12800, 5120), (29, 32, 16128, 4608), (29, 48, 13824, 4608),
}  # fmt: skip


def rows(found: Found) -> list[tuple[int, ...]]:
    """Layers, query heads, MLP width and embedding width of each candidate."""
    sizes = found.space.sizes(found.numbers)
    heads = sizes["kv_heads"] * sizes["q_per_kv"]
    return list(zip(*(a.tolist() for a in (sizes["layers"], heads, sizes["mlp"], sizes["embed"])), strict=True))


def minitron(params: str, heads: tuple[int, ...], embed: tuple[int, ...]) -> Found:
    """Minitron's printed space (section 4.3) in a window of total parameters."""
    config = SearchConfig(
        params=params,
        layers=(29, 30, 31, 32),
        embed=embed,
        mlp_factor=(2.5, 3.0, 3.5, 4.0),
        kv_heads=(8,),
        q_per_kv=tuple(number // 8 for number in heads),
    )
    return find(config, NEMOTRON4_15B)


def test_minitrons_8b_space_is_table_19() -> None:
    # "4680" in the paper is taken for 4608, which the table's rows have.
    found = minitron("7.8e9..8.5e9", (32, 48), (4096, 4608, 5120, 5632, 6144))
    assert len(found.space) == 4 * 2 * 4 * 5
    assert len(found) == len(TABLE_19) == 15
    assert set(rows(found)) == TABLE_19
    # The window of five percent around 8e9 that the text names gives others.
    assert len(minitron("7.6e9..8.4e9", (32, 48), (4096, 4608, 5120, 5632, 6144))) == 18


def test_minitrons_4b_space_has_18() -> None:
    found = minitron("3.8e9..4.2e9", (24, 32, 48), (2560, 3072, 3584, 4096, 4608))
    assert len(found.space) == 4 * 3 * 4 * 5
    assert len(set(rows(found))) == len(found) == 18
    assert (32, 24, 9216, 3072) in rows(found)  # Minitron 4B itself


def brute_force(config: SearchConfig, source: ModelConfig, choices: dict[str, Any]) -> set[tuple[int, ...]]:
    """The same by a plain loop, for budgets of parameters, FLOPs and cache."""
    top = {name: budget.high for name, budget in config.budgets.items()}
    found = set()
    for sizes in itertools.product(*(choices[axis] for axis in CHOICES)):
        student = dataclasses.replace(source, **dict(zip(CHOICES, sizes, strict=True)), kind_of_layer=())  # type: ignore[arg-type]
        if (
            0.7 * top["params"] <= count(student) <= top["params"]
            and flops_per_token(student, config.context) <= top["flops"]
            and config.sequences * kv_cache_bytes(student, config.context) <= top["kv_cache"]
        ):
            found.add(sizes)
    return found


def test_a_space_that_nobody_printed_equals_brute_force() -> None:
    choices: dict[str, Any] = {
        "layers": (30, 29, 23, 17, 11),
        "embed": (576, 500, 333, 250),
        "mlp": (1536, 1111, 900, 640, 77),
        "kv_heads": (3, 2, 1),
        "q_per_kv": (3, 1),
    }
    config = SearchConfig(
        params="80M", flops="200 MFLOPs", kv_cache="120MB", context=3000, sequences=3, tolerance=0.3, **choices
    )
    found = find(config, SMOLLM2)
    sizes = found.space.sizes(found.numbers)
    mine = list(zip(*(sizes[axis].tolist() for axis in CHOICES), strict=True))
    expected = brute_force(config, SMOLLM2, choices)
    assert 20 < len(expected) < 200
    assert len(mine) == len(set(mine))
    assert set(mine) == expected


def test_a_million_candidates() -> None:
    found = find(SearchConfig(params="4.5B", multiple=32, chip="v5e", context=32_768), LLAMA31_8B)
    assert len(found.space) == 17 * 77 * 269 * 2 * 3 == 2_112_726
    assert len(found) > 10_000
    assert (np.diff(found.numbers) > 0).all()
    for place in (0, len(found) // 2, len(found) - 1):
        candidate = found.candidate(place)
        student = dataclasses.replace(LLAMA31_8B, **candidate.sizes, kind_of_layer=())  # type: ignore[arg-type]
        assert candidate.figures["params"] == count(student)
        assert 0.95 * 4.5e9 <= count(student) <= 4.5e9
        assert 2 * count(student) + kv_cache_bytes(student, 32_768) <= 0.9 * 2**34
    assert len(set(select(found, 32).tolist())) == 32


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    fits, nothing = SearchConfig(params="100M", chip="l4"), SearchConfig(params="8M", kv_cache="10%")
    whole = find(fits, SMOLLM2)
    with pytest.raises(UserError) as said:
        find(nothing, SMOLLM2)
    monkeypatch.setattr(space, "CHUNK", 13)
    cut = find(fits, SMOLLM2)
    assert cut.numbers.tolist() == whole.numbers.tolist()
    assert all((cut.figures[name] == array).all() for name, array in whole.figures.items())
    assert {"params", "bytes", "latency", "prefill"} <= whole.figures.keys()
    with pytest.raises(UserError) as again:
        find(nothing, SMOLLM2)
    assert str(again.value) == str(said.value)


def test_what_stock_transformers_refuses_is_left_out() -> None:
    biased = dataclasses.replace(LLAMA31_8B, qkv_bias=True, o_bias=True)  # no other class can stand in for this Llama
    config = SearchConfig(embed=(4096, 3072, 2560), params="1e9..9e9", q_per_kv=(4, 3), kv_heads=(8,), layers=(32,))
    llama = FAMILIES["llama"]
    found = find(config, biased, accept=lambda student: target_family(llama, student))
    sizes = found.space.sizes(found.numbers)
    kept = set(zip(sizes["embed"].tolist(), (8 * sizes["q_per_kv"]).tolist(), strict=True))
    assert kept == {(4096, 32), (3072, 32), (3072, 24), (2560, 32)}
    with pytest.raises(UserError, match=r"^search: no combination .* can be exported; the last: stock transformers"):
        find(
            SearchConfig(embed=(4096,), params="9B", tolerance=1, q_per_kv=(3,), kv_heads=(8,)),
            biased,
            accept=lambda student: target_family(llama, student),
        )


def test_records_pass_through_json() -> None:
    found = minitron("3.8e9..4.2e9", (24,), (3072,))
    candidate = found.candidate(0, increase=0.25)
    assert candidate.sizes == {"layers": 32, "embed": 3072, "mlp": 9216, "kv_heads": 8, "q_per_kv": 3}
    again = Candidate.from_record(json.loads(json.dumps(candidate.record())))
    assert again == candidate
