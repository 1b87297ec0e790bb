"""`ModelConfig`: every architectural fact of a decoder, frozen and hashable, with no trace of any file format."""

import dataclasses
from typing import Literal

from chopjax.axes import PARAMETER_AXES, Sizes

Norm = Literal["rms", "layer", "layer_1p"]  # layer_1p multiplies by 1 + scale (Nemotron)
Activation = Literal["silu", "gelu", "gelu_tanh", "relu2"]
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding. Field names and meanings are those of `rope_parameters` in transformers 5.

    Attributes:
        kind: the scaling rule; the fields that it does not use stay None.
        theta: base wavelength.
        rotary_fraction: share of `head_dim`, from its start, that is rotated.
    """

    kind: RopeKind = "default"
    theta: float = 10_000.0
    rotary_fraction: float = 1.0
    factor: float | None = None
    original_positions: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What may differ from layer to layer without changing any shape.

    Attributes:
        window: tokens that a query sees, itself included; None for all before it.
    """

    window: int | None = None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Shapes follow from the sizes here and the declarations in `models.parameters`.

    Attributes:
        layers: number of decoder blocks.
        embed: width of the residual stream.
        kv_heads: key/value heads; `q_per_kv` query heads share each.
        head_dim: width of one head; never derived from `embed`.
        mlp: hidden width of the MLP.
        vocab: rows of the embedding table.
        positions: longest sequence that the model is meant for, in tokens.
        gated: whether the MLP is `down(act(gate(x)) * up(x))` instead of `down(act(up(x)))`.
        tied: whether the unembedding is the embedding table.
        kinds: the few kinds of layer there are.
        kind_of_layer: for each layer, its index in `kinds`.
        initializer_range: standard deviation of freshly drawn matrices.
    """

    layers: int
    embed: int
    kv_heads: int
    q_per_kv: int
    head_dim: int
    mlp: int
    vocab: int
    positions: int
    norm: Norm = "rms"
    norm_eps: float = 1e-6
    activation: Activation = "silu"
    gated: bool = True
    tied: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope: Rope = Rope()
    kinds: tuple[LayerKind, ...] = (LayerKind(),)
    kind_of_layer: tuple[int, ...] = ()
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if not self.kind_of_layer:
            object.__setattr__(self, "kind_of_layer", (0,) * self.layers)
        if len(self.kind_of_layer) != self.layers:
            raise ValueError(f"kind_of_layer has {len(self.kind_of_layer)} entries for {self.layers} layers")

    @property
    def sizes(self) -> Sizes:
        """Axis name → size, for every axis that a parameter can have."""
        return {name: getattr(self, name) for name in PARAMETER_AXES}

    @property
    def q_heads(self) -> int:
        """Query heads of one layer."""
        return self.kv_heads * self.q_per_kv
