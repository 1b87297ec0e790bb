from hypothesis import given
from hypothesis import strategies as st

from chopjax.report.scales import ticks


@given(st.floats(0.5, 1e6), st.floats(1.5, 1e6))
def test_ticks_are_few_and_inside(low: float, factor: float) -> None:
    found = ticks(low, low * factor)
    assert 3 <= len(found) <= 8
    assert all(low * (1 - 1e-9) <= tick <= low * factor * (1 + 1e-9) for tick in found)
    assert found == sorted(found)
