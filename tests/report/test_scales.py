from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from chopjax.report.scales import ticks, values


@given(st.floats(0.5, 1e6), st.floats(1.5, 1e6))
def test_ticks_are_few_and_inside(low: float, factor: float) -> None:
    found = ticks(low, low * factor)
    assert 3 <= len(found) <= 8
    assert all(low * (1 - 1e-9) <= tick <= low * factor * (1 + 1e-9) for tick in found)
    assert found == sorted(found)


def test_ticks_of_a_narrow_range_read_differently() -> None:
    axes = Figure().add_subplot()
    axes.plot([0, 1], [10.8033, 10.8047])
    values(axes)
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    said = [label.get_text() for label in axes.get_yticklabels()]
    assert len(said) >= 4 and len(set(said)) == len(said) and "10.804" in said
    axes.plot([0, 1], [0, 30])
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    assert {"0", "30"} <= {label.get_text() for label in axes.get_yticklabels()}
