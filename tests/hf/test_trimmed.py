"""The small files after a vocabulary was trimmed: every place that names an id, and that stock readers agree."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf.tokenizers_under_test import byte_level, sentencepiece_bpe

from chopjax.data.tokenize import load_tokenizer
from chopjax.errors import UserError
from chopjax.hf import trimmed
from chopjax.hf.token_ids import renumber_ids, renumbering
from chopjax.hf.trimmed import named_ids, read_tokenizer, rewrite_tokenizer, shared_words
from chopjax.hf.vocabulary import choose_words, read_vocabulary

VOCAB = 335  # rows of the model: five beyond the 330 tokens that it begins with, of which one is an added token


def put(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def model_files(**more: Any) -> dict[str, Any]:
    """A byte-level folder with `<s>` (0), `</s>` (1) and `<|turn|>` (330), which every file names."""
    raw = byte_level()
    turn = {"id": "<|turn|>", "ids": [330], "tokens": ["<|turn|>"]}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|turn|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|turn|>": turn},
    }
    raw["post_processor"] = {"type": "Sequence", "processors": [{**raw["pre_tokenizer"]}, template]}
    vocab, merges = raw["model"]["vocab"], raw["model"]["merges"]
    return {
        "tokenizer.json": raw,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|turn|>",
            "eos_token": "</s>",
            "added_tokens_decoder": {str(t["id"]): {**t, "id": None} for t in raw["added_tokens"]},
        },
        "special_tokens_map.json": {"bos_token": "<|turn|>", "eos_token": "</s>"},
        "generation_config.json": {"bos_token_id": 330, "eos_token_id": [1, 330], "pad_token_id": None},
        "added_tokens.json": {"<|turn|>": 330},
        "vocab.json": vocab,
        "merges.txt": "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges),
        "config.json": {"bos_token_id": 330, "eos_token_id": 1, "pad_token_id": -1},
    } | more


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return put(tmp_path / "source", model_files())


def rewritten(source: Path, target: Path, size: int = 300) -> tuple[Path, np.ndarray]:
    """A folder of what a trimmed model has, and its kept ids."""
    kept = choose_words(np.zeros(VOCAB, np.int64), read_tokenizer(source), size, named_ids(source, VOCAB))
    files = rewrite_tokenizer(source, kept, VOCAB)
    shutil.copytree(source, target)
    return put(target, {name: text for name, text in files.items() if text is not None}), kept


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_every_file_follows(source: Path, tmp_path: Path) -> None:
    folder, kept = rewritten(source, tmp_path / "target")
    assert kept[-1] == 330  # the added token is the last of 300
    tokenizer = read(folder / "tokenizer.json")
    assert [token["id"] for token in tokenizer["added_tokens"]] == [0, 1, 299]
    assert tokenizer["post_processor"]["processors"][1]["special_tokens"]["<|turn|>"]["ids"] == [299]
    assert sorted(tokenizer["model"]["vocab"].values()) == list(range(299))
    vocab, whole = tokenizer["model"]["vocab"], read(source / "tokenizer.json")["model"]
    merges = [pair for pair in whole["merges"] if {*pair, "".join(pair)} <= vocab.keys()]
    assert tokenizer["model"]["merges"] == merges and 0 < len(merges) < len(whole["merges"])
    assert read(folder / "vocab.json") == vocab
    assert (folder / "merges.txt").read_text().splitlines()[1:] == [" ".join(pair) for pair in merges]
    assert read(folder / "added_tokens.json") == {"<|turn|>": 299}
    assert list(read(folder / "tokenizer_config.json")["added_tokens_decoder"]) == ["0", "1", "299"]
    generation = {"bos_token_id": 299, "eos_token_id": [1, 299], "pad_token_id": None}
    assert read(folder / "generation_config.json") == generation


def test_transformers_loads_it(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers import AutoTokenizer

    folder, kept = rewritten(source, tmp_path / "target")
    whole, part = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(folder)
    assert (whole.bos_token_id, part.bos_token_id, part.eos_token_id, len(part)) == (330, 299, 1, 300)
    assert kept[part.encode("a")].tolist() == whole.encode("a") == [330, *whole.encode("a", add_special_tokens=False)]
    ours = load_tokenizer(folder)
    assert (ours.bos, ours.eos, ours.vocab, ours.adds_bos) == (299, 1, 300, True)
    assert ours.encode(["<|turn|>über 👩‍🚀"])[0] == part.encode("<|turn|>über 👩‍🚀", add_special_tokens=False)


def test_transformers_loads_a_real_one(smollm2_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
    source = put(tmp_path / "source", {name: read(smollm2_folder / name) for name in (*names, "config.json")})
    counts = np.arange(49152)[::-1].copy()
    kept = choose_words(counts, read_tokenizer(source), 1000, named_ids(source, 49152))
    target = put(tmp_path / "target", {name: read(source / name) for name in names})
    put(target, {name: text for name, text in rewrite_tokenizer(source, kept, 49152).items() if text})
    whole, part = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(target)
    assert len(part) == 1000
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(part, name) == getattr(whole, name)
        assert kept[getattr(part, f"{name}_id")] == getattr(whole, f"{name}_id")
    talk = [{"role": "user", "content": "What is the water in the hill?"}]
    ids = part.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert part.decode(ids) == whole.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    assert ids.count(part.convert_tokens_to_ids("<|im_start|>")) == 3


def test_older_forms_of_merges_and_post_processors(tmp_path: Path) -> None:
    raw = sentencepiece_bpe()
    raw["model"]["merges"] = [" ".join(pair) for pair in raw["model"]["merges"]]
    raw["post_processor"] = {
        "type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1],
        "trim_offsets": True, "add_prefix_space": False,
    }  # fmt: skip
    raw["padding"] = {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 2, "pad_type_id": 0,
        "pad_token": "</s>",
    }  # fmt: skip
    folder = put(tmp_path / "model", {"tokenizer.json": raw, "tokenizer.model": "SentencePiece", "vocab.txt": "words"})
    vocabulary = read_vocabulary(raw)
    # Ids before those of the special tokens go, so that these move.
    shift = {"vocab": {"zz": 0, **{w: n + 1 for w, n in raw["model"]["vocab"].items()}}}
    raw["model"] |= shift
    raw["added_tokens"] = [{**token, "id": token["id"] + 1} for token in raw["added_tokens"]]
    raw["post_processor"] |= {"sep": ["</s>", 3], "cls": ["<s>", 2]}
    raw["padding"]["pad_id"] = 3
    put(folder, {"tokenizer.json": raw})
    files = rewrite_tokenizer(folder, np.arange(1, vocabulary.size + 1), 999)
    assert (files["tokenizer.model"], files["vocab.txt"]) == (None, None)
    after = json.loads(files["tokenizer.json"] or "")
    assert (after["post_processor"]["sep"], after["post_processor"]["cls"]) == (["</s>", 2], ["<s>", 1])
    assert after["padding"]["pad_id"] == 2 and [token["id"] for token in after["added_tokens"]] == [0, 1, 2]
    assert after["model"]["merges"] == raw["model"]["merges"] and " " in after["model"]["merges"][0]


KEPT = np.array([0, 2, 5, 6])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"eos_token_id": 2, "vocab_size": 2}, {"eos_token_id": 1, "vocab_size": 2}),
        ({"eos_token_id": [5, 6], "pad_token_id": None}, {"eos_token_id": [2, 3], "pad_token_id": None}),
        ({"pad_token_id": -1, "bos_token_id": 8}, {"pad_token_id": -1, "bos_token_id": 8}),
        ({"suppress_tokens": [1, 2, 6]}, {"suppress_tokens": [1, 3]}),
        ({"bad_words_ids": [[0, 5], [1, 2]]}, {"bad_words_ids": [[0, 2]]}),
        ({"forced_decoder_ids": [[1, 5], [2, 6]]}, {"forced_decoder_ids": [[1, 2], [2, 3]]}),
        ({"sequence_bias": [[[5, 6], -1.5]]}, {"sequence_bias": [[[2, 3], -1.5]]}),
        ({"force_words_ids": [[[5], [6]]]}, {"force_words_ids": [[[2], [3]]]}),
        ({"bad_words_ids": [[1], [3, 4]], "suppress_tokens": []}, {"suppress_tokens": []}),
        ({"text_config": {"pad_token_id": 6, "layers": 6}}, {"text_config": {"pad_token_id": 3, "layers": 6}}),
        ({"image_token_index": 5, "other_index": 5}, {"image_token_index": 2, "other_index": 5}),
    ],
)
def test_ids_of_configs(before: dict, after: dict) -> None:
    assert renumber_ids(before, renumbering(KEPT, 8), "generation_config.json") == after


@pytest.mark.parametrize("value", [{"eos_token_id": [2, 3]}, {"decoder_start_token_id": 7}])
def test_an_id_that_is_gone(value: dict) -> None:
    with pytest.raises(
        UserError, match=r"config.json: \w+ names id [37], which the plan does not keep; set plan.vocab to [48] or more"
    ):
        renumber_ids(value, renumbering(KEPT, 8), "config.json")


def test_what_is_named_stays(tmp_path: Path) -> None:
    raw = byte_level()
    words = raw["model"]["vocab"]
    generation = {"eos_token_id": [1, 320], "suppress_tokens": [321], "bad_words_ids": [[322]], "pad_token_id": 400}
    settings = {"pad_token": {"content": next(word for word, number in words.items() if number == 325)}}
    files = {"tokenizer.json": raw, "generation_config.json": generation, "tokenizer_config.json": settings}
    folder = put(tmp_path / "model", files | {"config.json": {"bos_token_id": 0, "decoder_start_token_id": 323}})
    assert named_ids(folder, VOCAB) == {0, 1, 320, 323, 325}


def test_other_tokenizers_are_refused(source: Path) -> None:
    put(source, {"tokenizer.model": "pieces"})
    (source / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer.json, which is what can be trimmed"):
        rewrite_tokenizer(source, np.arange(300), VOCAB)


def test_a_folder_without_a_tokenizer_has_ids_all_the_same(tmp_path: Path) -> None:
    folder = put(tmp_path / "model", {"generation_config.json": {"eos_token_id": 5}})
    assert json.loads(rewrite_tokenizer(folder, KEPT, 8)["generation_config.json"] or "") == {"eos_token_id": 2}


def test_an_added_token_that_tokenizers_would_number_otherwise(source: Path) -> None:
    kept = np.concatenate([np.arange(300), [330, 331]])
    raw = read_tokenizer(source)
    raw["added_tokens"].reverse()  # the highest id is given first
    raw["added_tokens"].insert(0, {**raw["added_tokens"][0], "id": 331, "content": "<|more|>"})
    put(source, {"tokenizer.json": raw})
    with pytest.raises(
        UserError, match=r"'<\|more\|>' would have id 300 instead of 301|'<\|turn\|>' would have id 301"
    ):
        rewrite_tokenizer(source, kept, VOCAB)


def test_a_trimmed_tokenizer_is_known_as_such(source: Path, tmp_path: Path) -> None:
    folder, kept = rewritten(source, tmp_path / "target")
    found = shared_words(source, folder)
    assert found is not None and found.tolist() == kept.tolist()
    assert shared_words(source, source) is None and shared_words(folder, source) is None
    raw = read_tokenizer(folder)
    raw["model"]["merges"] = raw["model"]["merges"][::-1]
    put(folder, {"tokenizer.json": raw})
    assert shared_words(source, folder) is None
    assert trimmed.has_tokenizer(folder) and not trimmed.has_tokenizer(tmp_path)


def test_a_tokenizer_with_further_tokens_shares_the_others(source: Path, tmp_path: Path) -> None:
    raw = read_tokenizer(source)
    size = 1 + max(token["id"] for token in raw["added_tokens"])
    more = {**raw["added_tokens"][0], "id": size, "content": "<|more|>"}
    put(tmp_path, {"tokenizer.json": {**raw, "added_tokens": [*raw["added_tokens"], more]}})
    found = shared_words(tmp_path, source)
    assert found is not None and found.tolist() == list(range(size))
    # Neither the other way round, nor where text is split otherwise, nor where the kind is one that is never trimmed.
    assert shared_words(source, tmp_path) is None
    put(tmp_path, {"tokenizer.json": {**raw, "added_tokens": [more], "normalizer": {"type": "Lowercase"}}})
    assert shared_words(tmp_path, source) is None
    model = {**raw["model"], "end_of_word_suffix": "</w>"}
    put(tmp_path, {"tokenizer.json": {**raw, "model": model}})
    assert shared_words(tmp_path, source) is None
