"""Sources of chats: rows with targets, beside those of text."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from data.chats import CHATML, STRIPPED, THINKING, turns, with_template, write_chats

from chopjax.data.batches import Batches, mixture_digest
from chopjax.data.config import DataConfig, TextSource
from chopjax.data.labels import next_token_labels
from chopjax.data.manifest import Manifest, open_prepared
from chopjax.data.prepare import prepare
from chopjax.data.rows import Rows
from chopjax.data.tokenize import load_tokenizer
from chopjax.errors import UserError
from chopjax.hf.trimmed import named_ids, read_tokenizer, rewrite_tokenizer
from chopjax.hf.vocabulary import choose_words

LENGTH = 83
CHATS = [turns(f"question {n}", f"water {n}", "and?", f"hill {n}") for n in range(60)]


def config_of(*sources: TextSource, **fields: object) -> DataConfig:
    return DataConfig(**{"sources": sources, "length": LENGTH, "heldout_fraction": 0.2, **fields})


def chat_source(tmp_path: pathlib.Path, chats=CHATS, **fields: object) -> TextSource:
    path = write_chats(tmp_path / f"{fields.get('name', 'chats')}.jsonl", chats)
    return TextSource(**{"path": str(path), "messages": "messages", "name": "chats", **fields})


def predicted(rows: Rows, folder: pathlib.Path) -> list[str]:
    """The texts that training predicts, in order."""
    tokenizer, found = load_tokenizer(folder), []
    for row in rows:
        batch = {name: row[name][None] for name in ("tokens", "segment_ids", "targets")}
        labels, weights = (np.asarray(x)[0] for x in next_token_labels(**batch))
        edges = np.flatnonzero(np.diff(weights, prepend=0, append=0)).reshape(-1, 2)
        found += [tokenizer.decode(labels[start:stop].tolist()) for start, stop in edges]
    return found


@pytest.fixture
def folder(tokenizer_with):
    """With `</s>` as the end of a turn."""
    return with_template(tokenizer_with(), CHATML.replace("<|end|>", "</s>"))


def test_answers_are_predicted_and_nothing_else(folder, tmp_path):
    manifest = prepare(config_of(chat_source(tmp_path)), folder, tmp_path / "out")
    ((train, _),) = manifest.mixture()
    heldout = manifest.heldout()["chats"]
    found = [predicted(rows, folder) for rows in (train, heldout)]
    kept = {answer.removesuffix("</s>").split()[1] for answer in found[1]}
    expected = [
        [f"{word} {n}</s>" for n in range(60) if (str(n) in kept) == out for word in ("water", "hill")]
        for out in (False, True)
    ]
    assert found == expected and len(kept) > 4
    ((part,)) = manifest.parts
    assert part.documents == {"train": 60 - len(kept), "heldout": len(kept)}
    assert part.targets == {"train": train.info.targets, "heldout": heldout.info.targets}
    assert open_prepared(tmp_path / "out") == manifest
    assert f"(in answers: {train.info.targets:,}, {heldout.info.targets:,})" in manifest.describe()[1]


def test_a_mixture_with_text(folder, corpus, tmp_path):
    text = TextSource(path=str(corpus(40)), name="text", weight=3.0)
    manifest = prepare(config_of(text, chat_source(tmp_path)), folder, tmp_path / "out")
    batches = Batches(manifest.mixture(), 4, 0)
    found = [next(batches) for _ in range(20)]
    batches.close()
    targets = np.concatenate([batch["targets"] for batch in found])
    assert targets.all(axis=1).sum() == 60 and len(targets) == 80
    # The text's rows are those that it has without chats.
    alone = prepare(config_of(text), folder, tmp_path / "alone")
    for name in ("train/rows.json", "train/rows-00000.arrayrecord", "heldout/rows.json"):
        assert (tmp_path / "out/text" / name).read_bytes() == (tmp_path / "alone/text" / name).read_bytes()
    raw = json.loads((tmp_path / "alone" / "manifest.json").read_text())
    assert not {"template", "targets"} & set(raw["parts"][0]) and "answers" not in "".join(alone.describe())


def test_heldout_conversations_are_kept_out_of_the_others(folder, tmp_path):
    exam = chat_source(tmp_path, CHATS[20:29], name="exam", heldout=True)
    manifest = prepare(config_of(chat_source(tmp_path), exam, heldout_fraction=0.0), folder, tmp_path / "out")
    trained = predicted(manifest.mixture()[0][0], folder)
    asked = predicted(manifest.heldout()["exam"], folder)
    assert len(trained) == 2 * 51 and len(asked) == 2 * 9 and not set(trained) & set(asked)
    assert predicted(manifest.heldout()["chats"], folder) == asked


def test_another_template_makes_other_rows_and_a_stale_manifest_is_noticed(folder, tmp_path):
    config, out = config_of(chat_source(tmp_path)), tmp_path / "out"
    before = prepare(config, folder, out)
    manifest, digest = (out / "manifest.json").read_text(), mixture_digest(before.mixture(), 0)
    lines: list[str] = []
    assert prepare(config, folder, out, say=lines.append) == before and lines == ["chats: rows are there already"]
    with_template(folder, STRIPPED)
    after = prepare(config, folder, out, say=lines.append)
    assert lines[1:] == [
        "chats: changed since they were written: template; its rows are written again",
        "chats: 1 file read as jsonl",
    ]
    assert mixture_digest(after.mixture(), 0) != digest and after.parts[0].template != before.parts[0].template
    (out / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match="train was written after manifest.json"):
        open_prepared(out).mixture()


def test_the_other_field_is_another_text(folder, tmp_path):
    lines: list[str] = []
    path = tmp_path / "both.jsonl"
    path.write_text("".join(json.dumps({"messages": chat, "chosen": chat[:2]}) + "\n" for chat in CHATS))
    for field in ("messages", "chosen"):
        source = TextSource(path=str(path), messages=field, name="chats")
        manifest: Manifest = prepare(config_of(source), folder, tmp_path / "out", say=lines.append)
    assert lines == [
        "chats: 1 file read as jsonl",
        "chats: changed since they were written: text; its rows are written again",
        "chats: 1 file read as jsonl",
    ]
    assert len(predicted(manifest.mixture()[0][0], folder)) == manifest.total("documents", "train")


def test_a_trimmed_vocabulary_predicts_the_same_answers(folder, tmp_path):
    kept = choose_words(np.zeros(300, np.int64), read_tokenizer(folder), 264, named_ids(folder, 300))
    trimmed = pathlib.Path(shutil.copytree(folder, tmp_path / "trimmed"))
    for name, text in rewrite_tokenizer(folder, kept, 300).items():
        (trimmed / name).write_text(text)
    manifests = [
        prepare(config_of(chat_source(tmp_path), length=160), place, tmp_path / f"{n}")
        for n, place in enumerate((folder, trimmed))
    ]
    answers = [predicted(m.mixture()[0][0], place) for m, place in zip(manifests, (folder, trimmed), strict=True)]
    assert answers[0] == answers[1] and len(answers[0]) > 60
    assert manifests[0].total("tokens", "train") < manifests[1].total("tokens", "train")
    assert manifests[0].parts[0].template == manifests[1].parts[0].template


def test_what_cannot_be_learnt_from(folder, tokenizer_with, tmp_path):
    silent = chat_source(tmp_path, [turns("Q")[:1] * 3] * 9 + [turns("R")] * 9)
    with pytest.raises(UserError, match="chats holds no answer of an assistant; check that the roles"):
        prepare(config_of(silent, heldout_fraction=0.0), folder, tmp_path / "out")
    with pytest.raises(UserError, match="has no chat template to render messages with"):
        prepare(config_of(chat_source(tmp_path)), with_template(tokenizer_with(), None), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with_template(folder, THINKING.replace("+ c }}", "+ c + c }}"))
    with pytest.raises(UserError, match="chats.jsonl, line 1: the chat template rewrites the answer in message 4"):
        prepare(config_of(chat_source(tmp_path)), folder, tmp_path / "none")


def pairs(tmp_path: pathlib.Path, records: list[dict]) -> TextSource:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return TextSource(path=str(path), prompt="prompt", completion="completion", name="pairs")


@pytest.mark.parametrize("bos", [False, True])
def test_completions_are_predicted_up_to_the_end(tokenizer_with, tmp_path, bos):
    folder = tokenizer_with(adds_bos=bos)
    source = pairs(tmp_path, [{"prompt": f"question {n}?\n", "completion": f"water {n}"} for n in range(60)])
    manifest = prepare(config_of(source, heldout_fraction=0.0), folder, tmp_path / "out")
    ((train, _),) = manifest.mixture()
    assert predicted(train, folder) == [f"water {n}</s>" for n in range(60)]
    before = "<s>" if bos else ""
    text = "".join(load_tokenizer(folder).decode(row["tokens"][row["segment_ids"] > 0].tolist()) for row in train)
    assert text == "".join(f"{before}question {n}?\nwater {n}</s>" for n in range(60))
    assert manifest.parts[0].targets["train"] == train.info.targets and manifest.parts[0].template == ""


def test_completions_that_are_messages(folder, tmp_path):
    cases = [(turns(f"Q{n}", "first", "and?"), [{"role": "assistant", "content": f"water {n}"}]) for n in range(60)]
    source = pairs(tmp_path, [{"prompt": prompt, "completion": completion} for prompt, completion in cases])
    manifest = prepare(config_of(source, heldout_fraction=0.0, length=160), folder, tmp_path / "out")
    ((train, _),) = manifest.mixture()
    assert predicted(train, folder) == [f"water {n}</s>" for n in range(60)]
    # The same conversations as messages, with all answers learnt, are the same tokens.
    chats = chat_source(tmp_path, [prompt + completion for prompt, completion in cases])
    ((other, _),) = prepare(config_of(chats, heldout_fraction=0.0, length=160), folder, tmp_path / "chats").mixture()
    assert all((one["tokens"] == two["tokens"]).all() for one, two in zip(train, other, strict=True))
    assert manifest.parts[0].template != ""


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "x"}, "no field 'completion'; there are prompt; set prompt and completion"),
        ({"prompt": 3, "completion": "x"}, "field 'prompt' is int, not text; set prompt and completion"),
        (
            {"prompt": "x", "completion": turns("Q")},
            "prompt and completion are text and messages; both must be text, or",
        ),
        (
            {"prompt": turns("Q"), "completion": turns("Q")},
            "holds messages, but the tokenizer has no chat template; give",
        ),
    ],
)
def test_completions_that_cannot_be_read(tokenizer_with, tmp_path, record, said):
    with pytest.raises(UserError, match=f"pairs.jsonl, line 1: {said}"):
        prepare(config_of(pairs(tmp_path, [record])), tokenizer_with(), tmp_path / "out")


def test_the_template_for_tools_counts_where_there_are_tools(folder, tmp_path):
    chatml = CHATML.replace("<|end|>", "</s>")
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").write_text(chatml)
    tools = folder / "additional_chat_templates" / "tool_use.jinja"
    path = tmp_path / "tools.jsonl"
    path.write_text("".join(json.dumps({"messages": chat, "tools": [{"name": "look"}]}) + "\n" for chat in CHATS))
    sources = (chat_source(tmp_path), TextSource(path=str(path), messages="messages", name="tools"))
    lines: list[str] = []
    for text in ("{{ tools }}" + chatml, "{{ tools }}" + chatml, "{{ tools | tojson }}" + chatml):
        tools.write_text(text)
        prepare(config_of(*sources), folder, tmp_path / "out", say=lines.append)
    assert [line for line in lines if "rows are" in line] == [
        "chats: rows are there already",
        "tools: rows are there already",
        "chats: rows are there already",
        "tools: changed since they were written: tool_template; its rows are written again",
    ]


def test_a_source_of_chats_keeps_its_digest(folder, tmp_path):
    manifest = prepare(config_of(chat_source(tmp_path)), folder, tmp_path / "out")
    recipe = manifest.mixture()[0][0].info.recipe
    assert set(recipe) == {
        *("text", "tokenizer", "splitting", "bos", "eos", "length", "heldout_fraction", "heldout_documents", "heldout"),
        "template",
    }
    assert recipe["template"] == "8775309a214b6510"  # as of the first release
