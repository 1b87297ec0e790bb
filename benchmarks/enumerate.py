"""CPU seconds to enumerate a million students of Llama-3.1-8B, beside a plain loop over a sample of them.

    python benchmarks/enumerate.py [--sample 20000] [--repeats 3]

The space: 16 to 32 layers, both widths in steps of 32, 4 or 8 key/value heads, 2 to 4 query heads for each. The budget:
4.5B parameters that one TPU v5e holds with 32k tokens of cache. Our side lays out all candidates, counts what each
costs, keeps those within the budget, and chooses 32. The loop makes each candidate of a random sample a model config
and counts with `chopjax.models.parameters`, the same functions that count a single model; its verdicts are compared
with ours one by one. Memory is what our side adds to the process at its peak. The last line is JSON.
"""

import argparse
import dataclasses
import json
import random
import resource
import statistics
import time

import numpy as np

from chopjax.models.config import ModelConfig
from chopjax.models.parameters import count, flops_per_token, kv_cache_bytes
from chopjax.search.config import SearchConfig
from chopjax.search.enumerate import Found, find
from chopjax.search.frontier import select

LLAMA31_8B = ModelConfig(
    layers=32, embed=4096, kv_heads=8, q_per_kv=4, head_dim=128, mlp=14_336, vocab=128_256, positions=131_072
)
CONFIG = SearchConfig(params="4.5B", chip="v5e", context=32_768, multiple=32)


def main() -> None:
    """Runs both sides and prints what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    before = peak_megabytes()
    seconds = []
    for _ in range(options.repeats):
        start = time.process_time()
        found = find(CONFIG, LLAMA31_8B)
        chosen = select(found, CONFIG.evaluate)
        seconds.append(time.process_time() - start)
    added = peak_megabytes() - before
    looped, differing = loop(found, options.sample)
    total = len(found.space)
    result = {
        "candidates": total,
        "feasible": len(found),
        "chosen": len(chosen),
        "cpu_seconds": statistics.median(seconds),
        "added_megabytes": added,
        "loop_sample": options.sample,
        "loop_cpu_seconds_for_all": looped * total / options.sample,
        "differing_verdicts": differing,
    }
    print(f"{total:,} candidates, {len(found):,} within the budget, {len(chosen)} chosen")
    print(f"{result['cpu_seconds']:.2f} CPU seconds, {added:.0f} MB; a plain loop would take "
          f"{result['loop_cpu_seconds_for_all']:.0f}; {differing} of {options.sample:,} verdicts differ")  # fmt: skip
    print(json.dumps(result))


def loop(found: Found, sample: int) -> tuple[float, int]:
    """CPU seconds of a plain loop over a sample, and how many of its verdicts differ from ours."""
    numbers = random.Random(0).sample(range(len(found.space)), sample)
    sizes = {axis: array.tolist() for axis, array in found.space.sizes(np.asarray(numbers)).items()}
    ours = np.isin(numbers, found.numbers).tolist()
    low, high, room = 0.95 * 4.5e9, 4.5e9, 0.9 * 2**34
    start = time.process_time()
    verdicts = []
    for place in range(sample):
        chosen = {axis: values[place] for axis, values in sizes.items()}
        student = dataclasses.replace(LLAMA31_8B, **chosen, kind_of_layer=())  # type: ignore[arg-type]
        # All figures, as our side counts them, whether or not the budget needs them.
        params, _, _ = count(student), count(student, embeddings=False), flops_per_token(student, CONFIG.context)
        held = 2 * params + CONFIG.sequences * kv_cache_bytes(student, CONFIG.context)
        verdicts.append(low <= params <= high and held <= room)
    seconds = time.process_time() - start
    return seconds, sum(a != b for a, b in zip(verdicts, ours, strict=True))


def peak_megabytes() -> float:
    """The largest memory that this process has held so far, in 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
