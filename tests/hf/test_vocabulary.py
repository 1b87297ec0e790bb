"""Which words stay: by hand on a few merges, and the promises on tokenizers of every kind and on a real one."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from data.conftest import SENTENCES
from hf.tokenizers_under_test import KINDS
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.errors import UserError
from chopjax.hf.trimmed import read_tokenizer, rewrite_tokenizer
from chopjax.hf.vocabulary import check_words, choose_words, read_vocabulary, trims


def small(merges: list[str], letters: str = "abcd") -> dict[str, Any]:
    """A BPE without bytes: the letters from id 1, then a word for each merge; `<s>` is 0."""
    words = {"<s>": 0}
    for word in [*letters, *(merge.replace(" ", "") for merge in merges)]:
        words.setdefault(word, len(words))
    model = {"type": "BPE", "vocab": words, "merges": merges, "unk_token": None}
    return {"model": model, "added_tokens": [{"id": 0, "content": "<s>", "special": True}]}


# ids: <s> 0, a 1, b 2, c 3, d 4, bc 5, ab 6, abc 7, abcd 8, cd 9. Of "abc", b and c come together first.
LETTERS = small(["b c", "a b", "ab c", "a bc", "abc d", "c d"])


def counted(**by_id: int) -> np.ndarray:
    counts = np.zeros(10, np.int64)
    for name, count in by_id.items():
        counts[int(name[1:])] = count
    return counts


def test_a_word_needs_what_its_making_passes_through() -> None:
    vocabulary = read_vocabulary(LETTERS)
    assert vocabulary.parts("abc") == ("a", "bc")
    assert vocabulary.derivation("abcd") == {1, 2, 3, 4, 5, 7, 8}
    assert vocabulary.derivation("cd") == {3, 4, 9}
    assert vocabulary.required == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("counts", "size", "kept"),
    [
        (counted(_8=9), 8, [0, 1, 2, 3, 4, 5, 7, 8]),  # abcd with bc and abc
        (counted(_8=9), 7, [0, 1, 2, 3, 4, 5, 6]),  # no room for abcd with its parts: the first merges fill it
        (counted(_8=9, _9=1), 7, [0, 1, 2, 3, 4, 5, 9]),
        (counted(_6=1, _9=1), 6, [0, 1, 2, 3, 4, 6]),  # ties go to the lower id
        (counted(_6=1, _9=2), 6, [0, 1, 2, 3, 4, 9]),
        (counted(), 5, [0, 1, 2, 3, 4]),
        (counted(), 99, list(range(10))),
    ],
)
def test_chosen_by_hand(counts: np.ndarray, size: int, kept: list[int]) -> None:
    assert choose_words(counts, LETTERS, size).tolist() == kept


def test_named_ids_stay_with_their_parts() -> None:
    assert choose_words(counted(_9=5), LETTERS, 8, named={7}).tolist() == [0, 1, 2, 3, 4, 5, 7, 9]
    with pytest.raises(UserError, match=r"plan.vocab: keeps 6 rows, but 7 must stay .*; give 7 or more"):
        choose_words(counted(), LETTERS, 6, named={7})


def test_what_is_not_closed_is_refused() -> None:
    check_words(np.array([0, 1, 2, 3, 4, 5, 7]), LETTERS)
    with pytest.raises(UserError, match=r"kept.vocab has 7 \('abc'\), but lacks 5 \('bc'\), of which it is merged"):
        check_words(np.array([0, 1, 2, 3, 4, 6, 7]), LETTERS)
    with pytest.raises(UserError, match=r"kept.vocab lacks 3 \('c'\)"):
        check_words(np.array([0, 1, 2, 4]), LETTERS)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"type": "WordPiece", "vocab": {}}, "type WordPiece cannot be trimmed; only BPE and Unigram can"),
        ({"type": "WordLevel", "vocab": {}}, "type WordLevel cannot be trimmed"),
        ({"type": "BPE", "vocab": {}, "merges": [], "end_of_word_suffix": "</w>"}, "end_of_word_suffix is '</w>'"),
        ({"type": "BPE", "vocab": {"a": 0}, "merges": ["a b c"]}, "not a tokenizer whose vocabulary can be read"),
        ({"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 3}, "not a tokenizer whose vocabulary can be read"),
    ],
)
def test_tokenizers_that_cannot_be_trimmed(model: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_vocabulary({"model": model})


def test_only_rows_beyond_the_tokenizer() -> None:
    assert not trims(None, 5) and not trims(np.arange(5), 5) and not trims(np.arange(7), 5)
    assert trims(np.arange(4), 5) and trims(np.array([0, 1, 2, 3, 5]), 5)


@functools.cache
def made(kind: str) -> tuple[dict[str, Any], tokenizers.Tokenizer]:
    """A tokenizer, and the same as `tokenizers` reads it."""
    raw = KINDS[kind]()
    return raw, tokenizers.Tokenizer.from_str(json.dumps(raw))


def ids(core: tokenizers.Tokenizer, text: str) -> list[int]:
    return core.encode(text, add_special_tokens=False).ids


def trimmed(raw: dict[str, Any], kept: np.ndarray, folder: Path) -> tokenizers.Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    text = rewrite_tokenizer(folder, kept, read_vocabulary(raw).size)["tokenizer.json"]
    assert text is not None
    return tokenizers.Tokenizer.from_str(text)


def check_promises(whole: tokenizers.Tokenizer, part: tokenizers.Tokenizer, kept: np.ndarray, text: str) -> bool:
    """Both promises of `rewrite_tokenizer` on one text; whether all of its words stayed."""
    before, after = ids(whole, text), ids(part, text)
    assert part.decode(after, skip_special_tokens=False) == whole.decode(before, skip_special_tokens=False)
    stay = set(before) <= set(kept.tolist())
    if stay:
        assert kept[after].tolist() == before
    return stay


TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(" ".join(SENTENCES).split()), max_size=8).map(" ".join),
    st.lists(st.sampled_from(["Wasser", " ", "é", "👩‍🚀", "\u2581", "\n", "<s>", "<0x41>", "水", "ﬁ"])).map("".join),
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_text_comes_back_and_kept_words_keep_their_meaning(
    kind: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw, whole = made(kind)
    vocabulary = read_vocabulary(raw)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    counts = rng.integers(0, 4, vocabulary.size) * rng.integers(0, 50, vocabulary.size)
    size = data.draw(st.integers(len(vocabulary.required), vocabulary.size))
    kept = choose_words(counts, raw, size)
    assert len(kept) == size and (np.diff(kept) > 0).all() and vocabulary.required <= set(kept.tolist())
    part = trimmed(raw, kept, tmp_path_factory.mktemp("tokenizer"))
    assert part.get_vocab_size() == size
    check_promises(whole, part, kept, data.draw(TEXTS))
    # Texts of kept words, as far as the whole tokenizer cuts them so.
    check_promises(whole, part, kept, whole.decode(rng.choice(kept, 5).tolist(), skip_special_tokens=False))


@pytest.mark.parametrize("kind", KINDS)
def test_a_calibration_text_keeps_its_ids(kind: str, tmp_path: Path) -> None:
    raw, whole = made(kind)
    text = " ".join(SENTENCES[:2])
    counts = np.bincount(ids(whole, text), minlength=read_vocabulary(raw).size)
    closure = set().union(
        read_vocabulary(raw).required, *map(read_vocabulary(raw).derivation, whole.encode(text).tokens)
    )
    kept = choose_words(counts, raw, len(closure))
    assert kept.tolist() == sorted(closure) and len(kept) < read_vocabulary(raw).size
    part = trimmed(raw, kept, tmp_path)
    assert check_promises(whole, part, kept, text)
    assert not all(check_promises(whole, part, kept, sentence) for sentence in SENTENCES)


def test_a_real_tokenizer(smollm2_folder: Path) -> None:
    raw = read_tokenizer(smollm2_folder)
    whole = tokenizers.Tokenizer.from_file(str(smollm2_folder / "tokenizer.json"))
    text = Path(__file__).read_text(encoding="utf-8")
    counts = np.bincount(ids(whole, text), minlength=49152)
    kept = choose_words(counts, raw, 2500)
    assert len(kept) == 2500 and set(np.flatnonzero(counts)) <= set(kept.tolist())
    files = rewrite_tokenizer(smollm2_folder, kept, 49152)
    part = tokenizers.Tokenizer.from_str(files["tokenizer.json"] or "")
    assert check_promises(whole, part, kept, text)
    others = [
        "👩‍🚀 naïve façade — 水は流れる",
        "Supercalifragilistic\t\tx = 12345\r\n",
        "<|im_start|>user\nHi<|im_end|>",
    ]
    for other in others:
        check_promises(whole, part, kept, other)
    assert ids(part, "<|im_start|>Hi")[0] == 1
