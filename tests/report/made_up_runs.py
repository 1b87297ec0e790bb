"""Made-up runs, shared by the tests of the report."""

import dataclasses
import math
from typing import Any

import numpy as np

from chopjax.chop.plan import Plan
from chopjax.models.config import ModelConfig
from chopjax.report.figures import measure
from chopjax.report.run import Run

SIZES = {"layers": 30, "embed": 576, "kv_heads": 3, "q_per_kv": 3, "head_dim": 64, "mlp": 1536, "vocab": 49152}
SIZES["positions"] = 8192


def draws(shape: tuple[int, ...], size: int, kept: int, seed: int = 0) -> np.ndarray:
    """Random kept indices, ascending, of shape [*shape, kept]."""
    ranks = np.random.default_rng(seed).random((*shape, size)).argsort(-1)
    return np.sort(ranks[..., :kept], axis=-1)


def middle_plan(**more: np.ndarray) -> Plan:
    """SmolLM2-135M without its layers 12 to 17 and with 1152 of 1536 MLP neurons."""
    layers = np.array([*range(12), *range(18, 30)])
    kept = {"layers": layers, "mlp": draws((24,), 1536, 1152)} | more
    reasons = {
        "layers": "layout middle: 6 of 30 layers removed",
        "mlp": "largest mean absolute activation over 64 rows of calibration text",
    }
    return Plan(SIZES, kept, reasons, "HuggingFaceTB/SmolLM2-135M-Instruct")


def metrics(steps: int = 40, tokens_per_step: int = 1024) -> list[dict[str, Any]]:
    """Losses that fall with a little noise, and an evaluation every ten steps."""
    noise = np.random.default_rng(1).normal(0, 0.08, steps + 1)
    lines: list[dict[str, Any]] = [_evaluation(0, 0, 4.62)]
    for step in range(1, steps + 1):
        kl = 1.35 * math.exp(-step / 12) + 0.62 + noise[step]
        lines.append(
            {
                "step": step,
                "tokens": step * tokens_per_step,
                "loss": kl,
                "kl": kl,
                "learning_rate": 3e-4 * min(step / 8, 0.5 + 0.5 * math.cos(math.pi * max(step - 8, 0) / (steps - 8))),
                "grad_norm": 2.1 * math.exp(-step / 15) + 0.6 + abs(noise[step]) * 3,
                "tokens_per_second": 410 + 300 * noise[step],
                "mfu": None,
            }
        )
        if step % 10 == 0:
            lines.append(_evaluation(step, step * tokens_per_step, 3.62 + math.exp(-step / 11)))
    return lines


def full_run() -> Run:
    """A run of which nothing is absent."""
    teacher = ModelConfig(**SIZES, tied=True)
    student = dataclasses.replace(teacher, layers=24, mlp=1152, kind_of_layer=())
    story = " once upon a time there was a village by the sea. The people of the village were fishermen, and"
    return Run(
        source="HuggingFaceTB/SmolLM2-135M-Instruct",
        plan=middle_plan(),
        metrics=metrics(),
        models={
            "teacher": measure(teacher, 2048, 2, 24.3, 0.0),
            "chopped": measure(student, 2048, 2, 101.7, 1.94),
            "healed": measure(student, 2048, 2, 41.2, 0.66),
        },
        samples=[
            {
                "prompt": "In Python, a dictionary is",
                "teacher": " a collection of key-value pairs. Each key is unique and maps to a value; keys may be any "
                "hashable object.\n\nTo create one, write braces:\n\n    ages = {'Ada': 36}",
                "chopped": " a a a dictionary dictionary of of the the, that that is is a the a",
                "healed": " a collection of values that are named by their keys. A key must be hashable, and the value",
            },
            {"prompt": "Long ago,", "teacher": story, "chopped": " ago ago the the", "healed": story[:60]},
        ],
        tokens=40 * 1024,
        seconds=431.7,
        length=2048,
        config={"source": "HuggingFaceTB/SmolLM2-135M-Instruct", "seed": 0, "train": {"steps": 40, "batch": 4}},
    )


def _evaluation(step: int, tokens: int, nll: float) -> dict[str, Any]:
    return {
        "step": step,
        "tokens": tokens,
        "heldout_nll": nll,
        "heldout_perplexity": math.exp(nll),
        "heldout_kl": nll - 2.9,
    }
