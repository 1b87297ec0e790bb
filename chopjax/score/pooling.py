"""Statistics of single weights, summed for each index of an axis by the names of axes. Imports without jax."""

from collections.abc import Mapping
from typing import Any

from chopjax.axes import AROUND, Leaf, Role

AXES = ("layers", "embed", "kv_heads", "q_per_kv", "mlp")

# Norms and biases are left out: one number for each channel or neuron beside thousands in matrices. A norm's scale
# moreover lies near 1, or near 0 where the family stores scale - 1, so its size would say more about the family than
# about the channel.
POOLED = (Role.MATRIX, Role.TABLE)


def pool(values: Mapping[str, Any], leaves: Mapping[str, Leaf], axis: str) -> Any:
    """The sum over all weights that go when one index of an axis goes.

    Every matrix and table that holds the axis is summed over its other axes, except those around it. So a neuron
    (`mlp`) has its columns of gate and up and its row of down; a KV head its part of k and v and that of its query
    heads in q and o; a query head its part of q and o; a channel (`embed`) all that reads or writes it, the embedding
    and unembedding tables too; a layer all its matrices.

    Args:
        values: flat path → an array shaped like the parameter, numpy or jax. Norms and biases are not looked at.
        leaves: the declarations of the parameters.
        axis: a key of `chopjax.axes.AROUND`.

    Returns:
        An array of the same kind and dtype, of the shape of the axis after those around it: `mlp` [layers, mlp].
    """
    names = (*AROUND[axis], axis)
    # Declarations name axes from the outermost inwards, so what remains of each is in the same order.
    parts = [
        values[path].sum(axis=tuple(at for at, name in enumerate(leaf.axes) if name not in names))
        for path, leaf in leaves.items()
        if leaf.role in POOLED and axis in leaf.axes
    ]
    return sum(parts[1:], start=parts[0])
