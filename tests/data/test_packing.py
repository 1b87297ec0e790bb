import itertools

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from chopjax.data.packing import Packer, positions_of

LENGTHS = st.lists(st.integers(0, 23), max_size=12)


def pack(documents: list[np.ndarray], length: int) -> list[tuple[np.ndarray, np.ndarray]]:
    packer = Packer(length)
    rows = [row for document in documents for row in packer.add(document)]
    return rows + list(packer.finish())


def numbered(lengths: list[int]) -> list[np.ndarray]:
    """Documents whose tokens are 1, 2, 3, ... across all of them."""
    ends = list(itertools.accumulate(lengths))
    return [np.arange(end - size + 1, end + 1, dtype=np.int32) for size, end in zip(lengths, ends, strict=True)]


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 17))
def test_every_token_once_and_in_order(lengths, length):
    rows = pack(numbered(lengths), length)
    kept = [tokens[segments > 0] for tokens, segments in rows]
    np.testing.assert_array_equal(np.concatenate([[], *kept]), np.arange(1, sum(lengths) + 1))
    assert len(rows) == -(-sum(lengths) // length)
    for tokens, segments in rows:
        assert tokens.dtype == segments.dtype == np.int32
        assert tokens.shape == segments.shape == (length,)
        np.testing.assert_array_equal(tokens[segments == 0], 0)
    for _, segments in rows[:-1]:
        assert segments.all()


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 17))
def test_segments_are_the_documents_of_a_row(lengths, length):
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    for tokens, segments in pack(numbered(lengths), length):
        used = int(np.count_nonzero(segments))
        documents = document_of[tokens[:used] - 1]
        _, expected = np.unique(documents, return_inverse=True)
        np.testing.assert_array_equal(segments[:used], expected + 1)
        np.testing.assert_array_equal(segments[used:], 0)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 17))
def test_positions_count_from_the_start_of_each_segment(lengths, length):
    rows = pack(numbered(lengths), length)
    for _, segments in rows:
        expected, seen = [], {}
        for segment in segments.tolist():
            expected.append(seen.get(segment, 0) if segment else 0)
            seen[segment] = seen.get(segment, 0) + 1
        np.testing.assert_array_equal(positions_of(segments), expected)
    if rows:
        stacked = np.stack([segments for _, segments in rows])
        np.testing.assert_array_equal(positions_of(stacked), [positions_of(row) for row in stacked])
        assert positions_of(stacked).dtype == np.int32


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 17))
def test_chats_are_whole_where_they_fit_and_their_targets_follow(lengths, length):
    packer = Packer(length, chats=True)
    # Targets are the tokens that 3 divides.
    rows = [row for tokens in numbered(lengths) for row in packer.add(tokens, tokens % 3 == 0)]
    rows += list(packer.finish())
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    pieces: dict[int, int] = {}
    for tokens, segments, targets in rows:
        assert targets.dtype == np.bool_
        np.testing.assert_array_equal(targets, (tokens % 3 == 0) & (segments > 0))
        for segment in range(1, segments.max() + 1):
            (document,) = set(document_of[tokens[segments == segment] - 1].tolist())
            pieces[document] = pieces.get(document, 0) + 1
    assert pieces == {index: -(-size // length) for index, size in enumerate(lengths) if size}
    kept = [tokens[segments > 0] for tokens, segments, _ in rows]
    np.testing.assert_array_equal(np.concatenate([[], *kept]), np.arange(1, sum(lengths) + 1))


def test_rows_of_chats_by_hand():
    packer = Packer(5, chats=True)
    yes, no = True, False
    chats = [
        ([1, 2, 3], [no, yes, yes]),
        ([4, 5, 6], [no, no, yes]),
        ([7, 8], [no, yes]),
        ([9] * 6, [no] * 4 + [yes] * 2),
    ]
    rows = [row for ids, mask in chats for row in packer.add(np.array(ids, np.int32), np.array(mask))]
    rows += list(packer.finish())
    assert [tokens.tolist() for tokens, _, _ in rows] == [[1, 2, 3, 0, 0], [4, 5, 6, 7, 8], [9] * 5, [9, 0, 0, 0, 0]]
    assert [targets.tolist() for *_, targets in rows] == [
        [no, yes, yes, no, no],
        [no, no, yes, no, yes],
        [no, no, no, no, yes],
        [yes, no, no, no, no],
    ]
