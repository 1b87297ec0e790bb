"""Time in steps that are kept, over all time since training first began, across restarts."""

import json
import pathlib

import pytest

from chopjax.train.goodput import FILE, Goodput, Saved


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_lost_steps_and_pauses_lower_it(tmp_path: pathlib.Path) -> None:
    clock = Clock()
    first = Goodput(tmp_path / "run", clock=clock)
    assert first.share == 0 and first.restored == Saved()
    first.spent(30)
    clock.now += 40
    assert first.share == pytest.approx(30 / 40)
    first.save(3, skipped=1)
    first.spent(10)  # in steps that are lost
    clock.now += 60
    second = Goodput(tmp_path / "run", 3, clock=clock)
    assert second.restored == Saved(30.0, 1)
    second.spent(20)
    clock.now += 20
    assert second.share == pytest.approx(50 / 120)
    second.save(5, skipped=2)
    # A damaged checkpoint: back to step 3, or to the beginning.
    assert Goodput(tmp_path / "run", 4, clock=clock).restored == Saved(30.0, 1)
    anew = Goodput(tmp_path / "run", 0, clock=clock)
    assert anew.restored == Saved() and anew.share == 0
    anew.spent(12)
    assert anew.share == pytest.approx(12 / 120)  # the time since the first start is not forgotten
    assert json.loads((tmp_path / "run" / "goodput.json").read_text()) == {"began": 1000.0, "saved": {}}


def test_others_write_nothing_and_damage_starts_anew(tmp_path: pathlib.Path) -> None:
    Goodput(tmp_path, writer=False).save(3, 0)
    assert not list(tmp_path.iterdir())
    for text in ("", "[]", '{"began": 3}', '{"began": 3, "saved": {"4": {"hours": 1}}}'):
        (tmp_path / "goodput.json").write_text(text)
        assert Goodput(tmp_path, 4).restored == Saved()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"began": "now", "saved": {}}', '{"began": 1, "saved": {"x": {}}}']
    + ['{"began": 1, "saved": {"1": {"seconds": "9"}}}', '{"began": -1, "saved": {}}', '{"began": 1e999, "saved": {}}'],
)
def test_a_damaged_record_begins_again(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    found = Goodput(tmp_path, 1, clock=lambda: 100.0)
    assert found.restored == Saved() and json.loads((tmp_path / FILE).read_text()) == {"began": 100.0, "saved": {}}
