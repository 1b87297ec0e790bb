"""Tokens that other files than tokenizer.json add, as stock transformers reads them."""

import json

import pytest
import transformers

from chopjax.data.tokenize import load_tokenizer
from chopjax.errors import UserError

SPECIAL = {"0": {"content": "<s>", "special": True}, "1": {"content": "</s>", "special": True}}
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
TEXT = "a <x>  b<y> c </s> d"


@pytest.mark.parametrize(
    ("decoder", "older", "vocab"),
    [
        # A token that tokenizer.json lacks, one with other properties there, and a word of the model made a token.
        (
            {**SPECIAL, "300": {"content": "<x>", "rstrip": True, "special": True}, "66": {"content": "a"}},
            {"<y>": 300},
            301,
        ),
        ({**SPECIAL, "301": {"content": "<y>"}, "300": {"content": "<x>", "lstrip": True}}, None, 302),
        (None, {"<y>": 301, "<x>": 300}, 302),
        (None, {"<x>": 300, "</s>": 1}, 301),
    ],
)
def test_ids_are_those_of_transformers(tokenizer_with, decoder, older, vocab):
    folder = tokenizer_with(settings=NAMES if decoder is None else {**NAMES, "added_tokens_decoder": decoder})
    if older is not None:
        (folder / "added_tokens.json").write_text(json.dumps(older))
    ours, reference = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.encode([TEXT])[0] == reference.encode(TEXT, add_special_tokens=False)
    assert ours.vocab == len(reference) == vocab
    assert (ours.bos, ours.eos) == (reference.bos_token_id, reference.eos_token_id)
    special = {token.content for token in reference.added_tokens_decoder.values() if token.special}
    assert ours.special == special


def test_tokenizer_json_comes_before_older_files(tokenizer_with):
    folder = tokenizer_with()
    before = load_tokenizer(folder)
    (folder / "tokenizer.model").write_bytes(b"\x0adamaged")
    (folder / "vocab.json").write_text('{"a": 5}')
    (folder / "merges.txt").write_text("a b")
    after, reference = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert after.digest == before.digest and after.encode([TEXT])[0] == reference.encode(TEXT)


@pytest.mark.parametrize(
    ("decoder", "said"),
    [
        (
            {"305": {"content": "<x>"}},
            "token '<x>' would have id 300 in place of 305; add it to tokenizer.json with that",
        ),
        ({"x": {"content": "<x>"}}, "its added tokens cannot be read .invalid literal for int"),
        ({"300": 5}, "its added tokens cannot be read"),
        ([], "its added tokens cannot be read"),
        ({"300": {"content": 5}}, "its added tokens cannot be read"),
    ],
)
def test_tokens_that_cannot_be_added(tokenizer_with, decoder, said):
    folder = tokenizer_with(settings={**NAMES, "added_tokens_decoder": decoder})
    with pytest.raises(UserError, match=f"tokenizer_config.json: {said}"):
        load_tokenizer(folder)
