"""What prepared data there is: `manifest.json`, written last, names the sources' rows and their weights."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

from chopjax import files, paths
from chopjax.data.rows import Rows
from chopjax.errors import UserError

FORMAT = "chopjax prepared data 1"
FILE = "manifest.json"


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
    """

    name: str
    weight: float
    heldout: bool
    digest: str
    rows: Mapping[str, int]
    tokens: Mapping[str, int]
    documents: Mapping[str, int]
    template: str = ""
    targets: Mapping[str, int] = dataclasses.field(default_factory=dict)


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
            lines.append(f"{part.name:24} {weight:>8} {' '.join(columns)}{answers if part.targets else ''}")
        return lines


def write_manifest(manifest: Manifest) -> None:
    """Writes `manifest.json` atomically."""
    value = dataclasses.asdict(dataclasses.replace(manifest, folder=pathlib.Path()))
    del value["folder"]
    for part in value["parts"]:
        for name in ("template", "targets"):  # plain text has neither
            if not part[name]:
                del part[name]
    files.write_json(manifest.folder / FILE, {"format": FORMAT, **value})


def open_prepared(folder: str | pathlib.Path) -> Manifest:
    """Opens what `prepare` wrote.

    Raises:
        UserError: there is no manifest, or not one of this format.
    """
    folder = paths.make(folder)
    try:
        raw = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{folder} has no {FILE}; run chopjax.prepare_data, or mend data.rows") from error
    except ValueError as error:
        raise UserError(f"{folder / FILE}: not valid JSON; run chopjax.prepare_data again") from error
    if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
        raise UserError(f"{folder / FILE}: format is not {FORMAT!r}; run chopjax.prepare_data again")
    try:
        parts = tuple(Part(**part) for part in raw.pop("parts"))
        return Manifest(folder=folder, parts=parts, **raw)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / FILE}: a field is missing or unknown ({error}); prepare the data again") from error
