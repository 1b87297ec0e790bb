import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.report.words import duration, percent, ranges, scaled, significant


@pytest.mark.parametrize(
    ("value", "text"),
    [(134_515_008, "135M"), (97_300_000, "97.3M"), (8_030_261_248, "8.03B"), (999_600, "1M"), (999, "999"), (0, "0")],
)
def test_scaled(value: float, text: str) -> None:
    assert scaled(value) == text


def test_scaled_bytes() -> None:
    assert scaled(269_030_016, "B", "kMGT") == "269 MB"
    assert scaled(1.6e14, "B", "kMGT") == "160 TB"


@pytest.mark.parametrize(
    ("value", "text"),
    [(24.34, "24.3"), (0.0456, "0.0456"), (101.7, "102"), (9.999, "10.0"), (12345, "12,300"), (1e9, "1.00e+09")],
)
def test_significant(value: float, text: str) -> None:
    assert significant(value) == text


@given(st.floats(1e-12, 1e12))
def test_significant_is_within_half_a_unit_of_its_last_digit(value: float) -> None:
    assert float(significant(value).replace(",", "")) == pytest.approx(value, rel=0.00501)


def test_percent_never_rounds_to_nothing_or_all() -> None:
    assert [percent(share) for share in (0, 0.001, 0.5, 0.9999, 1)] == ["0 %", "<1 %", "50 %", ">99 %", "100 %"]


def test_duration() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 431.7, 12_000)] == [
        "0 s",
        "1 min 0 s",
        "7 min 12 s",
        "3 h 20 min",
    ]


@given(st.sets(st.integers(0, 60)))
def test_ranges_name_every_index_once(indices: set[int]) -> None:
    text = ranges(sorted(indices))
    named = [] if text == "none" else [part.split("–") for part in text.split(", ")]
    assert sorted(indices) == [index for ends in named for index in range(int(ends[0]), int(ends[-1]) + 1)]
