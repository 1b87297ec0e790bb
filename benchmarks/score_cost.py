"""CPU seconds of the scoring pass, beside those of a plain forward pass of the same rows.

    python benchmarks/score_cost.py MODEL_FOLDER [--rounds 9] [--batch 8] [--length 256] [--threads 2]

MODEL_FOLDER is a Hugging Face folder, such as the one that tools/demo_model.py makes. All sides run in float32 on the
same tokens and take turns inside one process: `hidden`, a forward pass up to the final norm; `loss`, the same with the
loss of the next token; `score`, the forward pass that gives every statistic of `chopjax.score.activations`. CPU seconds
of the whole process are counted, so a busy machine disturbs little; the ratios are medians over rounds of the ratio
within a round. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

SIDES = ("hidden", "loss", "score")


def main() -> None:
    """Runs all sides in turn and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    # Before jax is imported: it makes as many threads as there are processors for it.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    sides = calls(options)
    for call in sides.values():
        call()  # compiles
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            found[side].append(cpu_seconds(sides[side]))
    report(found)


def cpu_seconds(call: Callable[[], Any]) -> float:
    """CPU seconds of a call, over all threads."""
    before = time.process_time()
    call()
    return time.process_time() - before


def calls(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The jitted passes, each on the same batch."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from chopjax.evaluate.perplexity import batch_sums
    from chopjax.hf.checkpoint import open_checkpoint
    from chopjax.hf.reading import load_params
    from chopjax.models.decoder import forward
    from chopjax.score.activations import score_sums

    checkpoint = open_checkpoint(options.model)
    config, params = checkpoint.config, load_params(checkpoint, dtype=jnp.float32)
    drawn = np.random.default_rng(0).integers(0, config.vocab, (options.batch, options.length))
    tokens = jnp.asarray(drawn, jnp.int32)
    places = jnp.broadcast_to(jnp.arange(options.length, dtype=jnp.int32)[None], tokens.shape)
    batch = {"tokens": tokens, "positions": places, "segment_ids": jnp.ones_like(tokens)}

    def hidden(params: Any, batch: Any) -> jax.Array:
        return forward(config, params, batch["tokens"], batch["positions"], batch["segment_ids"]).hidden

    hidden_jit = jax.jit(hidden)
    score_jit = jax.jit(lambda params, batch: score_sums(config, params, batch))
    return {
        "hidden": lambda: jax.block_until_ready(hidden_jit(params, batch)),
        "loss": lambda: jax.block_until_ready(batch_sums(config, params, batch)),
        "score": lambda: jax.block_until_ready(score_jit(params, batch)),
    }


def report(found: dict[str, list[float]]) -> None:
    """Medians, then the same as one line of JSON."""
    seconds = {side: statistics.median(spent) for side, spent in found.items()}
    ratios = {
        f"score_over_{side}": statistics.median(a / b for a, b in zip(found["score"], found[side], strict=True))
        for side in ("hidden", "loss")
    }
    for side, spent in seconds.items():
        print(f"{side:8} {spent:8.3f} CPU seconds")
    for name, ratio in ratios.items():
        print(f"{name:20} {ratio:6.3f}")
    print(json.dumps({"cpu_seconds": seconds, **ratios}))


if __name__ == "__main__":
    main()
