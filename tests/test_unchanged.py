"""Files that change while they are read are refused by name."""

import os
import pathlib
import shutil

import pytest
from gcs import Store

from chopjax import paths
from chopjax.errors import UserError
from chopjax.unchanged import refuse_changes, unchanged, versions


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "a.txt"
    path.write_text("one")
    return path


def refusal(path: pathlib.Path) -> str:
    return f"{path}: changed while it was read; run again when no other process writes to it"


def test_files_that_stay_pass(file: pathlib.Path) -> None:
    with unchanged([file, file.with_name("absent")]):
        file.read_text()


def test_another_time_of_writing_is_a_change(file: pathlib.Path) -> None:
    recorded = versions([file])
    refuse_changes(recorded)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    with pytest.raises(UserError) as caught:
        refuse_changes(recorded)
    assert str(caught.value) == refusal(file)


def test_a_file_replaced_by_one_with_the_same_time_and_another_size_is_a_change(file: pathlib.Path) -> None:
    other = file.with_name("b.txt")
    other.write_text("three")
    shutil.copystat(file, other)
    with pytest.raises(UserError, match="a.txt: changed while it was read"), unchanged([file]):
        os.replace(other, file)


def test_a_removed_or_new_file_is_a_change(file: pathlib.Path) -> None:
    new = file.with_name("new.txt")
    with pytest.raises(UserError, match="new.txt: changed"), unchanged([new]):
        new.write_text("x")
    with pytest.raises(UserError, match="a.txt: changed"), unchanged([file]):
        file.unlink()


def test_a_change_is_named_before_the_mistake_that_it_led_to(file: pathlib.Path) -> None:
    with pytest.raises(UserError, match="a.txt: changed"), unchanged([file]):
        file.write_text("{")
        raise UserError("a.txt: not valid JSON")
    with pytest.raises(UserError, match="not valid JSON"), unchanged([file]):
        raise UserError("a.txt: not valid JSON")


def test_an_object_written_again_with_equal_contents_is_a_change(cloud: Store, bucket: str) -> None:
    cloud.put(f"{bucket}/a.txt", b"one")
    path = paths.make(f"gs://{bucket}/a.txt")
    with unchanged([path, path.with_name("absent.txt")]):
        path.read_bytes()
    with pytest.raises(UserError) as caught, unchanged([path]):
        cloud.put(f"{bucket}/a.txt", b"two")
    assert str(caught.value) == refusal(path)
