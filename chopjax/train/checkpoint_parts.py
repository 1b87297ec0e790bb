"""What a checkpoint consists of: the arrays of the state, and JSON for the rest, with the digests of all."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from chopjax import paths
from chopjax.train import digests

# Names of the parts; the digests are absent in checkpoints of earlier versions.
STATE, POSITION, IDENTITY, DIGESTS = "state", "position", "identity", "digests"
# In place of an array that is not to be read back.
UNREAD = ocp.PLACEHOLDER
_HALF_WRITTEN = "orbax-checkpoint-tmp"  # in the names of what is not whole yet, on a disk
_COMMITTED = "commit_success.txt"  # in what is whole, in a store


def half_written(folder: pathlib.Path) -> list[pathlib.Path]:
    """What Orbax takes for checkpoints that were never finished, and removes.

    On a disk they have another name until they are whole. Stores cannot rename: there a checkpoint has its name from
    the beginning, and a file in it says in the end that it is whole.
    """
    if not paths.is_remote(folder):
        return sorted(folder.glob(f"*{_HALF_WRITTEN}*"))
    names = [tuple(name.split("/")) for name in paths.inside(folder)]
    whole = {first for first, *rest in names if rest == [_COMMITTED]}
    halves = {first for first, *rest in names if rest} - whole
    return [folder / name for name in sorted(halves, key=lambda name: (len(name), name))]


def context() -> ocp.Context:
    """Orbax would keep a dict of plain values as arrays; these are to be JSON that a person can read.

    And it would compress arrays, which of float32 weights and moments saves 8 %, takes twice the CPU time, and holds
    all of them in memory once more.
    """
    registry = ocp.handlers.local_registry()
    for name in (POSITION, IDENTITY, DIGESTS):
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.array.saving.use_compression = False
    return context


class Always:
    """Saves whenever asked: the loop decides when."""

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        return True


def of(state: Any, position: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """All parts of a checkpoint. The digests have the shapes of the arrays too:

    `{"state": {"params/embed/table": "float32[7, 5] 0123456789abcdef"}, "position": ..., "identity": ...}`
    """
    described, arrays = shapes(state), digests.of_arrays(leaves(state))
    kept = {STATE: {name: f"{described[name]} {digest}" for name, digest in arrays.items()}}
    plain = {POSITION: position, IDENTITY: identity}
    return {STATE: state, **plain, DIGESTS: kept | {name: digests.of_json(part) for name, part in plain.items()}}


def shapes(tree: Any) -> dict[str, Any]:
    """`{"params/embed/table": "float32[7, 5]"}` of any tree of things with a shape and a dtype, or `UNREAD`."""
    return {name: leaf if leaf is UNREAD else f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves(tree).items()}


def leaves(tree: Any) -> dict[str, Any]:
    """The arrays of a tree, or what describes them, by names such as `params/embed/table`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
        if leaf is UNREAD or hasattr(leaf, "shape")
    }
