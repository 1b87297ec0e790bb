"""A row's targets as bytes, and back: what a teacher's cache holds for each row.

A record is the digest of the row, then planes, each behind its length in bytes. A plane is one byte of each number of
an array, deflated with Huffman codes and runs only. Planes of high bytes, and of differences, hold few values and
shrink to their entropy; so the width of a number follows from the numbers, and any vocabulary has near its least.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32

from chopjax.errors import UserError

# Log-probabilities are kept to 1/128 nat, so each within 1/256. Of errors evenly spread over a step of s, renormalised,
# KL(p, kept p) is s² / 24 = 2.5e-6 nats.
LOG_STEPS = 128
# Entropies to 1/4096 nat; the largest that fits, 16 nats, is that of 9 million tokens.
ENTROPY_STEPS = 4096
LARGEST = 0xFFFF  # what two bytes hold

DIGEST_BYTES = 8
_LENGTH = struct.Struct("<I")

Targets = dict[str, np.ndarray]
"""`ids` int32 [length, k], `probs` float32 [length, k], `tail` and `offset` float32 [length]: the fields of
`chopjax.distill.targets.Sparse` for one row."""


def row_digest(tokens: Int[np.ndarray, "length"], segment_ids: Int[np.ndarray, "length"]) -> bytes:
    """8 bytes that tell a row's content: its tokens and where its documents lie."""
    content = np.stack([tokens, segment_ids]).astype("<i4").tobytes()
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def row_key(seed: int, index: int, digest: bytes) -> UInt32[np.ndarray, "2"]:
    """The random key of a row's draws: of the seed, the row's place in its source and its content alone."""
    content = seed.to_bytes(8, "little", signed=True) + index.to_bytes(8, "little") + digest
    return np.frombuffer(hashlib.blake2b(content, digest_size=8).digest(), "<u4").astype(np.uint32)


def predicting(
    segment_ids: Int[np.ndarray, "length"], targets: Bool[np.ndarray, "length"] | None = None
) -> Bool[np.ndarray, "length"]:
    """True where a prediction counts in the loss (`chopjax.data.labels`); at other places nothing is kept."""
    inside = (segment_ids != 0) & (segment_ids == np.append(segment_ids[1:], 0))
    return inside if targets is None else inside & np.append(targets[1:], False)


def encode_top(
    digest: bytes,
    kept: Bool[np.ndarray, "length"],
    ids: Int[np.ndarray, "length k"],
    log_probs: Float[np.ndarray, "length k"],
    log_tail: Float[np.ndarray, "length"],
) -> bytes:
    """A record of the most probable tokens.

    Args:
        digest: `row_digest` of the row.
        kept: the places whose targets are kept.
        ids: the most probable tokens, falling in probability.
        log_probs: their log-probabilities in nats.
        log_tail: log of the probability of all others; -inf for none.
    """
    codes = np.clip(np.rint(-LOG_STEPS * log_probs[kept].astype(np.float64)), 0, LARGEST).astype(np.int64)
    steps = np.diff(codes, axis=1, prepend=0)
    # float16 has the log of the tail within 0.05 %, or 1 % of a tail of 1e-10.
    tail = log_tail[kept].astype("<f2").view("<u2")
    planes = [*_planes(kept, 1), *_planes(ids[kept], 4), *_planes(steps, 2), *_planes(tail, 2)]
    return _record(digest, planes)


def decode_top(record: bytes, length: int, k: int, count: int, vocab: int) -> Targets:
    """The targets in a record of `encode_top`.

    Args:
        record: all of it, the digest too.
        length: tokens of the row.
        k: how many to give at each place; those kept beyond these join the tail.
        count: how many the record holds at each place.
        vocab: number of tokens.

    Raises:
        UserError: the record is damaged.
    """
    planes = _read(record, length * count)
    kept = _numbers(planes, 1, length).astype(bool)
    places = int(kept.sum())
    ids = _within(_numbers(planes, 4, places * count), vocab).reshape(places, count)[:, :k]
    codes = np.cumsum(_numbers(planes, 2, places * count).reshape(places, count), axis=1)
    tail = np.exp(_numbers(planes, 2, places).astype("<u2").view("<f2").astype(np.float64))
    probs = np.exp(codes / -LOG_STEPS)
    # Rounding left a sum of nearly 1. The targets are made a distribution: a divergence from them is never below 0.
    total = probs.sum(1) + tail
    if not (np.isfinite(total) & (total > 0)).all():
        raise UserError("its probabilities do not add up")
    tail = (tail + probs[:, k:].sum(1)) / total
    probs = probs[:, :k] / total[:, None]
    return _targets(kept, ids, probs, tail, _plogp(probs).sum(1) + _plogp(tail), k)


def encode_draws(
    digest: bytes,
    kept: Bool[np.ndarray, "length"],
    ids: Int[np.ndarray, "length draws"],
    counts: Int[np.ndarray, "length draws"],
    entropy: Float[np.ndarray, "length"],
) -> bytes:
    """A record of random draws.

    Args:
        digest: `row_digest` of the row.
        kept: the places whose targets are kept.
        ids: the drawn tokens of a place, rising; those that are -1 stand for none.
        counts: how often each was drawn, 0 to 65535.
        entropy: of the distribution, in nats.
    """
    used = (ids >= 0) & kept[:, None]
    sizes = used.sum(1)
    steps = _steps(ids[used].astype(np.int64), sizes)
    codes = np.clip(np.rint(ENTROPY_STEPS * entropy[kept].astype(np.float64)), 0, LARGEST)
    planes = [*_planes(sizes, 2), *_planes(steps, 4), *_planes(counts[used], 2), *_planes(codes, 2)]
    return _record(digest, planes)


def decode_draws(record: bytes, length: int, draws: int, vocab: int) -> Targets:
    """The targets in a record of `encode_draws`: `probs` are counts / draws.

    Args:
        record: all of it, the digest too.
        length: tokens of the row.
        draws: how many there were at each place.
        vocab: number of tokens.

    Raises:
        UserError: the record is damaged.
    """
    planes = _read(record, length * draws)
    sizes = _numbers(planes, 2, length)
    kept = sizes > 0
    ids = _within(_running(_numbers(planes, 4, int(sizes.sum())), sizes), vocab)
    counts = _numbers(planes, 2, len(ids))
    entropy = _numbers(planes, 2, int(kept.sum())) / ENTROPY_STEPS
    if sizes.max(initial=0) > draws:
        raise UserError("it holds more tokens than draws")
    used = np.arange(draws)[None] < sizes[kept, None]
    wide_ids, probs = np.full(used.shape, -1, np.int64), np.zeros(used.shape)
    wide_ids[used], probs[used] = ids, counts / draws
    return _targets(kept, wide_ids, probs, np.zeros(len(entropy)), -entropy, draws)


def _targets(
    kept: Bool[np.ndarray, "length"],
    ids: Int[np.ndarray, "places k"],
    probs: Float[np.ndarray, "places k"],
    tail: Float[np.ndarray, "places"],
    offset: Float[np.ndarray, "places"],
    k: int,
) -> Targets:
    """The targets of a row from those of the places that are kept; nothing at the others."""
    found = {
        "ids": np.full((len(kept), k), -1, np.int32),
        "probs": np.zeros((len(kept), k), np.float32),
        "tail": np.zeros(len(kept), np.float32),
        "offset": np.zeros(len(kept), np.float32),
    }
    found["ids"][kept, : ids.shape[1]], found["probs"][kept, : ids.shape[1]] = ids, probs
    found["tail"][kept], found["offset"][kept] = tail, offset
    return found


def _within(ids: Int[np.ndarray, "ids"], vocab: int) -> Int[np.ndarray, "ids"]:
    """The ids, all of which have to be in the vocabulary."""
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab:
        raise UserError(f"it holds a token beyond the vocabulary of {vocab}")
    return ids


def _plogp(p: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return p * np.log(np.where(p > 0, p, 1.0))


def _steps(rising: Int[np.ndarray, "entries"], sizes: Int[np.ndarray, "length"]) -> Int[np.ndarray, "entries"]:
    """Each entry less the one before it at the same place, of entries listed place by place."""
    steps = np.diff(rising, prepend=0)
    starts = _starts(sizes)
    steps[starts] = rising[starts]
    return steps


def _running(steps: Int[np.ndarray, "entries"], sizes: Int[np.ndarray, "length"]) -> Int[np.ndarray, "entries"]:
    """The inverse of `_steps`."""
    sums = np.cumsum(steps)
    starts = _starts(sizes)
    before = sums[starts] - steps[starts]
    return sums - np.repeat(before, sizes[sizes > 0])


def _starts(sizes: Int[np.ndarray, "length"]) -> Int[np.ndarray, "places"]:
    return (np.cumsum(sizes) - sizes)[sizes > 0]


def _planes(numbers: np.ndarray, width: int) -> Iterator[bytes]:
    """The lowest bytes of all numbers, then the next, `width` times; each deflated."""
    of_bytes = np.ascontiguousarray(numbers.reshape(-1).astype("<u4").view(np.uint8).reshape(-1, 4).T)
    for plane in of_bytes[:width]:
        deflate = zlib.compressobj(6, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
        yield deflate.compress(plane.tobytes()) + deflate.flush()


def _record(digest: bytes, planes: list[bytes]) -> bytes:
    return digest + b"".join(_LENGTH.pack(len(plane)) + plane for plane in planes)


def _read(record: bytes, most: int) -> Iterator[np.ndarray]:
    """The planes of a record, inflated one after the other; each of at most so many bytes."""
    place = DIGEST_BYTES
    while place < len(record):
        try:
            (size,) = _LENGTH.unpack_from(record, place)
            place += _LENGTH.size
            inflate = zlib.decompressobj(-15)
            plane = inflate.decompress(record[place : place + size], most + 1)
        except (struct.error, zlib.error) as error:
            raise UserError(f"it cannot be inflated ({error})") from error
        if len(plane) > most or not inflate.eof:
            raise UserError("it inflates to more than its row has, or is cut short")
        yield np.frombuffer(plane, np.uint8)
        place += size


def _numbers(planes: Iterator[np.ndarray], width: int, count: int) -> Int[np.ndarray, "{count}"]:
    """The inverse of `_planes`: `count` numbers."""
    taken = [plane for _, plane in zip(range(width), planes, strict=False)]
    sizes = {len(plane) for plane in taken}
    if len(taken) != width or sizes != {count}:
        raise UserError("it is not of this length or kind")
    numbers = np.zeros(len(taken[0]), np.int64)
    for place, plane in enumerate(taken):
        numbers |= plane.astype(np.int64) << (8 * place)
    return numbers
