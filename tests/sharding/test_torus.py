"""Stages of a reduce-scatter along the lines of a torus."""

import itertools

import numpy as np
import pytest

from chopjax.sharding import torus

ROWS = [(x, y, 0) for x in range(3) for y in range(4)]
SNAKE = [(x if y % 2 == 0 else 3 - x, y, 0) for y in range(4) for x in range(4)]
CUBE = list(itertools.product(range(2), range(3), range(4)))
TWO_CORES = [(x, y, 0, core) for x in range(2) for y in range(2) for core in range(2)]


def scattered(stages: list[torus.Groups], parts: np.ndarray) -> np.ndarray:
    """What each device has in the end: parts [device, piece] → [device]."""
    held = [row for row in parts]
    for groups in stages:
        assert sorted(itertools.chain(*groups)) == list(range(len(parts)))
        after = list(held)
        for group in groups:
            pieces = np.split(sum(held[device] for device in group), len(group))
            for device, piece in zip(group, pieces, strict=True):
                after[device] = piece
        held = after
    return np.concatenate(held)


@pytest.mark.parametrize(
    "coords", [ROWS, SNAKE, CUBE, TWO_CORES, ROWS[:4]], ids=["rows", "snake", "cube", "cores", "line"]
)
def test_every_device_ends_with_its_own_part(coords: list[tuple[int, ...]]) -> None:
    stages = torus.stages(coords)
    assert stages is not None
    parts = np.random.default_rng(0).integers(0, 100, (len(coords), len(coords)))
    assert np.array_equal(scattered(stages, parts), parts.sum(0))
    for group in itertools.chain(*itertools.chain(stages)):
        moving = [axis for axis in range(len(coords[0])) if len({coords[device][axis] for device in group}) > 1]
        assert len(moving) == 1  # a line


def test_orders_that_are_no_lines() -> None:
    assert torus.stages([(0, 0), (1, 1), (0, 1), (1, 0)]) is None
    assert torus.stages([(0, 0), (0, 1), (1, 0)]) is None
    assert torus.stages([(0, 0), (0, 0)]) is None
    assert torus.stages([(5, 2)]) == []
