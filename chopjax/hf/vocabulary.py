"""Which words of a tokenizer stay when its vocabulary is trimmed. Imports without jax.

A byte-pair tokenizer makes a word by merging shorter ones, so a word can only stay together with all that its making
passes through: what is kept must be closed. Then every text whose words all stay is tokenised as before: of the
merges that it took none is gone, and of those that are left none can come before them.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int

from chopjax.errors import UserError

Pair = tuple[str, str]

BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
SPACE = "\u2581"  # what SentencePiece writes for a space; decoders put the space back only where it is a word


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The words of a `tokenizer.json`.

    Attributes:
        kind: `BPE` or `Unigram`.
        words: id of each word of the model, by its spelling in the file.
        added: id of each added token, special or not; some are words of the model too.
        merges: pairs of words, the most urgent first; empty for Unigram.
        base: words without which some text could not be written: bytes or characters, the unknown word.
    """

    kind: str
    words: Mapping[str, int]
    added: Mapping[str, int]
    merges: Sequence[Pair]
    base: frozenset[str]

    @property
    def ids(self) -> dict[str, int]:
        """Id of every token, added ones too."""
        return {**self.words, **self.added}

    @property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self.ids.values(), default=-1) + 1

    @property
    def required(self) -> set[int]:
        """Ids that must stay: added tokens, and `base` with what its making passes through."""
        return set(self.added.values()).union(*map(self.derivation, self.base))

    @functools.cached_property
    def _rank(self) -> dict[Pair, int]:
        return {pair: rank for rank, pair in reversed(list(enumerate(self.merges)))}

    @functools.cached_property
    def _pairs(self) -> dict[str, list[Pair]]:
        """By word, the merges that give it."""
        pairs: dict[str, list[Pair]] = {}
        for left, right in self.merges:
            pairs.setdefault(left + right, []).append((left, right))
        return pairs

    def parts(self, word: str) -> tuple[str, ...]:
        """The two words of which byte-pair encoding makes `word` in the end; none for a base word, or one not made."""
        pairs = self._pairs.get(word, [])
        if len(pairs) < 2:  # else the order of the merges decides which of them it is
            return pairs[0] if pairs else ()
        parts = list(word)
        while len(parts) > 1:
            ranks = [self._rank.get(pair, len(self.merges)) for pair in zip(parts, parts[1:], strict=False)]
            best = min(ranks)
            if best == len(self.merges):
                return ()
            if len(parts) == 2:
                return parts[0], parts[1]
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return ()

    def derivation(self, word: str) -> set[int]:
        """Ids of `word` and of all words that byte-pair encoding passes through to make it."""
        found: set[int] = set()
        todo = [word]
        while todo:
            one = todo.pop()
            if one in self.words and self.words[one] not in found:
                found.add(self.words[one])
                todo += self.parts(one)
        return found


def read_vocabulary(tokenizer: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a `tokenizer.json` that can be trimmed.

    Raises:
        UserError: a kind of tokenizer that cannot be trimmed, or a file that makes no sense.
    """
    try:
        model = tokenizer["model"]
        kind = model.get("type") or ("BPE" if "merges" in model else None)
        if kind not in ("BPE", "Unigram"):
            raise UserError(f"tokenizer.json: a vocabulary of type {kind} cannot be trimmed; only BPE and Unigram can")
        for key in ("continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(key):
                raise UserError(f"tokenizer.json: model.{key} is {model[key]!r}; such a vocabulary cannot be trimmed")
        if kind == "BPE":
            words = {str(word): int(number) for word, number in model["vocab"].items()}
        else:
            words = {str(word): number for number, (word, _) in enumerate(model["vocab"])}
        added = {str(token["content"]): int(token["id"]) for token in tokenizer.get("added_tokens") or []}
        merges = [pair_of(merge) for merge in model.get("merges") or []]
        base = frozenset(_base(tokenizer, words))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"tokenizer.json: not a tokenizer whose vocabulary can be read ({error!r})") from error
    return Vocabulary(kind, words, added, merges, base)


def pair_of(merge: str | Sequence[str]) -> Pair:
    """A merge, which files write as `"left right"` or as `["left", "right"]`."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _base(tokenizer: Mapping[str, Any], words: Mapping[str, int]) -> Iterator[str]:
    """The words without which a text would not come back as it went in."""
    model = tokenizer["model"]
    yield from (word for word in (model.get("unk_token"), SPACE) if word in words)
    if model.get("type") == "Unigram":
        pieces = model["vocab"]
        if model.get("unk_id") is not None:
            yield pieces[model["unk_id"]][0]
        # What an unknown character costs is reckoned from the worst score.
        yield from [min(pieces, key=lambda piece: piece[1])[0]] if pieces else []
    if model.get("byte_fallback") and all(byte in words for byte in BYTES):
        yield from BYTES
        return
    byte_level = any(part.get("type") == "ByteLevel" for part in _processors(tokenizer))
    alphabet = set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    letters = {word for word in words if len(word) == 1 and (word in alphabet or not byte_level)}
    yield from letters
    if model.get("type") == "Unigram" or model.get("ignore_merges"):
        # Such a word is the only way to write what is in it, for it is taken whole and not made of its letters.
        yield from (word for word in words if not letters.issuperset(word))


def _processors(tokenizer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The normalizers and pre-tokenizers, those in sequences too."""
    todo = [tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")]
    while todo:
        part = todo.pop()
        if part:
            yield part
            todo += [*part.get("normalizers", []), *part.get("pretokenizers", [])]


def choose_words(
    counts: Int[np.ndarray, "vocab"], tokenizer: Mapping[str, Any], size: int, named: Collection[int] = ()
) -> Int[np.ndarray, "kept"]:
    """The words to keep: all that must stay, then the most frequent, with what their making passes through.

    Words that never occur come last, the lowest id first: where room is left, the earliest merges fill it.

    Args:
        counts: how often each id occurs in the calibration text, int64; one entry for each row of the embedding table.
        tokenizer: the source's `tokenizer.json`.
        size: words to keep.
        named: ids that configs name, which stay too.

    Returns:
        Ascending ids, int32: `size` of them, or all there are if there are fewer.

    Raises:
        UserError: more must stay than `size`, or the tokenizer is of a kind that cannot be trimmed.
    """
    vocabulary = read_vocabulary(tokenizer)
    spelled = {number: word for word, number in vocabulary.words.items()}
    kept = set(vocabulary.required)
    for number in named:
        kept |= vocabulary.derivation(spelled[number]) if number in spelled else {number}
    if len(kept) > size:
        raise UserError(
            f"plan.vocab: keeps {size} rows, but {len(kept)} must stay (special and added tokens, bytes or characters, "
            f"ids named by configs); give {len(kept)} or more"
        )
    by_count = sorted((n for n in spelled if n < len(counts)), key=lambda number: (-counts[number], number))
    used = [number for number in by_count if counts[number]]
    made = [number for number in by_count if vocabulary.kind == "Unigram" or vocabulary.parts(spelled[number])]
    for order in (used, made, by_count):
        if len(kept) < size:
            _fill(kept, [vocabulary.derivation(spelled[number]) for number in order if number not in kept], size)
    return np.array(sorted(kept), np.int32)


def _fill(kept: set[int], groups: Sequence[set[int]], size: int) -> None:
    """Adds groups of ids in this order, each as a whole, and again from the first while one fits."""
    waiting, before = groups, -1
    while before < len(kept) < size:
        before, left = len(kept), []
        for group in waiting:
            added = group - kept
            if len(kept) + len(added) <= size:
                kept |= added
            else:
                left.append(group)
        waiting = left


def trims(kept: Int[np.ndarray, "kept"] | None, words: int) -> bool:
    """Whether kept rows leave out any of the `words` ids of a tokenizer, or only rows beyond it."""
    return kept is not None and not np.array_equal(kept[:words], np.arange(words))


def check_words(kept: Int[np.ndarray, "kept"], tokenizer: Mapping[str, Any]) -> None:
    """Refuses kept ids with which some text could not be written, or a kept word could not be made.

    Raises:
        UserError: names the first token that is missing, and for which other.
    """
    vocabulary, here = read_vocabulary(tokenizer), set(kept.tolist())
    spelled = {number: word for word, number in vocabulary.ids.items()}
    if missing := vocabulary.required - here:
        number = min(missing)
        raise UserError(
            f"plan.json: kept.vocab lacks {number} ({spelled[number]!r}), which every text may need; add it"
        )
    for word, number in vocabulary.words.items():
        if number in here and word not in vocabulary.added and (missing := vocabulary.derivation(word) - here):
            part = min(missing)
            raise UserError(
                f"plan.json: kept.vocab has {number} ({word!r}), but lacks {part} ({spelled[part]!r}), of which it is "
                "merged; add it"
            )
