import json

import pytest

from chopjax.data.checks import check_length, check_tokenizers, check_vocab, first_difference
from chopjax.data.tokenize import Tokenizer, load_tokenizer
from chopjax.errors import UserError


def test_what_fits_passes():
    check_length(64, 64)
    check_vocab(99, 100)
    check_tokenizers("ab", "ab")


def test_rows_longer_than_the_positions():
    with pytest.raises(UserError, match="data.length is 65, but the model has 64 positions"):
        check_length(65, 64)


def test_token_beyond_the_vocabulary():
    with pytest.raises(UserError, match="corpus: token id 100 is outside the model's vocabulary of 100"):
        check_vocab(100, 100, "corpus")


def test_two_vocabularies():
    with pytest.raises(UserError, match="teacher and student have different tokenizers.*ab.*cd"):
        check_tokenizers("ab", "cd")
    with pytest.raises(UserError, match="teacher and student have different tokenizers .id 3 is 'x'.; distillation"):
        check_tokenizers("ab", "cd", difference="id 3 is 'x'")


def test_the_first_token_that_differs(tokenizer_folder, tokenizer_with):
    folder, plain = tokenizer_with(), load_tokenizer(tokenizer_folder)
    raw = json.loads((folder / "tokenizer.json").read_text())

    def changed(**fields: object) -> Tokenizer:
        (folder / "tokenizer.json").write_text(json.dumps({**raw, **fields}))
        return load_tokenizer(folder)

    more = changed(added_tokens=[*raw["added_tokens"], {**raw["added_tokens"][0], "id": 300, "content": "<tool>"}])
    assert first_difference(more, plain) == "id 300 is '<tool>' for the teacher and no token for the student"
    assert first_difference(plain, more, ("a", "b")) == "id 300 is no token for the a and '<tool>' for the b"
    other = changed(model={**raw["model"], "merges": raw["model"]["merges"][::-1]})
    assert other.digest != plain.digest
    assert first_difference(other, plain) == "the same tokens, but other merges or scores"
