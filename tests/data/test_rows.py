import concurrent.futures
import json
import pathlib

import numpy as np
import pytest

from chopjax.data.packing import Packer, positions_of
from chopjax.data.rows import Rows, RowsInfo, RowsWriter, stack_rows
from chopjax.errors import UserError

LENGTH = 13


def some_rows(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    packer = Packer(LENGTH)
    random = np.random.default_rng(5)
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    while len(rows) < count:
        rows += packer.add(random.integers(0, 2**31, random.integers(1, 30)).astype(np.int32))
    return rows[: count - 1] + list(packer.finish() or rows[-1:])


def write(folder: pathlib.Path, rows: list[tuple[np.ndarray, np.ndarray]], shard_tokens: int = 1000) -> RowsInfo:
    folder.mkdir()
    writer = RowsWriter(folder, LENGTH, shard_tokens)
    for row in rows:
        writer.write(*row)
    return writer.finish(documents=3, split="train", tokenizer="abc", recipe={"text": "def"})


@pytest.mark.parametrize("shard_tokens", [1, 7 * LENGTH, 10**6])
def test_what_is_written_is_read(tmp_path, shard_tokens):
    expected = some_rows(23)
    info = write(tmp_path / "rows", expected, shard_tokens)
    assert len(info.shards) == {1: 23, 7 * LENGTH: 4, 10**6: 1}[shard_tokens]
    rows = Rows(tmp_path / "rows")
    assert rows.info == info
    assert len(rows) == info.rows == 23
    assert info.tokens == sum(np.count_nonzero(segments) for _, segments in expected)
    assert info.max_token == max(tokens.max() for tokens, _ in expected)
    for index in np.random.default_rng(1).permutation(23):
        row = rows[index]
        np.testing.assert_array_equal(row["tokens"], expected[index][0])
        np.testing.assert_array_equal(row["segment_ids"], expected[index][1])
        np.testing.assert_array_equal(row["positions"], positions_of(expected[index][1]))
        assert {part.dtype for part in row.values()} == {np.dtype(np.int32)}
    assert len(list(rows)) == 23
    for outside in (-1, 23):
        with pytest.raises(IndexError):
            rows[outside]
    rows.close()


def test_many_threads_read_at_once(tmp_path):
    expected = some_rows(60)
    write(tmp_path / "rows", expected, 5 * LENGTH)
    rows = Rows(tmp_path / "rows")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        got = stack_rows(list(pool.map(rows.__getitem__, range(60))))
    np.testing.assert_array_equal(got["tokens"], [tokens for tokens, _ in expected])


def test_no_rows_at_all(tmp_path):
    info = write(tmp_path / "rows", [])
    rows = Rows(tmp_path / "rows")
    assert (len(rows), info.max_token, info.shards) == (0, -1, ())
    with pytest.raises(IndexError):
        rows[0]


def test_digest_is_of_the_content_not_of_the_files(tmp_path):
    one = write(tmp_path / "one", some_rows(5), 1)
    two = write(tmp_path / "two", some_rows(5))
    assert one.digest == two.digest and one.shards != two.shards


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "format is 'other', not 'chopjax rows 1'; delete the folder"),
        ({"length": None}, "rows.json: length is missing; delete the folder and prepare the rows again"),
        ({"length": 10**30}, r"rows.json: length is 1000\d+, not a whole number of 1 or more"),
        ({"rows": 6}, r"rows.json: rows is 6, but its shards have \d+; delete"),
        (
            {"format": "chopjax rows 2"},
            r"newer chopjax \(format 2, this one reads up to 1\); update",
        ),
        ({"shards": [{"file": "../a", "rows": 5, "bytes": 1}]}, r"shards\[0\].file is '../a', not a plain name"),
        ({"more": 1}, "rows.json: more is not a known field"),
    ],
)
def test_foreign_rows_json(tmp_path, change, said):
    write(tmp_path / "rows", some_rows(5))
    file = tmp_path / "rows" / "rows.json"
    raw = {key: value for key, value in (json.loads(file.read_text()) | change).items() if value is not None}
    file.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=said):
        Rows(tmp_path / "rows")


def test_foreign_folders(tmp_path):
    with pytest.raises(UserError, match="nowhere has no rows.json"):
        Rows(tmp_path / "nowhere")
    (tmp_path / "rows.json").write_text('{"cut": ')
    with pytest.raises(UserError, match="not valid JSON"):
        Rows(tmp_path)


def test_missing_and_truncated_shards(tmp_path):
    write(tmp_path / "rows", some_rows(20), 6 * LENGTH)
    shard = tmp_path / "rows" / "rows-00002.arrayrecord"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1000])
    with pytest.raises(UserError, match=f"rows-00002.arrayrecord has {len(whole) - 1000} bytes instead of"):
        Rows(tmp_path / "rows")
    shard.unlink()
    with pytest.raises(UserError, match="rows-00002.arrayrecord is missing"):
        Rows(tmp_path / "rows")


def test_a_flipped_byte_is_noticed_when_the_row_is_read(tmp_path):
    random = np.random.default_rng(0)
    full = np.ones(LENGTH, np.int32)
    write(tmp_path / "rows", [(random.integers(0, 2**31, LENGTH).astype(np.int32), full) for _ in range(2000)], 10**6)
    shard = tmp_path / "rows" / "rows-00000.arrayrecord"
    damaged = bytearray(shard.read_bytes())
    damaged[90_000] ^= 255
    shard.write_bytes(damaged)
    rows = Rows(tmp_path / "rows")
    with pytest.raises(UserError, match=r"row \d+ is damaged"):
        list(rows)


def test_another_file_of_the_same_size_is_noticed(tmp_path):
    write(tmp_path / "rows", some_rows(5))
    shard = tmp_path / "rows" / "rows-00000.arrayrecord"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(UserError, match="damaged rows"):
        Rows(tmp_path / "rows")


def test_rows_of_chats_have_targets(tmp_path):
    random = np.random.default_rng(2)
    expected = [(*row, random.random(LENGTH) < 0.3) for row in some_rows(9)]
    (tmp_path / "rows").mkdir()
    writer = RowsWriter(tmp_path / "rows", LENGTH, 4 * LENGTH, chats=True)
    for row in expected:
        writer.write(*row)
    with pytest.raises(ValueError, match="rows of chats have targets"):
        writer.write(*expected[0][:2])
    info = writer.finish(documents=3, split="train", tokenizer="abc", recipe={"text": "def"})
    rows = Rows(tmp_path / "rows")
    assert rows.info == info and info.targets == sum(targets.sum() for *_, targets in expected)
    for row, (tokens, segments, targets) in zip(rows, expected, strict=True):
        assert list(row) == ["tokens", "segment_ids", "positions", "targets"] and row["targets"].dtype == np.bool_
        for name, wanted in (("tokens", tokens), ("segment_ids", segments), ("targets", targets)):
            np.testing.assert_array_equal(row[name], wanted)


def test_rows_of_text_say_nothing_of_targets(tmp_path):
    info = write(tmp_path / "rows", some_rows(5))
    assert "targets" not in json.loads((tmp_path / "rows" / "rows.json").read_text())
    assert info.targets is None and list(Rows(tmp_path / "rows")[0]) == ["tokens", "segment_ids", "positions"]
