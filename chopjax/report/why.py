"""The page's section on how the choice was made: pictures of scoring and search, and the best candidates as a table."""

from collections.abc import Iterator

import numpy as np

from chopjax.report import canvas, words
from chopjax.report.canvas import Picture
from chopjax.report.markup import Markup, element
from chopjax.report.pictures import catalog
from chopjax.report.pictures.search import PARAMETERS, SHORT, Tried, cost_label, cost_said, differing, tried
from chopjax.report.records import Search
from chopjax.report.run import Run
from chopjax.report.tables import scrolled

# Lines of the table of candidates.
MOST_LINES = 10


def content(run: Run) -> Iterator[Markup]:
    """The section's content; nothing where a run has measured nothing that a choice could rest on."""
    sizes = [*_group("Which sizes", catalog.of_search(run))]
    if run.search is not None and run.search.candidates:
        sizes = sizes or [element("h3", "Which sizes")]
        sizes.append(_candidates(run.search))
    yield from sizes
    yield from _group("Which layers", catalog.of_layers(run))
    yield from _group("Which neurons, heads and channels", catalog.of_widths(run))


def _group(title: str, pictures: list[Picture]) -> Iterator[Markup]:
    if pictures:
        yield element("h3", title)
        yield element("div", *map(_figure, pictures), class_="why")


def _figure(picture: Picture) -> Markup:
    drawing = element("div", canvas.svg(picture), class_="scroll", tabindex=0)
    return element("figure", drawing, element("figcaption", picture.reason))


def order(search: Search, points: Tried) -> list[int]:
    """Places of the candidates to list: by rank after healing, then by rank before, and always the one taken."""
    far = len(search.candidates) + 1
    after, before = (np.where(rank > 0, rank, far) for rank in (points.after, points.before))
    best = np.lexsort((before, after)).tolist()
    shown = best[:MOST_LINES]
    if search.chosen is not None and search.chosen not in shown:
        shown = [*shown[: MOST_LINES - 1], search.chosen]
    return shown


def _candidates(search: Search) -> Markup:
    points, axes = tried(search), differing(search.candidates)
    by_cost = search.cost not in PARAMETERS and np.isfinite(points.cost).any()
    healed = (points.after > 0).any()
    titles = [
        *(SHORT.get(axis, axis) for axis in axes),
        "parameters",
        *([cost_label(search.cost)] if by_cost else []),
        "loss before",
        "rank",
        *(["loss after", "rank"] if healed else []),
    ]
    heads = [element("th", title, scope="col", class_="count") for title in titles]
    lines = []
    for place in order(search, points):
        one, chosen = search.candidates[place], place == search.chosen
        cells = [
            *(f"{one.sizes[axis]:,}" if axis in one.sizes else words.ABSENT for axis in axes),
            cost_said("params", one.parameters),
            *([cost_said(search.cost, one.cost)] if by_cost else []),
            _loss(one.loss),
            _rank(points.before[place]),
            *([_loss(one.distilled), _rank(points.after[place])] if healed else []),
        ]
        kind = "count strong" if chosen else "count"
        head = element("th", "chosen" if chosen else "", scope="row", class_="chosen")
        lines.append(element("tr", head, *(element("td", cell, class_=kind) for cell in cells)))
    return scrolled([element("td"), *heads], lines, "candidates")


def _loss(value: float) -> str:
    return words.significant(value, 4) if np.isfinite(value) else words.ABSENT


def _rank(value: int) -> str:
    return str(value) if value else words.ABSENT
