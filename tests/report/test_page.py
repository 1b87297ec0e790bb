import dataclasses
import hashlib
import html.parser
import math
import os
import re
from typing import Any

import numpy as np
import pytest
from report.made_up_runs import SIZES, draws, full_run, metrics, middle_plan

from chopjax import files
from chopjax.chop.plan import Plan
from chopjax.report.canvas import THEME
from chopjax.report.figures import ModelFigures
from chopjax.report.page import render, write
from chopjax.report.run import Run


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and text, and checks that elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


def test_page_tells_the_outcome_first() -> None:
    page = render(full_run())
    title = re.search("<h1>(.*?)</h1>", page)
    assert title is not None
    assert title[1] == (
        "SmolLM2-135M-Instruct → 97.3M parameters: "
        "28 % smaller, 63 % of the lost log-perplexity recovered in 41k tokens"
    )


def test_page_is_complete_in_itself() -> None:
    page = Page(text := render(full_run()))
    targets = page.values("src", "href", "xlink:href", "srcset", "action", "data")
    assert targets and all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
    assert not {tag for tag, _, _ in page.attributes} & {"script", "link", "iframe", "object", "base", "form"}
    assert not re.search(r"@import|url\((?!#)", text)
    assert text.count("http:") + text.count("https:") == 0


def test_ids_are_unique_and_references_resolve() -> None:
    page = Page(text := render(full_run()))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    wanted = {target[1:] for target in page.values("href", "xlink:href") if target.startswith("#")}
    assert wanted | set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)


def test_curves_follow_the_theme() -> None:
    text = render(full_run())
    assert text.count("var(--first)") > 1 and not any(colour in text for colour in THEME)
    assert "prefers-color-scheme: dark" in text


def test_pictures_have_descriptions() -> None:
    page = Page(render(full_run()))
    pictures = sum(value == "img" for value in page.values("role"))
    assert pictures == 7
    first, last = ([line["loss"] for line in metrics() if "loss" in line][place] for place in (0, -1))
    spoken = f"Loss: from {first:.2f} at 1.02k tokens to {last:.3f} at 41k tokens."
    assert any(label.endswith(spoken) for label in page.values("aria-label"))
    assert "Of 30 layers, 24 stay (0–11, 18–29) and 6 go (12–17)." in page.text


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "</p><img src=x onerror=y>", "\"'><b>", "&lt;i&gt;"])
def test_every_text_is_escaped(hostile: str) -> None:
    run = dataclasses.replace(
        full_run(),
        source=f"a/{hostile}",
        teacher=hostile,
        plan=dataclasses.replace(middle_plan(), reasons={"layers": hostile, "mlp": hostile}, name=hostile),
        samples=[{"prompt": hostile, "teacher": hostile, "chopped": hostile, "healed": hostile}],
        config={hostile: hostile},
        metrics=[{"step": hostile, "tokens": 3, "loss": hostile}, *metrics()],
    )
    page = Page(text := render(run))
    assert text.count(hostile) == 0
    assert page.text.count(hostile) >= 8
    assert not {"script", "img", "b", "i"} & {tag for tag, name, _ in page.attributes if name != "style"}


def test_text_that_utf8_cannot_hold_is_written(tmp_path: os.PathLike[str]) -> None:
    sample = {"prompt": "a\ud800b\x00c", "healed": "tab\tnewline\n\x1b[0m"}
    path = os.path.join(tmp_path, "report.html")
    write(path, dataclasses.replace(full_run(), samples=[sample]))
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert text.count("a\ufffdb\ufffdc") == text.count("tab\tnewline\n\ufffd[0m") == 1


ABSENT = [
    *({field.name: field.default} for field in dataclasses.fields(Run) if field.default is not dataclasses.MISSING),
    {"models": {}},
    {"models": {"teacher": ModelFigures(parameters=5)}},
    {"models": {"teacher": ModelFigures(), "healed": ModelFigures()}},
    {"models": {"chopped": ModelFigures(perplexity=math.nan), "healed": ModelFigures(perplexity=math.inf)}},
    {"metrics": [{"step": 1, "loss": None}]},
    {"metrics": [{}]},
    {"metrics": [{"step": 1, "tokens": 3, "heldout_nll": 3.0}]},
    {"metrics": [{"step": 1, "tokens": 3, "heldout_nll": 1e9}, {"heldout_perplexity": -1.0, "tokens": 4}]},
    {"metrics": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 2.0}]},
    {"samples": [{"prompt": "only a prompt"}, {"healed": "only a text"}]},
    {"config": {}},
]


@pytest.mark.parametrize("missing", ABSENT, ids=lambda missing: str(*missing))
def test_what_is_absent_is_left_out(missing: dict[str, Any]) -> None:
    Page(render(dataclasses.replace(full_run(), **missing)))


def test_a_run_with_nothing_but_a_source() -> None:
    page = Page(render(Run("some/model")))
    assert "model: nothing measured yet" in page.text
    assert "No training metrics were recorded." in page.text


def test_a_run_of_curves_alone_does_not_claim_that_nothing_was_measured() -> None:
    assert "model: trained on 41k tokens" in render(Run("some/model", metrics=metrics()))


@pytest.mark.parametrize("broken", [math.nan, math.inf, None, "NaN"])
def test_losses_that_are_not_finite_are_said(broken: object) -> None:
    lines = metrics()
    for line in lines:
        if line["step"] >= 38 and "loss" in line:
            line["loss"] = line["kl"] = broken
    page = Page(render(dataclasses.replace(full_run(), metrics=lines)))
    assert "3 of 40 recorded losses are not finite, the first at step 38." in page.text


def test_losses_that_are_never_finite() -> None:
    page = Page(render(Run("some/model", metrics=[{"step": step, "loss": math.nan} for step in range(1, 6)])))
    assert "5 of 5 recorded losses are not finite, the first at step 1." in page.text


def test_a_plan_of_layers_alone() -> None:
    plan = Plan(SIZES, {"layers": np.array([0, 1, 29])})
    page = Page(render(Run("some/model", plan=plan)))
    assert "Of 30 layers, 3 stay (0–1, 29) and 27 go (2–28)." in page.text
    assert "MLP neurons" in page.text and "1,536" in page.text


def test_axes_keep_their_reasons() -> None:
    page = Page(render(full_run()))
    assert all(reason in page.text for reason in middle_plan().reasons.values())


def test_the_page_of_a_big_model_is_small() -> None:
    sizes = {"layers": 80, "embed": 8192, "kv_heads": 8, "q_per_kv": 8, "head_dim": 128, "mlp": 28672}
    sizes |= {"vocab": 128256, "positions": 131072}
    kept = {
        "layers": np.array([*range(50), *range(60, 80)]),
        "mlp": draws((70,), 28672, 20000),
        "kv_heads": draws((70,), 8, 6),
        "q_per_kv": draws((70, 6), 8, 5),
        "embed": draws((), 8192, 6144),
        "vocab": np.arange(128000),
    }
    text = render(Run("a/b", plan=Plan(sizes, kept), metrics=metrics(20_000)))
    assert len(text.encode()) < 1_000_000
    assert "Each point is the mean of about 33 records." in text


def test_the_same_run_gives_the_same_bytes() -> None:
    once, again = (hashlib.sha256(render(full_run()).encode()).digest() for _ in range(2))
    assert once == again


def test_a_failed_write_leaves_the_old_page(tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.path.join(tmp_path, "report.html")
    write(path, Run("first"))

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write(path, Run("second"))
    with open(path, encoding="utf-8") as file:
        assert "<h1>first" in file.read()
