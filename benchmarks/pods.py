"""Memory, cycles and traffic of training steps on TPU slices, compiled without a TPU.

    python benchmarks/pods.py [--only NAME ...] [--dump FOLDER]

Sequences of 4096 tokens, full remat, float32 master weights and AdamW, plain FSDP over all chips, one process. A step
of this size takes 3 to 8 minutes of two cores to compile. Needs libtpu: pip install 'chopjax[tpu]'. Per chip:

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

import jax  # noqa: E402

from chopjax.aot import steps, topology  # noqa: E402
from chopjax.distill.config import LossConfig  # noqa: E402
from chopjax.models.config import ModelConfig, Rope  # noqa: E402

LENGTH = 4096
LLAMA31_8B = ModelConfig(
    layers=32,
    embed=4096,
    kv_heads=8,
    q_per_kv=4,
    head_dim=128,
    mlp=14336,
    vocab=128256,
    positions=131072,
    norm_eps=1e-5,
    rope=Rope("llama3", 500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192),
)
WIDTH_4B = dataclasses.replace(LLAMA31_8B, embed=3072, mlp=9216)
# Tokens of one chip whose logits exist at one time.
CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: `rows` sequences a chip of a slice."""

    topology: str
    student: ModelConfig
    teacher: ModelConfig | None = None
    rows: int = 1

    def step(self, chips: int) -> steps.TrainingStep:
        """The step, by what its program depends on."""
        loss = LossConfig(
            next_token=float(self.teacher is None), kl=float(self.teacher is not None), chunk=CHUNK * chips
        )
        return steps.TrainingStep(self.student, chips * self.rows, LENGTH, loss, self.teacher)


ROWS = {
    "8b": Row("v5e:4x4", LLAMA31_8B),
    "8b-to-4.5b": Row("v5e:4x4", WIDTH_4B, LLAMA31_8B),
    "8b-to-4.5b-2": Row("v5e:4x4", WIDTH_4B, LLAMA31_8B, rows=2),
    **{f"8b-to-4.5b-{rows}": Row("v5e:4x4", WIDTH_4B, LLAMA31_8B, rows=rows) for rows in (4, 6, 7, 8)},
}


def main() -> None:
    """Compiles row by row and prints each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--dump", type=pathlib.Path, help="folder for the compiler's reports on each row")
    options = parser.parse_args()
    print(f"{'name':16} {'topology':10} {'peak GB':>8} {'cycles':>10} {'wire GB':>8} {'compile s':>10}", flush=True)
    found = [measure(name, options.dump) for name in options.only]
    print(json.dumps({"rows": found}))


def measure(name: str, dump: pathlib.Path | None) -> dict[str, str | float | None]:
    """Compiles one row and prints it; what does not fit into the chips' memory has no peak."""
    row = ROWS[name]
    chips = topology.devices(row.topology)
    result: dict[str, str | float | None] = {"name": name, "topology": row.topology}
    result |= dict.fromkeys(("peak_gb", "cycles", "wire_gb", "compile_seconds"))
    try:
        done = steps.compile(row.step(len(chips)), chips, {"xla_dump_to": str(dump / name)} if dump else None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"{name:16} {row.topology:10} does not fit: {str(error).splitlines()[0]}", flush=True)
        return result
    result |= {"peak_gb": done.peak_bytes / 1e9, "compile_seconds": done.compile_seconds}
    if done.statistics is not None:
        result |= {"cycles": done.statistics.cycles, "wire_gb": sum(done.statistics.wire_bytes.values()) / 1e9}
        print_costs(done)
    cells = (f"{result[key]:{form}}" if result[key] is not None else "-" for key, form in COLUMNS.items())
    print(f"{name:16} {row.topology:10} " + " ".join(f"{cell:>8}" for cell in cells), flush=True)
    return result


COLUMNS = {"peak_gb": ".2f", "cycles": ".3e", "wire_gb": ".1f", "compile_seconds": ".0f"}


def print_costs(done: steps.Compilation) -> None:
    """What the row's figures are made of, indented below it."""
    assert done.statistics is not None
    memory = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in done.memory.items())
    wire = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in done.statistics.wire_bytes.items())
    flops = (done.statistics.matmul_flops + done.statistics.kernel_flops) / 1e12
    print(f"    GB: {memory}\n    GB on the wire: {wire}\n    TFLOP: {flops:.1f}", flush=True)


if __name__ == "__main__":
    main()
