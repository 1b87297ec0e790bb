"""Held-out perplexity after a cut by every criterion, before any training.

    python tools/prose.py runs/prose
    python benchmarks/criteria.py MODEL_FOLDER runs/prose/*.jsonl [--workdir runs/criteria] [--write docs/criteria.md]

Each text file is one kind of text, a share of whose documents is held out. Criteria choose on calibration rows of the
rest, mixed evenly, and are judged on the same number of held-out rows of each kind. Layers go by every criterion in
four numbers; widths (`embed` and `mlp` in the same proportion) by every ranking and aggregation to three sizes.

What was measured is kept in the workdir, so a run that was cut off goes on. `tied` is within two standard errors of the
best by a paired bootstrap over batches of held-out rows. The last line is JSON.
"""

import argparse
import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chopjax import files
from chopjax.chop.apply import chop_config, chop_params
from chopjax.chop.config import LayersBy, PlanConfig
from chopjax.chop.plan import Plan
from chopjax.chop.refit import refit
from chopjax.commands import calibration, choose, evidence, score, settings
from chopjax.commands.refit import asked
from chopjax.commands.run import Run
from chopjax.data.batches import one_pass
from chopjax.evaluate.perplexity import batch_sums
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Params
from chopjax.models.parameters import count, declare
from chopjax.sharding.mesh import place_batch

REMOVED = (3, 6, 10, 15)
SHARES = (0.90, 0.80, 0.65)
LAYOUTS: tuple[LayersBy, ...] = ("max_gap", "input", "output", "middle", "both", "last")
MEASURED: tuple[LayersBy, ...] = (
    "best",
    "block_importance",
    "angular",
    "angular_last_token",
    "leave_one_out",
    "leave_block_out",
    "greedy",
)
OTHERS: tuple[Any, ...] = ("taylor", "magnitude")
REFITTED = (6, 0.80)  # where the refit of the default plan is measured too
AGGREGATIONS = ("mean", "l2", "var")
DEFAULT = PlanConfig()
RESAMPLES = 2000
BATCH = 2


def main() -> None:
    """Measures what is not measured yet and prints, or writes, the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--workdir", default="runs/criteria")
    parser.add_argument("--rows", type=int, default=64, help="calibration rows")
    parser.add_argument("--loss-rows", type=int, default=16, help="those on which losses without layers are measured")
    parser.add_argument("--judged", type=int, default=22, help="held-out rows of each kind")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--write", help="a Markdown file for the table")
    options = parser.parse_args()
    run = start(options)
    judge = Judge(run, options.judged)
    evidence.layers(run, PlanConfig(layers_by="greedy", remove_layers=max(REMOVED)))  # begins all shorter removals
    rows = []
    for wanted, row in wishes(run):
        plan = plan_of(run, wanted)
        losses = judge.losses(plan)
        rows.append(row | {"losses": losses, "parameters": judge.parameters(plan)})
        print(f"{row['axis']:6} {row['kept']:>9} {row['criterion']:24} {judge.perplexity(losses):10.2f}", flush=True)
    mark(rows, judge)
    text = table(rows, judge, run, options)
    if options.write:
        files.write_text(options.write, text)
    print(text)
    kept = ("axis", "criterion", "kept", "perplexity", "default", "tied")
    print(json.dumps({"dense": judge.dense, "rows": [{name: row[name] for name in kept} for row in rows]}))


def start(options: argparse.Namespace) -> Run:
    """A run on one device, with everything in float32, whose sources are the kinds of text."""
    sources = tuple({"path": text, "name": Path(text).stem} for text in options.texts)
    chosen = {
        "source": options.model,
        "workdir": options.workdir,
        "data": {"sources": sources, "length": options.length, "heldout_fraction": 0.3},
        "score": {"rows": options.rows, "loss_rows": options.loss_rows, "batch": 4},
        "evaluate": {"batch": BATCH},
        "train": {"compute_dtype": "float32", "batch": 4},
        "plan": {"layers_by": "leave_one_out", "remove_layers": 1, "widths_by": "taylor"},
    }
    run = Run(settings.from_mapping(chosen))
    run.begin()
    score.make(run)  # all passes: activations, Taylor, and the loss without each layer
    return run


def plan_of(run: Run, wanted: PlanConfig) -> Plan:
    """The plan, from calibration rows alone. Losses without blocks are kept in workdirs of their own."""
    if wanted.layers_by == "leave_block_out":
        workdir = run.workdir / f"blocks-{wanted.remove_layers}"
        run = Run(run.settings.changed({"workdir": str(workdir), "data.rows": str(run.data.folder)}))
        run.begin()
    return choose.plan_for(run, wanted)


def wishes(run: Run) -> Iterator[tuple[PlanConfig, dict[str, Any]]]:
    """Every plan of the table with its row; `kept` says layers, or the share of the parameters."""
    whole = run.source.config
    for share in SHARES:
        embed, mlp = widths(run, share)
        for by, (batch, sequence) in rankings():
            wanted = PlanConfig(widths_by=by, over_batch=batch, over_sequence=sequence, embed=embed, mlp=mlp)
            name = f"activation {batch}, {sequence}" if by == "activation" else by
            row: dict[str, Any] = {"axis": "width", "criterion": name, "kept": f"{embed} x {mlp}", "share": share}
            yield wanted, row | {"default": by == DEFAULT.widths_by}
            if by == DEFAULT.widths_by and share == REFITTED[1]:
                yield refitted(wanted, row)
    for removed in REMOVED:
        for by in (*LAYOUTS, *MEASURED, *OTHERS, "random"):
            wanted = PlanConfig(layers_by=by, remove_layers=removed)
            row = {"axis": "layers", "criterion": by, "kept": f"{whole.layers - removed}"}
            yield wanted, row | {"default": by == DEFAULT.layers_by}
            if by == DEFAULT.layers_by and removed == REFITTED[0]:
                yield refitted(wanted, row)


def refitted(wanted: PlanConfig, row: dict[str, Any]) -> tuple[PlanConfig, dict[str, Any]]:
    """The same plan with its projections fitted anew, which is beside the question of which criterion is best."""
    refit_row = row | {"criterion": f"{row['criterion']} + refit", "default": False, "rival": False}
    return dataclasses.replace(wanted, refit=True), refit_row


def rankings() -> Iterator[tuple[Any, tuple[Any, Any]]]:
    """Each way to rank widths, with its aggregations over batch and sequence."""
    yield from (("activation", pair) for pair in itertools.product(AGGREGATIONS, AGGREGATIONS))
    yield from ((by, (DEFAULT.over_batch, DEFAULT.over_sequence)) for by in ("best", *OTHERS, "random"))


def widths(run: Run, share: float) -> tuple[int, int]:
    """`embed` and `mlp` in the source's proportion, multiples of 8 and 32, nearest to a share of the parameters."""
    whole = run.source.config

    def sizes(scale: float) -> tuple[int, int]:
        return 8 * round(whole.embed * scale / 8), 32 * round(whole.mlp * scale / 32)

    def missed(scale: float) -> float:
        embed, mlp = sizes(scale)
        return abs(count(dataclasses.replace(whole, embed=embed, mlp=mlp)) / count(whole) - share)

    return sizes(min(np.linspace(0.5, 1, 501), key=missed))


class Judge:
    """The uncut model and the held-out rows; losses by batch, each plan measured once and remembered on disk."""

    def __init__(self, run: Run, rows: int) -> None:
        self._run, self._params = run, run.load(run.source)
        self._leaves = declare(run.source.config)
        self._file = run.workdir / "judged.json"
        self._known = json.loads(self._file.read_text()) if self._file.exists() else {}
        kinds = run.data.heldout().values()
        self._batches = [batch for kind in kinds for batch in one_pass([kind], BATCH, limit=rows)]
        self._rows = files.digest({"rows": [batch["tokens"].tolist() for batch in self._batches]})
        self.tokens = np.asarray([self._count(batch) for batch in self._batches])
        self.dense = self.perplexity(self.losses(Plan(run.source.config.sizes, {})))

    def losses(self, plan: Plan) -> np.ndarray:
        """Summed next-token loss of each batch, of the model cut by `plan`."""
        told = json.loads(plan.to_json())
        edits = {"edits": told["edits"]} if "edits" in told else {}
        key = files.digest({"plan": told["kept"], "rows": self._rows} | edits)
        if key not in self._known:
            config, params = self._student(plan)
            options = {"chunk": 512, "vocab_tokens": self._run.tokenizer.vocab}
            sums = [
                batch_sums(config, params, place_batch(self._run.mesh, batch), **options) for batch in self._batches
            ]
            self._known[key] = [float(one["next_token"]) for one in sums]
            files.write_json(self._file, self._known)
        return np.asarray(self._known[key])

    def _student(self, plan: Plan) -> tuple[ModelConfig, Params]:
        source = self._run.source.config, self._params
        config, params = chop_config(source[0], plan), chop_params(plan, self._leaves, self._params)
        if fit := asked(plan):
            batches = [calibration.rows_of(batch) for batch in calibration.calibration(self._run, fit.rows)]
            params = refit(source, (config, params), plan, batches, fit.ridge).params
        return config, params

    def perplexity(self, losses: np.ndarray) -> float:
        """Over all tokens."""
        return math.exp(min(losses.sum() / self.tokens.sum(), 700))

    def parameters(self, plan: Plan) -> float:
        """The student's share of the source's parameters."""
        return count(chop_config(self._run.source.config, plan)) / count(self._run.source.config)

    def standard_error(self, one: np.ndarray, other: np.ndarray) -> float:
        """Of the difference of mean losses, by a paired bootstrap over batches."""
        draws = np.random.default_rng(0).integers(len(one), size=(RESAMPLES, len(one)))
        return float(np.std((one - other)[draws].sum(1) / self.tokens[draws].sum(1)))

    @staticmethod
    def _count(batch: dict[str, np.ndarray]) -> int:
        segments = batch["segment_ids"]
        return int(((segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)).sum())


def mark(rows: list[dict[str, Any]], judge: Judge) -> None:
    """Adds each row's perplexity and whether it is tied with the best of its size."""
    for row in rows:
        same = [other for other in rows if (other["axis"], other["kept"]) == (row["axis"], row["kept"])]
        rivals = [other for other in same if other.get("rival", True)]
        best = min(rivals, key=lambda other: other["losses"].sum())
        behind = (row["losses"] - best["losses"]).sum() / judge.tokens.sum()
        row["perplexity"] = judge.perplexity(row["losses"])
        tied = behind <= 2 * judge.standard_error(row["losses"], best["losses"])
        row["tied"] = bool(tied and row.get("rival", True))


def table(rows: list[dict[str, Any]], judge: Judge, run: Run, options: argparse.Namespace) -> str:
    """The page: a table for layers and one for widths, the best of each size and its ties in bold."""
    text = [
        "# What each criterion loses, before any training",
        "",
        f"`{run.source.config.layers}` layers, `{count(run.source.config):,}` parameters, perplexity "
        f"**{judge.dense:.2f}** uncut. Criteria saw {options.rows} rows of {options.length} tokens (those that measure "
        f"losses {options.loss_rows} of them; `best` tries its contenders on {options.rows} more); judged on "
        f"{judge.tokens.sum():,} other tokens from {', '.join(Path(text).stem for text in options.texts)}.",
        "Bold: the best criterion of its column, or within two standard errors of it (paired bootstrap over batches). "
        "★: chopjax's default. Made by `make criteria`.",
    ]
    for axis, title in (("layers", "Layers left"), ("width", "Channels x neurons left (share of parameters)")):
        mine = [row for row in rows if row["axis"] == axis]
        columns = list(dict.fromkeys(row["kept"] for row in mine))
        share = {row["kept"]: f" ({row['parameters']:.0%})" if axis == "width" else "" for row in mine}
        heads = [f"{kept}{share[kept]}" for kept in columns]
        text += ["", f"## {title}", "", f"| criterion | {' | '.join(heads)} |", "|---" * (len(columns) + 1) + "|"]
        for name in dict.fromkeys(row["criterion"] for row in mine):
            cells = {row["kept"]: row for row in mine if row["criterion"] == name}
            star = " ★" if next(iter(cells.values()))["default"] else ""
            text.append(f"| {name}{star} | " + " | ".join(cell(cells.get(kept)) for kept in columns) + " |")
    return "\n".join(text) + "\n"


def cell(row: dict[str, Any] | None) -> str:
    """A perplexity in four digits; a dash where it was not measured."""
    if row is None:
        return "–"
    value = row["perplexity"]
    said = f"{value:.1f}" if value < 1e4 else f"{value:.1e}"
    return f"**{said}**" if row["tied"] else said


if __name__ == "__main__":
    main()
