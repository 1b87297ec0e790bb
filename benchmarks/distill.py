"""CPU seconds of the distillation step over the plain step, and memory with the loss in chunks and all at once.

    python benchmarks/distill.py MODEL_FOLDER [--rounds 3] [--batch 4] [--length 256] [--threads 2]

MODEL_FOLDER is a Hugging Face folder, such as the one that tools/demo_model.py makes; it teaches a student of its own
size, and one of 24 layers of 1152 neurons. Steps by next-token loss, without a teacher, and by KL to a teacher that
runs beside, take turns in one process, in float32 on the same tokens. CPU seconds of the whole process are counted, so
a busy machine disturbs little; a ratio is the median over rounds of the ratio within a round. `floor` is that of FLOPs:
three forward passes of the student, and one of the teacher, over the former alone.

Memory is that of the KL step of the student of equal size, on `--memory-batch` rows: `compiled`, the compiler's sum of
arguments, results and temporaries; and `measured`, the most that a fresh process held during the step, less what it
held before the step's arguments were made. The last line is JSON.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

LAYERS, MLP = 24, 1152
SIZES = ("equal", "chopped")
SIDES = ("plain", "distillation")
DTYPE: Final = "float32"
REMAT = "dots"


def main() -> None:
    """Times all sides in turn, measures memory in processes of its own, and prints both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--memory-batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=512, help="tokens whose logits exist at one time")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    # Before jax is imported: it makes as many threads as there are processors for it.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    os.environ["JAX_PLATFORMS"] = "cpu"
    if options.memory_of:
        print(json.dumps(memory(options, options.memory_of)))
        return
    chunks = {"chunked": options.chunk, "whole": options.memory_batch * options.length}
    held = {name: in_process(chunk) for name, chunk in chunks.items()}
    report(*times(options), held)


def in_process(chunk: int) -> dict[str, float]:
    """`memory` of one size of chunk, in a fresh process."""
    command = [sys.executable, *sys.argv, "--memory-of", str(chunk)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def times(options: argparse.Namespace) -> tuple[dict[str, dict[str, list[float]]], dict[str, float]]:
    """CPU seconds by size of the student and side, and the floor of each size."""
    found: dict[str, dict[str, list[float]]] = {size: {side: [] for side in SIDES} for size in SIZES}
    sides, floors = calls(options)
    for number in range(options.rounds + 1):
        for size in SIZES:
            for side in SIDES:
                before = time.process_time()
                sides[size][side]()
                if number:  # the first round compiles
                    found[size][side].append(time.process_time() - before)
    return found, floors


def calls(options: argparse.Namespace) -> tuple[dict[str, dict[str, Callable[[], None]]], dict[str, float]]:
    """The jitted steps by size and side, each on the same batch, and the floors by FLOPs."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from chopjax.chop.apply import chop_config, chop_params
    from chopjax.chop.plan import Plan
    from chopjax.distill.config import LossConfig
    from chopjax.distill.objective import Models
    from chopjax.hf.checkpoint import open_checkpoint
    from chopjax.hf.reading import load_params
    from chopjax.models.parameters import declare, flops_per_token
    from chopjax.train import optimizers
    from chopjax.train.config import OptimizerConfig
    from chopjax.train.schedules import make_schedule
    from chopjax.train.state import init_state
    from chopjax.train.step import StepConfig, make_step

    checkpoint = open_checkpoint(options.model)
    config, teacher = checkpoint.config, load_params(checkpoint, dtype=jnp.float32)
    drawn = np.random.default_rng(0).integers(0, config.vocab, (options.batch, options.length))
    tokens = jnp.asarray(drawn, jnp.int32)
    places = jnp.broadcast_to(jnp.arange(options.length, dtype=jnp.int32)[None], tokens.shape)
    batch = {"tokens": tokens, "positions": places, "segment_ids": jnp.ones_like(tokens)}
    layers, neurons = np.arange(LAYERS), np.tile(np.arange(MLP), (LAYERS, 1))
    plans = {"equal": Plan(config.sizes, {}), "chopped": Plan(config.sizes, {"layers": layers, "mlp": neurons})}
    chosen, how = OptimizerConfig(), StepConfig(compute_dtype=DTYPE, remat=REMAT)

    def steps_of(plan: Plan) -> dict[str, Callable[[], None]]:
        student = chop_config(config, plan)
        optimizer = optimizers.build(chosen, declare(student))
        params = jax.tree.map(jnp.copy, chop_params(plan, declare(config), teacher))
        # Handed from step to step, of either side. Committed to the device, as what a step returns is: a step is
        # compiled again for a state that is not.
        state = [jax.device_put(init_state(params, optimizer), jax.devices()[0])]

        def side(models: Models, loss: LossConfig, taught: Any) -> Callable[[], None]:
            step = make_step(models, loss, how, optimizer, make_schedule(chosen.schedule))
            jitted = jax.jit(step, donate_argnums=0)

            def call() -> None:
                state[0], metrics = jitted(state[0], taught, batch)
                jax.block_until_ready((state[0], metrics))

            return call

        return {
            "plain": side(Models(student), LossConfig.plain(options.chunk), None),
            "distillation": side(Models(student, config), LossConfig(kl=1.0, chunk=options.chunk), teacher),
        }

    whole = flops_per_token(config, options.length)
    floors = {
        size: 1 + whole / (3 * flops_per_token(chop_config(config, plan), options.length))
        for size, plan in plans.items()
    }
    return {size: steps_of(plan) for size, plan in plans.items()}, floors


def memory(options: argparse.Namespace, chunk: int) -> dict[str, float]:
    """GB that the KL step takes, by the compiler and by the kernel, with so many tokens a chunk."""
    import jax
    import jax.numpy as jnp

    from chopjax.aot.steps import TrainingStep
    from chopjax.distill.config import LossConfig
    from chopjax.hf.checkpoint import open_checkpoint
    from chopjax.train.step import StepConfig

    config = open_checkpoint(options.model).config
    wanted = TrainingStep(
        student=config,
        rows=options.memory_batch,
        length=options.length,
        loss=LossConfig(kl=1.0, chunk=chunk),
        teacher=config,
        step=StepConfig(compute_dtype=DTYPE, remat=REMAT),
    )
    compiled = wanted.lower(jax.devices()[:1]).compile()
    found = compiled.memory_analysis()
    assert found is not None, "the CPU's compiler reports memory"
    before = resident("VmRSS")
    # What is in the arrays does not matter here; ones, so that no page is left out.
    arguments = jax.tree.map(lambda shape: jnp.ones(shape.shape, shape.dtype), compiled.args_info[0])
    jax.block_until_ready(arguments)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    jax.block_until_ready(compiled(*arguments))
    # The peak that the CPU's compiler reports leaves temporaries out.
    apart = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    peak = apart + found.temp_size_in_bytes
    return {"compiled": peak / 1e9, "measured": (resident("VmHWM") - before) / 1e9}


def resident(field: str) -> int:
    """Bytes of this process in memory, now (`VmRSS`) or at most (`VmHWM`)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def report(
    found: dict[str, dict[str, list[float]]], floors: dict[str, float], held: dict[str, dict[str, float]]
) -> None:
    """Tables of both, then the same as one line of JSON."""
    rows: dict[str, dict[str, float]] = {}
    print(f"{'student':10} {'plain':>8} {'distillation':>13} {'ratio':>8} {'floor':>8}")
    for size, sides in found.items():
        row = {side: statistics.median(spent) for side, spent in sides.items()}
        row["ratio"] = statistics.median(a / b for a, b in zip(sides["distillation"], sides["plain"], strict=True))
        row["floor"] = floors[size]
        print(f"{size:10} {row['plain']:6.2f} s {row['distillation']:11.2f} s {row['ratio']:8.3f} {row['floor']:8.3f}")
        rows[size] = row
    print(f"{'loss':10} {'compiled':>11} {'measured':>11}")
    for name, one in held.items():
        print(f"{name:10} {one['compiled']:8.2f} GB {one['measured']:8.2f} GB")
    print(json.dumps({"cpu_seconds": rows, "peak_gb": held}))


if __name__ == "__main__":
    main()
