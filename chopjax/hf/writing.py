"""Writing checkpoints: streamed tensor by tensor, split into shards, atomic.

`write_checkpoint` takes tensors that are produced when their turn comes, so that file-to-file work holds a
few tensors at a time and exports from sharded arrays one. jax is imported only where jax arrays are exported.
"""

import dataclasses
import functools
import itertools
import json
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from chopjax import files, paths
from chopjax.axes import flatten
from chopjax.errors import UserError
from chopjax.folders import sent, written_whole
from chopjax.hf import safetensors
from chopjax.hf.checkpoint import CONFIG, Checkpoint
from chopjax.hf.families import Tensor, target_family
from chopjax.hf.small_files import small_files
from chopjax.hf.token_ids import with_usable_padding
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import config_mismatch

MAX_SHARD_BYTES = 5_000_000_000
SETTINGS = "tokenizer_config.json"


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor of a file that is yet to be written.

    Attributes:
        name: its name in the file.
        dtype: numpy dtype in the file: float32, bfloat16 or float16.
        shape: shape in the file.
        read: makes it; called once, when its turn comes.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_checkpoint(
    folder: str | Path,
    tensors: Sequence[LazyTensor],
    config: Mapping[str, Any],
    copy_from: Path | None = None,
    card: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    replace: bool = False,
    write: bool = True,
    check_finite: bool = True,
    instead: Mapping[str, str | None] | None = None,
    at_once: int = 1,
) -> None:
    """Writes a Hugging Face folder, which appears when it is complete.

    Args:
        tensors: in the order in which they are to be spread over the shards.
        config: config.json.
        copy_from: folder of which the tokenizer, generation config and licence are copied.
        card: README.md.
        max_shard_bytes: size that a shard's data exceeds only if it is a single tensor.
        replace: whether an existing folder is replaced.
        write: False makes all tensors and writes nothing: for all processes but one, where making is collective.
        check_finite: whether NaN and infinities are refused.
        instead: contents by name for some of the files that would be copied; None leaves one out.
        at_once: tensors that are made at one time, each in a thread; where making is collective, 1.

    Raises:
        UserError: the folder exists and is not to be replaced, or a tensor holds NaN or infinity.
    """
    shards = plan_shards(tensors, max_shard_bytes)
    if not write:
        for shard in shards:
            for tensor in _in_write_order(shard):
                tensor.read()
        return
    with written_whole(paths.make(folder), replace, last=(CONFIG,)) as partial:
        # Small files first: what is wrong with them shows before hours of writing.
        (partial / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")
        if copy_from is not None:
            copy_small_files(copy_from, partial, instead or {})
        names = [safetensors.SINGLE]
        if len(shards) > 1:
            names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
            _write_index(partial, dict(zip(names, shards, strict=True)))
        for name, shard in zip(names, shards, strict=True):
            _write_shard(partial / name, shard, check_finite, at_once)
            sent(partial / name)


def export_params(
    folder: str | Path,
    params: Mapping[str, Any],
    config: ModelConfig,
    like: Checkpoint,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    card: str | None = None,
    replace: bool = False,
    write: bool | None = None,
) -> str | None:
    """Writes parameters as a checkpoint that stock `transformers` loads, with what else `like` has (tokenizer, ...).

    Every process calls it, since sharded arrays are gathered, one tensor at a time; process 0 writes.

    Args:
        params: nested dict of jax or numpy arrays, shaped as `config` calls for.
        like: the source, from which family, other config keys, and small files are taken.
        dtype: `"float32"`, `"bfloat16"` or `"float16"` for all; None for what each parameter is stored as in `like`.
        write: whether this process writes; None for process 0 only.

    Returns:
        A note for the user if the export is of another family than the source, or other runtimes may stumble.

    Raises:
        UserError: stock classes cannot hold `config`; the folder exists; NaN or infinity; an unknown dtype.
    """
    if dtype is not None and dtype not in safetensors.DTYPES:
        raise UserError(f"export dtype {dtype!r}: must be one of {', '.join(safetensors.DTYPES)}")
    family, note = target_family(like.family, config)
    flat = flatten(params)
    mismatch = config_mismatch(config, {path: tuple(leaf.shape) for path, leaf in flat.items()})
    if mismatch is not None:
        raise ValueError(mismatch)
    tensors = [
        LazyTensor(tensor.name, chosen, tensor.shape, functools.partial(_produce, flat[tensor.path], tensor, chosen))
        for tensor in family.tensors(config)
        for chosen in [export_dtype(like, tensor.path, dtype)]
    ]
    if write is None:
        write = all(isinstance(leaf, np.ndarray) for leaf in flat.values()) or _is_first_process()
    described = with_usable_padding(like.raw_config, like.config.vocab)
    raw = family.config_to_hf(config, described, dtype or like.dtype)
    write_checkpoint(folder, tensors, raw, like.folder, card, max_shard_bytes, replace, write)
    return note


def export_dtype(like: Checkpoint, path: str, dtype: str | None) -> np.dtype:
    """The dtype that the leaf at `path` is exported in: `dtype`, or as in the source, or as most of the source."""
    if dtype is None and path in like.leaves:
        return like.leaf_dtype(path)
    return safetensors.DTYPES[dtype or like.dtype]


def plan_shards(tensors: Sequence[LazyTensor], max_shard_bytes: int) -> list[list[LazyTensor]]:
    """Cuts the sequence into shards, none of them above the size unless a single tensor is."""
    shards: list[list[LazyTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards


def copy_small_files(source: Path, target: Path, instead: Mapping[str, str | None]) -> None:
    """Copies what `small_files` lists untouched, but for files whose contents are given in `instead`.

    Code is not copied, so tokenizer_config.json names none.
    """
    for name, file in small_files(source).copied.items():
        if name in instead:
            continue
        (target / name).parent.mkdir(exist_ok=True)
        found = files.read_object(file) if name == SETTINGS else None
        if found and found.pop("auto_map", None):
            (target / name).write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        else:
            shutil.copyfile(file, target / name)
    for name, text in instead.items():
        if text is not None:
            (target / name).write_text(text, encoding="utf-8")


def _specs(shard: Sequence[LazyTensor]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in shard}


def _in_write_order(shard: Sequence[LazyTensor]) -> list[LazyTensor]:
    by_name = {tensor.name: tensor for tensor in shard}
    return [by_name[name] for name in safetensors.write_order(_specs(shard))]


def _write_shard(file: Path, shard: Sequence[LazyTensor], check_finite: bool, at_once: int) -> None:
    with safetensors.Writer(file, _specs(shard)) as writer:
        for tensor, array in _made(_in_write_order(shard), at_once):
            if check_finite and not safetensors.all_finite(array):
                hint = "; float16 ends at 65504, try bfloat16" if tensor.dtype == np.float16 else ""
                raise UserError(f"tensor {tensor.name} holds NaN or infinity and is not written{hint}")
            writer.write(tensor.name, array)


def _made(tensors: Sequence[LazyTensor], at_once: int) -> Iterator[tuple[LazyTensor, np.ndarray]]:
    """Each tensor with its array, in this order; some are made ahead while others are written."""
    if at_once == 1:
        yield from ((tensor, tensor.read()) for tensor in tensors)
        return
    waiting, making = iter(tensors), deque[tuple[LazyTensor, Future[np.ndarray]]]()
    pool = ThreadPoolExecutor(at_once)
    try:
        while True:
            making.extend(
                (tensor, pool.submit(tensor.read)) for tensor in itertools.islice(waiting, at_once - len(making))
            )
            if not making:
                return
            tensor, array = making.popleft()
            yield tensor, array.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _write_index(folder: Path, shards: Mapping[str, Sequence[LazyTensor]]) -> None:
    place = {tensor.name: name for name, shard in shards.items() for tensor in shard}
    total = sum(tensor.nbytes for shard in shards.values() for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(place.items()))}
    (folder / safetensors.INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _produce(leaf: Any, tensor: Tensor, dtype: np.dtype) -> np.ndarray:
    axis = None if tensor.layer is None else tensor.leaf.axes.index("layers")
    if isinstance(leaf, np.ndarray):
        part = leaf if axis is None else np.take(leaf, tensor.layer or 0, axis)
        with np.errstate(over="ignore"):  # an overflow is found, and the tensor named, where it is written
            return tensor.to_file(part.astype(dtype, copy=False))
    taker = _taker(axis, dtype, tensor.file_order, tensor.shape, _replicated(leaf))
    taken = taker(leaf, np.int32(tensor.layer or 0))
    return np.asarray(taken.addressable_data(0) if not leaf.is_fully_addressable else taken)


@functools.cache
def _taker(
    axis: int | None, dtype: np.dtype, order: tuple[int, ...], shape: tuple[int, ...], sharding: Any
) -> Callable[[Any, Any], Any]:
    """A compiled function that takes one layer of a leaf and rounds it, on the devices, before it is gathered.

    It also puts the axes as they lie in the file, for which a host takes longer than for all else.
    """
    import jax

    def take(leaf: Any, layer: Any) -> Any:
        part = leaf if axis is None else jax.lax.dynamic_index_in_dim(leaf, layer, axis, keepdims=False)
        return part.astype(dtype).transpose(order).reshape(shape)

    return jax.jit(take, out_shardings=sharding)


def _replicated(leaf: Any) -> Any:
    """For an array that spans processes, a sharding that gives each of them all of it."""
    import jax

    if leaf.is_fully_addressable:
        return None
    return jax.sharding.NamedSharding(leaf.sharding.mesh, jax.sharding.PartitionSpec())


def _is_first_process() -> bool:
    import jax

    return jax.process_index() == 0
