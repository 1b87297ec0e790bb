import math
from typing import Any

import pytest
from report.made_up_scores import removal, search

from chopjax.errors import UserError
from chopjax.report import records


def test_a_search_as_it_is_written() -> None:
    body = search(4, 2)
    body["candidates"][3]["loss"] = None
    found = records.search(body)
    assert (found.enumerated, found.feasible, found.dense_parameters, found.dense_loss) == (
        1_254_400,
        18_302,
        134_515_008,
        2.91,
    )
    assert found.budget == {"params": "60%..95%"} and found.chosen in (0, 1)
    assert found.candidates[0].distilled == body["candidates"][0]["distilled"]
    assert math.isnan(found.candidates[3].loss) and math.isnan(found.candidates[2].distilled)


def test_a_search_of_little() -> None:
    found = records.search({"candidates": []})
    assert found == records.Search((), dense_parameters=found.dense_parameters, dense_loss=found.dense_loss)
    assert math.isnan(found.dense_loss)


def test_a_removal_as_it_is_written() -> None:
    found = records.removal(removal(9) | {"dense": None})
    assert math.isnan(found.dense) and found.count == 6
    assert len(found.removed) == len(found.losses) == 3 and len(found.without_one) == 9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"candidates": None}, "search.json: candidates is None, not a list; delete"),
        ({"candidates": [3]}, r"search.json: candidates\[0\] is 3, not an object"),
        ({"candidates": [{"sizes": {"mlp": 2.5}}]}, r"candidates\[0\].sizes.mlp is 2.5, not a whole number"),
        ({"candidates": [{"sizes": {"mlp": True}}]}, r"candidates\[0\].sizes.mlp is True"),
        ({"chosen": 4}, "chosen is 4, not a place among 4 candidates"),
        ({"chosen": "first"}, "chosen is 'first', not a whole number"),
        ({"enumerated": -1}, "enumerated is -1, not a whole number"),
        ({"dense": [1]}, r"dense is \[1\], not an object"),
        ({"budget": "4.5B"}, "budget is '4.5B', not an object"),
    ],
)
def test_damage_in_a_search_is_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        records.search(search(4, 2) | change)
    assert "\n" not in str(error.value) and "python -m chopjax.plan" in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"removed": [1, 1, 2]}, r"removed is \[1, 1, 2\], not a list of layers, each once"),
        ({"removed": [1.5]}, r"removed\[0\] is 1.5, not a whole number of 0 or more"),
        ({"losses": [1.0]}, "not a loss for each of 3 removed layers"),
        ({"blocks": {"0": 3}}, "blocks is {'0': 3}, not a list"),
        ({"count": "two"}, "count is 'two', not a whole number"),
    ],
)
def test_damage_in_a_removal_is_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        records.removal(removal(9) | change)
    assert "\n" not in str(error.value)
