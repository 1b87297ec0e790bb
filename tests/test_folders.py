import os
import pathlib
import signal
import subprocess
import sys

import pytest

from chopjax.errors import UserError
from chopjax.folders import written_whole

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
