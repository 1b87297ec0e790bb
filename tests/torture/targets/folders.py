"""Source folders with files and links that no model needs. The chopped model must be the same, or it is refused."""

import os
import pathlib
from collections.abc import Callable, Mapping

from torture.sandbox import Reader
from torture.targets.target import Draw, Target

Damage = Callable[[Draw, pathlib.Path], object]


def _link(name: str, target: str) -> Damage:
    return lambda draw, model: (model / name).symlink_to(target)


def _replaced_by_link(name: str) -> Damage:
    """The file lies in a folder beside, as in the hub's cache."""

    def damage(draw: Draw, model: pathlib.Path) -> None:
        blob = draw.folder / "blobs" / name
        blob.parent.mkdir(exist_ok=True)
        (model / name).rename(blob)
        (model / name).symlink_to(os.path.relpath(blob, model))

    return damage


def _to_canary(name: str) -> Damage:
    return lambda draw, model: (model / name).symlink_to(draw.outside / "canary.json")


def _file(name: str, text: str) -> Damage:
    def damage(draw: Draw, model: pathlib.Path) -> None:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(text)

    return damage


def _pipe(name: str) -> Damage:
    def damage(draw: Draw, model: pathlib.Path) -> None:
        (model / name).unlink(missing_ok=True)
        os.mkfifo(model / name)

    return damage


def _folder(name: str) -> Damage:
    def damage(draw: Draw, model: pathlib.Path) -> None:
        (model / name).unlink(missing_ok=True)
        (model / name).mkdir(parents=True)

    return damage


STRAY: Mapping[str, Damage] = {
    "a file of an adapter": _file("adapter_config.json", '{"peft_type": "LORA"}'),
    "a damaged file of an adapter": _file("adapter_config.json", "[" * 100_000),
    "more chat templates": _file("additional_chat_templates/tool_use.jinja", "{{ messages }}"),
    "more chat templates that are no text": _folder("additional_chat_templates/x.jinja/y.jinja"),
    "a link to nothing": _link("LICENSE", "gone"),
    "a tokenizer that links to nothing": _link("tokenizer.model", "gone"),
    "a link to itself": _link("NOTICE", "NOTICE"),
    "a link to its own folder": _link("loop", "."),
    "a chat template outside": _to_canary("chat_template.jinja"),
    "more chat templates outside": _link("additional_chat_templates", "/etc"),
    "weights by a link": _replaced_by_link("model.safetensors"),
    "a config by a link": _replaced_by_link("config.json"),
    "a tokenizer by a link": _replaced_by_link("tokenizer.json"),
    "a pipe": _pipe("notes.json"),
    "a pipe for generation_config.json": _pipe("generation_config.json"),
    "a pipe for a licence": _pipe("LICENSE"),
    "a pipe for a chat template": _pipe("chat_template.jinja"),
    "a pipe for config.json": _pipe("config.json"),
    "a pipe for tokenizer.json": _pipe("tokenizer.json"),
    "a pipe for the index": _pipe("model.safetensors.index.json"),
    "a pipe for the weights": _pipe("model.safetensors"),
    "a folder for tokenizer.json": _folder("tokenizer.json"),
    "a folder for config.json": _folder("config.json"),
    "a folder for generation_config.json": _folder("generation_config.json"),
    "a folder for the weights": _folder("model.safetensors"),
    "a folder for the index": _folder("model.safetensors.index.json"),
    "other weights": _file("pytorch_model.bin", "x"),
    "a name with a line break": _file("LICENSE\nx", "x"),
    "a name that is not UTF-8": lambda draw, model: open(os.fsencode(model) + b"/LICENSE\xff", "w").close(),
    "a very deep folder": _file("/".join(["d"] * 200) + "/x.json", "{}"),
}


def source_folder(draw: Draw) -> Reader:
    model = draw.model()
    STRAY[draw.kind](draw, model)

    def read() -> str:
        from torture import readers

        from chopjax import files

        files.fingerprint(model, nested=False)
        return readers.chopped_differs(model, draw)

    return read


TARGETS = (Target("source_folder", source_folder, list(STRAY)),)
