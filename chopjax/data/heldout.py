"""Which documents are held out: by a hash of their text, or, where those are too few, the end of each long text."""

import dataclasses
import hashlib
import math
import unicodedata
from collections.abc import Iterator, Sequence

from chopjax.data.chat import Chat

SMALLEST = 256  # characters; a text is divided only if both of its parts have at least so many
HASHES = 2**64

Document = str | Chat


def text_of(document: Document) -> str:
    """The text of a document or conversation."""
    return document.text if isinstance(document, Chat) else document


def hash_of(document: Document) -> int:
    """A number below `HASHES` that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text_of(document).encode()).digest()[:8], "little")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is held out.

    Attributes:
        fraction: share of the documents, by their hashes; of divided texts the share that their end has.
        kept_out: hashes of the documents of held-out sources, which are held out wherever they occur.
        divided: hashes of the texts of which only the end is held out, wherever they occur.
    """

    fraction: float
    kept_out: frozenset[int]
    divided: frozenset[int] = frozenset()

    def drawn(self, hashed: int) -> bool:
        """Whether a document of this hash is held out as a whole."""
        return hashed in self.kept_out or hashed < self.fraction * HASHES

    def parts(self, document: Document) -> Iterator[tuple[str, Document]]:
        """The document, or the two parts that it is divided into, each with its split: `train` or `heldout`."""
        hashed = hash_of(document)
        if hashed in self.divided and hashed not in self.kept_out and isinstance(document, str):
            place = end_of(document, self.fraction)
            yield "train", document[:place]
            yield "heldout", document[place:]
        else:
            yield "heldout" if hashed in self.divided or self.drawn(hashed) else "train", document


def end_of(text: str, fraction: float) -> int:
    """Where the held-out end of a text begins: where a paragraph, else a line or a word does, near the fraction."""
    place = round(len(text) * (1 - fraction))
    reach = min(place, len(text) - place) // 2
    for boundary in ("\n\n", "\n\r\n", "\n", " "):
        before = text.rfind(boundary, place - reach, place + len(boundary) - 1)
        after = text.find(boundary, place, place + reach)
        places = [found + len(boundary) for found in (before, after) if found >= 0]
        if places:
            return min(places, key=lambda found: (abs(found - place), found))
    while reach and unicodedata.combining(text[place]):  # an accent stays with its letter
        place, reach = place - 1, reach - 1
    return place


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The documents of a source as far as the draw goes: those that no held-out source has.

    Attributes:
        divisible: whether they are plain text files, which may be divided.
        documents: hash and number of characters of each.
    """

    divisible: bool
    documents: tuple[tuple[int, int], ...]

    def long(self, fraction: float) -> set[int]:
        """Hashes of the texts that are long enough to be divided."""
        enough = SMALLEST / min(fraction, 1 - fraction)
        return {hashed for hashed, characters in self.documents if self.divisible and characters >= enough}


def divided(sources: Sequence[Drawn], fraction: float, others: bool) -> frozenset[int] | None:
    """Hashes of the texts to divide, so that something is held out and every source has something to train on.

    Args:
        sources: all that are not held out, or only those without a document to train on.
        fraction: share that is held out.
        others: whether sources that are not among these hold something out.

    Returns:
        None where there is no way.
    """
    limit = fraction * HASHES
    nothing = not others and not any(hashed < limit for one in sources for hashed, _ in one.documents)
    found: set[int] = set()
    for one in sources:
        trains = any(hashed >= limit for hashed, _ in one.documents)
        if nothing or not trains:
            long = one.long(fraction)
            if not long and not trains:
                return None
            found |= long
    return None if nothing and not found else frozenset(found)


def workable(sources: Sequence[Drawn], fraction: float, others: bool) -> float | None:
    """The fraction of few digits next to `fraction` with which `divided` finds a way; None where there is none."""
    hashes = sorted({hashed / HASHES for one in sources for hashed, _ in one.documents})
    lengths = {SMALLEST / characters for one in sources if one.divisible for _, characters in one.documents}
    edges = sorted(value for value in {*hashes, *lengths, *(1 - value for value in lengths)} if 0 < value < 1)
    shares = {value for low, high in zip([0.0, *edges], [*edges, 1.0], strict=True) for value in _between(low, high)}
    for share in sorted(shares, key=lambda value: abs(value - fraction)):
        if divided(sources, share, others) is not None:
            return share
    return None


def _between(low: float, high: float) -> list[float]:
    """Numbers of few digits from above `low` to below `high`, next to either."""
    found: list[float] = []
    for digits in range(1, 17):
        unit = 10.0**-digits
        numbers = (
            round(math.floor(low / unit) * unit + unit, digits),
            round(math.ceil(high / unit) * unit - unit, digits),
        )
        more = [number for number in numbers if low < number < high]
        if found or (more and digits == 16):
            return found + more
        found = more
    return found
