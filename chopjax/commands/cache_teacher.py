"""The teacher, run once over the rows that training and evaluation read, so that training needs no teacher."""

import contextlib
import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from chopjax.commands import teacher
from chopjax.commands.run import STUDENT, Run, begin
from chopjax.commands.settings import Settings
from chopjax.data import teacher_cache
from chopjax.data.batches import Mixture, mixture_digest, spread
from chopjax.data.reached import reached
from chopjax.data.rows import Rows, stack_rows
from chopjax.data.target_records import encode_draws, encode_top, predicting, row_digest, row_key
from chopjax.data.teacher_cache import CachedRows, CacheInfo, Selection
from chopjax.distill.cache_config import check_loss, check_vocab
from chopjax.distill.sparse import Draws, TopTokens, draw_tokens, top_tokens
from chopjax.errors import UserError
from chopjax.models import decoder
from chopjax.models.decoder import Params
from chopjax.sharding.mesh import place_batch, row_sharding

FOLDER = "cache"


Found = TopTokens | Draws
Forward = Callable[[dict[str, Array]], Found]
Kept = Bool[np.ndarray, "rows"]


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows of one source and split, under the name of their folder in the cache, and what is kept of them."""

    name: str
    rows: Rows
    info: CacheInfo


def main(chosen: Settings) -> None:
    """Writes the cache that `cache` describes, or goes on with it."""
    make(begin(chosen, check))


def check(run: Run) -> None:
    """Refuses settings of which no cache can be made.

    Raises:
        UserError: `cache.kind` is off, or the loss cannot be made of cached targets, or the words of a student are not
            known yet, or fewer than are to be kept; or the teacher cannot read the rows.
    """
    check_loss(run.settings.cache, run.settings.loss)
    if run.settings.cache.kind == "off":
        raise UserError("cache.kind is 'off', so there is nothing to write; choose 'top_k' or 'samples'")
    if run.trimmed and not (run.workdir / STUDENT).exists():
        raise UserError("plan.vocab trims the vocabulary, and the student does not exist yet; run chopjax.chop first")
    check_vocab(run.settings.cache, run.student_tokenizer.vocab)
    teacher.check(run)


def make(run: Run) -> None:
    """Writes the shards that are not there yet, of all training sources and of what evaluation reads.

    Raises:
        UserError: the folder holds a cache that was begun otherwise, or another process writes to it, or the teacher
            gives no numbers.
    """
    with contextlib.ExitStack() as held:
        parts = [part for part in (*_training(run), *_heldout(run)) if not _whole(run, part, held)]
        if not parts:
            run.say(f"cache_teacher: all of {root(run)} is there already")
            return
        forward, kept = _compiled(run, run.load_teacher()), _kept(run)
        for part in parts:
            _write(run, part, kept[part.name], forward)


def mixture(run: Run) -> Mixture:
    """The run's training rows with the teacher's targets, in place of `run.student_data.mixture()`.

    Raises:
        UserError: there is no whole cache that fits this run.
    """
    weights = (weight for _, weight in run.student_data.mixture())
    return [(_cached(run, part), weight) for part, weight in zip(_training(run), weights, strict=True)]


def heldout(run: Run) -> dict[str, Rows]:
    """The run's held-out rows with the teacher's targets, in place of `run.student_data.heldout()`.

    Only those that evaluation reads have any: `evaluate.rows` of them, or all.

    Raises:
        UserError: there is no whole cache that fits this run.
    """
    return {part.name.removesuffix("/heldout"): _cached(run, part) for part in _heldout(run)}


def root(run: Run) -> pathlib.Path:
    """The folder of the run's cache."""
    return pathlib.Path(run.settings.cache.path or run.workdir / FOLDER)


def _cached(run: Run, part: Part) -> CachedRows:
    return CachedRows(part.rows.folder, root(run) / part.name, part.info)


def _training(run: Run) -> Iterator[Part]:
    data, chosen = run.student_data, run.settings
    names = [part.name for part in data.parts if not part.heldout]
    selection = Selection()
    if chosen.cache.rows == "reached":
        steps, batch = chosen.train, chosen.train.batch
        order = mixture_digest(data.mixture(), chosen.seed)
        first = steps.steps_before_chop * batch
        selection = Selection(order, first, first + steps.steps * batch)
    for name, (rows, _) in zip(names, data.mixture(), strict=True):
        yield Part(f"{name}/train", rows, _info(run, rows, selection))


def _heldout(run: Run) -> Iterator[Part]:
    parts, limit = run.student_data.heldout(), run.settings.evaluate.rows
    total = sum(len(rows) for rows in parts.values())
    whole = run.settings.cache.rows == "all" or not 0 < limit < total
    selection = Selection() if whole else Selection(f"{limit} spread over {total}", 0, limit)
    for name, rows in parts.items():
        yield Part(f"{name}/heldout", rows, _info(run, rows, selection))


def _kept(run: Run) -> dict[str, Kept]:
    """Part → True at the rows whose targets are kept."""
    training, heldout = list(_training(run)), list(_heldout(run))
    kept = {part.name: np.ones(len(part.rows), bool) for part in (*training, *heldout)}
    one = training[0].info.selection
    if one.order:
        found = reached(run.student_data.mixture(), run.settings.seed, one.first, one.last)
        kept |= {part.name: rows for part, rows in zip(training, found, strict=True)}
    if heldout and heldout[0].info.selection.order:
        chosen = spread([len(part.rows) for part in heldout], run.settings.evaluate.rows)
        kept |= {part.name: np.isin(np.arange(len(part.rows)), own) for part, own in zip(heldout, chosen, strict=True)}
    return kept


def _info(run: Run, rows: Rows, selection: Selection) -> CacheInfo:
    chosen = run.settings
    return CacheInfo(
        kind=chosen.cache.kind,
        count=chosen.cache.count,
        temperature=chosen.loss.temperature,
        teacher=run.teacher_print,
        tokenizer=run.student_tokenizer.digest,
        vocab=run.student_tokenizer.vocab,
        rows=rows.info.digest,
        row_count=len(rows),
        dtype=chosen.train.compute_dtype,
        seed=chosen.seed if chosen.cache.kind == "samples" else 0,
        shard_rows=chosen.cache.shard_rows,
        selection=selection,
    )


def _whole(run: Run, part: Part, held: contextlib.ExitStack) -> bool:
    """Whether nothing is left to do; if there is, the folder is ready for it, and ours until `held` ends."""
    folder = root(run) / part.name
    if run.writer and not teacher_cache.is_whole(folder, part.info):
        held.enter_context(teacher_cache.held(folder))
        teacher_cache.begin(folder, part.info)
    run.barrier()
    whole = teacher_cache.is_whole(folder, part.info)
    run.barrier()
    return whole


def _compiled(run: Run, params: Params) -> Forward:
    """The teacher's targets for a batch on the mesh: `tokens`, `segment_ids`, `positions` and `keys`."""
    chosen, config = run.settings, run.teacher_config
    options: dict[str, Any] = {
        "temperature": chosen.loss.temperature,
        "vocab_tokens": run.student_tokenizer.vocab,
        "chunk": chosen.loss.chunk,
        "constrain": run.constrain,
    }

    def forward(params: Params, batch: dict[str, Array]) -> Found:
        inputs = batch["tokens"], batch["positions"], batch["segment_ids"]
        hidden = decoder.forward(config, params, *inputs, constrain=run.constrain).hidden
        unembed = decoder.unembedding(config, params)
        if chosen.cache.kind == "samples":
            return draw_tokens(hidden, unembed, batch["keys"], chosen.cache.samples, **options)
        return top_tokens(hidden, unembed, chosen.cache.k, **options)

    return functools.partial(jax.jit(forward, out_shardings=row_sharding(run.mesh)), params)


def _write(run: Run, part: Part, kept: Kept, forward: Forward) -> None:
    """Writes the missing shards of a part, each process its own; process 0 closes the cache when all are there."""
    folder, info = root(run) / part.name, part.info
    left = teacher_cache.missing(folder, info)
    run.barrier()  # every process has looked before one of them adds a shard
    own = run.share
    shares = [left[index :: own.count] for index in range(own.count)]
    wanted = [[row for shard in share for row in info.rows_of(shard) if kept[row]] for share in shares]
    share_rows = run.settings.evaluate.batch // own.count
    batches = max(math.ceil(len(rows) / share_rows) for rows in wanted)
    run.say(f"cache_teacher: {part.name}: {sum(map(len, wanted)):,} rows in {len(left)} of {info.shards} shards")
    records = _records(run, part, forward, wanted[own.index], batches)
    for shard in shares[own.index] if own.leads else ():
        with teacher_cache.written_shard(folder, shard) as write:
            for row in info.rows_of(shard):
                write(next(records) if kept[row] else b"")
        run.say(f"cache_teacher: {part.name}: shard {shard + 1} of {info.shards}")
    for _ in records:  # others may have more rows, and all run the teacher together
        pass
    run.barrier()
    if run.writer:
        teacher_cache.finish(folder, info)
        run.say(f"cache_teacher: {part.name}: {_size(folder, int(kept.sum()) * part.rows.info.length)}")
    run.barrier()


def _size(folder: pathlib.Path, tokens: int) -> str:
    """How large a part is, for people."""
    total = sum(path.stat().st_size for path in folder.iterdir())
    return f"{total / 1e6:,.1f} MB, {total / max(1, tokens):.1f} bytes a token"


def _records(run: Run, part: Part, forward: Forward, rows: Sequence[int], batches: int) -> Iterator[bytes]:
    """The records of this process's rows, in their order, from so many batches that all processes run together."""
    share = run.settings.evaluate.batch // run.share.count
    waiting: Callable[[], Iterator[bytes]] | None = None
    for number in range(batches):
        run.boundary()
        own = list(rows[number * share : (number + 1) * share])
        batch = [part.rows[row] for row in own or [0]]  # the targets of what fills a batch are dropped
        batch += [batch[0]] * (share - len(batch))
        digests = [row_digest(row["tokens"], row["segment_ids"]) for row in batch]
        keys = [_key(part, row, digest) for row, digest in itertools.zip_longest(own, digests)]
        inputs = stack_rows([{name: row[name] for name in ("tokens", "segment_ids", "positions")} for row in batch])
        found = forward(place_batch(run.mesh, {**inputs, "keys": np.stack(keys)}))
        # Reading results waits for their batch, so that a batch is encoded while the next is under way.
        if waiting:
            yield from waiting()
        places = [predicting(row["segment_ids"], row.get("targets")) for row in batch[: len(own)]]
        waiting = functools.partial(_encoded, part, own, digests, places, found)
    if waiting:
        yield from waiting()


def _key(part: Part, row: int | None, digest: bytes) -> UInt32[np.ndarray, "2"]:
    return row_key(part.info.seed, row or 0, digest)


def _encoded(
    part: Part,
    rows: Sequence[int],
    digests: Sequence[bytes],
    places: Sequence[Bool[np.ndarray, "length"]],
    found: Found,
) -> Iterator[bytes]:
    """The records of the first rows of a batch."""
    arrays = [_own(getattr(found, field.name)) for field in dataclasses.fields(found)]
    encode = encode_draws if isinstance(found, Draws) else encode_top
    for index, (row, digest, kept) in enumerate(zip(rows, digests, places, strict=False)):
        ids, values, rest = (array[index] for array in arrays)
        if np.isnan(values[kept]).any() or np.isnan(rest[kept]).any():
            raise UserError(f"teacher: its logits for row {row} of {part.name} are not numbers; mend the checkpoint")
        yield encode(digest, kept, ids, values, rest)


def _own(array: Array) -> Int[np.ndarray, "share *rest"]:
    """This process's rows of an array whose rows are spread over the mesh."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
