"""The small Flax modules that a decoder is made of: linear maps, norms, the MLP.

Each is built from the declarations in `models.parameters`, with all layers of a stack at once; it is called on one
layer's slice of its parameters, inside the scan. It computes in the dtype of the parameters that it is given.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from chopjax.axes import Leaf, Role
from chopjax.models.config import ModelConfig
from chopjax.models.constrain import Constrain, unpinned

Leaves = Mapping[str, Any]

# Name of what a `Linear` gives, for remat policies: they cannot see the product inside its own gradient rule.
PRODUCT = "product"


def parameter(leaf: Leaf, config: ModelConfig, rngs: nnx.Rngs) -> nnx.Param:
    """A freshly drawn float32 parameter: matrices and tables normal, biases 0, norms 1."""
    shape = leaf.shape(config.sizes)
    if leaf.role in (Role.BIAS, Role.NORM):
        return nnx.Param(jnp.full(shape, float(leaf.role is Role.NORM), jnp.float32))
    return nnx.Param(config.initializer_range * jax.random.normal(rngs.params(), shape, jnp.float32))


class Gathered(NamedTuple):
    """How a kernel is made whole along `embed` for a product, and its gradient split again.

    Parameters are split along `embed` over devices that each have their own rows, only to hold less of each. Left to
    itself, XLA multiplies by the parts as they come round, which takes about twice the time.

    Attributes:
        pin: pins arrays to the mesh.
        axes: the kernel's axes.
    """

    pin: Constrain = unpinned
    axes: tuple[str, ...] = ()

    def whole(self, kernel: Array) -> Array:
        """The kernel as products need it."""
        return self.pin(kernel, tuple(None if axis == "embed" else axis for axis in self.axes))

    def gradient(self, of: Callable[[Array, Array], Array], x: Array, d_y: Array) -> Array:
        """The kernel's gradient as it is held: each device adds up its own part only."""
        return self.pin.summed(of, x, d_y, self.axes)


ALONE = Gathered()  # one device holds the kernel whole


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(
    x: Float[Array, "batch length *inputs"],
    kernel: Float[Array, "*inputs_outputs"],
    contracted: int,
    gathered: Gathered = ALONE,
) -> Float[Array, "batch length *outputs"]:
    """`jnp.tensordot` over `contracted` axes, with the kernel's gradient made in the kernel's own axis order.

    JAX makes that gradient transposed and turns it round afterwards, for which XLA on CPUs copies activations against
    their layout: half of the rate that the product itself reaches.

    On a mesh the kernel is `gathered` for the product and again for the backward pass, and its gradient is
    reduce-scattered: JAX's own gradient of a gathered kernel is all-reduced, which is twice as much to send.
    """
    return jnp.tensordot(x, gathered.whole(kernel), axes=contracted)


def _product_forward(x: Array, kernel: Array, contracted: int, gathered: Gathered) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel, contracted, gathered), (x, kernel)


def _product_backward(
    contracted: int, gathered: Gathered, kept: tuple[Array, Array], d_y: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    kernel = gathered.whole(kernel)
    outputs = kernel.ndim - contracted
    of_y, of_kernel = tuple(range(d_y.ndim - outputs, d_y.ndim)), tuple(range(contracted, kernel.ndim))
    d_x = jax.lax.dot_general(d_y, kernel, ((of_y, of_kernel), ((), ())))
    return d_x, gathered.gradient(functools.partial(_kernel_gradient, contracted), x, d_y)


def _kernel_gradient(contracted: int, x: Array, d_y: Array) -> Array:
    """Of a kernel with more inputs than outputs, CPUs make the gradient transposed.

    They lay the left side of a product out anew, and `x` together with the activation that makes it: at half the rate
    of the product. That of the smaller `d_y` and of what comes out is cheap, but XLA has to be kept from undoing it.
    """
    tokens = tuple(range(x.ndim - contracted))

    def of(left: Array, right: Array) -> Array:
        return jax.lax.dot_general(left, right, ((tokens, tokens), ((), ())))

    def turned(x: Array, d_y: Array) -> Array:
        transposed = jax.lax.optimization_barrier(of(d_y, x))
        inputs = range(transposed.ndim - contracted, transposed.ndim)
        return jnp.transpose(transposed, (*inputs, *range(inputs.start)))

    if math.prod(x.shape[-contracted:]) <= math.prod(d_y.shape[len(tokens) :]):
        return of(x, d_y)
    return jax.lax.platform_dependent(x, d_y, cpu=turned, default=of)


product.defvjp(_product_forward, _product_backward)


class StraightThrough(NamedTuple):
    """A mask through which gradients pass as if it were 1 everywhere, so that what it drops still learns."""

    mask: Float[Array, "..."]


def masked(x: Array, mask: Array | StraightThrough | None, trailing: int = 0) -> Array:
    """`x` times `mask`, whose axes end `trailing` axes before those of `x`."""
    if mask is None:
        return x
    if isinstance(mask, StraightThrough):
        return x + jax.lax.stop_gradient(masked(x, mask.mask, trailing) - x)
    mask = mask.reshape((1,) * (x.ndim - mask.ndim - trailing) + mask.shape + (1,) * trailing)
    return x * mask.astype(x.dtype)


class Linear(nnx.Module):
    """A product that contracts the declared input axes, whatever their number, plus an optional bias."""

    def __init__(self, leaves: Leaves, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.contracted = len(leaves["kernel"].inputs)
        self.axes = leaves["kernel"].inputs + leaves["kernel"].outputs
        self.kernel = parameter(leaves["kernel"], config, rngs)
        self.bias = parameter(leaves["bias"], config, rngs) if "bias" in leaves else None

    def __call__(
        self, x: Float[Array, "batch length *inputs"], pin: Constrain = unpinned
    ) -> Float[Array, "batch length *outputs"]:
        y = checkpoint_name(product(x, self.kernel[...], self.contracted, Gathered(pin, self.axes)), PRODUCT)
        return y if self.bias is None else y + jnp.broadcast_to(self.bias[...], y.shape)


class Norm(nnx.Module):
    """RMSNorm, LayerNorm, or LayerNorm that multiplies by 1 + scale; statistics in float32.

    Under a float32 mask of kept channels the statistics divide by the kept count, and what centring or a bias puts on
    dropped channels is masked again, so that the result equals that of the sliced norm.
    """

    def __init__(self, leaves: Leaves, config: ModelConfig, rngs: nnx.Rngs) -> None:
        centred = "bias" in leaves
        self.offset = 1.0 if centred and config.norm == "layer_1p" else 0.0
        self.eps = config.norm_eps
        self.scale = parameter(leaves["scale"], config, rngs)
        self.scale[...] -= self.offset
        self.bias = parameter(leaves["bias"], config, rngs) if centred else None

    def __call__(
        self, x: Float[Array, "*rest width"], kept: Float[Array, "width"] | StraightThrough | None = None
    ) -> Array:
        full = x.astype(jnp.float32)
        count = full.shape[-1] if kept is None else jnp.sum(kept[0] if isinstance(kept, StraightThrough) else kept)
        if self.bias is not None:
            full = full - jnp.sum(full, axis=-1, keepdims=True) / count
            full = masked(full, kept)
        variance = jnp.sum(full * full, axis=-1, keepdims=True) / count
        full = full * jax.lax.rsqrt(variance + self.eps)
        if self.bias is None:
            return full.astype(x.dtype) * jnp.broadcast_to(self.scale[...], x.shape)
        scale, bias = (jnp.broadcast_to(p[...].astype(jnp.float32), x.shape) for p in (self.scale, self.bias))
        full = full * (scale + self.offset) + bias
        return masked(full, kept).astype(x.dtype)


class Mlp(nnx.Module):
    """`down(act(gate(x)) * up(x))`, or `down(act(up(x)))` where there is no gate."""

    def __init__(self, leaves: Leaves, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.activation = ACTIVATIONS[config.activation]
        self.gate = Linear(leaves["gate"], config, rngs) if "gate" in leaves else None
        self.up = Linear(leaves["up"], config, rngs)
        self.down = Linear(leaves["down"], config, rngs)

    def hidden(
        self, x: Float[Array, "batch length embed"], pin: Constrain = unpinned
    ) -> Float[Array, "batch length mlp"]:
        """The input of the down projection: what Minitron scores as a neuron's activation."""
        if self.gate is None:
            return self.activation(self.up(x, pin))
        return self.activation(self.gate(x, pin)) * self.up(x, pin)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}
