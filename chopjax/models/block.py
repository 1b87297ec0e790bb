"""One decoder block, and what it is told about the tokens, the masks and the cache."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from chopjax.models.attention import Places
from chopjax.models.config import LayerKind, ModelConfig
from chopjax.models.constrain import KEYS, QUERIES, RESIDUAL, Constrain
from chopjax.models.layers import Leaves, Linear, Mlp, Norm, masked
from chopjax.models.rope import rotate

Masks = Mapping[str, Any]
"""Axis name → float32, 1 where kept and 0 where dropped, shaped like the axis after those around it; for all axes but
`vocab` it may be wrapped in `models.layers.StraightThrough`."""


# The named activations of a block, in the order in which they are made.
ACTIVATION_AXES: Mapping[str, tuple[str, ...]] = {
    "block_input": RESIDUAL,
    "attention_norm": RESIDUAL,
    "q": QUERIES,
    "k": KEYS,
    "v": KEYS,
    "heads": QUERIES,
    "mlp_norm": RESIDUAL,
    "mlp_hidden": ("batch", "length", "mlp"),
    "block_output": RESIDUAL,
}


class Tokens(NamedTuple):
    """Where the queries and the keys stand, and the rotation of the new positions."""

    queries: Places
    keys: Places
    cos: Float[Array, "batch length pairs"]
    sin: Float[Array, "batch length pairs"]


class KeysValues(NamedTuple):
    """Cached keys and values of one layer, or of all with a leading `layers` axis; `start` is the next free slot."""

    k: Float[Array, "*layers batch source kv_heads head_dim"]
    v: Float[Array, "*layers batch source kv_heads head_dim"]
    start: Int[Array, "*layers"]


class Attention(nnx.Module):
    """Grouped-query attention whose heads are two axes, so that a chop needs no special case."""

    def __init__(self, leaves: Leaves, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.kinds = config.kinds
        self.q, self.k, self.v, self.o = (Linear(leaves[name], config, rngs) for name in "qkvo")
        self.q_norm = Norm(leaves["q_norm"], config, rngs) if config.qk_norm else None
        self.k_norm = Norm(leaves["k_norm"], config, rngs) if config.qk_norm else None

    def heads(
        self,
        x: Float[Array, "batch length embed"],
        tokens: Tokens,
        kind: Int[Array, ""],
        cache: KeysValues | None,
        constrain: Constrain,
    ) -> tuple[Float[Array, "batch length kv_heads q_per_kv head_dim"], KeysValues | None, dict[str, Array]]:
        """What each head adds before the output projection; the cache with the new keys and values; q, k and v."""
        q = constrain(self.q(x, constrain), QUERIES)
        k = constrain(self.k(x, constrain), KEYS)
        v = constrain(self.v(x, constrain), KEYS)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, tokens.cos, tokens.sin), rotate(k, tokens.cos, tokens.sin)
        own = {"q": q, "k": k, "v": v}
        if cache is not None:
            at = (0, cache.start, 0, 0)
            k = jax.lax.dynamic_update_slice(cache.k, k.astype(cache.k.dtype), at)
            v = jax.lax.dynamic_update_slice(cache.v, v.astype(cache.v.dtype), at)
            cache = KeysValues(k, v, cache.start + x.shape[1])
        attend = functools.partial(constrain.attention, in_order=cache is None)
        return self._attend(attend, q, k, v, tokens, kind), cache, own

    def _attend(
        self, attend: Callable[..., Array], q: Array, k: Array, v: Array, tokens: Tokens, kind: Int[Array, ""]
    ) -> Array:
        def of_kind(layer: LayerKind) -> Callable[[Array, Array, Array], Array]:
            return lambda q, k, v: attend(q, k, v, tokens.queries, tokens.keys, layer.window)

        # The few kinds are compiled statically and picked at run time: a traced window could not drive a fused kernel.
        branches = [of_kind(layer) for layer in self.kinds]
        return branches[0](q, k, v) if len(branches) == 1 else jax.lax.switch(kind, branches, q, k, v)


class Block(nnx.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, leaves: Leaves, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.attention_norm = Norm(leaves["attention_norm"], config, rngs)
        self.attention = Attention(leaves["attention"], config, rngs)
        self.mlp_norm = Norm(leaves["mlp_norm"], config, rngs)
        self.mlp = Mlp(leaves["mlp"], config, rngs)

    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        tokens: Tokens,
        kind: Int[Array, ""],
        masks: Masks,
        cache: KeysValues | None,
        constrain: Constrain,
    ) -> tuple[dict[str, Array], KeysValues | None]:
        """All activations by name (`block_output` is the result), and the updated cache.

        Names (`ACTIVATION_AXES`): block_input, attention_norm, q and k (after rotation) and v of the given tokens,
        heads (before the output projection), mlp_norm, mlp_hidden (input of the down projection), block_output. What
        nobody reads, XLA drops.
        """
        a = {"block_input": x}
        a["attention_norm"] = self.attention_norm(x, masks.get("embed"))
        heads, cache, own = self.attention.heads(a["attention_norm"], tokens, kind, cache, constrain)
        a |= own
        for name in ("kv_heads", "q_per_kv"):
            heads = masked(heads, masks.get(name), trailing=1 + (name == "kv_heads"))
        a["heads"] = constrain(heads, QUERIES)
        x = x + self._write(self.attention.o(a["heads"], constrain), masks)
        a["mlp_norm"] = self.mlp_norm(x, masks.get("embed"))
        a["mlp_hidden"] = constrain(
            masked(self.mlp.hidden(a["mlp_norm"], constrain), masks.get("mlp")), ("batch", "length", "mlp")
        )
        a["block_output"] = constrain(x + self._write(self.mlp.down(a["mlp_hidden"], constrain), masks), RESIDUAL)
        return a, cache

    def _write(self, delta: Float[Array, "batch length embed"], masks: Masks) -> Float[Array, "batch length embed"]:
        """A contribution to the residual stream: nothing on dropped channels, nothing at all from a dropped layer."""
        delta = masked(delta, masks.get("embed"))
        return masked(delta, masks.get("layers"))
