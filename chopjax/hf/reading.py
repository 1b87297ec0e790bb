"""Reading parameters: each leaf straight into its target sharding, by ranged reads, so that no host holds the model.

`read_leaf` and `read_tensor` give numpy arrays and import no jax.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from chopjax.axes import flatten, unflatten
from chopjax.errors import UserError
from chopjax.hf import safetensors
from chopjax.hf.checkpoint import Checkpoint
from chopjax.hf.families import Tensor

if TYPE_CHECKING:
    import jax

Index = Sequence[slice]

# Layers read at a time; copying releases the interpreter lock. Each holds one block of a few MB.
_THREADS = 4


def load_params(
    checkpoint: Checkpoint,
    shardings: Mapping[str, Any] | None = None,
    dtype: Any = None,
    check_finite: bool = True,
) -> "dict[str, Any]":
    """All parameters as a nested dict of jax arrays.

    Leaf by leaf, each process reads the byte ranges that its own devices need, one layer at a time, and hands them to
    the devices before it goes on. A host holds its share of the model, and of one leaf besides.

    Args:
        shardings: nested dict of `jax.sharding.Sharding`, one for each leaf; None puts all on the default device.
        dtype: of every leaf; None keeps each leaf as it is stored (float32 if the layers of a leaf differ).
        check_finite: whether to look for NaN and infinities in what is read.

    Raises:
        UserError: a tensor holds NaN or infinity (named), a file ends early, or changed since it was opened.
    """
    import jax

    flat = flatten(shardings) if shardings is not None else {}
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0]) if shardings is None else None
    params: dict[str, Any] = {}
    with checkpoint.unchanged():
        for path in checkpoint.leaves:
            params[path] = _load_leaf(checkpoint, path, default or flat[path], dtype, check_finite)
    return unflatten(params)


def _load_leaf(checkpoint: Checkpoint, path: str, sharding: Any, dtype: Any, check_finite: bool) -> "jax.Array":
    import jax

    # Devices with the same part share one copy of it.
    parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}
    shape = leaf_shape(checkpoint, path)

    def part(index: Index | None) -> np.ndarray:
        bounds = tuple(entry.indices(size)[:2] for entry, size in zip(index or (), shape, strict=True))
        if bounds not in parts:
            parts[bounds] = read_leaf(checkpoint, path, index, dtype, check_finite)
        return parts[bounds]

    array = jax.make_array_from_callback(shape, sharding, part, dtype=_dtype(checkpoint, path, dtype))
    # The next leaf is read only once this one has left the host's buffers.
    return jax.block_until_ready(array)


def leaf_shape(checkpoint: Checkpoint, path: str) -> tuple[int, ...]:
    """Shape of a leaf of the parameter tree."""
    return checkpoint.leaves[path][0].leaf.shape(checkpoint.config.sizes)


def read_leaf(
    checkpoint: Checkpoint,
    path: str,
    index: Index | None = None,
    dtype: Any = None,
    check_finite: bool = False,
) -> np.ndarray:
    """A leaf of the parameter tree, or a rectangular part of it, layers stacked.

    Args:
        index: a slice (step 1) for each axis of the leaf; None for all of it.
        dtype: None for the leaf's own, see `Checkpoint.leaf_dtype`.

    Raises:
        UserError: as `load_params`.
    """
    shape = leaf_shape(checkpoint, path)
    bounds = [entry.indices(size) for entry, size in zip(index or [slice(None)] * len(shape), shape, strict=True)]
    if any(step != 1 for _, _, step in bounds):
        raise ValueError(f"{path}: parts are read with step 1, not {index}")
    slices = tuple(slice(start, stop) for start, stop, _ in bounds)
    out = np.empty([stop - start for start, stop, _ in bounds], _dtype(checkpoint, path, dtype))
    tensors = checkpoint.leaves[path]
    if tensors[0].layer is None:
        _fill(checkpoint, tensors[0], slices, out, check_finite)
        return out
    stack = tensors[0].leaf.axes.index("layers")
    within = slices[:stack] + slices[stack + 1 :]
    with ThreadPoolExecutor(_THREADS) as pool:
        jobs = zip(tensors[slices[stack]], np.moveaxis(out, stack, 0), strict=True)
        list(pool.map(lambda job: _fill(checkpoint, job[0], within, job[1], check_finite), jobs))
    return out


def read_tensor(checkpoint: Checkpoint, name: str) -> np.ndarray:
    """One tensor by its file name, in its file's shape and dtype."""
    return safetensors.read_tensor(checkpoint.tensors[name])


def _dtype(checkpoint: Checkpoint, path: str, dtype: Any) -> np.dtype:
    return checkpoint.leaf_dtype(path) if dtype is None else np.dtype(dtype)


def _fill(checkpoint: Checkpoint, tensor: Tensor, index: Index, out: np.ndarray, check_finite: bool) -> None:
    """Fills `out`, the part `index` of one tensor in tree order, by blocks of rows in file order."""
    entry = checkpoint.tensors[tensor.name]
    bounds = dict(zip(tensor.leaf_axes, index, strict=True))
    row_axes, column_axes = tensor.groups[0], tuple(itertools.chain(*tensor.groups[1:]))
    row_sizes = [tensor.axis_sizes[axis] for axis in row_axes]
    target = tensor.file_view(out)
    columns, column_shape, column_part = _columns(tensor, column_axes, bounds)
    with safetensors.opened(entry.file) as source:
        # Wanted rows are contiguous along the innermost row axis: one run for each index of those around it.
        for where in np.ndindex(target.shape[: len(row_axes) - 1]):
            corner = [bounds[axis].start + place for axis, place in zip(row_axes, (*where, 0), strict=True)]
            start = int(np.ravel_multi_index(corner, row_sizes))
            rows = slice(start, start + target.shape[len(row_axes) - 1])
            for first, block in safetensors.read_rows(source, entry, rows, columns):
                if check_finite and not safetensors.all_finite(block):
                    raise UserError(
                        f"{entry.file}: tensor {tensor.name} holds NaN or infinity; use an intact checkpoint"
                    )
                expanded = block.reshape(len(block), *column_shape)[:, *column_part]
                target[*where, first : first + len(block)] = expanded


def _columns(
    tensor: Tensor, axes: tuple[str, ...], bounds: Mapping[str, slice]
) -> tuple[slice, list[int], tuple[slice, ...]]:
    """The columns to read, and then the shape to give them and the part of that to take.

    Only along the first column axis is anything left unread; parts of the others are taken afterwards.
    """
    if not axes:
        return slice(None), [], ()
    first, *others = axes
    other_sizes = [tensor.axis_sizes[axis] for axis in others]
    inner = math.prod(other_sizes)
    columns = slice(bounds[first].start * inner, bounds[first].stop * inner)
    shape = [bounds[first].stop - bounds[first].start, *other_sizes]
    return columns, shape, (slice(None), *(bounds[axis] for axis in others))
