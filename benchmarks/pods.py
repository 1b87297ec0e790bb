"""Memory, cycles and traffic of training steps on TPU slices, compiled without a TPU.

    python benchmarks/pods.py [--only NAME ...] [--dump FOLDER] [--write docs/benchmarks.md] [--peer]

Sequences of 4096 tokens, full remat, float32 master weights and AdamW, bfloat16 gradients, plain FSDP over all chips,
one process; and the recipes in configs/ as they stand, each on the pod that it is set for. A step of this size takes 2
to 8 minutes of two cores to compile; what was compiled is kept in --workdir by a digest of the program, so a table that
was cut off goes on. Needs libtpu: pip install 'chopjax[tpu]'. With --peer MaxText's own steps are compiled instead,
where MaxText is installed (`pods_peer.py`). Per chip:

    peak_gb           memory_analysis().peak_memory_in_bytes / 1e9
    cycles            the compiler's estimates, summed over the module with loop trip counts; attention's kernels have
                      none, nor has a program that it cannot print
    wire_gb           (n - 1) / n of the bytes of each collective over n chips, all-reduce twice
    tflop             of matrix products, with what remat makes again; of chopjax's steps with attention's kernels
    compile_seconds   wall time of XLA

The last line is JSON.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import runpy
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import pods_peer  # noqa: E402

from chopjax import files  # noqa: E402
from chopjax.aot import cache, topology  # noqa: E402
from chopjax.aot.compiling import Costs  # noqa: E402
from chopjax.aot.estimate import Estimate  # noqa: E402
from chopjax.aot.kernels import splash_flops  # noqa: E402
from chopjax.aot.steps import TrainingStep  # noqa: E402
from chopjax.commands import settings  # noqa: E402
from chopjax.commands.foreseen import foresee  # noqa: E402
from chopjax.distill.config import LossConfig  # noqa: E402
from chopjax.hf.checkpoint import open_config  # noqa: E402
from chopjax.models.config import ModelConfig  # noqa: E402
from chopjax.models.parameters import count  # noqa: E402

Result = dict[str, str | float | None]
LENGTH = 4096
CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"


def of(name: str, **sizes: Any) -> ModelConfig:
    """A source of the recipes, or a relative of it that differs in sizes."""
    return dataclasses.replace(open_config(CONFIGS / "sources" / name)[3], kind_of_layer=(), **sizes)


LLAMA31_8B, QWEN3_8B = of("Llama-3.1-8B"), of("Qwen3-8B")
WIDTH_4B = of("Llama-3.1-8B", embed=3072, mlp=9216)
LLAMA31_70B = of("Llama-3.1-8B", layers=80, embed=8192, q_per_kv=8, mlp=28672)
QWEN3_32B = of("Qwen3-8B", layers=64, embed=5120, q_per_kv=8, mlp=25600)  # the two share a tokenizer
# Tokens of one chip whose logits exist at one time.
CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: `rows` sequences a chip of a slice; and what MaxText 0.2.5's step takes there."""

    topology: str
    student: ModelConfig
    teacher: ModelConfig | None = None
    rows: int = 1
    maxtext: str = ""

    def step(self, chips: int) -> TrainingStep:
        """The step, by what its program depends on."""
        loss = LossConfig(
            next_token=float(self.teacher is None), kl=float(self.teacher is not None), chunk=CHUNK * chips
        )
        return TrainingStep(self.student, chips * self.rows, LENGTH, loss, self.teacher)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A shipped recipe on the pod that it is set for: `phase` of it, or the training of its student."""

    topology: str
    source: str
    config: str
    phase: str = ""

    def step(self, chips: int) -> TrainingStep:
        """The step, as a run would make it."""
        chosen = settings.from_mapping(runpy.run_path(str(CONFIGS / f"{self.config}.py"))["get_config"]())
        found = foresee(chosen.changed({"source": str(CONFIGS / "sources" / self.source), "workdir": ""}))
        return found.before()[self.phase] if self.phase else found.training()


ROWS: dict[str, Row | Recipe] = {
    "4.5b": Row("v5e:4x4", WIDTH_4B),
    "8b": Row("v5e:4x4", LLAMA31_8B, maxtext="11.36 GB, 3.41e9, 45.4 GB"),
    "8b-2": Row("v5e:4x4", LLAMA31_8B, rows=2, maxtext="14.63 GB, 6.54e9"),
    "8b-64": Row("v5e:8x8", LLAMA31_8B, maxtext="6.00 GB, 2.63e9, 59.2 GB"),
    "8b-v6e": Row("v6e:4x4", LLAMA31_8B, maxtext="11.90 GB, 1.48e9, 45.4 GB"),
    "8b-to-4.5b": Row("v5e:4x4", WIDTH_4B, LLAMA31_8B, maxtext="10.88 GB, 3.32e9, 43.6 GB"),
    "8b-to-4.5b-2": Row("v5e:4x4", WIDTH_4B, LLAMA31_8B, rows=2, maxtext="14.84 GB"),
    **{f"8b-to-4.5b-{rows}": Row("v5e:4x4", WIDTH_4B, LLAMA31_8B, rows=rows) for rows in (4, 8)},
    "8b-to-4.5b-v5p": Row("v5p:2x2x4", WIDTH_4B, LLAMA31_8B, maxtext="11.05 GB"),
    "8b-to-4.5b-64": Row("v5e:8x8", WIDTH_4B, LLAMA31_8B),
    "8b-to-8b": Row("v5e:4x4", LLAMA31_8B, LLAMA31_8B, maxtext="15.12 GB, 4.65e9, 65.3 GB"),
    "32b-to-8b": Row("v5e:4x4", QWEN3_8B, QWEN3_32B, maxtext="does not fit"),
    "70b-to-4.5b": Row("v5e:4x4", WIDTH_4B, LLAMA31_70B),
    "llama31-width": Recipe("v5e-64", "Llama-3.1-8B", "llama31_8b_to_4b_width"),
    "llama31-depth": Recipe("v5e-64", "Llama-3.1-8B", "llama31_8b_to_4b_depth"),
    "llama2": Recipe("v5e-64", "Llama-2-7b-hf", "llama2_7b_layerchop"),
    "llama2-before": Recipe("v5e-64", "Llama-2-7b-hf", "llama2_7b_layerchop", "before the chop"),
    "minitron": Recipe("v5p-128", "Nemotron-4-15B", "minitron_15b_to_8b_to_4b"),
    "nemo": Recipe("v6e-128", "Mistral-Nemo-Base-2407", "mistral_nemo_12b_to_8b"),
    "qwen3": Recipe("v6e-64", "Qwen3-8B", "qwen3_8b_to_6b"),
}


def main() -> None:
    """Compiles row by row and prints each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--dump", type=pathlib.Path, help="folder for the compiler's reports on each row")
    parser.add_argument(
        "--workdir", type=pathlib.Path, default=pathlib.Path("runs/pods"), help="keeps what was compiled"
    )
    parser.add_argument("--write", type=pathlib.Path, help="a Markdown file for the table")
    parser.add_argument("--peer", action="store_true", help="MaxText's steps, of the rows that it has")
    options = parser.parse_args()
    if options.peer and options.write:
        parser.error("--write: the page is of chopjax's own steps; leave --peer out")
    rows = options.only or list(pods_peer.ROWS if options.peer else ROWS)
    if options.peer:
        pods_peer.check(rows)
    print(f"{'name':16} {'topology':10} {'peak GB':>8} {'cycles':>10} {'wire GB':>8} {'compile s':>10}", flush=True)
    found = [peer(name) if options.peer else measure(name, options.workdir, options.dump) for name in rows]
    if options.write:
        files.write_text(options.write, page(found))
    print(json.dumps({"rows": found}))


def peer(name: str) -> Result:
    """Compiles MaxText's step of one row and prints it."""
    result: Result = {"name": name, "topology": ROWS[name].topology, **figures(pods_peer.costs(name))}
    print_result(result)
    return result


def measure(name: str, workdir: pathlib.Path, dump: pathlib.Path | None) -> Result:
    """Compiles one row and prints it."""
    row = ROWS[name]
    slices = topology.parse(row.topology)
    step = row.step(slices.devices)
    costs = cache.costs(step, slices, workdir, dump=str(dump / name) if dump else "")
    result: Result = {"name": name, "topology": row.topology, **figures(costs, splash_flops(step) / slices.devices)}
    result |= {"step": title(step), "rows": step.micro_rows // slices.devices, "length": step.length}
    print_result(result)
    print_costs(costs, result)
    estimate = Estimate(step, slices.devices)
    print(f"    estimated: {estimate.memory().peak / 1e9:.2f} GB, {estimate.wire().ici / 1e9:.1f} GB sent", flush=True)
    return result


def figures(costs: Costs, kernels: float = 0.0) -> Result:
    """What the head of this file lists; None for what the compiler does not say, and all if the step does not fit.

    Args:
        costs: of the step.
        kernels: FLOPs of one chip that are not among those.
    """
    found: Result = dict.fromkeys(COLUMNS)
    if costs.peak_bytes is not None:
        found |= {"peak_gb": costs.peak_bytes / 1e9, "compile_seconds": costs.compile_seconds}
    if costs.statistics is not None:
        found |= {"cycles": costs.statistics.cycles, "wire_gb": sum(costs.statistics.wire_bytes.values()) / 1e9}
        found["tflop"] = (costs.statistics.matmul_flops + costs.statistics.kernel_flops + kernels) / 1e12
    return found


def title(step: TrainingStep) -> str:
    """What a step does, with parameters of teacher and student."""
    sizes = [f"{count(model) / 1e9:.3g}B" for model in (step.teacher, step.student) if model]
    return f"distil {' to '.join(sizes)}" if step.teacher else f"train {sizes[0]}"


def page(found: list[Result]) -> str:
    """The tables, in Markdown."""
    ours = [result for result in found if isinstance(ROWS[str(result["name"])], Row)]
    recipes = [result for result in found if result not in ours]
    return "\n".join([*HEAD, *table(ours, "MaxText: peak, cycles, sent"), *AMONG, *table(recipes, "recipe")]) + "\n"


def table(found: list[Result], last: str) -> list[str]:
    """Lines of one table."""
    lines = [f"| step | slice | rows a chip | peak, GB | cycles | sent, GB | TFLOP | compile, s | {last} |"]
    lines.append("|" + "---|" * 9)
    for result in found:
        row = ROWS[str(result["name"])]
        cells = [f"{result[key]:{form}}" if result[key] is not None else "–" for key, form in COLUMNS.items()]
        if result["peak_gb"] is None:
            cells[0] = "does not fit"
        rows = f"{result['rows']} of {result['length']:,}"
        words = row.maxtext if isinstance(row, Row) else f"`{row.config}` {row.phase}".strip()
        lines.append(f"| {result['step']} | {row.topology} | {rows} | {' | '.join(cells)} | {words or '–'} |")
    return lines


HEAD = [
    "# What steps take on TPU pods",
    "",
    "Compiled by libtpu without a TPU and made by `python benchmarks/pods.py --write docs/benchmarks.md`. All per "
    "chip: rows of 4096 tokens, full remat, float32 master weights and AdamW, bfloat16 gradients, plain FSDP. MaxText "
    "is version 0.2.5 with jax 0.12, its own step compiled for the same chips. Nothing was run on a TPU.",
    "",
    "- **Peak** is the compiler's `peak_memory_in_bytes`, in 10^9 bytes. A chip of v5e has 17.18, v6e 34.36, v5p 102.",
    "- **Cycles** are the compiler's estimates, summed with the trips of loops; 1.5 · 10^9 of them are a second on "
    "v5e, 1.75 · 10^9 on v5p and v6e. They leave out Pallas kernels, and so the attention, and what a chip waits for "
    "others.",
    "- **Sent** are (n - 1) / n of the bytes of each collective over n chips, twice that for an all-reduce.",
    "- **TFLOP** are those of the compiled program with attention's kernels, what remat makes again included. Where "
    "memory is short (8 rows a chip), XLA makes more of it again by itself.",
    "- **Compile** is wall time on two cores that had other work.",
    "- **MaxText**'s figures are older than this script. `--peer` repeated two of them: the same for the 8.03B on "
    "v5e:4x4, and for 8.03B to 4.51B the same cycles and bytes, but 11.89 GB in place of 10.88.",
    "",
]
AMONG = [
    "",
    "## The recipes",
    "",
    "As they stand in `configs/`, each on the pod that it is set for. A step is all its micro-batches; rows are those "
    "of one. Of a recipe with several rounds, the first.",
    "",
]
COLUMNS = {"peak_gb": ".2f", "cycles": ".3e", "wire_gb": ".1f", "tflop": ".1f", "compile_seconds": ".0f"}
SHOWN = {"peak_gb": ".2f", "cycles": ".3e", "wire_gb": ".1f", "compile_seconds": ".0f"}


def print_result(result: Result) -> None:
    """One line of what is shown while it is made."""
    cells = (f"{result[key]:{form}}" if result[key] is not None else "-" for key, form in SHOWN.items())
    print(f"{result['name']:16} {result['topology']:10} " + " ".join(f"{cell:>8}" for cell in cells), flush=True)


def print_costs(costs: Costs, result: Result) -> None:
    """What the row's figures are made of, indented below it."""
    if costs.needed_bytes:
        print(f"    does not fit, needs {costs.needed_bytes / 1e9:.2f} GB")
    print("    GB at the peak: " + ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in costs.at_peak.items()))
    print("    GB: " + ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in costs.memory.items()))
    if costs.statistics is not None:
        wire = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in costs.statistics.wire_bytes.items())
        print(f"    GB on the wire: {wire}\n    TFLOP: {result['tflop']:.1f}", flush=True)


if __name__ == "__main__":
    main()
