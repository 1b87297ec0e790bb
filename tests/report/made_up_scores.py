"""Made-up scores, searches and losses without layers, shaped like those of SmolLM2-135M."""

import json
import math
import pathlib
from typing import Any

import numpy as np

from chopjax.score.file import ScoreFile

ROWS, TOKENS = 32, 32 * 512


def scores(sizes: dict[str, int], seed: int = 0, noise: float = 0.02) -> dict[str, np.ndarray]:
    """The sums of a score file: an easy middle and a hard start and end, and channels of which a few stand out."""
    chance = np.random.default_rng(seed)
    layers, embed, groups = (sizes[name] for name in ("layers", "embed", "kv_heads"))
    shapes = {
        "mlp": (layers, sizes["mlp"]),
        "q_per_kv": (layers, groups, sizes["q_per_kv"]),
        "embed": (layers, 2, embed),
    }
    spread = {"mlp": 0.7, "q_per_kv": 0.5, "embed": 0.5}
    found: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        depth = np.linspace(0.4, 3, layers).reshape(-1, *[1] * (len(shape) - 1))
        size = depth * np.exp(chance.normal(0, spread[name], shape))
        if name == "embed":
            size[..., ::97] *= 12
        halves = size * np.exp(chance.normal(0, noise, (2, *shape)))
        mean = halves[:, None, None] * np.array([1.0, 25.0, 2.0]).reshape(1, 3, *[1] * (len(shape) + 1))
        found[name] = np.concatenate([mean, mean**2 * 1.05], axis=2) * (ROWS / 2)
    turns = 0.012 + 0.05 * np.exp(-np.arange(layers) / 1.2) + 0.06 * np.exp((np.arange(layers) - layers + 1) / 0.9)
    turns = turns * np.exp(chance.normal(0, 0.15, layers))
    place = np.concatenate([[0], np.cumsum(turns)])
    angle = 0.5 * np.tanh(np.abs(place[:, None] - place[None]) ** 0.6 * 1.7)
    halves = np.stack([angle * 0.99, angle * 1.01])
    found["angle"] = halves * TOKENS / 2
    found["last_angle"] = halves * ROWS / 2
    found["cosine"] = np.cos(halves * math.pi) * TOKENS / 2
    found["rows"] = np.full(2, ROWS / 2)
    found["tokens"] = np.full(2, TOKENS / 2)
    found["words"] = chance.integers(0, 9, (2, sizes["vocab"]))
    return found


def save_scores(path: pathlib.Path, sums: dict[str, np.ndarray], sizes: dict[str, int]) -> None:
    """Writes them as a score file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ScoreFile(sums, "model", ("rows",), sizes, "org/model", "bfloat16", 512).save(path)


def without_one(layers: int) -> list[float]:
    """Losses without each layer: high at both ends, low in the middle."""
    chance = np.random.default_rng(3)
    place = np.arange(layers)
    cost = 6.1 * np.exp(-place / 0.4) + 0.5 * np.exp(-place / 3) + 0.9 * np.exp((place - layers + 1) / 1.2)
    return (2.91 + cost + 0.05 + chance.exponential(0.04, layers)).tolist()


def removal(layers: int = 30) -> dict[str, Any]:
    """The body of `removal.json`, with every part."""
    alone = without_one(layers)
    order = np.argsort(alone)[: layers // 3]
    path = 2.91 + np.cumsum(np.array(alone)[order] - 2.91) * np.linspace(1, 2.6, len(order))
    starts = np.arange(layers - 5)
    blocks = 3.9 + 0.011 * (starts - layers * 0.43) ** 2 + 0.05 * np.sin(starts * 2.0)
    return {
        "metric": "next_token",
        "dense": 2.91,
        "removed": order.tolist(),
        "losses": path.tolist(),
        "count": 6,
        "blocks": blocks.tolist(),
        "without_one": alone,
    }


def search(number: int = 32, distilled: int = 8) -> dict[str, Any]:
    """The body of `search.json`: candidates ordered by loss, of which the first few are distilled."""
    chance = np.random.default_rng(5)
    lines = []
    for _ in range(number):
        sizes = {"layers": int(chance.integers(18, 31)), "embed": int(64 * chance.integers(6, 10))}
        sizes |= {"mlp": int(128 * chance.integers(6, 13)), "kv_heads": 3, "q_per_kv": int(chance.integers(2, 4))}
        inner = sizes["embed"] * (3 * sizes["mlp"] + 64 * 3 * (2 + 2 * sizes["q_per_kv"]))
        count = 49152 * sizes["embed"] + sizes["layers"] * inner
        hurt = 1.3 * (1 - sizes["embed"] / 640) + 2.2 * (1 - sizes["layers"] / 31) + 0.6 * (1 - sizes["mlp"] / 1664)
        loss = 2.95 + 2 * hurt + float(chance.normal(0, 0.08))
        lines.append({"sizes": sizes, "parameters": count, "cost": float(count), "surrogate": loss + 0.1, "loss": loss})
    lines.sort(key=lambda line: line["loss"])
    for place, line in enumerate(lines):
        healed = 3.05 + 0.16 * (line["loss"] - 3) + float(chance.normal(0, 0.05))
        line["distilled"] = healed if place < distilled else None
    best = min(range(distilled), key=lambda place: lines[place]["distilled"]) if distilled else 0
    return {
        "enumerated": 1_254_400,
        "feasible": 18_302,
        "budget": {"params": "60%..95%"},
        "dense": {"parameters": 134_515_008, "loss": 2.91},
        "cost": "params",
        "candidates": lines,
        "chosen": best,
    }


def write(folder: pathlib.Path, sizes: dict[str, int]) -> None:
    """Writes all three into a run's folder."""
    save_scores(folder / "scores" / "scores.safetensors", scores(sizes), sizes)
    (folder / "search.json").write_text(json.dumps(search()))
    (folder / "removal.json").write_text(json.dumps(removal(sizes["layers"])))
