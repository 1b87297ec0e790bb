import math

import numpy as np

from chopjax.report.pictures.search import cost_said, differing, ranks, said, tried
from chopjax.report.records import Candidate, Search

CANDIDATES = tuple(
    Candidate({"layers": layers, "kv_heads": 3, "mlp": 1000 + layers}, size, cost, loss, distilled)
    for layers, size, cost, loss, distilled in [
        (8, 80.0, 5.0, 3.0, 2.5),
        (9, 90.0, 4.0, 2.8, 2.6),
        (7, 70.0, 3.0, 3.5, math.nan),
        (6, 85.0, 2.0, 3.1, 2.4),
        (5, 60.0, 1.0, math.nan, math.nan),
    ]
)


def test_frontier_and_ranks() -> None:
    found = tried(Search(CANDIDATES))
    np.testing.assert_array_equal(found.cost, [80, 90, 70, 85, 60])
    np.testing.assert_array_equal(found.frontier, [True, True, True, False, False])
    np.testing.assert_array_equal(found.before, [2, 1, 4, 3, 0])
    np.testing.assert_array_equal(found.after, [2, 3, 0, 1, 0])
    other = tried(Search(CANDIDATES, cost="latency"))
    np.testing.assert_array_equal(other.cost, [5, 4, 3, 2, 1])
    np.testing.assert_array_equal(other.frontier, [False, True, False, True, False])


def test_ranks_of_nothing_and_of_equals() -> None:
    assert ranks(np.array([math.nan, math.nan])).tolist() == [0, 0]
    assert ranks(np.array([2.0, 1.0, 2.0])).tolist() == [2, 1, 3]


def test_words() -> None:
    assert differing(CANDIDATES) == ["layers", "mlp"]
    assert said(CANDIDATES[0].sizes, ["layers", "mlp", "embed"]) == "8 layers, 1,008 neurons"
    assert [cost_said(*cost) for cost in [("params", 4.5e9), ("parameters", 9e7), ("kv_cache", 2.5e9)]] == [
        "4.5B",
        "90M",
        "2.5 GB",
    ]
    assert (cost_said("latency", 12.34), cost_said("dollars", 7.0), cost_said("flops", math.nan)) == (
        "12.3 ms",
        "7",
        "–",
    )
