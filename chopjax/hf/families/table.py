"""What a family is: a table of tensor names, file axis orders and facts about its stock `transformers` classes.

Imports without jax. Nothing here knows a particular family, and the families hold no code.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from chopjax.axes import Leaf, Sizes
from chopjax.hf.families import config_mapping
from chopjax.models.config import ModelConfig, Norm
from chopjax.models.parameters import declare

LAYERS = "layers"


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
        name: tensor name in the file; `{layers}` stands for the layer number where one tensor is kept for each layer.
        pattern: axis order in the file, a bracket for each group of axes that the file merges into one dimension:
            `"(kv_heads q_per_kv head_dim) embed"`.
    """

    name: str
    pattern: str

    @functools.cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The file's dimensions, each as the axes that it merges."""
        return tuple(tuple(part.strip("()").split()) for part in re.findall(r"\([^)]*\)|\S+", self.pattern))


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint: where it lies in the parameter tree, and how its axes lie in the file.

    Attributes:
        name: tensor name in the file.
        path: flat path of the leaf that it is, or is a layer of.
        layer: index along the leaf's `layers` axis; None for a leaf that is not stacked.
        leaf: declaration of the whole leaf.
        groups: the file's dimensions, each as the axes that it merges.
        axis_sizes: size of every axis of the leaf, without `layers`.
    """

    name: str
    path: str
    layer: int | None
    leaf: Leaf
    groups: tuple[tuple[str, ...], ...]
    axis_sizes: Mapping[str, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        return tuple(math.prod(self.axis_sizes[axis] for axis in group) for group in self.groups)

    @property
    def leaf_axes(self) -> tuple[str, ...]:
        """Axes of this tensor's part of the leaf, in tree order (no `layers`)."""
        return tuple(axis for axis in self.leaf.axes if axis != LAYERS)

    @property
    def file_axes(self) -> tuple[str, ...]:
        """The same axes in file order."""
        return tuple(axis for group in self.groups for axis in group)

    @property
    def file_order(self) -> tuple[int, ...]:
        """Where each of `file_axes` stands in `leaf_axes`."""
        return tuple(self.leaf_axes.index(axis) for axis in self.file_axes)

    def to_file(self, part: np.ndarray) -> np.ndarray:
        """This tensor's part of the leaf, of shape `leaf_axes`, as it lies in the file."""
        return np.ascontiguousarray(self.file_view(part)).reshape(self.shape)

    def from_file(self, tensor: np.ndarray) -> np.ndarray:
        """The inverse of `to_file`: a view of shape `leaf_axes`."""
        return self.leaf_view(tensor.reshape([self.axis_sizes[axis] for axis in self.file_axes]))

    def leaf_view(self, expanded: np.ndarray) -> np.ndarray:
        """An array with `file_axes` as a view with `leaf_axes`."""
        return expanded.transpose([self.file_axes.index(axis) for axis in self.leaf_axes])

    def file_view(self, part: np.ndarray) -> np.ndarray:
        """An array with `leaf_axes` as a view with `file_axes`."""
        return part.transpose(self.file_order)


@dataclasses.dataclass(frozen=True)
class Family:
    """A model family as stock `transformers` (4 and 5) implements it.

    Attributes:
        model_type: `model_type` in config.json.
        architecture: the causal language model class named in `architectures`.
        rules: tree path → rule, for every leaf that a member can have, in file order.
        norm: the only norm that it has.
        norm_eps_key: config key of the norm's epsilon.
        gated: whether its MLP is gated.
        qk_norm: whether it normalises queries and keys.
        attention_bias: "none"; "qkv": always on q, k and v, never on o; "option": a flag for q, k, v and o together.
        mlp_bias: whether it has the flag `mlp_bias`.
        windows: "none"; "all": one sliding window for every layer or for none; "by_layer": `layer_types`.
        rotary_fraction: default of `partial_rotary_factor`; None where the class ignores that key.
        embed_divides: whether the config class refuses a hidden size that the query heads do not divide.
        stand_in: a family that has the same tensors and no such limit, for members without any bias.
        head_dim_note: what to tell a user whose `head_dim` is not hidden size over heads; None where it is honoured
            everywhere.
        defaults: what the config class assumes where config.json is silent.
        token_ids: token ids that the config class assumes where config.json is silent.
        useless: patterns of tensor names that hold no parameter.
    """

    model_type: str
    architecture: str
    rules: Mapping[str, Rule]
    defaults: Mapping[str, Any]
    token_ids: Mapping[str, int] = dataclasses.field(default_factory=dict)
    norm: Norm = "rms"
    norm_eps_key: str = "rms_norm_eps"
    gated: bool = True
    qk_norm: bool = False
    attention_bias: Literal["none", "qkv", "option"] = "none"
    mlp_bias: bool = False
    windows: Literal["none", "all", "by_layer"] = "none"
    rotary_fraction: float | None = None
    embed_divides: bool = False
    stand_in: str | None = None
    head_dim_note: str | None = None
    useless: tuple[str, ...] = (r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)

    def tensors(self, config: ModelConfig) -> list[Tensor]:
        """Every tensor of a checkpoint of `config`, in file order: embedding, layer by layer, final norm, head."""
        leaves = declare(config)
        sizes = config.sizes
        stacked = {path: rule for path, rule in self.rules.items() if path in leaves and "{layers}" in rule.name}
        found: list[Tensor] = []
        for path, rule in self.rules.items():
            if path in stacked:
                if path == next(iter(stacked)):
                    found += _layer_tensors(stacked, leaves, sizes)
            elif path in leaves:
                found.append(_tensor(path, rule, leaves[path], sizes, None))
        return found

    def layers_of(self, names: Iterable[str]) -> int:
        """Number of layers for which there are parameters among the tensor names."""
        rules = [rule.name for rule in self.rules.values() if "{layers}" in rule.name]
        pattern = re.compile("|".join(re.escape(rule).replace(r"\{layers\}", r"(\d{1,9})") for rule in rules))
        matches = (pattern.fullmatch(name) for name in names)
        return 1 + max((int(match[match.lastindex or 0]) for match in matches if match), default=-1)

    def config_from_hf(self, raw: Mapping[str, Any]) -> ModelConfig:
        """See `config_mapping.config_from_hf`."""
        return config_mapping.config_from_hf(self, raw)

    def config_to_hf(self, config: ModelConfig, raw: Mapping[str, Any], dtype: str | None = None) -> dict[str, Any]:
        """See `config_mapping.config_to_hf`. Keys that mean something only to the source's family are dropped."""
        return config_mapping.config_to_hf(self, config, raw, dtype)

    def assumed_ids(self, raw: Mapping[str, Any], renumber: Callable[[int], int | None]) -> dict[str, int | None]:
        """The assumed ids that config.json does not state, in new numbers; None for an id that is gone."""
        return {key: renumber(number) for key, number in self.token_ids.items() if key not in raw}

    def misfit(self, config: ModelConfig) -> str | None:
        """See `config_mapping.misfit`."""
        return config_mapping.misfit(self, config)

    def is_useless(self, name: str) -> bool:
        """Whether the tensor `name` is known to hold nothing that is not computed from the config."""
        return any(re.fullmatch(pattern, name) for pattern in self.useless)


def _layer_tensors(stacked: Mapping[str, Rule], leaves: Mapping[str, Leaf], sizes: Sizes) -> Iterator[Tensor]:
    for layer in range(sizes[LAYERS]):
        for path, rule in stacked.items():
            yield _tensor(path, rule, leaves[path], sizes, layer)


def _tensor(path: str, rule: Rule, leaf: Leaf, sizes: Sizes, layer: int | None) -> Tensor:
    axis_sizes = {axis: sizes[axis] for axis in leaf.axes if axis != LAYERS}
    if {axis for group in rule.groups for axis in group} != set(axis_sizes):
        raise ValueError(f"rule {rule} does not have the axes of {path}: {sorted(axis_sizes)}")
    return Tensor(rule.name.format(layers=layer), path, layer, leaf, rule.groups, axis_sizes)
