import pathlib

import matplotlib.image
import pytest
from report.pictures.painted import measured_run

from chopjax.report.canvas import png
from chopjax.report.pictures import catalog
from chopjax.report.pictures.files import write_pictures
from chopjax.report.run import Run

NAMES = [
    "search_cloud",
    "rank_before_after",
    "layer_importance",
    "angular_distances",
    "greedy_removal",
    "block_removal",
    "scores_mlp",
    "scores_q_per_kv",
    "scores_kv_heads",
    "scores_embed",
    "score_stability",
]


def test_files_are_pictures(tmp_path: pathlib.Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "of_an_earlier_run.png").write_text("old")
    written = write_pictures(tmp_path / "pictures", measured_run())
    assert [path.stem for path in written] == NAMES
    assert sorted((tmp_path / "pictures").iterdir()) == sorted(written)
    for path in written:
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[0] > 300 and pixels.shape[1] > 700 and pixels.std() > 0.02


def test_the_folder_is_there_and_empty_where_nothing_was_measured(tmp_path: pathlib.Path) -> None:
    assert write_pictures(tmp_path / "pictures", Run("m")) == []
    assert list((tmp_path / "pictures").iterdir()) == []


@pytest.mark.parametrize("place", [1, 3])
def test_the_same_run_gives_the_same_bytes(place: int) -> None:
    picture = catalog.every(measured_run())[place]
    assert png(picture) == png(picture)
