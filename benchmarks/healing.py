"""Held-out perplexity against training tokens for a chopped model that is healed by every kind of loss.

    python tools/prose.py runs/prose
    python benchmarks/healing.py MODEL_FOLDER runs/prose/*.jsonl [--workdir runs/healing] [--write docs/distillation.md]

The model is chopped to 24 layers, and in width to 65 % of its parameters; each student is healed by each of `LOSSES`,
on the same rows and from the same weights. Each is an ordinary run of chopjax in a folder of its own under the workdir,
and is then judged beside the uncut model on held-out rows that are the same for all. `--tokens` is rounded up to whole
steps. What was measured is kept, so a campaign that was cut off goes on, and the page can be written at any time from
what is there: `--only PATTERN ...` makes some runs alone, `--only none` no run. The last line is JSON.
"""

import argparse
import dataclasses
import fnmatch
import gc
import hashlib
import json
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from chopjax import platforms

platforms.skip_absent_tpus()

import grain  # noqa: E402
import healing_page  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
from healing_page import BATCH, Campaign, Healing  # noqa: E402

from chopjax import files  # noqa: E402
from chopjax.commands import cache_teacher, chop, heal, plan, settings, watch  # noqa: E402
from chopjax.commands.run import Run  # noqa: E402
from chopjax.commands.settings import Settings  # noqa: E402
from chopjax.data.target_records import DIGEST_BYTES, encode_top  # noqa: E402
from chopjax.data.teacher_cache import CachedRows, shard_path  # noqa: E402
from chopjax.models.parameters import count  # noqa: E402

Changes = dict[str, Any]

CHOPS: dict[str, Changes] = {
    "layers": {"plan.layers_by": "angular", "plan.remove_layers": 6, "plan.widths_by": "activation"},
    "width": {"plan.widths_by": "activation", "plan.embed": 440, "plan.mlp": 1152},
}
ONLINE: dict[str, Changes] = {
    "next-token": {"loss.next_token": 1.0, "loss.kl": 0.0},
    "kl": {},
    "kl+hidden": {"hidden.block_output": 1.0, "hidden.dynamic": True},
    "on-policy": {"on_policy.share": 0.25},
}
TOP, MOST = (16, 64, 256), "top-256"
CACHED: dict[str, Changes] = {
    **{f"top-{k}": {"cache.kind": "top_k", "cache.k": k} for k in TOP},
    **{f"samples-{n}": {"cache.kind": "samples", "cache.samples": n} for n in (16, 50)},
}
LOSSES = ONLINE | CACHED
# In the order in which they are made: what is compared for both students, other caches, other seeds.
EVERYWHERE = ("next-token", "kl", "kl+hidden", "top-64", "samples-50", "on-policy")
WANTED = (
    *(Healing(student, loss) for student in CHOPS for loss in EVERYWHERE),
    *(Healing("layers", loss) for loss in CACHED if loss not in EVERYWHERE),
    *(Healing(student, loss, seed) for seed in (1, 2) for student in CHOPS for loss in ("kl", "next-token")),
)
STEP_SECONDS = 16.0  # of two cores, until a run was measured


def main() -> None:
    """Makes the runs that are not there yet, and writes the page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--workdir", default="runs/healing")
    parser.add_argument("--tokens", type=int, default=40000, help="training tokens of each run")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--heldout", type=int, default=3, help="documents of each kind of text that are held out")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", default=["*"], help="such as 'layers/kl-*'")
    parser.add_argument("--write", help="a Markdown file for the page; the plot goes beside it as SVG")
    options = parser.parse_args()
    root = Path(options.workdir)
    campaign = Campaign(root, options.tokens, options.length, options.learning_rate, CHOPS, WANTED)
    remember(options, parser.error)
    wanted = [one for one in WANTED if any(fnmatch.fnmatch(one.name, only) for only in options.only)]
    left = [one for one in wanted if not (campaign.folder(one) / healing_page.RESULT).exists()]
    print(f"healing: {len(left)} of {len(wanted)} runs to make, about {hours(campaign, left):.1f} h", flush=True)
    if left:
        teacher = begin(campaign, options)
        for number, one in enumerate(left, 1):
            print(f"healing: {one.name}, {number} of {len(left)}", flush=True)
            make(campaign, one, teacher)
            jax.clear_caches()
            gc.collect()
            print(f"healing: about {hours(campaign, left[number:]):.1f} h left", flush=True)
            healing_page.write(campaign, options.write)
    print(healing_page.write(campaign, options.write))
    print(json.dumps(healing_page.figures(campaign)))


def remember(options: argparse.Namespace, refuse: Callable[[str], Any]) -> None:
    """Keeps what all runs of a workdir share, and refuses a workdir that was begun otherwise."""
    file = Path(options.workdir) / "campaign.json"
    shared = {name: value for name, value in vars(options).items() if name not in ("workdir", "only", "write")}
    found = json.loads(file.read_text()) if file.exists() else shared
    if changed := [name for name, value in shared.items() if found.get(name) != value]:
        refuse(f"{options.workdir} was begun with another {changed[0]}: {found.get(changed[0])}; name another workdir")
    files.write_json(file, shared)


def hours(campaign: Campaign, left: list[Healing]) -> float:
    """A guess at the time that runs take, from those that were made."""
    found = [healing_page.result(campaign, one) for one in WANTED]
    seconds = [one["seconds"] for one in found if one]
    # A judgement of the held-out rows takes about as long as a step.
    each = statistics.mean(seconds) if seconds else STEP_SECONDS * (campaign.steps + len(campaign.points) + 4)
    return len(left) * each / 3600


def begin(campaign: Campaign, options: argparse.Namespace) -> Any:
    """Texts, rows, scores, plans and students, each made once, and what the models are before any training.

    Returns:
        the teacher's parameters.
    """
    texts = split_texts(campaign, options)
    sources = tuple({"path": str(path), "name": path.stem, "heldout": path.stem == "heldout"} for path in texts)
    first = next(iter(CHOPS))
    teacher = None
    for student, changes in CHOPS.items():
        chosen = common(campaign, options.model, campaign.chopped(student)) | changes
        if student == first:
            chosen |= {"data.sources": sources, "data.eos_token": "<|endoftext|>"}
        else:
            scores = campaign.chopped(first) / "scores" / "scores.safetensors"
            chosen |= {"data.rows": str(campaign.chopped(first) / "rows"), "score.files": (str(scores),)}
        run = started(settings.from_mapping(settings.nested(chosen)))
        plan.make(run)
        chop.make(run)
        teacher = run.load_teacher() if teacher is None else teacher
        judge(run, campaign.chopped(student) / "judged.json", run.student.config, run.load(run.student), teacher)
        judge(run, campaign.root / "dense.json", run.source.config, teacher, teacher)
    return teacher


def split_texts(campaign: Campaign, options: argparse.Namespace) -> list[Path]:
    """One file of each kind of text to train on, and one with some documents of each kind, cut short, to judge by."""
    folder, heldout, paths = campaign.root / "texts", [], []
    for text in map(Path, options.texts):
        lines = text.read_text(encoding="utf-8").splitlines()
        lines.sort(key=lambda line: hashlib.sha256(line.encode()).digest())
        heldout += [json.loads(line)["text"][:1500] for line in lines[: options.heldout]]
        paths.append(folder / text.name)
        files.write_text(paths[-1], "\n".join(lines[options.heldout :]) + "\n")
    paths.append(folder / "heldout.jsonl")
    files.write_text(paths[-1], "".join(json.dumps({"text": text}) + "\n" for text in heldout))
    return paths


def common(campaign: Campaign, model: str, workdir: Path) -> Changes:
    """The settings of all runs, dotted."""
    return {
        "source": model,
        "workdir": str(workdir),
        "data.length": campaign.length,
        "data.heldout_fraction": 0.0,
        "score.rows": 32,
        "train.steps": campaign.steps,
        "train.batch": BATCH,
        "train.learning_rate": campaign.learning_rate,
        "train.warmup_steps": max(1, campaign.steps // 10),
        "train.weight_decay": 0.0,
        "train.compute_dtype": "float32",
        "train.remat": "dots",
        "train.log_every": 1,
        "train.evaluate_every": campaign.every,
        "train.save_every": max(1, campaign.steps // 2),
        "train.keep": 1,
        "train.keep_best": 0,
        "train.tensorboard": False,
        "evaluate.batch": BATCH,
        "on_policy.prompt": campaign.length // 2,
    }


def started(chosen: Settings) -> Run:
    """A run whose workdir is its own."""
    run = Run(chosen)
    run.begin()
    return run


def make(campaign: Campaign, one: Healing, teacher: Any) -> None:
    """Heals, judges what came of it beside the uncut model, and then drops its weights."""
    base = json.loads((campaign.chopped(one.student) / "config.json").read_text())
    rows = campaign.chopped(next(iter(CHOPS))) / "rows"
    chosen = common(campaign, base["source"], campaign.folder(one)) | LOSSES[one.loss] | {"seed": one.seed}
    chosen |= {"data.rows": str(rows), "plan.file": str(campaign.chopped(one.student) / "plan.json")}
    if one.loss in CACHED:
        chosen["cache.path"] = str(cache(campaign, one.loss, chosen))
    run = started(settings.from_mapping(settings.nested(chosen)))
    began = time.monotonic()
    plan.make(run)
    chop.make(run)
    heal.make(run)
    _, params = heal.trained_params(run)
    spent = {"seconds": time.monotonic() - began}
    judge(run, campaign.folder(one) / healing_page.RESULT, run.student.config, params, teacher, spent)
    for weights in (heal.CHECKPOINTS, "student"):
        shutil.rmtree(run.workdir / weights)


def judge(run: Run, file: Path, config: Any, params: Any, teacher: Any, more: Mapping[str, Any] | None = None) -> None:
    """Held-out loss, perplexity and KL to the uncut model, and the number of parameters, to a file; once."""
    if not file.exists():
        found = watch.heldout(run, config, params, teacher)
        files.write_json(file, dataclasses.asdict(found) | {"parameters": count(config), **(more or {})})


def cache(campaign: Campaign, loss: str, chosen: Changes) -> Path:
    """The folder of the teacher's targets for a loss; of the most probable tokens there is one cache for all k."""
    name = MOST if CACHED[loss]["cache.kind"] == "top_k" else loss
    folder = campaign.root / "caches" / name
    run = started(settings.from_mapping(settings.nested(chosen | CACHED[name] | {"workdir": str(folder)})))
    cache_teacher.make(run)
    for size in (name,) if name != MOST else [f"top-{k}" for k in TOP]:
        file = campaign.size_of_cache(size)
        if not file.exists():
            files.write_json(file, {"bytes_per_token": bytes_per_token(run, CACHED[size])})
    return cache_teacher.root(run)


def bytes_per_token(run: Run, wanted: Changes) -> float:
    """Size of the records of training rows over their tokens; as if made with `wanted`, of a cache with more."""
    run = Run(run.settings.changed(wanted | {"cache.path": str(cache_teacher.root(run))}))
    total = tokens = 0
    for rows, _ in cache_teacher.mixture(run):
        assert isinstance(rows, CachedRows), "the mixture of a cached teacher has targets"
        shards = sorted(map(str, rows.cache.glob(f"*{shard_path(rows.cache, 0).suffix}")))
        records = grain.sources.ArrayRecordDataSource(shards)
        for index in range(len(rows)):
            if record := records[index]:  # empty where no step reads the row
                total += len(encoded(rows[index]) if wanted["cache.kind"] == "top_k" else record)
                tokens += rows.info.length
    return total / tokens


def encoded(row: Mapping[str, np.ndarray]) -> bytes:
    """The record of a row of the most probable tokens."""
    kept = row["target_ids"][:, 0] >= 0
    with np.errstate(divide="ignore"):
        probs, tail = np.log(row["target_probs"]), np.log(row["target_tail"])
    return encode_top(bytes(DIGEST_BYTES), kept, row["target_ids"], probs, tail)


if __name__ == "__main__":
    main()
