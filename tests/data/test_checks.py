import pytest

from chopjax.data.checks import check_length, check_tokenizers, check_vocab
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
