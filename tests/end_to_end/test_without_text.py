"""A chop that reads no text asks for none: no sources, no rows, no scores, and no tokenizer in the source."""

import pathlib

import numpy as np
import pytest
from end_to_end import runs
from end_to_end.runs import Place, done, run
from hf.plain_checkpoints import plain_checkpoint

from chopjax.chop.plan import Plan


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A source without any tokenizer."""
    place = Place.make(tmp_path_factory.mktemp("bare"))
    plain_checkpoint(place.folder / "bare", runs.MODEL, seed=7, scale=0.3)
    return place


def arguments(place: Place, workdir: pathlib.Path, *overrides: str) -> list[str]:
    whole = ("data.sources=()", f"source={place.folder / 'bare'}", "plan.remove_layers=0", "plan.mlp=0")
    return place.arguments(workdir, *whole, *overrides)


def test_layers_are_chosen_by_hand(bare: Place, tmp_path: pathlib.Path) -> None:
    done(bare, "chop", arguments(bare, tmp_path, "plan.layers=0-1,3"))
    assert Plan.from_json((tmp_path / "plan.json").read_text()).layers == [0, 1, 3]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "config.json", "plan.json", "sharding.txt", "stages", "student"
    ]  # fmt: skip


def test_widths_are_ranked_by_magnitude(bare: Place, tmp_path: pathlib.Path) -> None:
    """The plan is the one that a source with a tokenizer and text gets: magnitude reads neither."""
    wanted = ("plan.mlp=12", "plan.widths_by=magnitude", "plan.remove_layers=1", "plan.layers_by=magnitude")
    done(bare, "plan", arguments(bare, tmp_path / "bare", *wanted))
    done(bare, "plan", bare.arguments(tmp_path / "whole", *wanted))
    plans = [Plan.from_json((tmp_path / name / "plan.json").read_text()) for name in ("bare", "whole")]
    assert plans[0].kept.keys() == {"layers", "mlp"}
    for axis, kept in plans[0].kept.items():
        np.testing.assert_array_equal(kept, plans[1].kept[axis])
    for name in ("bare", "whole"):
        assert (tmp_path / name / "plan.html").exists()
        assert not (tmp_path / name / "scores").exists() and not (tmp_path / name / "rows").exists()


def test_padding_of_the_vocabulary_is_cut_by_hand(bare: Place, tmp_path: pathlib.Path) -> None:
    done(bare, "plan", arguments(bare, tmp_path, "plan.vocab=300"))
    kept = Plan.from_json((tmp_path / "plan.json").read_text()).kept["vocab"]
    np.testing.assert_array_equal(kept, np.arange(300))


def test_new_ids_for_tokens_are_refused_without_a_tokenizer(bare: Place, tmp_path: pathlib.Path) -> None:
    sizes = dict(runs.MODEL.sizes)
    (tmp_path / "by_hand.json").write_text(Plan(sizes, {"vocab": np.array([*range(200), 250])}).to_json())
    ended = run(bare, "chop", arguments(bare, tmp_path / "run", f"plan.file={tmp_path / 'by_hand.json'}"))
    assert ended.status == 2
    assert ended.stderr == (
        f"error: plan.file: kept.vocab gives tokens new ids, but {bare.folder / 'bare'} has no tokenizer that could "
        "follow; put its tokenizer.json there, or keep the first rows\n"
    )
