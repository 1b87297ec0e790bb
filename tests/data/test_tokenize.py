import json
import logging

import numpy as np
import pytest
import tokenizers
import transformers

from chopjax.data.config import DataConfig
from chopjax.data.tokenize import Bounds, covered, document_bounds, encode_documents, load_tokenizer
from chopjax.errors import UserError

TEXTS = ["Water runs down the hill.", "", "größer 🐟 </s> than", "a" * 700]


def test_ids_are_those_of_transformers(tokenizer_folder):
    ours = load_tokenizer(tokenizer_folder)
    reference = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    assert ours.encode(TEXTS) == [reference.encode(text, add_special_tokens=False) for text in TEXTS]
    assert (ours.bos, ours.eos) == (reference.bos_token_id, reference.eos_token_id) == (0, 1)
    assert ours.vocab == len(reference)


def test_saved_truncation_and_padding_do_not_cut_documents(tokenizer_folder, tokenizer_with):
    folder = tokenizer_with()
    core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.enable_truncation(5)
    core.enable_padding(length=900)
    core.save(str(folder / "tokenizer.json"))
    changed, plain = load_tokenizer(folder), load_tokenizer(tokenizer_folder)
    assert changed.encode(TEXTS) == plain.encode(TEXTS)
    assert (changed.digest, changed.splitting) == (plain.digest, plain.splitting)


def test_digest_survives_saving_by_transformers_but_no_change_of_the_vocabulary(tokenizer_folder, tmp_path):
    plain = load_tokenizer(tokenizer_folder)
    transformers.AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").digest == plain.digest
    core = tokenizers.Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    core.add_tokens(["<extra>"])
    (tmp_path / "more").mkdir()
    core.save(str(tmp_path / "more" / "tokenizer.json"))
    more = load_tokenizer(tmp_path / "more")
    assert more.digest != plain.digest and more.vocab == plain.vocab + 1


def test_splitting_tells_what_the_vocabulary_does_not(tokenizer_folder, tokenizer_with):
    folder = tokenizer_with()
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    lower, plain = load_tokenizer(folder), load_tokenizer(tokenizer_folder)
    assert lower.digest == plain.digest and lower.splitting != plain.splitting


def test_an_older_kind_of_folder_goes_through_transformers(tokenizer_folder, tmp_path):
    model = json.loads((tokenizer_folder / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    older, plain = load_tokenizer(tmp_path), load_tokenizer(tokenizer_folder)
    assert older.encode(TEXTS) == plain.encode(TEXTS)
    assert (older.bos, older.eos, older.digest) == (plain.bos, plain.eos, plain.digest)


@pytest.mark.parametrize(
    ("adds_bos", "settings", "fields", "expected"),
    [
        (True, None, {}, Bounds(0, 1)),
        (False, None, {}, Bounds(None, 1)),
        (False, {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}, {}, Bounds(0, 1)),
        (True, {"bos_token": "<s>", "add_bos_token": False}, {}, Bounds(None, None)),
        (True, {"bos_token": None, "eos_token": "<s>"}, {}, Bounds(None, 0)),
        (False, None, {"add_bos": "always", "add_eos": "never"}, Bounds(0, None)),
        (True, None, {"add_bos": "never", "eos_token": "<s>"}, Bounds(None, 0)),
    ],
)
def test_bounds(tokenizer_with, adds_bos, settings, fields, expected):
    tokenizer = load_tokenizer(tokenizer_with(adds_bos=adds_bos, settings=settings))
    bounds = document_bounds(tokenizer, DataConfig(**fields))
    assert bounds == expected
    before = [] if expected.before is None else [expected.before]
    after = [] if expected.after is None else [expected.after]
    for text, ids in zip(TEXTS, encode_documents(tokenizer, bounds, TEXTS), strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == before + tokenizer.encode([text])[0] + after


def test_ids_of_config_json_stand_in(tokenizer_with):
    folder = tokenizer_with(settings={})
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [1, 0]}))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos, tokenizer.eos) == (0, 1)


@pytest.mark.parametrize("value", [-1, "x", [1.5], True])
def test_ids_that_are_none(tokenizer_with, value):
    folder = tokenizer_with(settings={})
    (folder / "config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(UserError, match="eos_token_id is .*; it must be an id, or null for none"):
        load_tokenizer(folder)
    (folder / "config.json").write_text('{"eos_token_id": []}')
    assert load_tokenizer(folder).eos is None


@pytest.mark.parametrize(
    ("settings", "said"), [([], "not a JSON object"), ({"bos_token": 5}, "bos_token 5 is not in the vocabulary")]
)
def test_settings_of_a_wrong_kind(tokenizer_with, settings, said):
    folder = tokenizer_with()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"tokenizer_config.json: {said}"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"add_bos": "always"}, "data.add_bos is 'always', but the tokenizer names no bos_token"),
        ({"add_eos": "always"}, "data.add_eos is 'always', but the tokenizer names no eos_token"),
        ({"eos_token": "<end>"}, "data.eos_token '<end>' is not in the tokenizer's vocabulary"),
    ],
)
def test_bounds_that_the_tokenizer_cannot_give(tokenizer_with, fields, said):
    tokenizer = load_tokenizer(tokenizer_with(settings={}))
    with pytest.raises(UserError, match=said):
        document_bounds(tokenizer, DataConfig(**fields))


def test_folders_without_a_tokenizer(tmp_path, tokenizer_with):
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no tokenizer that can be read"):
        load_tokenizer(tmp_path)
    folder = tokenizer_with(settings={"bos_token": "<gone>"})
    with pytest.raises(UserError, match="tokenizer_config.json: bos_token '<gone>' is not in the vocabulary"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(UserError, match="tokenizer.json: not a tokenizer"):
        load_tokenizer(folder)


def test_offsets_are_those_of_the_same_ids(tokenizer_folder):
    ours = load_tokenizer(tokenizer_folder)
    found = ours.encode_offsets(TEXTS)
    assert [ids for ids, _ in found] == ours.encode(TEXTS)
    assert ours.special == {"<s>", "</s>"}
    for text, (ids, offsets) in zip(TEXTS, found, strict=True):
        assert offsets.shape == (len(ids), 2)
        # Every character is some token's, in order; one of several bytes may be of several tokens.
        assert [n for n in range(len(text)) if not any(a <= n < b for a, b in offsets.tolist())] == []


def test_covered_by_hand():
    #         01   2    (none)  3456     7    89
    offsets = np.array([[0, 2], [2, 3], [3, 3], [3, 7], [7, 8], [8, 10]])
    assert covered(offsets, [(3, 7)]).tolist() == [False, False, True, True, False, False]
    assert covered(offsets, [(1, 3), (9, 10)]).tolist() == [True, True, False, False, False, True]
    assert covered(offsets, [(5, 5), (2, 2)]).tolist() == [False] * 6
    assert covered(offsets, []).tolist() == [False] * 6


def test_files_that_the_library_fails_with(tokenizer_with):
    folder = tokenizer_with(adds_bos=True)
    file = folder / "tokenizer.json"
    raw = json.loads(file.read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    file.write_text(json.dumps({**raw, "pre_tokenizer": split}))
    tokenizer = load_tokenizer(folder)
    for encode in (tokenizer.encode, tokenizer.encode_offsets):
        with pytest.raises(UserError, match="tokenizer.json: `tokenizers` fails with it .*; correct the file"):
            encode(["a" * 40 + "!"])
    file.write_text(json.dumps({**raw, "model": {**raw["model"], "vocab": {**raw["model"]["vocab"], "zzz": 10**9}}}))
    with pytest.raises(UserError, match="tokenizer.json: token 'zzz' has id 1000000000, of 301 tokens; correct the id"):
        load_tokenizer(folder)
    file.write_text(json.dumps({**raw, "model": {"type": "x" * 1000}}))
    with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer that `tokenizers` can read .{,220}$"):
        load_tokenizer(folder)
