"""Tokens per CPU second of chopjax's train step and forward, beside transformers on PyTorch, on the same batch.

    python benchmarks/train_step.py MODEL_FOLDER [--rounds 3] [--batch 8] [--length 256] [--threads 2]

MODEL_FOLDER is a Hugging Face folder, such as the one that tools/demo_model.py makes. Both sides run in float32 on the
same tokens, train by next-token loss and AdamW, and take turns, each round in a process of its own. Beside them stand
two rates of each side's float32 matmul: that of 2048 x 2048 x 2048, and that of the products with the model's own
weights, forward and backward, each made alone. The share of the first which a model reaches shows how far it is from
what the library can do with large squares; that of the second, what is lost around the products. CPU seconds of the
whole process are counted, so a busy machine disturbs little. The last line is JSON.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

SIDES = ("chopjax", "pytorch")
SIZE = 2048
SEVERAL = 4
WARM_UP = 3
CHUNK = 512  # tokens whose logits exist at one time, as `loss.chunk`


def main() -> None:
    """Runs both sides in turn and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of each function in a round")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            found[side].append(in_process(side, options.threads))
    report(found)


def in_process(side: str, threads: int) -> dict[str, float]:
    """One round of one side, in a fresh process on the first `threads` processors."""
    limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, *sys.argv, "--side", side]
    pinned = functools.partial(os.sched_setaffinity, 0, sorted(os.sched_getaffinity(0))[:threads])
    done = subprocess.run(
        command, env={**os.environ, **limits}, preexec_fn=pinned, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, float]:
    """FLOPs of the matmul, and tokens of train step and forward, each per CPU second; and FLOPs a token."""
    from chopjax.hf.checkpoint import open_checkpoint
    from chopjax.models.parameters import flops_per_token

    calls = (chopjax_calls if options.side == "chopjax" else pytorch_calls)(options)
    rates = {name: 1 / cpu_seconds(call, options.repeats) for name, call in calls.items()}
    tokens, config = options.batch * options.length, open_checkpoint(options.model).config
    flops = flops_per_token(config, options.length)
    own = {name: products_rate(config, tokens, options, PASSES[:count]) for name, count in OWN.items()}
    return {
        **own,
        "matmul": rates["matmul"] * 2 * SIZE**3,
        "train": rates["train"] * tokens,
        "forward": rates["forward"] * tokens,
        "flops_per_token": flops,
    }


def cpu_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median CPU seconds of a call, over all threads, after some that warm up.

    In a virtual machine memory that is touched for the first time may come from the host, at our cost.
    """
    for _ in range(WARM_UP):
        call()
    spent = []
    for _ in range(repeats):
        before = time.process_time()
        call()
        spent.append(time.process_time() - before)
    return statistics.median(spent)


# Of a product y = x @ w: y itself, and the gradients of x and w. Axes are those that are summed over.
PASSES = ((1, 0), (1, 1), (0, 0))
OWN = {"own_train": 3, "own_forward": 1}


def products_rate(config: Any, tokens: int, options: argparse.Namespace, passes: Sequence[tuple[int, int]]) -> float:
    """FLOPs per CPU second of the products with the model's weights, each made alone as often as a step makes it."""
    flops = seconds = 0.0
    for count, inner, wide, rows in products(config, tokens):
        shapes = ((rows, inner), (inner, wide)), ((rows, wide), (inner, wide)), ((rows, inner), (rows, wide))
        for axes, operands in zip(passes, shapes, strict=False):
            call = product(options.side, *operands, axes)
            seconds += count * cpu_seconds(functools.partial(several, call), options.repeats) / SEVERAL
            flops += count * 2 * rows * inner * wide
    return flops / seconds


def several(call: Callable[[], Any]) -> None:
    """Calls what takes too little time to be measured once."""
    for _ in range(SEVERAL):
        call()


def products(config: Any, tokens: int) -> list[tuple[int, int, int, int]]:
    """How often, inner and outer size, and rows, of all products with weights in a forward pass; logits in chunks."""
    heads, kept = config.q_heads * config.head_dim, config.kv_heads * config.head_dim
    chunks = max(1, tokens // CHUNK)
    return [
        (config.layers, config.embed, heads, tokens),
        (2 * config.layers, config.embed, kept, tokens),
        (config.layers, heads, config.embed, tokens),
        ((2 if config.gated else 1) * config.layers, config.embed, config.mlp, tokens),
        (config.layers, config.mlp, config.embed, tokens),
        (chunks, config.embed, config.vocab, tokens // chunks),
    ]


def product(side: str, left: tuple[int, int], right: tuple[int, int], axes: tuple[int, int]) -> Callable[[], Any]:
    """A product of two arrays of ones, summed over one axis of each."""
    if side == "pytorch":
        import torch

        a, b = torch.ones(left), torch.ones(right)
        return lambda: torch.tensordot(a, b, dims=([axes[0]], [axes[1]]))
    import jax
    import jax.numpy as jnp

    x, y = jnp.ones(left), jnp.ones(right)
    dot = jax.jit(lambda x, y: jax.lax.dot_general(x, y, (((axes[0],), (axes[1],)), ((), ()))))
    return lambda: dot(x, y).block_until_ready()


def tokens_of(options: argparse.Namespace, vocab: int) -> Any:
    """The same tokens for both sides, int32 [batch, length]."""
    import numpy as np

    return np.random.default_rng(0).integers(0, vocab, (options.batch, options.length)).astype(np.int32)


def chopjax_calls(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Our jitted train step, held-out loss and matmul."""
    import jax
    import jax.numpy as jnp

    from chopjax.distill.config import LossConfig
    from chopjax.distill.objective import Models
    from chopjax.evaluate.perplexity import evaluate_rows
    from chopjax.hf.checkpoint import open_checkpoint
    from chopjax.hf.reading import load_params
    from chopjax.models.parameters import declare
    from chopjax.train import optimizers
    from chopjax.train.config import OptimizerConfig
    from chopjax.train.schedules import make_schedule
    from chopjax.train.state import init_state
    from chopjax.train.step import StepConfig, make_step

    checkpoint = open_checkpoint(options.model)
    config, params = checkpoint.config, load_params(checkpoint, dtype=jnp.float32)
    tokens = jnp.asarray(tokens_of(options, config.vocab))
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    batch = {"tokens": tokens, "positions": places, "segment_ids": jnp.ones_like(tokens)}
    chosen = OptimizerConfig()
    optimizer = optimizers.build(chosen, declare(config))
    how = StepConfig(compute_dtype="float32", remat="dots")
    loss = LossConfig(next_token=1.0, kl=0.0)
    step = jax.jit(make_step(Models(config), loss, how, optimizer, make_schedule(chosen.schedule)), donate_argnums=0)
    state = [init_state(jax.tree.map(jnp.copy, params), optimizer)]

    def train() -> None:
        state[0], metrics = step(state[0], None, batch)
        jax.block_until_ready((state[0], metrics))

    square = jnp.ones((SIZE, SIZE))
    matmul = jax.jit(jnp.matmul)
    return {
        "matmul": lambda: matmul(square, square).block_until_ready(),
        "train": train,
        "forward": lambda: evaluate_rows(config, params, [batch]),
    }


def pytorch_calls(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The train step, held-out loss and matmul of transformers and PyTorch."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokens = torch.from_numpy(tokens_of(options, model.config.vocab_size)).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)

    def train() -> None:
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def forward() -> None:
        with torch.no_grad():
            model(input_ids=tokens, labels=tokens).loss.item()

    square = torch.ones(SIZE, SIZE)
    return {"matmul": lambda: square @ square, "train": train, "forward": forward}


def report(found: dict[str, list[dict[str, float]]]) -> None:
    """A table of medians, then the same as one line of JSON."""
    rows: dict[str, dict[str, float]] = {}
    for side, rounds in found.items():
        median = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        flops = median["flops_per_token"]
        rows[side] = {
            "matmul_gflops": median["matmul"] / 1e9,
            "train_tokens": median["train"],
            "forward_tokens": median["forward"],
            "train_share": median["train"] * 3 * flops / median["matmul"],
            "forward_share": median["forward"] * flops / median["matmul"],
            "own_train_gflops": median["own_train"] / 1e9,
            "own_forward_gflops": median["own_forward"] / 1e9,
            "own_train_share": median["train"] * 3 * flops / median["own_train"],
            "own_forward_share": median["forward"] * flops / median["own_forward"],
        }
    ratios = {name: rows["chopjax"][name] / rows["pytorch"][name] for name in rows["chopjax"]}
    print(f"{'per CPU second, medians':28} {'chopjax':>10} {'pytorch':>10} {'ratio':>8}")
    for name, label in {
        "matmul_gflops": "float32 matmul, GFLOP",
        "train_tokens": "train step, tokens",
        "forward_tokens": "forward and loss, tokens",
        "train_share": "train: share of matmul rate",
        "forward_share": "forward: share",
        "own_train_gflops": "own products, train, GFLOP",
        "own_forward_gflops": "own products, forward, GFLOP",
        "own_train_share": "train: share of that rate",
        "own_forward_share": "forward: share of that rate",
    }.items():
        print(f"{label:28} {rows['chopjax'][name]:10.3g} {rows['pytorch'][name]:10.3g} {ratios[name]:8.2f}")
    print(json.dumps({**{side: rows[side] for side in SIDES}, "ratio": ratios}))


if __name__ == "__main__":
    main()
