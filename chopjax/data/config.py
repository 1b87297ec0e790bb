"""What text to train on, and how it becomes rows: plain frozen data, no files opened."""

import dataclasses
import math
import re
from typing import Literal

from chopjax import checks
from chopjax.errors import UserError

Format = Literal["", "text", "jsonl", "json", "parquet", "arrayrecord", "hub"]
Policy = Literal["auto", "always", "never"]

# Fields next to a conversation that a chat template may use, or that other programs let change what is learnt.
FOR_TEMPLATE = ("tools", "documents", "chat_template_kwargs")
NOT_USED = ("functions", "system", "weight", "train", "training", "trainable", "loss")
BESIDE = (*FOR_TEMPLATE, *NOT_USED)


@dataclasses.dataclass(frozen=True)
class TextSource:
    """One set of documents. Either `path` or `hub` is given.

    Attributes:
        path: a file, a folder (read recursively, in sorted order) or a glob.
        hub: id of a dataset on the Hugging Face hub, streamed (needs the package `datasets`).
        format: `text` (one document per file, or several in a file above 1 GiB), `jsonl`, `json` (a list of objects, or
            objects one after the other), `parquet`, `arrayrecord` or `hub`; "" goes by the file names, and by the
            contents where they tell nothing.
        text_field: JSON field or column that holds the text.
        messages: JSON field or column that holds a conversation, a list of `{role, content}` or `{from, value}`; it
            takes the place of `text_field`, and only the assistant's answers are learnt. "" for plain text.
        prompt: JSON field or column that holds a prompt: text, or a list of messages. It takes the place of
            `text_field` and needs `completion`.
        completion: JSON field or column that holds the completion of the prompt, which alone is learnt.
        weight: share of this source in a mixture, relative to the others; any positive scale.
        name: folder name of its rows; "" derives one from `path` or `hub`.
        heldout: the whole source is held out. Its documents are also held out wherever else they occur.
        max_documents: stop after so many documents that hold text; 0 for all.
        subset: configuration of a hub dataset.
        split: split of a hub dataset.
        revision: commit of a hub dataset; without one, a change on the hub is not noticed.
    """

    path: str = ""
    hub: str = ""
    format: Format = ""
    text_field: str = "text"
    messages: str = ""
    prompt: str = ""
    completion: str = ""
    weight: float = 1.0
    name: str = ""
    heldout: bool = False
    max_documents: int = 0
    subset: str = ""
    split: str = "train"
    revision: str = ""

    def __post_init__(self) -> None:
        said = self.name or self.path or self.hub or "(neither path nor hub)"
        if bool(self.path) == bool(self.hub):
            raise UserError(f"data.sources: {said}; give either path or hub, not both and not neither")
        checks.choices(self, f"data.sources: {said}")
        if self.hub and self.format not in ("", "hub"):
            raise UserError(f"data.sources: {said}: a hub id takes no format {self.format!r}; leave format empty")
        if self.format == "hub" and not self.hub:
            raise UserError(f"data.sources: {said}: format 'hub' needs a dataset id in hub, not a path")
        if bool(self.prompt) != bool(self.completion):
            raise UserError(f"data.sources: {said}: prompt and completion go together; give both")
        if self.messages and self.text_field != "text":
            raise UserError(f"data.sources: {said}: give either text_field or messages, not both")
        if self.prompt and (self.messages or self.text_field != "text"):
            field = "messages" if self.messages else "text_field"
            raise UserError(f"data.sources: {said}: give either {field}, or prompt and completion, not both")
        if self.prompt and self.prompt == self.completion:
            raise UserError(f"data.sources: {said}: prompt and completion are both {self.prompt!r}; name two fields")
        if self.chats and self.format == "text":
            raise UserError(
                f"data.sources: {said}: plain text files hold no {self.setting}; give JSON lines or Parquet"
            )
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise UserError(f"data.sources: {said}: weight is {self.weight}; it must be a positive number")
        checks.at_least(self, f"data.sources: {said}", 0, "max_documents")
        if self.name and not re.fullmatch(r"[\w][\w.-]*", self.name):
            raise UserError(f"data.sources: name {self.name!r} must be letters, digits, '_', '-' and '.'")

    @property
    def chats(self) -> bool:
        """Whether only a part of each document is learnt: the answers of conversations, or completions."""
        return bool(self.messages or self.prompt)

    @property
    def fields(self) -> tuple[str, ...]:
        """JSON fields or columns that every record needs."""
        return (self.prompt, self.completion) if self.prompt else (self.messages or self.text_field,)

    @property
    def setting(self) -> str:
        """Which settings name `fields`."""
        return "prompt and completion" if self.prompt else "messages" if self.messages else "text_field"

    @property
    def label(self) -> str:
        """`name`, or one made of the last parts of `path` or `hub`: letters, digits, `_`, `-` and `.`."""
        if self.name:
            return self.name
        if self.hub:
            parts = [self.hub, *([self.subset] if self.subset else []), self.split]
            stem = "-".join(parts)
        else:
            stem = self.path.rstrip("/").rsplit("/", 1)[-1]
        return re.sub(r"[^\w.]+", "-", stem).strip("-.") or "text"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Text to packed rows to batches.

    Attributes:
        sources: what to read; may be empty where `rows` names a folder prepared before.
        rows: folder of prepared rows; "" leaves the place to the command.
        length: tokens a row.
        heldout_fraction: share of the documents, chosen by a hash of their text, that is never trained on; where plain
            text files are too few for that, the share at the end of each.
        add_bos: whether a document begins with the tokenizer's BOS; `auto`: where the tokenizer itself adds it.
        add_eos: whether a document ends with EOS; `auto`: where the tokenizer has one.
        eos_token: token to end documents with in place of the tokenizer's EOS. A chat tokenizer's EOS may end turns,
            not documents (`<|im_end|>` where the base model saw `<|endoftext|>`).
        threads: threads of each process that read ahead.
        prefetch: batches of each process that are read ahead.
    """

    sources: tuple[TextSource, ...] = ()
    rows: str = ""
    length: int = 2048
    heldout_fraction: float = 0.01
    add_bos: Policy = "auto"
    add_eos: Policy = "auto"
    eos_token: str = ""
    threads: int = 4
    prefetch: int = 8

    def __post_init__(self) -> None:
        checks.choices(self, "data")
        checks.at_least(self, "data", 2, "length")  # a row of one token predicts nothing
        checks.at_least(self, "data", 0, "threads", "prefetch")
        if not 0 <= self.heldout_fraction < 1:
            raise UserError(f"data.heldout_fraction is {self.heldout_fraction}; give a value from 0 to below 1")
