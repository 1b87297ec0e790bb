"""The whole flow on one GPU at a real size, as a user runs it: each stage's seconds and memory; SIGTERM and resuming.

    python benchmarks/gpu_run.py FOLDER --case 3b --tokenizer MODEL_FOLDER --text GLOB [--kill] [OVERRIDE ...]

FOLDER is made and needs room for the source, the student, the export and up to three checkpoints (12 bytes a parameter
of the student each). The source has the shapes of the case and random weights, drawn by chopjax's own initialiser; its
tokenizer is that of MODEL_FOLDER, whose words are the first of the vocabulary. `python -m chopjax.train` then runs with
the case's settings and the overrides, watched from within:

    seconds    of the stage
    GPU GB     most in use, by XLA's allocator: exact where it is the most so far, else sampled
    host GB    most memory of the process that no file stands behind, sampled
    mostly in  the functions of chopjax that the main thread was in, of those samples

With `--kill` a second run of the same plan and rows is told to end (SIGTERM) half-way through training and started
again, and its losses are held beside those of the first. The last line is JSON.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from watching import Watching, watch

ROOT = pathlib.Path(__file__).parent.parent
LLAMA_8B = json.loads((ROOT / "configs/sources/Llama-3.1-8B/config.json").read_text())
LLAMA_3B = LLAMA_8B | {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28}
LLAMA_3B |= {"num_attention_heads": 24, "tie_word_embeddings": True}
LLAMA_1B = LLAMA_3B | {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64}
TINY = LLAMA_3B | {"hidden_size": 192, "intermediate_size": 256, "num_hidden_layers": 3, "head_dim": 32}
TINY |= {"num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 49280}
WIDTH = "configs/llama31_8b_to_4b_width.py"
SHORT: dict[str, Any] = {"data.heldout_fraction": 0.1, "train.log_every": 5, "train.keep": 1, "train.keep_best": 0}
BATCHES: dict[str, Any] = {
    "data.length": 4096,
    "loss.chunk": 2048,
    "train.batch": 4,
    "train.steps": 30,
    "train.save_every": 15,
    "train.evaluate_every": 15,
    "evaluate.rows": 16,
    "evaluate.prompts": "('The heron stood in',)",
}
# The source's config, the recipe, and what it is run with.
CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "tiny": (
        TINY,
        "configs/base.py",
        SHORT
        | {"data.length": 128, "plan.embed": 144, "plan.mlp": 192, "score.rows": 16, "score.loss_rows": 8}
        | {"train.steps": 20, "train.batch": 4, "train.save_every": 10, "evaluate.rows": 8},
    ),
    "1b": (
        LLAMA_1B,
        "configs/base.py",
        SHORT | BATCHES | {"plan.embed": 1536, "plan.mlp": 6144},
    ),
    "3b": (
        LLAMA_3B,
        "configs/base.py",
        SHORT | BATCHES | {"plan.embed": 2304, "plan.mlp": 6144},
    ),
    "8b": (
        LLAMA_8B,
        WIDTH,
        SHORT
        | {"score.rows": 32, "score.batch": 4, "loss.chunk": 2048, "train.batch": 4, "train.accumulate": 2}
        | {"train.steps": 12, "train.warmup_steps": 4, "train.evaluate_every": 0, "train.save_every": 0}
        | {"evaluate.rows": 8, "evaluate.batch": 4},
    ),
}


def main() -> None:
    """Draws the source, runs the flow, and kills and resumes a second one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--case", choices=CASES, default="3b")
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--inside", choices=("draw", "watch"), help=argparse.SUPPRESS)
    options, overrides = parser.parse_known_args()
    options.overrides = overrides
    if options.inside == "draw":
        return draw(options)
    if options.inside == "watch":
        return watch(options.folder, options.overrides)
    options.folder.mkdir(parents=True)
    if status := child(options, "draw", options.folder).wait():
        raise SystemExit(f"drawing the source ended with {status}")
    found: dict[str, Any] = {"run": flow(options, "run")}
    if options.kill:
        shutil.rmtree(options.folder / "run/checkpoints")
        found |= killed(options)
    print(json.dumps(found))


def arguments(options: argparse.Namespace, name: str) -> list[str]:
    """What follows `python -m chopjax.train`."""
    _, recipe, fields = CASES[options.case]
    text = f"({{'path': {options.text!r}}},)"
    fields = fields | {"source": options.folder / "source", "workdir": options.folder / name, "data.sources": text}
    return ["--config", str(ROOT / recipe), *(f"--config.{field}={value}" for field, value in fields.items())]


def child(options: argparse.Namespace, inside: str, folder: pathlib.Path, given: tuple[str, ...] = ()) -> Any:
    """This script in a process of its own."""
    command = [sys.executable, __file__, str(folder), "--case", options.case, "--tokenizer", str(options.tokenizer)]
    place = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    command += ["--text", options.text, "--inside", inside, *given]
    return subprocess.Popen(command, env=os.environ | place)


def flow(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """The whole of `chopjax.train`, watched; a table of its stages."""
    began = time.monotonic()
    process = child(options, "watch", options.folder / name, (*arguments(options, name), *options.overrides))
    if process.wait():
        raise SystemExit(f"chopjax.train ended with {process.returncode}")
    found: dict[str, Any] = json.loads((options.folder / name / "watched.json").read_text())
    print(f"\n{'stage':12} {'seconds':>8} {'GPU GB':>7} {'host GB':>8}  mostly in")
    for stage, row in found.items():
        print(f"{stage:12} {row['seconds']:8.1f} {row['gpu']:7.2f} {row['host']:8.2f}  {', '.join(row['mostly'])}")
    print(f"{'all':12} {time.monotonic() - began:8.1f}\n", flush=True)
    return found


def killed(options: argparse.Namespace) -> dict[str, Any]:
    """Training that is told to end half-way, and goes on; then told to end once more, after its last step."""
    first, second = options.folder / "run", options.folder / "killed"
    steps = CASES[options.case][2]["train.steps"]
    same = (f"--config.plan.file={first / 'plan.json'}", f"--config.data.rows={first / 'rows'}")
    given = (*arguments(options, "killed"), *same, "--config.train.save_every=0", *options.overrides)
    found: dict[str, Any] = {}
    for name, until in (("killed", steps // 2), ("resumed", steps)):
        began, process = time.monotonic(), child(options, "watch", second, given)
        while process.poll() is None and max(losses(second), default=0) < until:
            time.sleep(0.1)
        reached = time.monotonic()
        process.send_signal(signal.SIGTERM)
        status = process.wait()
        found[name] = {"to_there": reached - began, "to_end": time.monotonic() - reached, "status": status}
        print(f"{name}: {found[name]}", flush=True)
    one, other = losses(first), losses(second)
    found["difference"] = {step: other[step] - loss for step, loss in one.items() if step in other}
    print(f"losses of the resumed run less those of the first, by step: {found['difference']}", flush=True)
    return found


def losses(workdir: pathlib.Path) -> dict[int, float]:
    """The loss at each logged step."""
    if not (workdir / "metrics.jsonl").exists():
        return {}
    lines = [line for line in (workdir / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    return {line["step"]: line["loss"] for line in map(json.loads, lines) if "loss" in line}


def draw(options: argparse.Namespace) -> None:
    """Writes the source: bfloat16, in shards, with the tokenizer of another model."""
    import jax

    from chopjax.hf.checkpoint import Checkpoint, open_config
    from chopjax.hf.writing import export_params
    from chopjax.models.decoder import init_params

    ids = json.loads((options.tokenizer / "config.json").read_text())
    shapes = options.folder / "shapes"
    shutil.copytree(options.tokenizer, shapes, ignore=shutil.ignore_patterns("*.safetensors"))
    words = {name: ids[name] for name in ("bos_token_id", "eos_token_id")}
    (shapes / "config.json").write_text(json.dumps(CASES[options.case][0] | words))
    folder, raw, family, config = open_config(shapes)
    half = jax.jit(lambda key: jax.tree.map(lambda leaf: leaf.astype("bfloat16"), init_params(config, key)))
    like = Checkpoint("drawn", folder, raw, family, config, "bfloat16", {})
    watching = Watching()
    with watching.stage("draw"):
        export_params(options.folder / "source", half(jax.random.key(0)), config, like, dtype="bfloat16")
    print(f"source: {watching.found['draw']}", flush=True)


if __name__ == "__main__":
    main()
