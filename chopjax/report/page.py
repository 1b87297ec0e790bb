"""`report.html`: one page, complete in itself, from which a person sees what a run did."""

import json
import math
import os
from collections.abc import Iterator

from chopjax import files
from chopjax.chop.plan import Plan
from chopjax.report import curves, figures, plan_drawing, why, words
from chopjax.report.markup import Markup, element, join
from chopjax.report.run import Run, headline
from chopjax.report.style import CSS
from chopjax.report.tables import scrolled

# The browser itself refuses whatever is not in the page, should a text ever slip through as markup.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

MODEL_TITLES = {"source": "Source", "teacher": "Teacher", "chopped": "Chopped", "healed": "Healed"}


def write(path: str | os.PathLike[str], run: Run) -> None:
    """Writes the page atomically: it appears whole or not at all."""
    files.write_text(path, render(run))


def render(run: Run) -> str:
    """The page as HTML text, of the run alone: no file, clock or chance enters."""
    title = headline(run)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(CSS)),
    )
    body = element("body", element("main", element("h1", title), _lead(run), *_sections(run)))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _sections(run: Run) -> Iterator[Markup]:
    if run.columns():
        yield _section("Before and after", _figures_table(run))
    reasons = list(why.content(run))
    if reasons:
        yield _section("Why these", *reasons)
    if run.plan is not None:
        yield _section("What was kept", *_plan(run.plan))
    yield _section("How it healed", *_healing(run))
    if run.samples:
        yield _section("In its own words", *_samples(run))
    yield _section("Provenance", *_provenance(run))


def _section(title: str, *content: Markup | None) -> Markup:
    return element("section", element("h2", title), *content)


def _lead(run: Run) -> Markup | None:
    perplexities = [
        f"{MODEL_TITLES[name].lower()} {words.significant(value)}"
        for name, model in run.columns().items()
        if not math.isnan(value := words.number(model.perplexity))
    ]
    parts = [f"Held-out perplexity: {', '.join(perplexities)}."] if perplexities else []
    if run.seconds:
        parts.append(f"The whole run took {words.duration(run.seconds)}.")
    return element("p", " ".join(parts), class_="soft") if parts else None


def _figures_table(run: Run) -> Markup:
    columns = run.columns()
    rows = figures.table(columns, run.length)
    first, last = (list(columns)[place] for place in (0, -1))
    compare = len(columns) > 1 and any(row.ratio for row in rows)
    heads = [element("th", MODEL_TITLES[name], scope="col", class_="count") for name in columns]
    if compare:
        heads.append(element("th", f"{MODEL_TITLES[last]} ÷ {first}", scope="col", class_="count"))
    lines = [
        element(
            "tr",
            element("th", row.label, scope="row"),
            *(element("td", cell, class_="count") for cell in row.cells),
            element("td", row.ratio, class_="count strong") if compare else None,
        )
        for row in rows
    ]
    return scrolled([element("td"), *heads], lines)


def _plan(plan: Plan) -> Iterator[Markup]:
    legend = join(
        element("span", class_="swatch kept"),
        "stays",
        element("span", class_="swatch gone"),
        "goes",
        join(element("span", class_="swatch part"), "none to all of a cell stays") if len(plan.kept) > 1 else None,
    )
    drawing = element("div", plan_drawing.draw(plan), class_="scroll", tabindex=0)
    yield element("p", plan_drawing.describe(plan))
    yield element("figure", drawing, element("figcaption", legend))
    yield _axes_table(plan)


def _axes_table(plan: Plan) -> Markup:
    titles = [("Axis", None), ("Source", "count"), ("Student", "count"), ("Stays", None), ("Why", None)]
    if not plan.reasons:
        titles.pop()
    heads = [element("th", title, scope="col", class_=kind) for title, kind in titles]
    lines = []
    for axis, title in plan_drawing.AXES.items():
        before, after = plan.source[axis], plan.sizes[axis]
        why = plan.reasons.get(axis, "" if axis in plan.kept else "left as it is")
        lines.append(
            element(
                "tr",
                element("th", title[0].upper() + title[1:], scope="row"),
                element("td", f"{before:,}", class_="count"),
                element("td", f"{after:,}", class_="count strong" if after != before else "count"),
                element("td", _bar(after / before), f" {words.percent(after / before)}", style="white-space:nowrap"),
                element("td", why, class_="soft") if plan.reasons else None,
            )
        )
    return scrolled(heads, lines)


def _bar(share: float) -> Markup:
    return element("span", element("i", style=f"width:{share:.2%}"), class_="bar", aria_hidden="true")


def _healing(run: Run) -> Iterator[Markup]:
    known = {name: words.number(model.perplexity) for name, model in run.columns().items()}
    references = {name: known[name] for name in ("teacher", "chopped") if known.get(name, 0) > 0}
    charts = curves.charts(run.metrics, references)
    yield from _divergence(run)
    if not charts:
        yield element("p", "No training metrics were recorded.", class_="soft")
        return
    large, small = ([chart for chart in charts if chart.small is kind] for kind in (False, True))
    for kind, group in (("pair", large), ("small", small)):
        if group:
            yield element("div", *map(_chart, group), class_=kind)


def _chart(chart: curves.Chart) -> Markup:
    together = max(len(one.x) for one in chart.series) / curves.MOST_POINTS
    note = f"Each point is the mean of about {round(together)} records." if together > 1.5 else None
    return element("figure", curves.draw(chart), element("figcaption", note) if note and not chart.small else None)


def _divergence(run: Run) -> Iterator[Markup]:
    """Says that losses were not finite: a gap in a curve is easily overlooked."""
    losses = [line for line in run.metrics if "loss" in line]
    broken = [line for line in losses if math.isnan(words.number(line["loss"]))]
    if broken:
        first = broken[0].get("step", "unknown")
        text = f"{len(broken)} of {len(losses)} recorded losses are not finite, the first at step {first}."
        yield element("p", text, class_="alert")


def _samples(run: Run) -> Iterator[Markup]:
    yield element("p", "The same prompts, continued by each model.", class_="soft")
    for sample in run.samples:
        names = [name for name in figures.COLUMNS if name in sample]
        texts = [
            element(
                "div",
                element("h3", MODEL_TITLES[name]),
                element("p", str(sample[name]).strip(" "), class_="text"),
                class_=name,
            )
            for name in names
        ]
        prompt = element("p", element("strong", "Prompt "), element("span", sample.get("prompt", ""), class_="prompt"))
        yield element("div", prompt, element("div", *texts, class_="texts", dir="auto"), class_="sample")


def _provenance(run: Run) -> Iterator[Markup]:
    facts = {
        "Source": run.source,
        "Teacher": run.teacher or "the source",
        "Training": f"{tokens:,} tokens" if (tokens := run.trained()) else None,
        "Time": words.duration(run.seconds) if run.seconds else None,
    }
    share = run.closed()
    if share is not None:
        facts["Gap closed"] = f"{share:.1%} of the log-perplexity lost by chopping".replace("%", " %")
    pairs = [join(element("dt", name), element("dd", value)) for name, value in facts.items() if value]
    yield element("dl", *pairs)
    if run.config is not None:
        text = json.dumps(run.config, indent=2, default=str, ensure_ascii=False)
        yield element("details", element("summary", "The resolved config"), element("pre", text, tabindex=0))
