import dataclasses
import re

import numpy as np
from report.made_up_scores import search
from report.pictures.painted import measured_run
from report.test_page import Page

from chopjax.report import records
from chopjax.report.canvas import THEME
from chopjax.report.page import render
from chopjax.report.pictures.search import tried
from chopjax.report.records import Removal
from chopjax.report.run import Run
from chopjax.report.why import order


def test_a_page_with_every_picture() -> None:
    text = render(measured_run())
    page = Page(text)
    assert sum(value == "img" for value in page.values("role")) == 11 + 1
    assert text.index("Why these") < text.index("What was kept")
    assert len(page.values("id")) == len(set(page.values("id")))
    assert not any(colour in text for colour in THEME)
    assert all(label.strip() for label in page.values("aria-label"))
    assert "layer 3, removed. Block importance" in text  # a tooltip
    assert len(text.encode()) < 600_000
    assert render(measured_run()) == text


def test_each_part_stands_alone() -> None:
    run = Run("m", removal=Removal(removed=(1, 2), losses=(2.0, 3.0)))
    text = render(run)
    assert "Which layers" in text and "Which sizes" not in text and "Which neurons" not in text
    assert "Why these" not in render(Run("m"))
    assert "Why these" not in render(Run("m", search=records.Search(())))


def test_the_table_lists_the_best_and_the_chosen() -> None:
    body = search(20, 3)
    body["chosen"] = 19
    found = records.search(body)
    listed = order(found, tried(found))
    assert len(listed) == 10 and listed[-1] == 19
    assert [tried(found).after[place] for place in listed[:3]] == [1, 2, 3]
    text = render(Run("m", search=found))
    (table,) = re.findall('<table class="candidates">(.*?)</table>', text)
    assert table.count("<tr>") == 11 and table.count(">chosen<") == 1
    (row,) = re.findall(">chosen</th>(.*?)</tr>", table)
    cells = re.findall("<td[^>]*>(.*?)</td>", row)
    assert cells[-4:] == [f"{found.candidates[19].loss:.3f}", "20", "–", "–"]


def test_a_search_without_losses_has_a_table_alone() -> None:
    lines = [line | {"loss": None, "distilled": None} for line in search(3, 3)["candidates"]]
    found = records.search({"candidates": lines, "cost": "kv_cache"})
    text = render(Run("m", search=found))
    assert "Which sizes" in text and "bytes of KV cache" in text and "loss after" not in text
    assert order(found, tried(found)) == [0, 1, 2]


def test_a_deep_and_wide_model_makes_a_small_page() -> None:
    chance = np.random.default_rng(0)
    angle = np.abs(np.subtract.outer(np.arange(81.0), np.arange(81.0))) / 200
    sums = {"angle": np.stack([angle, angle]), "cosine": np.stack([1 - angle] * 2), "tokens": np.ones(2) / 2}
    shapes = {"mlp": (80, 3000), "q_per_kv": (80, 8, 8), "embed": (80, 2, 8192)}
    sums |= {name: chance.random((2, 3, 2, *shape)) + 0.1 for name, shape in shapes.items()} | {"rows": np.ones(2)}
    text = render(dataclasses.replace(Run("m"), scores=sums))
    assert len(text.encode()) < 700_000
