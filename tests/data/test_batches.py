import collections
import json
import pathlib

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from chopjax.data.batches import Batches, mixture_digest, one_pass
from chopjax.data.rows import Rows, RowsWriter
from chopjax.errors import UserError

LENGTH = 5
SIZES = (31, 17, 53)
WEIGHTS = (2.0, 0.5, 1.5)


def write(folder: pathlib.Path, part: int, size: int, **fields: str) -> Rows:
    """Rows that tell where they come from: every token of row i of part p is 100 p + i."""
    folder.mkdir()
    writer = RowsWriter(folder, LENGTH)
    for index in range(size):
        writer.write(np.full(LENGTH, 100 * part + index, np.int32), np.array([1, 1, 2, 2, 0], np.int32))
    told = {"split": "train", "tokenizer": "abc", **fields}
    writer.finish(documents=size, recipe={"text": f"part {part} of {size}"}, **told)
    return Rows(folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return [write(folder / str(part), part, size) for part, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def mixture(parts):
    return list(zip(parts, WEIGHTS, strict=True))


def take(batches: Batches, count: int) -> list[int]:
    """Names of the rows of the next `count` batches."""
    return [int(name) for _ in range(count) for name in next(batches)["tokens"][:, 0]]


def first_rows(mixture, count: int, seed: int = 3) -> list[int]:
    with_threads = Batches(mixture, 1, seed)
    names = take(with_threads, count)
    with_threads.close()
    return names


def test_batches_hold_whole_rows(mixture):
    batches = Batches(mixture, 3, 0)
    batch = next(batches)
    batches.close()
    assert {name: (part.shape, part.dtype) for name, part in batch.items()} == {
        name: ((3, LENGTH), np.dtype(np.int32)) for name in ("tokens", "segment_ids", "positions")
    }
    np.testing.assert_array_equal(batch["positions"], [[0, 1, 0, 1, 0]] * 3)
    np.testing.assert_array_equal(batch["segment_ids"], [[1, 1, 2, 2, 0]] * 3)


def test_every_epoch_of_every_part_is_whole_and_in_a_new_order(mixture):
    names = first_rows(mixture, 400)
    for part, size in enumerate(SIZES):
        own = [name for name in names if name // 100 == part]
        epochs = [tuple(own[start : start + size]) for start in range(0, len(own) - size + 1, size)]
        assert len(epochs) > 1
        assert {tuple(sorted(epoch)) for epoch in epochs} == {tuple(range(100 * part, 100 * part + size))}
        assert len(set(epochs)) == len(epochs)


@settings(max_examples=12, deadline=None)
@given(weights=st.lists(st.floats(0.05, 20.0), min_size=3, max_size=3), seed=st.integers(0, 2**40))
def test_weights_hold_in_every_stretch(parts, weights, seed):
    count = 300
    names = first_rows(list(zip(parts, weights, strict=True)), count, seed)
    shares = np.array(weights) / sum(weights)
    for stop in (50, 150, 300):
        found = collections.Counter(name // 100 for name in names[:stop])
        for part, share in enumerate(shares):
            # Two rows for the pattern's ends, and a hundredth for Grain's rounding of weights.
            assert abs(found[part] - share * stop) <= 2 + 0.02 * stop


def test_the_order_follows_the_seed_and_nothing_else(mixture):
    assert first_rows(mixture, 60) == first_rows(mixture, 60)
    assert first_rows(mixture, 60, seed=4) != first_rows(mixture, 60, seed=3)
    inline = Batches(mixture, 1, 3, threads=0, prefetch=0)
    assert take(inline, 60) == first_rows(mixture, 60)


def test_the_order_stays_the_same_from_release_to_release(mixture):
    # Written down once: a library that shuffles or mixes otherwise would change what resumed runs read.
    assert first_rows(mixture, 12, seed=17) == [7, 114, 28, 214, 18, 251, 6, 204, 14, 103, 26, 239]


@settings(max_examples=15, deadline=None)
@given(share=st.integers(1, 4), processes=st.sampled_from([1, 2, 3, 5]), start=st.integers(0, 90))
def test_processes_share_each_batch_in_order(mixture, share, processes, start):
    batch = share * processes
    shares = [
        Batches(mixture, batch, 3, start_row=start, process_index=index, process_count=processes, threads=1)
        for index in range(processes)
    ]
    names = [name for _ in range(3) for batches in shares for name in take(batches, 1)]
    for batches in shares:
        batches.close()
    assert names == first_rows(mixture, start + 3 * batch)[start:]


@settings(max_examples=15, deadline=None)
@given(done=st.integers(0, 9), batch=st.integers(1, 6), threads=st.integers(0, 3))
def test_resumed_anywhere_equals_uninterrupted(mixture, done, batch, threads):
    whole = first_rows(mixture, 14 * batch)
    first = Batches(mixture, batch, 3, threads=threads)
    assert take(first, done) == whole[: done * batch]
    state = json.loads(json.dumps(first.get_state()))
    assert first.row == state["row"] == done * batch
    assert take(first, 2) == whole[done * batch : (done + 2) * batch]
    again = Batches(mixture, batch, 3)
    again.set_state(state)
    assert take(again, 4) == whole[done * batch : (done + 4) * batch]
    first.seek(batch)  # back again, in the same iterator
    assert take(first, 2) == whole[batch : 3 * batch]
    first.close()
    again.close()


def test_resumed_with_another_batch_and_process_count(mixture):
    whole = first_rows(mixture, 40)
    first = Batches(mixture, 5, 3)
    take(first, 3)
    shares = [Batches(mixture, 4, 3, process_index=index, process_count=2) for index in range(2)]
    for batches in shares:
        batches.set_state(first.get_state())
    names = [name for _ in range(2) for batches in shares for name in take(batches, 1)]
    assert names == whole[15:23]


def test_far_positions_are_reached_at_once(mixture):
    batches = Batches(mixture, 4, 3, start_row=4 * 10**12)
    assert len(take(batches, 2)) == 8
    assert batches.row == 4 * 10**12 + 8
    batches.close()


def test_a_changed_mixture_is_refused(parts, mixture, tmp_path):
    state = Batches(mixture, 2, 3, start_row=8).get_state()
    other_rows = write(tmp_path / "other", 2, 54)
    changed = {
        "weights": (list(zip(parts, (2.0, 0.5, 1.6), strict=True)), 3),
        "order": (mixture[::-1], 3),
        "text": ([*mixture[:2], (other_rows, 1.5)], 3),
        "seed": (mixture, 4),
    }
    for other, seed in changed.values():
        with pytest.raises(UserError, match="differ from those of the interrupted run"):
            Batches(other, 2, seed).set_state(state)
    scaled = list(zip(parts, (4.0, 1.0, 3.0), strict=True))
    assert mixture_digest(scaled, 3) == mixture_digest(mixture, 3)
    assert first_rows(scaled, 50) == first_rows(mixture, 50)


def test_mixtures_that_cannot_be(mixture, tmp_path):
    with pytest.raises(UserError, match="nothing to read"):
        Batches([], 2, 0)
    with pytest.raises(UserError, match="empty has no rows"):
        Batches([*mixture, (write(tmp_path / "empty", 0, 0), 1.0)], 2, 0)
    with pytest.raises(UserError, match="tokenizer is xyz, but .* has abc"):
        Batches([*mixture, (write(tmp_path / "foreign", 0, 2, tokenizer="xyz"), 1.0)], 2, 0)
    with pytest.raises(UserError, match="weight is 0"):
        Batches([(mixture[0][0], 0.0)], 2, 0)
    with pytest.raises(UserError, match="train.batch is 5; it must be a multiple of the 2 processes"):
        Batches(mixture, 5, 0, process_count=2)


@pytest.mark.parametrize(("batch", "processes", "limit"), [(4, 1, 0), (6, 3, 0), (6, 3, 13), (120, 2, 0), (1, 1, 2)])
def test_one_pass_reads_each_row_once_and_pads_the_last_batch(parts, batch, processes, limit):
    shares = [
        list(one_pass(parts, batch, limit=limit, process_index=index, process_count=processes))
        for index in range(processes)
    ]
    assert len({len(share) for share in shares}) == 1
    stacked = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*shares, strict=True)
    ]
    assert {part.shape for step in stacked for part in step.values()} == {(batch, LENGTH)}
    rows = [step["tokens"][index, 0] for step in stacked for index in range(batch) if step["segment_ids"][index].any()]
    expected = [100 * part + index for part, size in enumerate(SIZES) for index in range(size)]
    count = limit or len(expected)
    assert rows == [expected[place * (len(expected) - 1) // max(count - 1, 1)] for place in range(count)]
    padding = [
        step["tokens"][index] for step in stacked for index in range(batch) if not step["segment_ids"][index].any()
    ]
    assert not np.any(padding) and len(padding) == len(stacked) * batch - len(rows)


def test_damage_met_by_a_reading_thread_is_said(tmp_path):
    full = np.ones(1000, np.int32)
    (tmp_path / "rows").mkdir()
    writer = RowsWriter(tmp_path / "rows", 1000)
    for _ in range(100):
        writer.write(np.random.default_rng(0).integers(0, 2**31, 1000).astype(np.int32), full)
    writer.finish(documents=1, split="train", tokenizer="abc", recipe={})
    shard = tmp_path / "rows" / "rows-00000.arrayrecord"
    damaged = bytearray(shard.read_bytes())
    damaged[90_000] ^= 255
    shard.write_bytes(damaged)
    batches = Batches([(Rows(tmp_path / "rows"), 1.0)], 5, 0)
    with pytest.raises(UserError, match=r"row \d+ is damaged"):
        take(batches, 20)
    batches.close()


def test_one_pass_over_nothing(tmp_path):
    assert list(one_pass([write(tmp_path / "empty", 0, 0)], 4)) == []
    assert list(one_pass([], 4)) == []


def write_chats(folder: pathlib.Path, part: int, size: int) -> Rows:
    """Like `write`, with the third token and, in odd rows, the second as targets."""
    folder.mkdir()
    writer = RowsWriter(folder, LENGTH, chats=True)
    for index in range(size):
        targets = np.array([False, index % 2 == 1, True, False, False])
        writer.write(np.full(LENGTH, 100 * part + index, np.int32), np.array([1, 1, 1, 2, 0], np.int32), targets)
    writer.finish(documents=size, split="train", tokenizer="abc", recipe={"text": f"chats {part} of {size}"})
    return Rows(folder)


def test_chats_and_text_are_mixed_by_weight_with_targets_for_both(parts, tmp_path):
    chats = write_chats(tmp_path / "chats", 5, 29)
    mixture = [(parts[0], 3.0), (chats, 1.0)]
    batches = Batches(mixture, 4, 3)
    found = [next(batches) for _ in range(50)]
    state = json.loads(json.dumps(batches.get_state()))
    following = next(batches)
    batches.close()
    tokens, targets = (np.concatenate([batch[name] for batch in found]) for name in ("tokens", "targets"))
    of_chats = tokens[:, 0] >= 500
    assert of_chats.sum() == 50 and targets.dtype == np.bool_
    assert targets[~of_chats].all()
    odd = tokens[of_chats, 0] % 2 == 1
    expected = np.stack([odd & False, odd, odd | True, odd & False, odd & False], axis=1)
    np.testing.assert_array_equal(targets[of_chats], expected)
    # The order, and the place to go on from, are those of any other mixture; shares are cut alike.
    shares = [Batches(mixture, 4, 3, process_index=index, process_count=2) for index in range(2)]
    for share in shares:
        share.set_state(state)
    halves = [next(share) for share in shares]
    for share in shares:
        share.close()
    for name in following:
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), following[name])


def test_one_pass_over_chats(parts, tmp_path):
    chats = write_chats(tmp_path / "chats", 5, 2)
    (batch,) = one_pass([chats, parts[1]], 19)
    assert batch["targets"].dtype == np.bool_
    np.testing.assert_array_equal(batch["targets"][:3], [[0, 0, 1, 0, 0], [0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert not batch["segment_ids"][2 + SIZES[1] :].any()
    assert "targets" not in next(one_pass([parts[1]], 9, limit=3))
