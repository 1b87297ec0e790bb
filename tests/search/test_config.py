"""What `SearchConfig` refuses, in one line that names the field."""

from typing import Any

import pytest

from chopjax.errors import UserError
from chopjax.search.config import SearchConfig


def test_without_a_budget_nothing_is_searched_for() -> None:
    assert not SearchConfig().wanted
    assert SearchConfig(chip="v5e").wanted
    assert SearchConfig(chip="v5e").primary == "bytes"


def test_the_first_budget_is_the_primary_one() -> None:
    config = SearchConfig(kv_cache="half", params="4B", latency=9, chip="H100")
    assert config.wanted
    assert list(config.budgets) == ["params", "kv_cache", "latency"]
    assert config.primary == "params"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"params": "lots"}, r"search\.params is 'lots'"),
        ({"bytes": "16 GX"}, r"search\.bytes is '16 GX'"),
        ({"kv_cache": "9..8"}, r"search\.kv_cache is '9..8'"),
        ({"latency": 5}, r"search\.latency needs a chip"),
        ({"chip": "v6"}, r"search\.chip is 'v6'; did you mean \"v6e\"\?"),
        ({"chips": 0}, r"search\.chips is 0"),
        ({"context": 0}, r"search\.context is 0"),
        ({"tolerance": 1.5}, r"search\.tolerance is 1\.5"),
        ({"least_width": float("nan")}, r"search\.least_width is nan"),
        ({"multiple": -1}, r"search\.multiple is -1"),
        ({"embed": (64, 0)}, r"search\.embed is \(64, 0\)"),
        ({"mlp_factor": (2.5, -1.0)}, r"search\.mlp_factor is"),
        ({"mlp": (64,), "mlp_factor": (2.5,)}, r"search\.mlp and search\.mlp_factor are both set"),
        ({"distill_steps": 0}, r"search\.distill_steps is 0"),
    ],
)
def test_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"^{words}") as caught:
        SearchConfig(**fields)
    assert "\n" not in str(caught.value)
