"""The page of `benchmarks/healing.py`: tables and a plot, from whatever the campaign has left in its workdir so far."""

import dataclasses
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chopjax import files
from chopjax.train import metrics

BATCH = 8
POINTS = 5
RESULT = "healed.json"
TITLES = {"layers": "24 of 30 layers", "width": "440 of 576 channels, 1152 of 1536 neurons"}
LABELS = {
    "next-token": "next token",
    "kl": "KL",
    "kl+hidden": "KL + hidden",
    "top-64": "cached, top 64",
    "samples-50": "cached, 50 samples",
    "on-policy": "KL, a quarter on-policy",
}
CACHES = {
    "top-16": "top 16",
    "top-64": "top 64",
    "top-256": "top 256",
    "samples-16": "16 samples",
    "samples-50": "50 samples",
}
# Colours told apart by most eyes (Okabe and Ito), and dashes for the rest.
LOOKS = {
    "next-token": ("#000000", "-"),
    "kl": ("#0072b2", "-"),
    "kl+hidden": ("#009e73", "-"),
    "top-64": ("#d55e00", "--"),
    "samples-50": ("#e69f00", "--"),
    "on-policy": ("#cc79a7", "-."),
}


@dataclasses.dataclass(frozen=True)
class Healing:
    """One run: which student, healed by which loss, with which order of the rows."""

    student: str
    loss: str
    seed: int = 0

    @property
    def name(self) -> str:
        """As on the command line, and of its folder."""
        return f"{self.student}/{self.loss}-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Campaign:
    """What all runs share, and where they lie."""

    root: Path
    tokens: int
    length: int
    learning_rate: float
    students: Iterable[str]
    wanted: Sequence[Healing]

    @property
    def steps(self) -> int:
        """Of each run."""
        return math.ceil(self.tokens / (BATCH * self.length))

    @property
    def every(self) -> int:
        """Steps between two judgements on the held-out rows."""
        return math.ceil(self.steps / POINTS)

    @property
    def points(self) -> list[int]:
        """Steps after which a student is judged."""
        return [*range(self.every, self.steps, self.every), self.steps]

    def folder(self, one: Healing) -> Path:
        """Workdir of a run."""
        return self.root / one.name

    def chopped(self, student: str) -> Path:
        """Workdir of the run that made a student's plan."""
        return self.root / student / "chopped"

    def size_of_cache(self, name: str) -> Path:
        """The file that says how large a cache is."""
        return self.root / "caches" / f"{name}.json"


def read(file: Path) -> dict[str, Any] | None:
    """What a file holds, if it is there."""
    return json.loads(file.read_text()) if file.exists() else None


def result(campaign: Campaign, one: Healing) -> dict[str, Any] | None:
    """`nll`, `perplexity` and `kl` on the held-out rows after a run; None before its end."""
    return read(campaign.folder(one) / RESULT)


def results(campaign: Campaign, student: str, loss: str) -> list[dict[str, Any]]:
    """Those of all seeds that are there."""
    same = [one for one in campaign.wanted if (one.student, one.loss) == (student, loss)]
    return [found for one in same if (found := result(campaign, one))]


def curves(campaign: Campaign, student: str, loss: str) -> dict[int, list[float]]:
    """Held-out perplexity of each seed of the runs that are done, by training tokens."""
    found: dict[int, list[float]] = {}
    for one in campaign.wanted:
        if (one.student, one.loss) != (student, loss) or result(campaign, one) is None:
            continue
        for line in metrics.read(campaign.folder(one) / "metrics.jsonl"):
            if "heldout_perplexity" in line:
                found.setdefault(line["tokens"], []).append(line["heldout_perplexity"])
    return found


def write(campaign: Campaign, page: str | None) -> str:
    """The page as text; written, with the plot beside it, if a file is named."""
    plot = None if page is None else Path(page).with_suffix(".svg")
    text = "\n".join(lines(campaign, plot)) + "\n"
    if page is not None and plot is not None:
        files.write_text(page, text)
        files.write_text(plot, draw(campaign))
    return text


def lines(campaign: Campaign, plot: Path | None) -> list[str]:
    """The page, line by line."""
    dense = read(campaign.root / "dense.json")
    text = ["# Healing by every loss", ""]
    if dense is not None:
        text += [
            f"A model of {dense['parameters']:,} parameters, perplexity **{dense['perplexity']:.2f}**, chopped in two "
            f"ways and healed by each loss with {campaign.steps} steps of {BATCH} rows of {campaign.length} tokens: "
            f"AdamW, learning rate {campaign.learning_rate:g} falling along a cosine, float32. All runs of a student "
            f"begin with the same weights and see the same rows; the teacher is the uncut model. Judged on "
            f"{dense['tokens']:,} tokens of other documents. KL is that from the uncut model, on the same tokens. "
            f"± is the standard deviation over seeds, that is, orders of the rows, where there are several. "
            "Made by `make healing`; – where a run is not made yet.",
            "",
        ]
    text += [f"![Held-out perplexity against training tokens]({plot.name})", ""] if plot else []
    for student in campaign.students:
        text += table(campaign, student)
    return text + cache_table(campaign, next(iter(campaign.students)))


def table(campaign: Campaign, student: str) -> list[str]:
    """Perplexities of one student, a row a loss."""
    at = [step * BATCH * campaign.length for step in campaign.points]
    chopped = read(campaign.chopped(student) / "judged.json")
    heads = ["loss", "seeds", *(f"{tokens / 1000:.0f}k tokens" for tokens in at), "KL"]
    text = [f"## {TITLES[student]}", ""]
    if chopped:
        before = f"perplexity {chopped['perplexity']:.2f} and KL {chopped['kl']:.3f} before any training"
        text += [f"{chopped['parameters']:,} parameters; {before}.", ""]
    text += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for loss, label in LABELS.items():
        found, curve = results(campaign, student, loss), curves(campaign, student, loss)
        cells = [
            *(said(curve.get(tokens, []), 2) for tokens in at),
            said([one["kl"] for one in found], 3),
        ]
        text.append(f"| {label} | {len(found) or '–'} | {' | '.join(cells)} |")
    return [*text, ""]


def cache_table(campaign: Campaign, student: str) -> list[str]:
    """What each cache takes on disk, and how far its student is behind one whose teacher ran beside it."""
    online = result(campaign, Healing(student, "kl"))
    heads = ["kept of the teacher", "bytes a token", "held-out loss", "KL"]
    text = [
        "## A teacher that ran before",
        "",
        f"The student of {TITLES[student]}: by how much its held-out loss and its KL, in nats a token, are above those "
        f"of the one whose teacher ran beside it{of_online(online)}, after the same steps on the same rows. Bytes are "
        "those of the records on disk.",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for name, label in CACHES.items():
        size, found = read(campaign.size_of_cache(name)), result(campaign, Healing(student, name))
        gaps = [f"{found[key] - online[key]:+.4f}" if found and online else "–" for key in ("nll", "kl")]
        text.append(f"| {label} | {size['bytes_per_token']:.0f} | " if size else f"| {label} | – | ")
        text[-1] += f"{' | '.join(gaps)} |"
    return text


def of_online(online: Mapping[str, Any] | None) -> str:
    """The figures that others are compared with."""
    return f" (loss {online['nll']:.4f}, KL {online['kl']:.4f})" if online else ""


def said(values: Sequence[float], digits: int) -> str:
    """A mean, with the standard deviation if there is one; a dash for nothing."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def figures(campaign: Campaign) -> dict[str, Any]:
    """All that was measured, for machines."""
    made = [(one, found) for one in campaign.wanted if (found := result(campaign, one))]
    rows = [
        {"name": one.name, "curve": curves_of(campaign, one)} | {key: found[key] for key in ("nll", "perplexity", "kl")}
        for one, found in made
    ]
    sizes = {name: size["bytes_per_token"] for name in CACHES if (size := read(campaign.size_of_cache(name)))}
    return {"dense": read(campaign.root / "dense.json"), "bytes_per_token": sizes, "rows": rows}


def curves_of(campaign: Campaign, one: Healing) -> dict[int, float]:
    """Held-out perplexity of one run by training tokens."""
    alone = dataclasses.replace(campaign, wanted=[one])
    return {tokens: values[0] for tokens, values in curves(alone, one.student, one.loss).items()}


def draw(campaign: Campaign) -> str:
    """Held-out perplexity against tokens as SVG, a panel a student; the same bytes for the same numbers."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "healing", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(9, 4), layout="constrained", facecolor="white")
        panels = figure.subplots(1, len(list(campaign.students)))
        for axes, student in zip(panels, campaign.students, strict=True):
            panel(axes, campaign, student)
        handles, labels = panels[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def panel(axes: Axes, campaign: Campaign, student: str) -> None:
    """One student's curves; several seeds as their mean, with a band from the least to the most."""
    dense = read(campaign.root / "dense.json")
    for loss, label in LABELS.items():
        curve = sorted(curves(campaign, student, loss).items())
        if not curve:
            continue
        colour, dash = LOOKS[loss]
        x, means = [tokens / 1000 for tokens, _ in curve], [statistics.mean(values) for _, values in curve]
        axes.plot(x, means, dash, color=colour, label=label, marker=".", linewidth=1.3)
        axes.fill_between(
            x, [min(v) for _, v in curve], [max(v) for _, v in curve], color=colour, alpha=0.15, linewidth=0
        )
    if dense:
        axes.axhline(dense["perplexity"], color="#777777", linestyle=":", linewidth=1, label="uncut")
    axes.set(title=TITLES[student], xlabel="training tokens, thousands", ylabel="held-out perplexity", yscale="log")
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_formatter("{x:.0f}")
    axes.grid(True, which="both", axis="y", linewidth=0.3)


if __name__ == "__main__":
    raise SystemExit("run benchmarks/healing.py --only none to write the page")
