import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report.made_up_runs import SIZES

from chopjax.models import parameters
from chopjax.models.config import ModelConfig
from chopjax.report.figures import ModelFigures, gap_closed, measure, table


def test_smollm2_is_measured_as_published() -> None:
    config = ModelConfig(**SIZES, tied=True)
    figures = measure(config, 2048, bytes_per_value=2, perplexity=24.3)
    assert figures.parameters == 134_515_008
    assert figures.non_embedding_parameters == 134_515_008 - 49152 * 576
    assert figures.weight_bytes == 2 * 134_515_008
    assert figures.kv_cache_bytes == 2 * 30 * 3 * 64 * 2048 * 2
    assert figures.flops_per_token == parameters.flops_per_token(config, 2048)
    assert (figures.perplexity, figures.kl_to_teacher) == (24.3, None)


def test_table_shows_models_side_by_side_with_the_last_over_the_first() -> None:
    teacher = ModelFigures(parameters=134_515_008, perplexity=20.0, kl_to_teacher=0.0)
    healed = ModelFigures(parameters=97_300_000, perplexity=30.0, kl_to_teacher=0.4567)
    rows = {row.label: row for row in table({"teacher": teacher, "healed": healed})}
    assert rows["Parameters"].cells == ("135M", "97.3M")
    assert rows["Parameters"].ratio == "× 0.72"
    assert rows["Held-out perplexity"].ratio == "× 1.50"
    assert rows["KL to the teacher, nats a token"].cells == ("0", "0.457")
    assert rows["KL to the teacher, nats a token"].ratio == ""
    assert "Weights" not in rows


def test_table_says_what_is_absent_and_what_is_not_finite() -> None:
    rows = table({"teacher": ModelFigures(), "chopped": ModelFigures(perplexity=math.inf)})
    assert [(row.cells, row.ratio) for row in rows] == [(("–", "not finite"), "")]


@given(st.floats(1, 50), st.floats(1.01, 1e4), st.floats(-1, 2))
def test_gap_closed_inverts_interpolation_of_log_perplexity(teacher: float, factor: float, share: float) -> None:
    chopped = teacher * factor
    healed = math.exp((1 - share) * math.log(chopped) + share * math.log(teacher))
    assert gap_closed(teacher, chopped, healed) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize(
    "perplexities", [(None, 2, 2), (3, 3, 3), (4, 3, 2), (2, math.inf, 3), (2, 4, math.nan), (0, 4, 3), (2, 4, None)]
)
def test_gap_closed_is_unknown_where_nothing_was_lost_or_measured(perplexities: tuple[float | None, ...]) -> None:
    assert gap_closed(*perplexities) is None
