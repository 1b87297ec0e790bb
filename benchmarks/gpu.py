"""Training steps on the NVIDIA GPU that is here: memory and time, what `aot` foretells of both, and PyTorch's.

    python benchmarks/gpu.py [--only NAME ...] [--repeats 5] [--kind h100] [--sides SIDE ...]

Models have the shapes of Llama-3.2-1B and 3B with random weights and tokens; rows are of 4096 tokens in bfloat16, with
float32 master weights and AdamW, every layer computed again in the backward pass. Three sides, each in a process of
its own: chopjax's step on the first GPU; the same of transformers on PyTorch, by autocast, its fused AdamW and its
scaled dot-product attention, as it stands and by torch.compile; and the step compiled by `chopjax.aot` for a GPU of
`--kind` that need not be there. Per side:

    seconds   a step, the median of `--repeats` after two that warm up; of aot `to plan with`, at best in brackets
    peak_gb   most memory held at one time: XLA's allocator, torch.cuda.max_memory_allocated, the compiler's report
    mfu       of the data sheet's bfloat16 peak, by chopjax's count of FLOPs (`train/flops.py`)

A step that does not fit is a dash, and so is a side that is not installed, each with the reason. The last line is JSON.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

SIDES = ("chopjax", "pytorch", "torch.compile", "aot")
LENGTH = 4096
CHUNK = 2048  # tokens whose logits exist at one time
Figures = dict[str, float]
Sizes = dict[str, Any]
# Sizes as in chopjax's configs.
LLAMA_1B: Sizes = {"layers": 16, "embed": 2048, "kv_heads": 8, "q_per_kv": 4, "head_dim": 64, "mlp": 8192}
LLAMA_3B: Sizes = {"layers": 28, "embed": 3072, "kv_heads": 8, "q_per_kv": 3, "head_dim": 128, "mlp": 8192}
VOCAB = 128256


@dataclasses.dataclass(frozen=True)
class Row:
    """A step: `rows` sequences of it, and a teacher for distillation by KL, else next-token loss; chopjax's remat."""

    rows: int
    student: Sizes
    teacher: Sizes | None = None
    remat: str = "full"


ROWS = {
    "1b": Row(4, LLAMA_1B),
    "1b-offload": Row(4, LLAMA_1B, remat="offload"),
    "1b-dots": Row(4, LLAMA_1B, remat="dots"),
    "3b": Row(2, LLAMA_3B),
    "3b-to-1b": Row(1, LLAMA_1B, LLAMA_3B),
    "3b-to-1b-4": Row(4, LLAMA_1B, LLAMA_3B),
}


def main() -> None:
    """Measures row by row, side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kind", default="h100", help="what aot compiles for")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, metavar="SIDE", help=", ".join(SIDES))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        if reason := absent(options.side):
            raise SystemExit(f"{ABSENT}: {reason}")
        measured = {"chopjax": chopjax_side, "aot": aot_side}.get(options.side, pytorch_side)
        print(json.dumps(measured(ROWS[options.only[0]], options)))
        return
    print(f"{'step':12} {'side':14} {'seconds':>9} {'peak GB':>8} {'MFU':>6}", flush=True)
    found = {name: {side: in_process(name, side, options) for side in options.sides} for name in options.only}
    print(json.dumps(found))


def absent(side: str) -> str:
    """Why a side cannot be measured in this environment; nothing if it can. What `aot` needs it says itself."""
    if side == "chopjax":
        import jax

        return "" if jax.default_backend() == "gpu" else "JAX sees no GPU here; pip install 'chopjax[cuda]'"
    if side == "aot":
        return ""
    try:
        import torch
    except ModuleNotFoundError:
        return "PyTorch is not installed"
    return "" if torch.cuda.is_available() else "PyTorch is without CUDA or sees no GPU here"


def in_process(name: str, side: str, options: argparse.Namespace) -> Figures | None:
    """One side of one row in a fresh process, printed; None if there is nothing to measure."""
    command = [sys.executable, __file__, "--only", name, "--side", side]
    command += ["--repeats", str(options.repeats), "--kind", options.kind]
    place = {"JAX_PLATFORMS": "cpu"} if side == "aot" else {}
    done = subprocess.run(command, env={**os.environ, **place}, capture_output=True, text=True)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if any(said in line for said in REASONS)]
        if not reasons:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
        print(f"{name:12} {side:14} {'-':>9} {'-':>8} {'-':>6}  {reasons[-1].strip()[:200]}", flush=True)
        return None
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    cells = [f"{found[key]:{form}}" for key, form in CELLS.items()]
    more = f"  ({found['at_best']:.3f} s at best)" if "at_best" in found else ""
    print(f"{name:12} {side:14} {cells[0]:>9} {cells[1]:>8} {cells[2]:>6}{more}", flush=True)
    return found


ABSENT = "not here"
# Where one of these stands in what a process says at its end, its side is a dash: the last two are JAX's and PyTorch's.
REASONS = ABSENT, "UserError", "RESOURCE_EXHAUSTED", "OutOfMemoryError"
CELLS = {"seconds": ".3f", "peak_gb": ".2f", "mfu": ".1%"}


def step_of(row: Row) -> Any:
    """chopjax's step of a row, by what its program depends on."""
    from chopjax.aot.steps import TrainingStep
    from chopjax.distill.config import LossConfig
    from chopjax.train.step import StepConfig

    teacher = model(row.teacher) if row.teacher else None
    loss = LossConfig(next_token=float(teacher is None), kl=float(teacher is not None), chunk=CHUNK)
    return TrainingStep(model(row.student), row.rows, LENGTH, loss, teacher, StepConfig(remat=row.remat))


def model(sizes: Sizes) -> Any:
    """A Llama of these sizes."""
    from chopjax.models.config import ModelConfig

    return ModelConfig(**sizes, vocab=VOCAB, positions=LENGTH, tied=True)


def mfu(row: Row, kind: str, seconds: float) -> float:
    """Share of the data sheet's peak."""
    from chopjax.search.roofline import CHIPS
    from chopjax.train.flops import step_flops

    step = step_of(row)
    flops = step_flops(step.student, step.teacher, row.rows * LENGTH, LENGTH).model
    return flops / seconds / CHIPS[kind].flops


def chopjax_side(row: Row, options: argparse.Namespace) -> Figures:
    """Our step on the first GPU."""
    import jax
    import jax.numpy as jnp

    from chopjax.models.decoder import init_params
    from chopjax.models.parameters import declare
    from chopjax.train import optimizers
    from chopjax.train.state import init_state

    step, devices = step_of(row), jax.devices()[:1]
    lowered = step.lower(devices)
    begun = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - begun

    def fresh(config: Any, dtype: str) -> Any:
        return jax.jit(lambda key: jax.tree.map(lambda leaf: leaf.astype(dtype), init_params(config, key)))(
            jax.random.key(0)
        )

    optimizer = optimizers.build(step.optimizer, declare(step.student))
    start = jax.jit(lambda params: init_state(params, optimizer), donate_argnums=0)
    state = start(fresh(step.student, "float32"))
    teacher = None if step.teacher is None else fresh(step.teacher, "bfloat16")
    tokens = jax.random.randint(jax.random.key(1), (row.rows, LENGTH), 0, VOCAB)
    ones = jnp.ones_like(tokens)
    batch = {"tokens": tokens, "segment_ids": ones, "positions": jnp.cumsum(ones, axis=1) - 1}
    held = [jax.device_put((state, teacher, batch), devices[0])]
    del state, teacher, batch

    def once() -> None:
        state, teacher, batch = held.pop()
        state, metrics = compiled(state, teacher, batch)
        jax.block_until_ready(metrics)
        held.append((state, teacher, batch))

    seconds = timed(once, options.repeats)
    peak = devices[0].memory_stats()["peak_bytes_in_use"]
    compiler = compiled.memory_analysis().peak_memory_in_bytes / 1e9
    found = {"seconds": seconds, "peak_gb": peak / 1e9, "mfu": mfu(row, options.kind, seconds)}
    return found | {"compile_seconds": compile_seconds, "compiler_peak_gb": compiler}


def pytorch_side(row: Row, options: argparse.Namespace) -> Figures:
    """The step of transformers and PyTorch on the first GPU."""
    import torch
    import torch.nn.functional as F

    student = pytorch_model(row.student, torch.float32)
    student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    student.train()
    teacher = pytorch_model(row.teacher, torch.bfloat16) if row.teacher else None
    for one in (student, teacher) if options.side == "torch.compile" else ():
        if one is not None:
            one.compile()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(0, VOCAB, (row.rows, LENGTH), device="cuda")

    def once() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            if teacher is None:
                loss = student(input_ids=tokens, labels=tokens, use_cache=False).loss
            else:
                with torch.no_grad():
                    wanted = F.log_softmax(teacher(input_ids=tokens, use_cache=False).logits.float().flatten(0, 1), -1)
                found = F.log_softmax(student(input_ids=tokens, use_cache=False).logits.float().flatten(0, 1), -1)
                loss = F.kl_div(found, wanted, log_target=True, reduction="batchmean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        torch.cuda.synchronize()

    seconds = timed(once, options.repeats)
    peak = torch.cuda.max_memory_allocated() / 1e9
    return {"seconds": seconds, "peak_gb": peak, "mfu": mfu(row, options.kind, seconds)}


def pytorch_model(sizes: Sizes, dtype: Any) -> Any:
    """A Llama of these sizes with random weights on the GPU."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=sizes["embed"],
        intermediate_size=sizes["mlp"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["kv_heads"] * sizes["q_per_kv"],
        num_key_value_heads=sizes["kv_heads"],
        head_dim=sizes["head_dim"],
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def aot_side(row: Row, options: argparse.Namespace) -> Figures:
    """What is said of the step without the GPU."""
    from chopjax.aot import compiling, topology
    from chopjax.aot.outlook import outlook

    slices = topology.parse(f"{options.kind}:1")
    step = step_of(row)
    costs = compiling.compile(step, topology.devices(slices)).costs
    expected = outlook(step, slices, costs)
    seconds = expected.step_seconds
    assert costs.peak_bytes is not None
    found = {"seconds": seconds, "peak_gb": costs.peak_bytes / 1e9, "mfu": expected.mfu(seconds)}
    return found | {"at_best": expected.at_best, "compile_seconds": costs.compile_seconds}


def timed(call: Callable[[], None], repeats: int) -> float:
    """Median seconds of a call that waits for the GPU, after two that warm up."""
    spent = []
    for _ in range(repeats + 2):
        before = time.perf_counter()
        call()
        spent.append(time.perf_counter() - before)
    return statistics.median(spent[2:])


if __name__ == "__main__":
    main()
