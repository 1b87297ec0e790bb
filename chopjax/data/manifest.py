"""What prepared data there is: `manifest.json`, written last, names the sources' rows and their weights."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Annotated

from chopjax import files, paths, records
from chopjax.data.rows import Rows
from chopjax.errors import UserError

KIND, NEWEST = "chopjax prepared data", 1
FILE = "manifest.json"
SPLITS = ("train", "heldout")
AGAIN = "run chopjax.prepare_data again"

BySplit = Mapping[str, records.Count]


@dataclasses.dataclass(frozen=True)
class Part:
    """One source's rows.

    Attributes:
        name: its folder.
        weight: its share in the mixture, relative to the others.
        heldout: whether all of it is held out.
        digest: of the text that it was made from.
        rows: rows of each split.
        tokens: tokens of each split, padding not counted.
        documents: documents of each split.
        template: of chats, the digest of what they were rendered with; "" for plain text.
        targets: of chats, tokens of each split that are to be predicted; empty for plain text, where all are.
        divided: how many documents are divided by position, their end held out.
    """

    name: records.Name
    weight: records.NotNegative
    heldout: bool
    digest: str
    rows: BySplit
    tokens: BySplit
    documents: BySplit
    template: str = ""
    targets: BySplit = dataclasses.field(default_factory=dict)
    divided: records.Count = 0


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Prepared data: where it lies and what there is of it.

    Attributes:
        folder: the folder that `prepare` wrote.
        length: tokens a row.
        tokenizer: digest of the tokenizer's vocabulary.
        max_token: highest token id in any row.
        parts: the sources, in the order of the config.
    """

    folder: pathlib.Path
    length: int
    tokenizer: str
    max_token: int
    parts: tuple[Part, ...]

    def mixture(self) -> list[tuple[Rows, float]]:
        """Training rows with their weights, for `Batches`."""
        return [(self._rows(part, "train"), part.weight) for part in self.parts if not part.heldout]

    def heldout(self) -> dict[str, Rows]:
        """Held-out rows by source, without the sources that have none."""
        return {part.name: self._rows(part, "heldout") for part in self.parts if part.rows["heldout"]}

    def _rows(self, part: Part, split: str) -> Rows:
        rows = Rows(self.folder / part.name / split)
        same = rows.info.length == self.length and rows.info.tokenizer == self.tokenizer
        made_of = rows.info.recipe.get("text"), rows.info.recipe.get("template", "")
        if not same or made_of != (part.digest, part.template) or len(rows) != part.rows[split]:
            raise UserError(f"{rows.folder} was written after {FILE}; run chopjax.prepare_data again")
        return rows

    def total(self, field: str, split: str) -> int:
        """Sum of `rows`, `tokens` or `documents` of a split over the sources."""
        return sum(getattr(part, field)[split] for part in self.parts)

    def describe(self) -> list[str]:
        """One line a source, for people."""
        lines = [f"{'source':24} {'weight':>8} {'train tokens':>14} {'rows':>9} {'held-out tokens':>16} {'rows':>9}"]
        for part in self.parts:
            weight = "held out" if part.heldout else f"{part.weight:g}"
            columns = [f"{part.tokens['train']:>14,}", f"{part.rows['train']:>9,}"]
            columns += [f"{part.tokens['heldout']:>16,}", f"{part.rows['heldout']:>9,}"]
            answers = f"  (in answers: {', '.join(f'{count:,}' for count in part.targets.values())})"
            documents = "one document" if part.divided == 1 else f"{part.divided} documents"
            notes = f"{answers if part.targets else ''}{f'  ({documents}, end held out)' if part.divided else ''}"
            lines.append(f"{part.name:24} {weight:>8} {' '.join(columns)}{notes}")
        return lines


def write_manifest(manifest: Manifest) -> None:
    """Writes `manifest.json` atomically."""
    value = dataclasses.asdict(dataclasses.replace(manifest, folder=pathlib.Path()))
    del value["folder"]
    for part in value["parts"]:
        for name in ("template", "targets", "divided"):  # most sources have none
            if not part[name]:
                del part[name]
    files.write_json(manifest.folder / FILE, {"format": f"{KIND} {NEWEST}", **value})


def open_prepared(folder: str | pathlib.Path) -> Manifest:
    """Opens what `prepare` wrote.

    Raises:
        UserError: there is no manifest, or not one of this format.
    """
    file = paths.make(folder) / FILE
    raw = records.read_object(file, AGAIN)
    if raw is None:
        raise UserError(f"{folder} has no {FILE}; run chopjax.prepare_data, or fix data.rows")
    records.check_format(raw, NEWEST, str(file), AGAIN, KIND)
    found = records.shaped(raw, _Body, str(file), AGAIN)
    for part in found.parts:
        for name in ("rows", "tokens", "documents"):
            if missing := set(SPLITS) - getattr(part, name).keys():
                raise UserError(f"{file}: {name} of {part.name} lacks {missing.pop()}; {AGAIN}")
    if len({part.name for part in found.parts}) < len(found.parts):
        raise UserError(f"{file}: two parts have the same name; {AGAIN}")
    return Manifest(file.parent, found.length, found.tokenizer, found.max_token, found.parts)


@dataclasses.dataclass(frozen=True)
class _Body:
    """What `manifest.json` holds."""

    length: records.Positive
    tokenizer: str
    max_token: Annotated[int, records.Within(-1)]
    parts: tuple[Part, ...]
