"""tokenizer.json and tokenizer_config.json. What is accepted must encode as the tokenizers library does."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from torture import mutate
from torture.sandbox import Reader
from torture.targets.target import Draw, Target, json_bytes, read_json

TEXT = "The heron " + "a" * 40 + "! 2,400 m²"
Raw = dict[str, Any]


def _word(number: int) -> Callable[[Raw], None]:
    return lambda raw: raw["model"]["vocab"].update(zzz=number)


def _two_of_one_id(raw: Raw) -> None:
    vocab = raw["model"]["vocab"]
    names = list(vocab)
    vocab[names[5]] = vocab[names[6]]


def _slow_pattern(raw: Raw) -> None:
    raw["pre_tokenizer"] = {
        **{"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    }


def _long_token(raw: Raw) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    token = {"id": 2**31, "content": "q" * 10**6, "special": True, **flags}
    raw["added_tokens"] = [*(raw.get("added_tokens") or []), token]


DAMAGE: Mapping[str, Callable[[Raw], Any]] = {
    "an id of a billion": _word(10**9),
    "an id of 32 bits": _word(2**32),
    "a slow pattern": _slow_pattern,
    "two tokens of one id": _two_of_one_id,
    "no tokens": lambda raw: raw["model"].update(vocab={}),
    "no model": lambda raw: raw.pop("model"),
    "merges that are numbers": lambda raw: raw["model"].update(merges=[1, 2]),
    "a token of a megabyte": _long_token,
}
SETTINGS = {
    "add_bos_token is a list": '{"add_bos_token": [1], "bos_token": "<s>"}',
    "eos_token is an object": '{"eos_token": {"content": {"a": 1}}}',
    "nested too deep": "[" * 100_000,
    "an array": "[1]",
    "a class that does not exist": '{"tokenizer_class": "NoSuchTokenizer"}',
    "code of its own": '{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}, "tokenizer_class": "Evil"}',
    "a chat template that is a number": '{"chat_template": 7}',
    "a chat template in a list": '{"chat_template": [{"name": "default"}, 7]}',
}
CHANGED = tuple(f"changed {number}" for number in range(8))


def tokenizer_json(draw: Draw) -> Reader:
    model = draw.model()
    file = model / "tokenizer.json"
    raw = read_json(file)
    if draw.kind in DAMAGE:
        DAMAGE[draw.kind](raw)
        file.write_bytes(json_bytes(raw))
    elif draw.kind == "nested too deep":
        file.write_text("[" * 100_000)
    else:
        small = {name: value for name, value in raw.items() if name != "model" or draw.rng.random() < 0.5}
        file.write_bytes(mutate.json_bytes(draw.rng, mutate.json_value(draw.rng, small)))
    return _reader(model)


def tokenizer_config(draw: Draw) -> Reader:
    model = draw.model()
    file = model / "tokenizer_config.json"
    if draw.kind in SETTINGS:
        file.write_text(SETTINGS[draw.kind])
    elif draw.kind == "special_tokens_map.json":
        file.write_text("{}")
        (model / "special_tokens_map.json").write_text('{"eos_token": ["a"]}')
    else:
        file.write_bytes(mutate.json_bytes(draw.rng, mutate.json_value(draw.rng, read_json(file))))
    return _reader(model)


def _reader(model: pathlib.Path) -> Reader:
    def read() -> str:
        import tokenizers

        from chopjax.data.tokenize import load_tokenizer

        tokenizer = load_tokenizer(model)
        for name, value in (("bos", tokenizer.bos), ("eos", tokenizer.eos)):
            if value is not None and (type(value) is not int or value < 0):
                return f"accepted {name} {value!r}"
        stock = tokenizers.Tokenizer.from_str(json.dumps(read_json(model / "tokenizer.json")))
        stock.no_truncation()
        stock.no_padding()
        ours = tokenizer.encode([TEXT, ""])
        tokenizer.encode_offsets(["x y"])
        theirs = [stock.encode(text, add_special_tokens=False).ids for text in (TEXT, "")]
        return "" if ours == theirs else f"encodes otherwise than the tokenizers library: {ours} and {theirs}"[:200]

    return read


TARGETS = (
    Target("tokenizer_json", tokenizer_json, [*DAMAGE, "nested too deep", *CHANGED]),
    Target("tokenizer_config", tokenizer_config, [*SETTINGS, "special_tokens_map.json", *CHANGED]),
)
