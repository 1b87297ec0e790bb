import os
import pathlib
import signal
import subprocess
import sys

import pytest
from gcs import Store

from chopjax import paths
from chopjax.errors import UserError
from chopjax.folders import sent, written_whole

# Writes half a folder, says so, and waits to be killed.
STUCK = """
import pathlib, sys, time
from chopjax.folders import written_whole
with written_whole(pathlib.Path(sys.argv[1])) as place:
    (place / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def write(folder: pathlib.Path, text: str) -> None:
    with written_whole(folder) as place:
        assert list(place.iterdir()) == []
        (place / "inner").mkdir()
        (place / "inner" / "file").write_text(text)


def test_appears_at_the_end_and_replaces_what_was_there(tmp_path):
    folder = tmp_path / "a" / "rows"
    write(folder, "one")
    with written_whole(folder) as place:
        (place / "other").write_text("two")
        assert (folder / "inner" / "file").read_text() == "one"
    assert [path.name for path in folder.iterdir()] == ["other"]
    assert [path.name for path in folder.parent.iterdir()] == ["rows"]


def test_an_error_leaves_what_was_there(tmp_path):
    folder = tmp_path / "rows"
    write(folder, "one")
    with pytest.raises(KeyboardInterrupt), written_whole(folder) as place:
        (place / "half").write_text("half")
        raise KeyboardInterrupt
    assert (folder / "inner" / "file").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_a_killed_writer_leaves_no_folder_and_a_live_one_is_not_disturbed(tmp_path):
    folder = tmp_path / "rows"
    process = subprocess.Popen([sys.executable, "-c", STUCK, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        with pytest.raises(UserError, match="rows is being written by another process"):
            write(folder, "one")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert not folder.exists()
    write(folder, "one")
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
    assert [path.name for path in folder.iterdir()] == ["inner"]


def test_a_writer_killed_between_the_two_renames_loses_nothing(tmp_path):
    folder = tmp_path / "rows"
    write(folder, "one")
    folder.rename(tmp_path / ".rows.old")
    with pytest.raises(UserError, match="exists already"), written_whole(folder, replace=False):
        pass
    assert (folder / "inner" / "file").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_in_a_store_what_makes_it_whole_comes_last(cloud: Store, bucket: str) -> None:
    folder, before = paths.make(f"gs://{bucket}/model"), len(cloud.asked)
    with written_whole(folder, last=("config.json",)) as place:
        for name in ("config.json", "a.bin", "z.bin", "inner/y.bin"):
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_text(name)
        assert cloud.names(bucket) == []
        for name in ("z.bin", "inner/y.bin"):
            sent(place / name)
        # They have gone already, and take no place here.
        assert cloud.names(bucket) == ["model/inner/y.bin", "model/z.bin"] and not (place / "z.bin").exists()
    assert cloud.names(bucket) == ["model/a.bin", "model/config.json", "model/inner/y.bin", "model/z.bin"]
    puts = [path for method, path in cloud.asked[before:] if method == "POST"]
    assert len(puts) == 4 and cloud.objects[f"{bucket}/model/config.json"][1] == max(
        number for name, (_, number) in cloud.objects.items() if name.startswith(f"{bucket}/")
    )
    with pytest.raises(UserError, match="model: exists already"), written_whole(folder, replace=False):
        pass


def test_in_a_store_nothing_of_an_earlier_folder_is_left(cloud: Store, bucket: str) -> None:
    folder = paths.make(f"gs://{bucket}/model")
    for name in ("config.json", "model-2.bin", "a.bin"):
        cloud.put(f"{bucket}/model/{name}", b"old")
    with written_whole(folder, last=("config.json",)) as place:
        (place / "a.bin").write_text("new")
        (place / "config.json").write_text("new")
        sent(place / "a.bin")
        assert cloud.names(f"{bucket}/model") == ["a.bin", "model-2.bin"]  # no longer whole
    assert {name: cloud.objects[f"{bucket}/model/{name}"][0] for name in cloud.names(f"{bucket}/model")} == {
        "a.bin": b"new",
        "config.json": b"new",
    }


@pytest.mark.parametrize("begun", [False, True])
def test_in_a_store_an_error_leaves_the_earlier_folder_or_none(cloud: Store, bucket: str, begun: bool) -> None:
    for name in ("config.json", "b.bin"):
        cloud.put(f"{bucket}/model/{name}", b"old")
    with (
        pytest.raises(KeyboardInterrupt),
        written_whole(paths.make(f"gs://{bucket}/model"), last=("config.json",)) as place,
    ):
        (place / "a.bin").write_text("new")
        if begun:
            sent(place / "a.bin")
        raise KeyboardInterrupt
    assert cloud.names(f"{bucket}/model") == (["b.bin"] if begun else ["b.bin", "config.json"])


def test_on_a_disk_sending_is_nothing(tmp_path: pathlib.Path) -> None:
    with written_whole(tmp_path / "model") as place:
        (place / "a.bin").write_text("new")
        sent(place / "a.bin")
        assert (place / "a.bin").exists()
