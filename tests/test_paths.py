"""Paths of both kinds; those in a store against a service of this machine that speaks Google's protocol."""

import logging
import pathlib

import pytest
from gcs import Store

from chopjax import paths
from chopjax.errors import UserError


@pytest.fixture
def folder(cloud: Store, bucket: str) -> pathlib.Path:
    """`gs://BUCKET/a/b` with three files."""
    for name, content in {"x.txt": b"one", "c/y.txt": b"three", "c/d/z.bin": bytes(range(200))}.items():
        cloud.put(f"{bucket}/a/b/{name}", content)
    return paths.make(f"gs://{bucket}/a/b")


def test_a_path_on_a_disk_stays_pathlibs(tmp_path: pathlib.Path) -> None:
    assert type(paths.make(str(tmp_path))) is type(tmp_path) and paths.make(tmp_path) is tmp_path
    assert not paths.is_remote(tmp_path) and not paths.is_remote("a/b") and paths.scheme("a") == ""
    assert paths.absolute(pathlib.Path("a")) == pathlib.Path.cwd() / "a"
    assert paths.shown(pathlib.Path("a/../b")) == "b"


def test_schemes() -> None:
    assert paths.is_remote("gs://bucket/x") and paths.scheme("gs://bucket/x") == "gs"
    with pytest.raises(UserError, match=r"ftp://host/x: ftp:// is not read; .* gs://, s3://, az://"):
        paths.make("ftp://host/x")
    with pytest.raises(UserError, match=r"s3://bucket: s3:// needs a package; pip install 's3fs'"):
        paths.make("s3://bucket")


def test_a_path_in_a_store_keeps_its_scheme(folder: pathlib.Path, bucket: str) -> None:
    assert str(folder / "c") == f"gs://{bucket}/a/b/c" and paths.is_remote(folder / "c")
    assert str(folder.with_name(".b.before")) == f"gs://{bucket}/a/.b.before"
    assert paths.absolute(folder) == folder and paths.make(folder) is folder
    assert paths.shown(folder) == f"gs://{bucket}/a/b"


def test_names_that_lead_back(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = paths.make("gs://other/export")
    for path, start in [(folder / "export", folder), (other, folder), (tmp_path, folder), (other, tmp_path)]:
        assert paths.join(start, paths.relative(path, start)) == path
    assert paths.relative(folder / "export", folder) == "export"
    assert paths.relative(tmp_path / "export", tmp_path / "run") == "../export"


def test_what_is_inside(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert paths.inside(folder) == {"c/d/z.bin": 200, "c/y.txt": 5, "x.txt": 3}
    assert paths.inside(folder, nested=False) == {"x.txt": 3}
    assert paths.inside(folder / "nothing") == {}
    assert paths.size(folder / "c" / "y.txt") == 5
    for name, size in paths.inside(folder).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    assert paths.inside(tmp_path) == paths.inside(folder)
    assert paths.inside(tmp_path, nested=False) == {"x.txt": 3}


def test_patterns(folder: pathlib.Path, bucket: str) -> None:
    assert paths.matching(f"gs://{bucket}/a/b/**/*.txt") == [folder / "c" / "y.txt", folder / "x.txt"]
    assert paths.matching(f"gs://{bucket}/a/*/x.???") == [folder / "x.txt"]
    assert paths.matching(f"gs://{bucket}/a/*") == []  # no object has that name


def test_ranges_are_all_that_is_asked_for(folder: pathlib.Path, cloud: Store) -> None:
    ranges, before = paths.Ranges(folder / "c" / "d" / "z.bin"), len(cloud.asked)
    assert ranges.read(10, 5) == bytes(range(10, 15)) and ranges.read(195, 50) == bytes(range(195, 200))
    assert ranges.read(3, 0) == b""
    assert [method for method, _ in cloud.asked[before:]] == ["GET", "GET"]


def test_moving_and_removing(folder: pathlib.Path, cloud: Store, bucket: str) -> None:
    paths.move(folder, folder.with_name("moved"))
    assert cloud.names(bucket) == ["a/moved/c/d/z.bin", "a/moved/c/y.txt", "a/moved/x.txt"]
    paths.move(folder.with_name("moved") / "x.txt", folder.with_name("w.txt"))
    paths.remove(folder.with_name("moved"))
    paths.remove(folder.with_name("moved"))
    assert cloud.names(bucket) == ["a/w.txt"] and cloud.objects[f"{bucket}/a/w.txt"][0] == b"one"
    paths.remove(folder.with_name("w.txt"))
    assert cloud.names(bucket) == []


def test_copies_are_of_what_is_there_now(folder: pathlib.Path, cloud: Store, bucket: str) -> None:
    assert paths.here(folder / "x.txt").read_bytes() == b"one"
    cloud.put(f"{bucket}/a/b/x.txt", b"two")
    copy = paths.here(folder / "x.txt")
    assert copy.read_bytes() == b"two" and copy.name == "x.txt" and not paths.is_remote(copy)
    assert sorted(file.name for file in paths.folder_here(folder, ["x.txt"]).iterdir()) == ["x.txt"]


def test_what_other_hosts_write_is_seen(folder: pathlib.Path, cloud: Store, bucket: str) -> None:
    assert not (folder / "new.txt").exists() and list(folder.iterdir())
    cloud.put(f"{bucket}/a/b/new.txt", b"new")
    assert (folder / "new.txt").exists() and "new.txt" in paths.inside(folder)


def test_a_store_that_refuses_is_named(
    folder: pathlib.Path, cloud: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In one line: its client, which logs a traceback, is silent."""
    paths.reach(folder, "workdir")

    def refuse(path: pathlib.Path) -> bool:
        logging.getLogger("gcsfs").error("Traceback")
        raise RuntimeError("no\ncredentials")

    monkeypatch.setattr(type(folder), "exists", refuse)
    with pytest.raises(UserError, match=r"^workdir: gs://.* cannot be reached \(no credentials\); see to the name"):
        paths.reach(folder, "workdir")
    assert not caplog.records
    logging.getLogger("gcsfs").error("heard again")
    assert caplog.messages == ["heard again"]


def test_a_name_that_leads_back_from_a_folder_that_is_not_there_or_is_a_link(tmp_path: pathlib.Path) -> None:
    (tmp_path / "out").mkdir()
    assert paths.join(tmp_path / "run", "../out") == tmp_path / "out"
    (tmp_path / "far" / "run").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "run")
    assert paths.join(tmp_path / "link", "../out").exists()
