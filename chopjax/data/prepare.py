"""Text to rows, once: each source in a folder of its own, so that weights may change without reading text again.

out/manifest.json
out/SOURCE/train/    rows of the documents to train on
out/SOURCE/heldout/  rows of those that never are
"""

import contextlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from chopjax import folders, paths
from chopjax.data import rows
from chopjax.data.chat import Chat
from chopjax.data.checks import check_length, check_tokenizers, check_vocab
from chopjax.data.config import DataConfig, TextSource
from chopjax.data.draw import divide
from chopjax.data.find import described, find_files, source_digest
from chopjax.data.heldout import Document, text_of
from chopjax.data.job import SPLITS, Job, Say, existing
from chopjax.data.manifest import Manifest, Part, open_prepared, write_manifest
from chopjax.data.packing import Packer
from chopjax.data.rows import RowsInfo, RowsWriter
from chopjax.data.tokenize import load_tokenizer
from chopjax.errors import UserError
from chopjax.unchanged import unchanged

BATCH_DOCUMENTS = 512
BATCH_CHARACTERS = 1 << 22


def prepare(
    config: DataConfig,
    tokenizer_folder: str | pathlib.Path,
    out_folder: str | pathlib.Path,
    *,
    positions: int | None = None,
    vocab: int | None = None,
    say: Say = lambda line: None,
) -> Manifest:
    """Tokenises and packs every source into `out_folder`, and writes its manifest last.

    A source whose rows are already there from the same text, tokenizer and settings is skipped; where they differ the
    difference is said and its rows are replaced. A document goes to the held-out rows if a hash of its text says so,
    or if it occurs in a source that is held out; so no text is ever in both splits, of whatever sources. Where plain
    text files are too few for that, the end of each long one is held out.

    Args:
        config: sources and settings.
        tokenizer_folder: Hugging Face folder with the tokenizer.
        out_folder: where the rows go.
        positions: the model's longest sequence, if rows are to be checked against it.
        vocab: rows of the model's embedding table, if tokens are to be checked against it.
        say: takes progress, line by line.

    Raises:
        UserError: text, tokenizer or settings cannot be used, or a file changes while it is read. Rows of sources that
            were done before that stay.
    """
    if not config.sources:
        raise UserError("data.sources is empty; name at least one file, folder or hub dataset")
    _check_names(config.sources)
    if positions is not None:
        check_length(config.length, positions)
    tokenizer = load_tokenizer(tokenizer_folder)
    with contextlib.ExitStack() as steady:
        for source in config.sources:
            if source.heldout:
                steady.enter_context(_unchanged(source))
        job = Job(config, tokenizer, tokenizer_folder, paths.make(out_folder), vocab, say)
        digests = [source_digest(source) for source in config.sources]
        divide(job, digests)
        parts: list[Part] = []
        infos: list[RowsInfo] = []
        for source, digest in zip(config.sources, digests, strict=True):
            written = _prepare_source(job, source, digest)
            parts.append(_part(job, source, digest, written))
            infos += written.values()
    max_token = max(info.max_token for info in infos)
    manifest = Manifest(job.out, config.length, tokenizer.digest, max_token, tuple(parts))
    _check_split(manifest, config)
    write_manifest(manifest)
    return manifest


def prepare_or_open(
    config: DataConfig,
    tokenizer_folder: str | pathlib.Path,
    default_folder: str | pathlib.Path,
    *,
    positions: int | None = None,
    vocab: int | None = None,
    say: Say = lambda line: None,
) -> Manifest:
    """Prepares `config.sources` into `config.rows`, or opens what was prepared there if no sources are given.

    Args:
        config: sources and settings; of rows prepared before, the length is theirs.
        tokenizer_folder: Hugging Face folder with the tokenizer.
        default_folder: where rows go if `config.rows` is empty.
        positions: the model's longest sequence, if rows are to be checked against it.
        vocab: rows of the model's embedding table, if tokens are to be checked against it.
        say: takes progress, line by line.

    Raises:
        UserError: see `prepare`; or neither sources nor rows are given, or the rows do not fit the model.
    """
    if config.sources:
        out = config.rows or default_folder
        return prepare(config, tokenizer_folder, out, positions=positions, vocab=vocab, say=say)
    if not config.rows:
        raise UserError("data.sources and data.rows are both empty; name the text, or a folder of prepared rows")
    manifest = open_prepared(config.rows)
    check_tokenizers(manifest.tokenizer, load_tokenizer(tokenizer_folder).digest, f"{config.rows} and the model")
    if positions is not None:
        check_length(manifest.length, positions)
    if vocab is not None:
        check_vocab(manifest.max_token, vocab, config.rows)
    return manifest


@contextlib.contextmanager
def _unchanged(source: TextSource) -> Iterator[None]:
    """Refuses, when the block ends, a source whose files changed, came or went within it."""
    if source.hub:
        yield
        return
    listed = [path for _, path in find_files(source)[1]]
    with unchanged(listed):
        yield
    if [path for _, path in find_files(source)[1]] != listed:
        raise UserError(
            f"data.sources: {source.path}: files came or went while it was read; run again when no other process "
            "writes there"
        )


def _check_names(sources: Iterable[TextSource]) -> None:
    seen: set[str] = set()
    for source in sources:
        if source.label in seen:
            raise UserError(f"data.sources: two sources are called {source.label!r}; give each a name of its own")
        seen.add(source.label)


def _prepare_source(job: Job, source: TextSource, digest: str) -> dict[str, RowsInfo]:
    """Rows of one source by split, made or found."""
    folder = job.out / source.label
    folders.clear(folder)
    recipe = job.recipe(source, digest)
    found, reason = existing(folder, recipe, job.tool_template())
    if found and not reason:
        job.say(f"{source.label}: rows are there already")
        for split, info in found.items():
            _check_tokens(job, info.max_token, f"{folder / split}")
        return found
    if reason:
        job.say(f"{source.label}: {reason}; its rows are written again")
    job.say(described(source))
    with folders.written_whole(folder, last=(rows.FILE,)) as place, _unchanged(source):
        if source_digest(source) != digest:
            raise UserError(f"data.sources: {source.label} changed while it was read; run again")
        return _write_source(job, source, recipe, place)


def _write_source(job: Job, source: TextSource, recipe: Mapping[str, Any], place: pathlib.Path) -> dict[str, RowsInfo]:
    length, chats = job.config.length, source.chats
    packers = {split: Packer(length, chats) for split in SPLITS}
    counts = dict.fromkeys(SPLITS, 0)
    tools = False
    writers = {}
    for split in SPLITS:
        (place / split).mkdir()
        writers[split] = RowsWriter(place / split, length, chats=chats)
    try:
        for batch in _batched(job.parts_of(source)):
            encodings = job.encode([document for _, document in batch])
            for (split, document), encoded in zip(batch, encodings, strict=True):
                counts[split] += 1
                tools |= isinstance(document, Chat) and document.tools
                if encoded[0].size:
                    _check_tokens(job, int(encoded[0].max()), source.label)
                for row in packers[split].add(*encoded):
                    writers[split].write(*row)
        for split in SPLITS:
            for row in packers[split].finish():
                writers[split].write(*row)
        digest = job.tokenizer.digest
        if tools:  # known only after reading, and nothing to the rows of conversations without any
            recipe = {**recipe, **job.tool_template()}
        return {
            split: writers[split].finish(documents=counts[split], split=split, tokenizer=digest, recipe=recipe)
            for split in SPLITS
        }
    finally:
        for writer in writers.values():
            writer.close()


def _check_tokens(job: Job, max_token: int, where: str) -> None:
    if job.vocab is not None:
        check_vocab(max_token, job.vocab, where)


def _batched(found: Iterator[tuple[str, Document]]) -> Iterator[list[tuple[str, Document]]]:
    """Groups of documents that are worth tokenising at once and small enough to hold."""
    batch: list[tuple[str, Document]] = []
    characters = 0
    for split, document in found:
        batch.append((split, document))
        characters += len(text_of(document))
        if len(batch) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _part(job: Job, source: TextSource, digest: str, written: Mapping[str, RowsInfo]) -> Part:
    targets = {split: info.targets for split, info in written.items() if info.targets is not None}
    return Part(
        name=source.label,
        weight=source.weight,
        heldout=source.heldout,
        digest=digest,
        rows={split: info.rows for split, info in written.items()},
        tokens={split: info.tokens for split, info in written.items()},
        documents={split: info.documents for split, info in written.items()},
        targets=targets,
        divided=job.divided_in.get(source.label, 0),
        **job.template_of(source),
    )


def _check_split(manifest: Manifest, config: DataConfig) -> None:
    """Refuses a split of which one side came out empty, and chats without an answer to learn."""
    for part in manifest.parts:
        if part.targets and sum(part.rows.values()) and not sum(part.targets.values()):
            raise UserError(
                f"data.sources: {part.name} holds no answer of an assistant; check that the roles are user and "
                "assistant, or read it as plain text"
            )
        if not part.heldout and not part.rows["train"]:
            if not part.documents["heldout"]:
                raise UserError(f"data.sources: {part.name} holds no text; give it some, or leave it out")
            raise UserError(
                f"data.sources: {part.name} gives no row to train on (all its documents are in held-out sources too); "
                "leave out one of the two"
            )
    if config.heldout_fraction and not manifest.total("rows", "heldout"):
        raise UserError(
            f"data.heldout_fraction is {config.heldout_fraction}, but the held-out documents hold no token; mark a "
            "source as heldout, or set it to 0 for none"
        )
