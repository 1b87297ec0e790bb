"""Memory, cycles and traffic of training steps on TPU slices, compiled without a TPU.

    python benchmarks/pods.py [--only NAME ...] [--dump FOLDER] [--write docs/benchmarks.md]

Sequences of 4096 tokens, full remat, float32 master weights and AdamW, bfloat16 gradients, plain FSDP over all chips,
one process. A step of this size takes 2 to 8 minutes of two cores to compile; what was compiled is kept in --workdir by
a digest of the program, so a table that was cut off goes on. Needs libtpu: pip install 'chopjax[tpu]'. Per chip:

    peak_gb           memory_analysis().peak_memory_in_bytes / 1e9
    cycles            the compiler's estimates, summed over the module with loop trip counts; none where it cannot print
    wire_gb           (n - 1) / n of the bytes of each collective over n chips, all-reduce twice
    compile_seconds   wall time of XLA

The last line is JSON.
"""

import argparse
import dataclasses
import json
import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"

from chopjax import files  # noqa: E402
from chopjax.aot import cache, topology  # noqa: E402
from chopjax.aot.compiling import Costs  # noqa: E402
from chopjax.aot.estimate import Estimate  # noqa: E402
from chopjax.aot.steps import TrainingStep  # noqa: E402
from chopjax.distill.config import LossConfig  # noqa: E402
from chopjax.hf.checkpoint import open_config  # noqa: E402
from chopjax.models.config import ModelConfig  # noqa: E402
from chopjax.models.parameters import count  # noqa: E402

LENGTH = 4096
SOURCES = pathlib.Path(__file__).resolve().parents[1] / "configs" / "sources"


def of(name: str, **sizes: int) -> ModelConfig:
    """A source of the recipes, or a relative of it that differs in sizes."""
    return dataclasses.replace(open_config(SOURCES / name)[3], kind_of_layer=(), **sizes)


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

    @property
    def title(self) -> str:
        """Parameters of teacher and student."""
        sizes = [f"{count(model) / 1e9:.3g}B" for model in (self.teacher, self.student) if model]
        return f"distil {' to '.join(sizes)}" if self.teacher else f"train {sizes[0]}"

    def step(self, chips: int) -> TrainingStep:
        """The step, by what its program depends on."""
        loss = LossConfig(
            next_token=float(self.teacher is None), kl=float(self.teacher is not None), chunk=CHUNK * chips
        )
        return TrainingStep(self.student, chips * self.rows, LENGTH, loss, self.teacher)


ROWS = {
    "8b": Row("v5e:4x4", LLAMA31_8B, maxtext="11.36 GB, 3.41e9, 45.4 GB"),
    "8b-2": Row("v5e:4x4", LLAMA31_8B, rows=2, maxtext="14.63 GB, 6.54e9"),
    "8b-64": Row("v5e:8x8", LLAMA31_8B, maxtext="6.00 GB, 2.63e9, 59.2 GB"),
    "8b-v6e": Row("v6e:4x4", LLAMA31_8B, maxtext="11.90 GB, 1.48e9, 45.4 GB"),
    "8b-to-4.5b": Row("v5e:4x4", WIDTH_4B, LLAMA31_8B, maxtext="10.88 GB, 3.32e9, 43.6 GB"),
    "8b-to-4.5b-2": Row("v5e:4x4", WIDTH_4B, LLAMA31_8B, rows=2, maxtext="14.84 GB"),
    **{f"8b-to-4.5b-{rows}": Row("v5e:4x4", WIDTH_4B, LLAMA31_8B, rows=rows) for rows in (4, 6, 7, 8)},
    "8b-to-4.5b-v5p": Row("v5p:2x2x4", WIDTH_4B, LLAMA31_8B, maxtext="11.05 GB"),
    "8b-to-4.5b-64": Row("v5e:8x8", WIDTH_4B, LLAMA31_8B),
    "8b-to-8b": Row("v5e:4x4", LLAMA31_8B, LLAMA31_8B, maxtext="15.12 GB, 4.65e9, 65.3 GB"),
    "32b-to-8b": Row("v5e:4x4", QWEN3_8B, QWEN3_32B, maxtext="does not fit"),
    "70b-to-4.5b": Row("v5e:4x4", WIDTH_4B, LLAMA31_70B),
}


def main() -> None:
    """Compiles row by row and prints each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--dump", type=pathlib.Path, help="folder for the compiler's reports on each row")
    parser.add_argument(
        "--workdir", type=pathlib.Path, default=pathlib.Path("runs/pods"), help="keeps what was compiled"
    )
    parser.add_argument("--write", type=pathlib.Path, help="a Markdown file for the table")
    options = parser.parse_args()
    print(f"{'name':16} {'topology':10} {'peak GB':>8} {'cycles':>10} {'wire GB':>8} {'compile s':>10}", flush=True)
    found = [measure(name, options.workdir, options.dump) for name in options.only]
    if options.write:
        files.write_text(options.write, page(found))
    print(json.dumps({"rows": found}))


def measure(name: str, workdir: pathlib.Path, dump: pathlib.Path | None) -> dict[str, str | float | None]:
    """Compiles one row and prints it; what does not fit into the chips' memory has no peak."""
    row = ROWS[name]
    slices = topology.parse(row.topology)
    result: dict[str, str | float | None] = {"name": name, "topology": row.topology}
    result |= dict.fromkeys(("peak_gb", "cycles", "wire_gb", "compile_seconds"))
    step = row.step(slices.devices)
    costs = cache.costs(step, slices, workdir, dump=str(dump / name) if dump else "")
    if costs.peak_bytes is None:
        needed = f", needs {costs.needed_bytes / 1e9:.2f} GB" if costs.needed_bytes else ""
        print(f"{name:16} {row.topology:10} does not fit{needed}", flush=True)
        return result
    result |= {"peak_gb": costs.peak_bytes / 1e9, "compile_seconds": costs.compile_seconds}
    if costs.statistics is not None:
        result |= {"cycles": costs.statistics.cycles, "wire_gb": sum(costs.statistics.wire_bytes.values()) / 1e9}
    cells = (f"{result[key]:{form}}" if result[key] is not None else "-" for key, form in COLUMNS.items())
    print(f"{name:16} {row.topology:10} " + " ".join(f"{cell:>8}" for cell in cells), flush=True)
    print_costs(costs)
    estimate = Estimate(step, slices.devices)
    print(f"    estimated: {estimate.memory().peak / 1e9:.2f} GB, {estimate.wire().ici / 1e9:.1f} GB sent", flush=True)
    return result


def page(found: list[dict[str, str | float | None]]) -> str:
    """The table, in Markdown."""
    lines = [
        "# What steps take on TPU pods",
        "",
        "Compiled by libtpu without a TPU and made by `python benchmarks/pods.py --write docs/benchmarks.md`, whose "
        "head says what is counted. All per chip: rows of 4096 tokens, full remat, float32 master weights and AdamW, "
        "bfloat16 gradients, plain FSDP. MaxText is version 0.2.5 with jax 0.12, its own step compiled for the same "
        "chips. Cycles are the compiler's estimate, without what a chip waits for others; nothing was run on a TPU.",
        "",
        "| step | slice | rows a chip | peak, GB | cycles | sent, GB | compile, s | MaxText: peak, cycles, sent |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in found:
        row = ROWS[str(result["name"])]
        cells = [f"{result[key]:{form}}" if result[key] is not None else "–" for key, form in COLUMNS.items()]
        if result["peak_gb"] is None:
            cells[0] = "does not fit"
        lines.append(f"| {row.title} | {row.topology} | {row.rows} | {' | '.join(cells)} | {row.maxtext or '–'} |")
    return "\n".join(lines) + "\n"


COLUMNS = {"peak_gb": ".2f", "cycles": ".3e", "wire_gb": ".1f", "compile_seconds": ".0f"}


def print_costs(costs: Costs) -> None:
    """What the row's figures are made of, indented below it."""
    print("    GB at the peak: " + ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in costs.at_peak.items()))
    print("    GB: " + ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in costs.memory.items()))
    if costs.statistics is not None:
        wire = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in costs.statistics.wire_bytes.items())
        flops = (costs.statistics.matmul_flops + costs.statistics.kernel_flops) / 1e12
        print(f"    GB on the wire: {wire}\n    TFLOP: {flops:.1f}", flush=True)


if __name__ == "__main__":
    main()
