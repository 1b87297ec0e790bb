"""A small made-up run with everything measured, and pictures painted for a look at their marks."""

import dataclasses
import functools

import numpy as np
from matplotlib.figure import Figure
from report.made_up_scores import removal, scores, search

from chopjax.chop.plan import Plan
from chopjax.report import records
from chopjax.report.canvas import PRINTED, Picture, Spot
from chopjax.report.run import Run
from chopjax.score.aggregate import activation_scores

SIZES = {"layers": 9, "embed": 24, "kv_heads": 2, "q_per_kv": 10, "head_dim": 4, "mlp": 40, "vocab": 50}


@functools.cache
def measured_run() -> Run:
    """Layers 3 and 4 go; of the others, 30 of 40 neurons, 7 of 10 query heads and 20 of 24 channels stay."""
    sums = scores(SIZES)
    found = activation_scores(sums)
    layers = np.array([0, 1, 2, 5, 6, 7, 8])
    kept = {"layers": layers, "mlp": best(found["mlp"][layers], 30), "q_per_kv": best(found["q_per_kv"][layers], 7)}
    kept["embed"] = best(found["embed"], 20)
    return Run(
        "some/model",
        plan=Plan(SIZES, kept),
        scores=sums,
        search=records.search(search(distilled=5)),
        removal=records.removal(removal(9) | {"count": 2, "blocks": [5.0, 4.5, 4.0, 3.5, 3.2, 3.4, 3.9, 5.5]}),
    )


def best(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the highest values along the last axis, ascending."""
    return np.sort(np.argsort(-values, axis=-1)[..., :count], axis=-1)


def without(run: Run, *names: str) -> Run:
    """The run without some sums of its scores."""
    return dataclasses.replace(run, scores={name: value for name, value in run.scores.items() if name not in names})


def painted(picture: Picture | None) -> tuple[Figure, list[Spot]]:
    """The figure with its marks, and the spots that tell numbers."""
    assert picture is not None
    figure = Figure(figsize=picture.size)
    return figure, list(picture.paint(figure, PRINTED))
