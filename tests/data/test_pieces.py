"""Tokenizers whose folder has no tokenizer.json."""

import json
import logging
import pathlib
import sys

import pytest
from data.conftest import SENTENCES

from chopjax.data.tokenize import load_tokenizer
from chopjax.errors import UserError

TEXTS = [*SENTENCES, "", " two  spaces ", "a\tb  \n\nc\n", "gr\u00f6\u00dfer \U0001f41f \ufb01 1234"]
LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True}


def trained(folder: pathlib.Path, **options: object) -> pathlib.Path:
    """A folder with `tokenizer.model` alone, and settings as of a Llama."""
    sentencepiece = pytest.importorskip("sentencepiece")
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 4),
            model_writer=file,
            minloglevel=2,
            **{"vocab_size": 320, "unk_id": 0, "bos_id": 1, "eos_id": 2, "byte_fallback": True, **options},
        )
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **settings}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bpe", **LLAMA},
        {"model_type": "bpe"},
        {"model_type": "bpe", "add_dummy_prefix": False},
        {"model_type": "unigram"},
    ],
    ids=["llama", "bpe", "no prefix", "unigram"],
)
def test_ids_are_those_of_sentencepiece(tmp_path, options):
    ours = load_tokenizer(trained(tmp_path, **options))
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert ours.encode(TEXTS) == [reference.encode(text) for text in TEXTS]
    assert [ours.decode(ids) for ids in ours.encode(TEXTS)] == [reference.decode(reference.encode(x)) for x in TEXTS]
    assert (ours.bos, ours.eos, ours.adds_bos, ours.vocab) == (1, 2, True, reference.get_piece_size())
    assert ours.encode(["</s>"])[0][-1] == 2  # spelled out, as in rendered conversations


def test_a_model_that_cannot_be_converted(tmp_path):
    folder = trained(tmp_path, model_type="bpe", byte_fallback=False, vocab_size=90)
    with pytest.raises(
        UserError, match="tokenizer.model: its conversion gives other ids than sentencepiece for 'river"
    ):
        load_tokenizer(folder)
    (folder / "tokenizer.model").write_bytes(b"\x0a\xff damaged")
    with pytest.raises(UserError, match="tokenizer.model: no SentencePiece model"):
        load_tokenizer(folder)


@pytest.mark.parametrize("package", ["sentencepiece", "google.protobuf"])
def test_the_package_that_is_missing_is_named(tmp_path, monkeypatch, package):
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError,
        match=r"tokenizer.model: reading it needs the packages sentencepiece and protobuf: "
        r"pip install 'chopjax\[sentencepiece\]'; or put tokenizer.json there",
    ):
        load_tokenizer(tmp_path)


def test_vocabularies_that_do_not_say_all(tmp_path):
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    for name in ("qwen.tiktoken", "tokenizer.model"):
        (tmp_path / name).write_text("IQ== 0\nIg== 1\n")
        with pytest.raises(
            UserError, match=f"{name}: a tiktoken vocabulary, which does not say how text is split; put"
        ):
            load_tokenizer(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(UserError, match="has vocab.json, but no merges.txt; put the model's merges.txt or tokenizer.j"):
        load_tokenizer(tmp_path)
