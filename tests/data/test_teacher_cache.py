import dataclasses
import json
import pathlib

import numpy as np
import pytest

from chopjax.data import teacher_cache
from chopjax.data.batches import Batches, one_pass
from chopjax.data.reached import reached
from chopjax.data.rows import Rows, RowsWriter
from chopjax.data.target_records import encode_draws, encode_top, predicting, row_digest
from chopjax.data.teacher_cache import CachedRows, CacheInfo, Selection
from chopjax.errors import UserError

LENGTH, SIZE = 6, 11
SEGMENTS = np.array([1, 1, 1, 2, 2, 0], np.int32)


def write_rows(folder: pathlib.Path, size: int = SIZE, shift: int = 0) -> Rows:
    """Row i holds the tokens 10 i + shift ..."""
    folder.mkdir(parents=True)
    writer = RowsWriter(folder, LENGTH)
    for index in range(size):
        writer.write(np.arange(LENGTH, dtype=np.int32) + 10 * index + shift, SEGMENTS)
    writer.finish(documents=size, split="train", tokenizer="abc", recipe={"text": f"{size}/{shift}"})
    return Rows(folder)


def info_of(rows: Rows, /, **changes) -> CacheInfo:
    values = {
        "kind": "samples",
        "count": 3,
        "temperature": 1.0,
        "teacher": "big",
        "tokenizer": "abc",
        "vocab": 200,
        "rows": rows.info.digest,
        "row_count": len(rows),
        "dtype": "float32",
        "seed": 1,
        "shard_rows": 4,
        "selection": Selection(),
    }
    return CacheInfo(**values | changes)


def record_of(rows: Rows, row: int, info: CacheInfo) -> bytes:
    """Row i draws token i thrice, or is sure of the tokens i, i + 1, ... alike."""
    found = rows[row]
    head = row_digest(found["tokens"], found["segment_ids"]), predicting(found["segment_ids"])
    if info.kind == "samples":
        ids = np.array([[row, -1, -1]] * LENGTH)
        return encode_draws(*head, ids, np.where(ids >= 0, 3, 0), np.full(LENGTH, 0.5))
    ids = np.tile(np.arange(row, row + info.count), (LENGTH, 1))
    return encode_top(*head, ids, np.full(ids.shape, -np.log(2 * info.count)), np.full(LENGTH, np.log(0.5)))


def write_cache(folder: pathlib.Path, rows: Rows, info: CacheInfo, empty: tuple[int, ...] = ()) -> pathlib.Path:
    assert not teacher_cache.begin(folder, info)
    for shard in teacher_cache.missing(folder, info):
        with teacher_cache.written_shard(folder, shard) as write:
            for row in info.rows_of(shard):
                write(b"" if row in empty else record_of(rows, row, info))
    teacher_cache.finish(folder, info)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows") / "train")


@pytest.fixture(scope="module")
def cache(rows, tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "samples", rows, info_of(rows))


def test_rows_come_with_their_targets(rows, cache):
    assert len(list(cache.glob("*.arrayrecord"))) == 3
    found = CachedRows(rows.folder, cache, info_of(rows))
    for index in (0, 3, 4, SIZE - 1):
        row = found[index]
        for name, value in rows[index].items():
            np.testing.assert_array_equal(row[name], value)
        kept = np.array([1, 1, 0, 1, 0, 0], bool)
        np.testing.assert_array_equal(row["target_ids"], np.where(kept[:, None], [[index, -1, -1]], -1))
        np.testing.assert_array_equal(row["target_probs"], np.where(kept[:, None], [[1.0, 0.0, 0.0]], 0))
        np.testing.assert_array_equal(row["target_offset"], np.where(kept, -0.5, 0))
        assert not row["target_tail"].any()
    found.close()


def test_killed_while_anything_was_written_it_is_begun_or_continued(rows, tmp_path):
    info, folder = info_of(rows), tmp_path / "cache"
    folder.mkdir()
    (folder / ".other.17.tmp").write_text("not ours")
    with pytest.raises(UserError, match="holds something that is no teacher's cache"):
        teacher_cache.begin(folder, info)
    (folder / ".other.17.tmp").unlink()
    (folder / ".cache.json.17.tmp").write_text("{")
    assert not teacher_cache.begin(folder, info)
    assert [file.name for file in folder.iterdir()] == ["cache.json"]
    for name in (".targets-00001.arrayrecord.tmp", ".targets-00001.arrayrecord.17.tmp", ".cache.json.17.tmp"):
        (folder / name).write_bytes(b"half")
    write_cache(folder, rows, info)
    shards = [f"targets-0000{number}.arrayrecord" for number in range(3)]
    assert sorted(file.name for file in folder.iterdir()) == ["cache.json", *shards]
    assert teacher_cache.is_whole(folder, info)


def test_fewer_tokens_are_read_than_were_kept(rows, tmp_path):
    folder = write_cache(tmp_path / "top", rows, info_of(rows, kind="top_k", count=4))
    found = CachedRows(rows.folder, folder, info_of(rows, kind="top_k", count=2, seed=0))[7]
    np.testing.assert_array_equal(found["target_ids"][0], [7, 8])
    np.testing.assert_allclose(found["target_probs"][0], 1 / 8, rtol=1e-2)
    np.testing.assert_allclose(found["target_tail"][0], 3 / 4, rtol=1e-2)
    with pytest.raises(UserError, match=r"cache\.k 4, but this run reads 5"):
        CachedRows(rows.folder, folder, info_of(rows, kind="top_k", count=5))


def test_batches_hold_the_targets_of_their_own_rows(rows, cache):
    """Shuffled by two threads, and with the rows as without a cache, in the same order."""
    plain = Batches([(rows, 1.0)], 4, 9, threads=0)
    found = Batches([(CachedRows(rows.folder, cache, info_of(rows)), 1.0)], 4, 9, threads=2)
    assert plain.digest == found.digest
    for _ in range(6):
        batch, expected = next(found), next(plain)
        for name, value in expected.items():
            np.testing.assert_array_equal(batch[name], value)
        np.testing.assert_array_equal(batch["target_ids"][:, 0, 0], batch["tokens"][:, 0] // 10)
        assert batch["target_probs"].shape == (4, LENGTH, 3) and batch["target_probs"].dtype == np.float32
    found.close()


def test_one_pass_fills_up_with_nothing(rows, cache):
    *_, last = one_pass([CachedRows(rows.folder, cache, info_of(rows))], 4)
    np.testing.assert_array_equal(last["target_ids"][:3, 0, 0], [8, 9, 10])
    assert not last["target_probs"][3].any() and not last["segment_ids"][3].any()


def test_a_record_of_other_tokens_is_named(rows, cache, tmp_path):
    other = write_rows(tmp_path / "text" / "train", shift=1)
    wanted = info_of(other, rows=rows.info.digest)  # as if two texts had one digest
    found = CachedRows(other.folder, cache, wanted)
    with pytest.raises(UserError, match=r"record 7 is of other tokens than row 7 of .*text/train; run python -m chop"):
        found[7]


def test_the_records_of_two_rows_changed_round_are_named(rows, tmp_path):
    info = info_of(rows)
    folder = tmp_path / "cache"
    teacher_cache.begin(folder, info)
    order = [0, 1, 2, 4, 3, *range(5, SIZE)]
    for shard in range(info.shards):
        with teacher_cache.written_shard(folder, shard) as write:
            for row in info.rows_of(shard):
                write(record_of(rows, order[row], info))
    teacher_cache.finish(folder, info)
    found = CachedRows(rows.folder, folder, info)
    found[2]
    for row in (3, 4):
        with pytest.raises(UserError, match=f"record {row} is of other tokens"):
            found[row]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": "small"}, "has a teacher of fingerprint big, but this run has small"),
        ({"tokenizer": "xyz"}, "has a tokenizer of digest abc, but this run has xyz"),
        ({"temperature": 2.0}, r"has loss.temperature 1.0, but this run has 2.0"),
        ({"rows": "other"}, "has rows of digest [0-9a-f]+, but this run has other"),
        ({"vocab": 201}, "has a vocabulary of 200, but this run has 201"),
        ({"kind": "top_k"}, "has cache.kind samples, but this run has top_k"),
        ({"count": 2}, "has cache.samples 3, but this run has 2"),
    ],
)
def test_another_cache_than_the_run_needs_is_refused(rows, cache, changes, said):
    with pytest.raises(UserError, match=said + r"; run python -m chopjax.cache_teacher with this config and another"):
        CachedRows(rows.folder, cache, info_of(rows, **changes))


def test_what_makes_no_difference_to_a_reader(rows, cache):
    wanted = info_of(rows, seed=5, dtype="bfloat16", shard_rows=100, selection=Selection("order", 3, 8))
    CachedRows(rows.folder, cache, wanted).close()
    assert teacher_cache.begin(cache, wanted)  # and nothing is left to write


def test_rows_that_were_not_kept(rows, tmp_path):
    info = info_of(rows, selection=Selection("order", 10, 20))
    folder = write_cache(tmp_path / "cache", rows, info, empty=(5, 6))
    found = CachedRows(rows.folder, folder, dataclasses.replace(info, selection=Selection("order", 12, 20)))
    found[4]
    with pytest.raises(UserError, match="no targets were kept for row 5"):
        found[5]
    for selection in (Selection("order", 9, 20), Selection("order", 10, 21), Selection("other", 10, 20), Selection()):
        with pytest.raises(UserError, match="was made for other rows of this text"):
            CachedRows(rows.folder, folder, dataclasses.replace(info, selection=selection))


def test_a_cache_that_ended_before_its_first_shard_may_be_begun_otherwise(rows, tmp_path):
    folder = tmp_path / "cache"
    assert not teacher_cache.begin(folder, info_of(rows, kind="top_k", count=90))
    write_cache(folder, rows, info_of(rows))
    CachedRows(rows.folder, folder, info_of(rows)).close()


def test_a_folder_that_cannot_be_made_or_that_another_writes_to(tmp_path):
    (tmp_path / "file").write_text("of mine")
    said = r"cache.path: .*/file/part cannot be made \(Not a directory\); name another"
    with pytest.raises(UserError, match=said), teacher_cache.held(tmp_path / "file" / "part"):
        pass
    folder = tmp_path / "new" / "part"
    with (
        teacher_cache.held(folder),
        pytest.raises(UserError, match="/new/part is being written by another process; wait for it, or use"),
        teacher_cache.held(folder),
    ):
        pass
    with teacher_cache.held(folder):
        assert not any(folder.iterdir())


def test_a_shard_that_was_cut_off_later_is_made_again(rows, tmp_path):
    info, folder = info_of(rows), tmp_path / "cache"
    path = teacher_cache.shard_path(write_cache(folder, rows, info), 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(
        UserError, match=r"targets-00001\.arrayrecord is missing or cut off; run python -m chopjax.cach"
    ):
        CachedRows(rows.folder, folder, info)
    assert teacher_cache.missing(folder, info) == [1]
    write_cache(folder, rows, info)
    assert path.read_bytes() == whole
    CachedRows(rows.folder, folder, info).close()


def test_a_cut_off_cache_goes_on_at_the_first_missing_shard(rows, tmp_path):
    info, folder = info_of(rows), tmp_path / "cache"
    assert not teacher_cache.begin(folder, info)
    with teacher_cache.written_shard(folder, 0) as write:
        for row in info.rows_of(0):
            write(record_of(rows, row, info))
    first = teacher_cache.shard_path(folder, 0).read_bytes()
    with pytest.raises(KeyboardInterrupt), teacher_cache.written_shard(folder, 1) as write:
        write(b"half")
        raise KeyboardInterrupt
    assert sorted(path.name for path in folder.iterdir()) == ["cache.json", "targets-00000.arrayrecord"]
    with pytest.raises(UserError, match="was cut off; run python -m chopjax.cache_teacher with the same config"):
        CachedRows(rows.folder, folder, info)
    with pytest.raises(UserError, match=r"was begun with loss\.temperature 1\.0, but this run has 1\.5"):
        teacher_cache.begin(folder, info_of(rows, temperature=1.5))
    with pytest.raises(UserError, match=r"was begun with rows .* all, but this run has 3 to 8 of order some; run"):
        teacher_cache.begin(folder, info_of(rows, selection=Selection("some", 3, 8)))
    with pytest.raises(UserError, match=r"was begun with seed 1, but this run has 2"):
        teacher_cache.begin(folder, info_of(rows, seed=2))
    assert teacher_cache.missing(folder, info) == [1, 2]
    write_cache(folder, rows, info)
    assert teacher_cache.shard_path(folder, 0).read_bytes() == first
    CachedRows(rows.folder, folder, info)[SIZE - 1]
    assert teacher_cache.begin(folder, info)


def test_a_lost_shard_is_written_again(rows, tmp_path):
    info = info_of(rows)
    folder = write_cache(tmp_path / "cache", rows, info)
    teacher_cache.shard_path(folder, 1).unlink()
    with pytest.raises(UserError, match=r"targets-00001.arrayrecord is missing or cut off"):
        CachedRows(rows.folder, folder, info)
    write_cache(folder, rows, info)
    CachedRows(rows.folder, folder, info)[5]


def test_other_folders_are_refused(rows, tmp_path):
    with pytest.raises(UserError, match=r"has no cache.json; run python -m chopjax.cache_teacher"):
        CachedRows(rows.folder, tmp_path / "none", info_of(rows))
    (tmp_path / "model.bin").write_text("dear")
    with pytest.raises(UserError, match="holds something that is no teacher's cache"):
        teacher_cache.begin(tmp_path, info_of(rows))
    (tmp_path / "cache.json").write_text(json.dumps({"format": "something else"}))
    with pytest.raises(UserError, match="format is 'something else', not 'chopjax teacher cache 1'; run"):
        teacher_cache.begin(tmp_path, info_of(rows))


def test_damage_is_named(rows, tmp_path):
    folder = write_cache(tmp_path / "cache", rows, info_of(rows))
    path = teacher_cache.shard_path(folder, 0)
    content = bytearray(path.read_bytes())
    place = bytes(content).index(record_of(rows, 2, info_of(rows)))
    content[place + 20] ^= 255
    path.write_bytes(content)
    found = CachedRows(rows.folder, folder, info_of(rows))
    with pytest.raises(UserError, match="record 2 is damaged"):
        found[2]


def test_reached_rows_are_those_that_batches_read(rows, tmp_path):
    """Over more than one epoch of the smaller part, and from a start that is not 0."""
    other = write_rows(tmp_path / "more", size=37, shift=1)
    mixture = [(rows, 2.0), (other, 1.0)]
    batches = Batches(mixture, 3, 7, start_row=6, threads=0)
    seen = [set(), set()]
    for _ in range(8):
        for first in next(batches)["tokens"][:, 0]:
            seen[first % 10].add(int(first) // 10)
    found = reached(mixture, 7, 6, 30)
    assert [set(np.flatnonzero(part)) for part in found] == seen
    assert [len(part) for part in found] == [SIZE, 37] and not found[1].all()
