"""Text to rows, once: each source in a folder of its own, so that weights may change without reading text again.

out/manifest.json
out/SOURCE/train/    rows of the documents to train on
out/SOURCE/heldout/  rows of those that never are
"""

import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from chopjax import files, folders, paths
from chopjax.data import rows
from chopjax.data.chat import Chat, Notes, conversations
from chopjax.data.checks import check_length, check_tokenizers, check_vocab
from chopjax.data.config import DataConfig, TextSource
from chopjax.data.find import described, source_digest
from chopjax.data.manifest import Manifest, Part, open_prepared, write_manifest
from chopjax.data.packing import Packer
from chopjax.data.rows import RowsInfo, RowsWriter, read_info
from chopjax.data.template import ChatTemplate, find_template, load_template
from chopjax.data.text import documents
from chopjax.data.tokenize import Bounds, Tokenizer, covered, document_bounds, encode_documents, load_tokenizer
from chopjax.errors import UserError

SPLITS = ("train", "heldout")
BATCH_DOCUMENTS = 512
BATCH_CHARACTERS = 1 << 22
TOOL_TEMPLATE = "tool_template"

Say = Callable[[str], None]
Document = str | Chat


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
    or if it occurs in a source that is held out; so no text is ever in both splits, of whatever sources.

    Args:
        config: sources and settings.
        tokenizer_folder: Hugging Face folder with the tokenizer.
        out_folder: where the rows go.
        positions: the model's longest sequence, if rows are to be checked against it.
        vocab: rows of the model's embedding table, if tokens are to be checked against it.
        say: takes progress, line by line.

    Raises:
        UserError: text, tokenizer or settings cannot be used. Rows of sources that were done before that stay.
    """
    if not config.sources:
        raise UserError("data.sources is empty; name at least one file, folder or hub dataset")
    _check_names(config.sources)
    if positions is not None:
        check_length(config.length, positions)
    tokenizer = load_tokenizer(tokenizer_folder)
    job = _Job(config, tokenizer, tokenizer_folder, paths.make(out_folder), vocab, say)
    parts: list[Part] = []
    infos: list[RowsInfo] = []
    for source in config.sources:
        digest = source_digest(source)
        written = _prepare_source(job, source, digest)
        parts.append(_part(source, digest, job.template_of(source), written))
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


class _Job:
    """What every source of one `prepare` shares."""

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        tokenizer_folder: str | pathlib.Path,
        out: pathlib.Path,
        vocab: int | None,
        say: Say,
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.out, self.vocab, self.say = out, vocab, say
        self.bounds = document_bounds(tokenizer, config)
        self.template: ChatTemplate | None = None
        if any(source.messages for source in config.sources):
            self.template = load_template(tokenizer_folder, tokenizer)
        elif any(source.prompt for source in config.sources):  # whose prompts may be plain text
            self.template = find_template(tokenizer_folder, tokenizer)
        self.notes = {source.label: Notes(say, source.label) for source in config.sources}
        heldout = [source for source in config.sources if source.heldout]
        if heldout:
            say(f"reading {', '.join(source.label for source in heldout)} to keep their documents out of training")
        # Eight bytes a document: 100 million held-out documents would fill some 8 GB, far beyond any evaluation set.
        self.kept_out = {_hash(document) for source in heldout for document in self.documents(source)}
        self.kept_out_digest = files.digest({"hashes": sorted(self.kept_out)})

    def documents(self, source: TextSource) -> Iterator[Document]:
        """Texts of a source, or its conversations or completions."""
        return conversations(source, self.template, self.notes[source.label]) if source.chats else documents(source)

    def template_of(self, source: TextSource) -> dict[str, str]:
        """The chat template's digest by the name `template`; nothing of a source of plain text."""
        return {"template": self.template.digest} if source.chats and self.template is not None else {}

    def tool_template(self) -> dict[str, str]:
        """The digest of the chat template for tools by its name in recipes, where it is one of its own."""
        template = self.template
        own = template is not None and template.tool_digest != template.digest
        return {TOOL_TEMPLATE: template.tool_digest} if template is not None and own else {}

    def recipe(self, source: TextSource, digest: str) -> dict[str, Any]:
        """All that decides the rows of a source."""
        # A template writes what begins and ends a conversation, so nothing is put around it.
        bounds = Bounds(None, None) if source.messages else self.bounds
        return {
            "text": digest,
            "tokenizer": self.tokenizer.digest,
            "splitting": self.tokenizer.splitting,
            "bos": bounds.before,
            "eos": bounds.after,
            "length": self.config.length,
            "heldout_fraction": self.config.heldout_fraction,
            "heldout_documents": self.kept_out_digest,
            "heldout": source.heldout,
        } | self.template_of(source)

    def encode(self, batch: Sequence[Document]) -> Iterator[tuple[np.ndarray, ...]]:
        """Tokens of each document, int32; of a conversation or completion with its targets, bool."""
        chats = [document for document in batch if isinstance(document, Chat)]
        if not chats:
            texts = [_text(document) for document in batch]
            yield from ((tokens,) for tokens in encode_documents(self.tokenizer, self.bounds, texts))
            return
        encoded = self.tokenizer.encode_offsets([chat.text for chat in chats])
        for chat, (ids, offsets) in zip(chats, encoded, strict=True):
            tokens, targets = np.array(ids, np.int32), covered(offsets, chat.answers)
            yield _bounded(tokens, targets, self.bounds) if chat.bounded else (tokens, targets)

    def split_of(self, source: TextSource, document: Document) -> str:
        """`train` or `heldout`, by nothing but the text and the held-out sources."""
        hashed = _hash(document)
        out = source.heldout or hashed in self.kept_out or hashed < self.config.heldout_fraction * 2**64
        return "heldout" if out else "train"


def _bounded(
    tokens: Int32[np.ndarray, "tokens"], targets: Bool[np.ndarray, "tokens"], bounds: Bounds
) -> tuple[Int32[np.ndarray, "bounded"], Bool[np.ndarray, "bounded"]]:
    """A prompt and its completion with what goes around them; the end is to be predicted."""
    before, after = ([] if one is None else [one] for one in (bounds.before, bounds.after))
    ids = np.concatenate([before, tokens, after]).astype(np.int32)
    return ids, np.concatenate([[False] * len(before), targets, [True] * len(after)]).astype(np.bool_)


def _text(document: Document) -> str:
    return document.text if isinstance(document, Chat) else document


def _hash(document: Document) -> int:
    return int.from_bytes(hashlib.sha256(_text(document).encode()).digest()[:8], "little")


def _check_names(sources: Iterable[TextSource]) -> None:
    seen: set[str] = set()
    for source in sources:
        if source.label in seen:
            raise UserError(f"data.sources: two sources are called {source.label!r}; give each a name of its own")
        seen.add(source.label)


def _prepare_source(job: _Job, source: TextSource, digest: str) -> dict[str, RowsInfo]:
    """Rows of one source by split, made or found."""
    folder = job.out / source.label
    folders.clear(folder)
    recipe = job.recipe(source, digest)
    if folder.exists() and any(folder.iterdir()):
        found, reason = _existing(folder, recipe, job.tool_template())
        if not reason:
            job.say(f"{source.label}: rows are there already")
            for split, info in found.items():
                _check_tokens(job, info.max_token, f"{folder / split}")
            return found
        job.say(f"{source.label}: {reason}; its rows are written again")
    job.say(described(source))
    with folders.written_whole(folder, last=(rows.FILE,)) as place:
        return _write_source(job, source, recipe, place)


def _existing(
    folder: pathlib.Path, recipe: Mapping[str, Any], tool_template: Mapping[str, str]
) -> tuple[dict[str, RowsInfo], str]:
    """What lies in a source's folder, and why it cannot be used as it is; "" if it can.

    Args:
        folder: the source's.
        recipe: what decides its rows, without the template for tools.
        tool_template: that template's digest, which counts where the rows were made with it.

    Raises:
        UserError: the folder holds something that `prepare` did not write.
    """
    foreign = {entry.name for entry in folder.iterdir()} - set(SPLITS)
    if foreign:
        raise UserError(f"{folder} holds {sorted(foreign)[0]!r}, which is not rows; choose another rows folder or name")
    try:
        found = {split: read_info(folder / split) for split in SPLITS}
    except UserError as error:
        return {}, str(error)
    old = found["train"].recipe
    if TOOL_TEMPLATE in old:
        recipe = {**recipe, TOOL_TEMPLATE: tool_template.get(TOOL_TEMPLATE)}
    changed = [key for key in recipe if old.get(key) != recipe[key]]
    return found, f"changed since they were written: {', '.join(changed)}" if changed else ""


def _write_source(job: _Job, source: TextSource, recipe: Mapping[str, Any], place: pathlib.Path) -> dict[str, RowsInfo]:
    length, chats = job.config.length, source.chats
    packers = {split: Packer(length, chats) for split in SPLITS}
    counts = dict.fromkeys(SPLITS, 0)
    tools = False
    writers = {}
    for split in SPLITS:
        (place / split).mkdir()
        writers[split] = RowsWriter(place / split, length, chats=chats)
    try:
        for batch in _batched(job.documents(source)):
            for document, encoded in zip(batch, job.encode(batch), strict=True):
                split = job.split_of(source, document)
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


def _check_tokens(job: _Job, max_token: int, where: str) -> None:
    if job.vocab is not None:
        check_vocab(max_token, job.vocab, where)


def _batched(found: Iterator[Document]) -> Iterator[list[Document]]:
    """Groups of documents that are worth tokenising at once and small enough to hold."""
    batch: list[Document] = []
    characters = 0
    for document in found:
        batch.append(document)
        characters += len(_text(document))
        if len(batch) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _part(source: TextSource, digest: str, template: Mapping[str, str], written: Mapping[str, RowsInfo]) -> Part:
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
        **template,
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
            found = part.documents["heldout"]
            if not found:
                raise UserError(f"data.sources: {part.name} holds no text; give it some, or leave it out")
            raise UserError(
                f"data.sources: {part.name} gives no row to train on ({found} documents, all held out); "
                "lower data.heldout_fraction or give it more text"
            )
    if config.heldout_fraction and not manifest.total("rows", "heldout"):
        found = manifest.total("documents", "train")
        raise UserError(
            f"data.heldout_fraction is {config.heldout_fraction}, but none of the {found} documents fell to the "
            "held-out rows; raise it, mark a source as heldout, or set it to 0 for none"
        )
