"""What is said where there are fewer rows than are asked for."""

import json
import types
from typing import Any, cast

import pytest
from data.conftest import build_tokenizer
from data.packed import config_of

from chopjax.commands.calibration import rows_read, shortage
from chopjax.commands.refit import check_text
from chopjax.commands.run import Run
from chopjax.commands.training import passes
from chopjax.commands.watch import shortage as shortage_of_heldout
from chopjax.data.config import TextSource
from chopjax.data.manifest import Manifest
from chopjax.data.prepare import prepare
from chopjax.errors import UserError
from chopjax.score.config import ScoreConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A large source, and a small one of half its weight."""
    folder = tmp_path_factory.mktemp("calibration")
    sources = []
    for name, count, weight in (("large", 60, 2.0), ("small", 6, 1.0)):
        file = folder / f"{name}.jsonl"
        file.write_text(
            "".join(json.dumps({"text": f"{name} {number} " + "water runs " * 9}) + "\n" for number in range(count))
        )
        sources.append(TextSource(path=str(file), name=name, weight=weight))
    return prepare(config_of(*sources, heldout_fraction=0), build_tokenizer(folder / "tokenizer"), folder / "rows")


def run_of(data: Manifest, *parts: int, **score: Any) -> Run:
    mixture = [data.mixture()[part] for part in parts]
    settings = types.SimpleNamespace(score=ScoreConfig(**score), seed=0)
    return cast(Run, types.SimpleNamespace(settings=settings, data=types.SimpleNamespace(mixture=lambda: mixture)))


def test_fewer_rows_than_asked_for_are_said(data):
    there = len(data.mixture()[1][0])
    assert 6 <= there < 20
    assert shortage(run_of(data, 1, rows=there)) == []
    assert shortage(run_of(data, 1, rows=64)) == [
        f"score.rows: the text has only {there} rows; {there} are read instead of 64"
    ]
    run = run_of(data, 1, rows=64, skip=2)
    assert rows_read(run) == there - 2
    assert shortage(run) == [
        f"score.rows: the text has only {there - 2} rows after score.skip = 2; {there - 2} are read instead of 64"
    ]
    assert shortage(run_of(data, 1, rows=there + 9), rows=there) == []


def test_rows_of_a_small_source_that_repeat_are_said(data):
    small = len(data.mixture()[1][0])
    assert shortage(run_of(data, 0, 1, rows=3 * small)) == []
    assert shortage(run_of(data, 0, 1, rows=3 * small + 15)) == [
        f"score.rows: 5 of the {3 * small + 15} rows that are read were read before, since small has only {small} "
        "rows; give it more text, lower its weight, or lower score.rows"
    ]
    # Further rows repeat what was scored on.
    assert shortage(run_of(data, 0, 1, rows=3 * small), rows=9, start=3 * small) == [
        f"score.rows: 3 of the 9 rows that are read were read before, since small has only {small} "
        "rows; give it more text, lower its weight, or lower score.rows"
    ]


def test_a_refit_on_too_little_text_is_refused(data):
    there = len(data.mixture()[1][0])
    with pytest.raises(UserError) as caught:
        check_text(run_of(data, 1, rows=64, batch=there), 64)
    assert str(caught.value) == (
        f"plan.refit: the text has only {there} calibration rows, one batch of {there}, which cannot be halved; lower "
        "score.batch, or give more text"
    )
    check_text(run_of(data, 1, rows=64, batch=there - 1), 64)


def test_sources_that_training_reads_again_are_said(data):
    large, small = (len(rows) for rows, _ in data.mixture())
    assert passes(data.mixture(), 3 * small) == []
    assert passes(data.mixture(), 6 * small) == [f"small has {small} rows, each of which is read 2.0 times"]
    assert len(passes(data.mixture(), 6 * large)) == 2


def test_fewer_heldout_rows_than_asked_for_are_said():
    assert shortage_of_heldout(0, 40) == shortage_of_heldout(40, 40) == []
    assert shortage_of_heldout(64, 40) == ["evaluate.rows: there are only 40 held-out rows; all are read instead of 64"]
