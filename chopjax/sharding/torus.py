"""Sums over a mesh axis in stages, each along one axis of the chips' torus. Plain data, no jax.

Compilers for TPUs turn a reduce-scatter over chips that do not lie on one line into an all-reduce, which sends twice as
much and holds the whole sum. Along a line it stays what it is, and line after line comes to the same.
"""

from collections.abc import Sequence

Groups = list[list[int]]
"""Indices along a mesh axis; those of one group add up."""


def stages(coords: Sequence[Sequence[int]]) -> list[Groups] | None:
    """The stages in which an array is scattered, the coarsest first.

    In a stage each group has one device of every line along one torus axis, in the order of the parts that they get.
    After all of them, the device of index i has part i.

    Args:
        coords: of the devices along a mesh axis, in its order, each along every torus axis.

    Returns:
        groups for each stage; None where the devices fill no grid in an order that runs line by line.
    """
    places = [tuple(place) for place in coords]
    blocks: list[Sequence[int]] = [range(len(places))]
    found: list[Groups] = []
    while len(blocks[0]) > 1:
        axis = next((axis for axis in range(len(places[0])) if _splits(blocks, places, axis)), None)
        if axis is None:
            return None
        parts = len({places[index][axis] for index in blocks[0]})
        groups: Groups = []
        inner: list[Sequence[int]] = []
        for block in blocks:
            lines = _lines(block, parts)
            at = [{_rest(places[index], axis): index for index in line} for line in lines]
            groups += [[there[rest] for there in at] for rest in at[0]]
            inner += lines
        found.append(groups)
        blocks = inner
    return found


def _splits(blocks: Sequence[Sequence[int]], places: Sequence[tuple[int, ...]], axis: int) -> bool:
    """Whether every block is a row of equal parts, in each of which the coordinate of `axis` stays the same."""
    counts = {len({places[index][axis] for index in block}) for block in blocks}
    if len(counts) > 1 or counts == {1}:
        return False
    parts = counts.pop()
    for block in blocks:
        if len(block) % parts:
            return False
        lines = _lines(block, parts)
        if any(len({places[index][axis] for index in line}) > 1 for line in lines):
            return False
        if len({frozenset(_rest(places[index], axis) for index in line) for line in lines}) > 1:
            return False
    return True


def _lines(block: Sequence[int], parts: int) -> list[Sequence[int]]:
    """A block in as many equal parts."""
    size = len(block) // parts
    return [block[start : start + size] for start in range(0, len(block), size)]


def _rest(place: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return place[:axis] + place[axis + 1 :]
