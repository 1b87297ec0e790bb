"""What every source of one preparation shares, and what decides the rows of each."""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from chopjax import files
from chopjax.data.chat import Chat, Notes, conversations
from chopjax.data.config import DataConfig, TextSource
from chopjax.data.heldout import Document, Rule, hash_of, text_of
from chopjax.data.rows import RowsInfo, read_info
from chopjax.data.template import ChatTemplate, find_template, load_template
from chopjax.data.text import documents
from chopjax.data.tokenize import Bounds, Tokenizer, covered, document_bounds, encode_documents
from chopjax.errors import UserError

SPLITS = ("train", "heldout")
TOOL_TEMPLATE = "tool_template"

Say = Callable[[str], None]


class Job:
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
        kept_out = frozenset(hash_of(document) for source in heldout for document in self.documents(source))
        self.kept_out_digest = files.digest({"hashes": sorted(kept_out)})
        self.rule = Rule(config.heldout_fraction, kept_out)
        self.divided_in: dict[str, int] = {}

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
            **({"divided": files.digest({"hashes": sorted(self.rule.divided)})} if self.rule.divided else {}),
        } | self.template_of(source)

    def encode(self, batch: Sequence[Document]) -> Iterator[tuple[np.ndarray, ...]]:
        """Tokens of each document, int32; of a conversation or completion with its targets, bool."""
        chats = [document for document in batch if isinstance(document, Chat)]
        if not chats:
            texts = [text_of(document) for document in batch]
            yield from ((tokens,) for tokens in encode_documents(self.tokenizer, self.bounds, texts))
            return
        encoded = self.tokenizer.encode_offsets([chat.text for chat in chats])
        for chat, (ids, offsets) in zip(chats, encoded, strict=True):
            tokens, targets = np.array(ids, np.int32), covered(offsets, chat.answers)
            yield _bounded(tokens, targets, self.bounds) if chat.bounded else (tokens, targets)

    def parts_of(self, source: TextSource) -> Iterator[tuple[str, Document]]:
        """All documents of a source, the divided ones as two, each with its split."""
        for document in self.documents(source):
            yield from [("heldout", document)] if source.heldout else self.rule.parts(document)


def _bounded(
    tokens: Int32[np.ndarray, "tokens"], targets: Bool[np.ndarray, "tokens"], bounds: Bounds
) -> tuple[Int32[np.ndarray, "bounded"], Bool[np.ndarray, "bounded"]]:
    """A prompt and its completion with what goes around them; the end is to be predicted."""
    before, after = ([] if one is None else [one] for one in (bounds.before, bounds.after))
    ids = np.concatenate([before, tokens, after]).astype(np.int32)
    return ids, np.concatenate([[False] * len(before), targets, [True] * len(after)]).astype(np.bool_)


def existing(
    folder: pathlib.Path, recipe: Mapping[str, Any], tool_template: Mapping[str, str]
) -> tuple[dict[str, RowsInfo], str]:
    """What lies in a source's folder, and why it cannot be used as it is; "" if it can or nothing is there.

    Args:
        folder: the source's.
        recipe: what decides its rows, without the template for tools.
        tool_template: that template's digest, which counts where the rows were made with it.

    Raises:
        UserError: the folder holds something that `prepare` did not write.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return {}, ""
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
    changed = [key for key in {**recipe, **old} if old.get(key) != recipe.get(key)]
    return found, f"changed since they were written: {', '.join(changed)}" if changed else ""
