"""Sums of losses over chunks of tokens, with the gradients made in the same pass.

Reverse-mode differentiation of a loss would either keep every chunk's logits or make them a second time. But the
total is a scalar, so its gradients can be made beside it and only be scaled when the cotangent arrives.

On a mesh the vocabulary is split over all axes that split parameters, `fsdp` and `context` too: a chunk's hidden
states, which are small, are gathered over these, each device makes its own columns of the logits, and the unembedding
and its gradient, which are large, stay where they are.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from chopjax.distill import divergences
from chopjax.distill.columns import Columns
from chopjax.distill.divergences import Side
from chopjax.models.constrain import Constrain

Parts = dict[str, Array]
Scalars = dict[str, Float[Array, ""]]
"""The weight of each term, and `temperature`."""

COLUMNS = "unembedded"  # the axis name of the vocabulary while the loss is made


@dataclasses.dataclass(frozen=True)
class Terms:
    """What is static of the terms (`config.LossConfig` says what each is).

    Attributes:
        active: terms with a weight.
        tokens: number of columns that are tokens.
        chunk: tokens of the whole batch in a chunk.
        softened: whether the temperature may be other than 1.
        scaled: whether what a teacher teaches is multiplied by the temperature's square.
        beta: of `jsd`.
        of_logits: whether `mse` and `cosine` compare logits, not probabilities.
        top_k: tokens of the teacher's distribution that `kl` and `wsl` tell apart; 0 for all.
    """

    active: frozenset[str]
    tokens: int
    chunk: int
    softened: bool
    scaled: bool
    beta: float
    of_logits: bool
    top_k: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sums(
    terms: Terms,
    pin: Constrain,
    student: tuple[Float[Array, "batch length embed"], Float[Array, "embed vocab"]],
    tokens: dict[str, Array],
    teacher_unembed: Float[Array, "teacher_embed vocab"] | None,
    scalars: Scalars,
) -> tuple[Float[Array, ""], Parts]:
    """`losses.chunked_loss` after its arguments were checked. Differentiable in `student` only.

    Args:
        tokens: `labels` and `weights`, [batch, length]; and `teacher`, its hidden states, or what is kept of its
            distribution (`ids`, `probs`, `tail`, `offset`), or neither.
    """
    parts, _ = _on_mesh(terms, pin, student, tokens, teacher_unembed, scalars, gradients=False)
    return _total(terms, parts, scalars), parts


def by_token(
    terms: Terms,
    pin: Constrain,
    student: tuple[Array, Array],
    tokens: dict[str, Array],
    teacher_unembed: Array | None,
    scalars: Scalars,
) -> Parts:
    """`losses.token_losses` after its arguments were checked: each term, [batch, length]. Not to be differentiated."""

    def on_device(tokens: dict[str, Array], unembeds: dict[str, Array], scalars: Scalars) -> Parts:
        device = _Device(terms, pin, unembeds, scalars)

        def step(_: None, chunk: dict[str, Array]) -> tuple[None, Parts]:
            return None, device.own(device.terms(device.gathered(chunk))[0])

        _, values = jax.lax.scan(step, None, device.chunks(tokens))
        return {name: _joined(value, tokens["labels"].shape) for name, value in values.items()}

    return _manual(pin, on_device, ("batch", "length"))(*_inputs(pin, student, tokens, teacher_unembed), scalars)


def _sums_and_gradients(
    terms: Terms, pin: Constrain, student: Any, tokens: Any, teacher_unembed: Any, scalars: Scalars
) -> tuple[tuple[Array, Parts], tuple[Array, Array]]:
    parts, (d_hidden, d_unembed) = _on_mesh(terms, pin, student, tokens, teacher_unembed, scalars, gradients=True)
    d_unembed = d_unembed[:, : student[1].shape[1]]
    return (_total(terms, parts, scalars), parts), (d_hidden, d_unembed)


def _scale_gradients(
    terms: Terms, pin: Constrain, gradients: tuple[Array, Array], cotangent: tuple[Array, Parts]
) -> tuple[tuple[Array, Array], None, None, None]:
    total, _ = cotangent  # the parts are for reports
    d_hidden, d_unembed = ((gradient.astype(jnp.float32) * total).astype(gradient.dtype) for gradient in gradients)
    return (d_hidden, d_unembed), None, None, None


sums.defvjp(_sums_and_gradients, _scale_gradients)


def _on_mesh(
    terms: Terms, pin: Constrain, student: Any, tokens: Any, teacher_unembed: Any, scalars: Scalars, gradients: bool
) -> tuple[Parts, Any]:
    """Sums of the parts, and the gradients by hidden states and unembedding, its padded columns included."""

    def on_device(tokens: dict[str, Array], unembeds: dict[str, Array], scalars: Scalars) -> tuple[Parts, Any]:
        device = _Device(terms, pin, unembeds, scalars)
        unembed = unembeds["student"]

        def step(carry: tuple[Parts, Array | None], chunk: dict[str, Array]) -> tuple[Any, Array | None]:
            sums, d_unembed = carry
            chunk = device.gathered(chunk)
            values, d_logits = device.terms(chunk)
            sums = {name: sum_ + jnp.sum(values[name][:, 0] * chunk["weights"]) for name, sum_ in sums.items()}
            if d_unembed is None:
                return (sums, None), None
            d_logits = (d_logits * chunk["weights"][:, None]).astype(unembed.dtype)
            d_unembed = d_unembed + _product("te,tv->ev", chunk["hidden"], d_logits)
            # Rounded before it is sent, as all gradients of activations are that cross devices.
            d_hidden = _product("tv,ev->te", d_logits, unembed).astype(unembed.dtype)
            return (sums, d_unembed), device.scattered(d_hidden)

        start = {name: jnp.zeros((), jnp.float32) for name in _names(terms, tokens)}
        zeros = jnp.zeros(unembed.shape, jnp.float32) if gradients else None
        (sums, d_unembed), d_hidden = jax.lax.scan(step, (start, zeros), device.chunks(tokens))
        sums = {name: device.over_rows(sum_) for name, sum_ in sums.items()}
        if d_unembed is None or d_hidden is None:
            return sums, ()
        d_hidden = _joined(d_hidden, tokens["hidden"].shape)
        return sums, (d_hidden, device.over_rows(d_unembed).astype(unembed.dtype))

    outputs: Any = ((), (("batch", "length", None), (None, COLUMNS)) if gradients else ())
    return _manual(pin, on_device, outputs)(*_inputs(pin, student, tokens, teacher_unembed), scalars)


class _Device:
    """What one device does: its rows or its part of them, its columns, and what it has to ask of others."""

    def __init__(self, terms: Terms, pin: Constrain, unembeds: dict[str, Array], scalars: Scalars) -> None:
        self._terms, self._pin, self._unembeds, self._scalars = terms, pin, unembeds, scalars
        rows, columns = pin.parts("batch") + pin.parts("length"), pin.parts(COLUMNS)
        self._shards = pin.size(rows)
        self._shared = tuple(axis for axis in columns if axis in rows)  # whose rows' columns lie apart
        self._whole = tuple(axis for axis in columns if axis not in rows)
        self._other_rows = tuple(axis for axis in rows if axis not in columns)
        self._columns = Columns(columns, unembeds["student"].shape[1], terms.tokens)

    def chunks(self, tokens: dict[str, Array]) -> dict[str, Array]:
        """[batch, length, ...] of this device → [chunk, token, ...] of even chunks, filled up with zeros."""
        total = math.prod(tokens["hidden"].shape[:2])
        count = math.ceil(total / max(1, self._terms.chunk // self._shards))
        size = math.ceil(total / count)

        def split(array: Array) -> Array:
            flat = array.reshape(total, *array.shape[2:])
            padded = jnp.pad(flat, [(0, count * size - total)] + [(0, 0)] * (flat.ndim - 1))
            return padded.reshape(count, size, *array.shape[2:])

        return {name: split(array) for name, array in tokens.items()}

    def gathered(self, chunk: dict[str, Array]) -> dict[str, Array]:
        """The tokens of all devices that hold other columns and other rows."""
        if not self._shared:
            return chunk
        return {name: jax.lax.all_gather(array, self._shared, tiled=True) for name, array in chunk.items()}

    def scattered(self, sums: Float[Array, "token embed"]) -> Float[Array, "own_token embed"]:
        """Sums over all columns, of this device's own tokens."""
        sums = jax.lax.psum(sums, self._whole) if self._whole else sums
        return self._pin.scatter_sum(sums, self._shared) if self._shared else sums

    def over_rows(self, sums: Array) -> Array:
        """Sums over the rows that were not gathered."""
        return jax.lax.psum(sums, self._other_rows) if self._other_rows else sums

    def own(self, values: Parts) -> Parts:
        """Of values of gathered tokens, [token, 1], those of this device, [own_token]."""
        if not self._shared:
            return {name: value[:, 0] for name, value in values.items()}
        place = jax.lax.axis_index(self._shared)
        parts = {name: value.reshape(jax.lax.axis_size(self._shared), -1) for name, value in values.items()}
        return {name: jax.lax.dynamic_index_in_dim(part, place, keepdims=False) for name, part in parts.items()}

    def terms(self, chunk: dict[str, Array]) -> tuple[Parts, Float[Array, "token column"]]:
        """Each term for each token, [token, 1], and the derivative of their weighted sum by the student's logits."""
        active, scalars, columns = self._terms.active, self._scalars, self._columns
        logits = self._logits(chunk["hidden"], "student")
        labels = chunk["labels"][:, None]
        lse = columns.logsumexp(logits)
        values = {"next_token": lse - columns.at(logits, labels), "z_loss": lse**2}
        slope = jnp.zeros_like(logits)
        if active & {"next_token", "z_loss"}:
            weight = scalars["next_token"]
            of_label = columns.spread(labels, jnp.broadcast_to(weight, labels.shape))
            slope = (weight + 2 * scalars["z_loss"] * lse) * jnp.exp(logits - lse) - of_label
        if "teacher" in chunk or "ids" in chunk:
            taught, taught_slope = self._taught(chunk, logits, lse, values["next_token"])
            values, slope = values | taught, slope + taught_slope
        return values, slope

    def _taught(self, chunk: dict[str, Array], logits: Array, lse: Array, cross_entropy: Array) -> tuple[Parts, Array]:
        """The terms that compare with the teacher."""
        columns, terms = self._columns, self._terms
        temperature = self._scalars["temperature"]
        q = self._side(logits, lse)
        if "ids" in chunk:
            tail, offset = chunk["tail"][:, None], chunk["offset"][:, None]
            found = {"kl": divergences.sparse_kl(columns, chunk["ids"], chunk["probs"], tail, offset, q)}
        else:
            teacher = self._logits(chunk["teacher"], "teacher")
            p = self._side(teacher, None)
            found = {"kl": divergences.forward_kl(columns, p, q)}
            if terms.top_k:
                found["kl"] = divergences.top_k_kl(columns, p, q, terms.top_k)
            if "wsl" in terms.active:
                weight = self._soft_label_weight(teacher, chunk["labels"][:, None], cross_entropy)
                found["wsl"] = weight * found["kl"][0], weight * found["kl"][1]
            if "reverse_kl" in terms.active:
                found["reverse_kl"] = divergences.reverse_kl(columns, p, q)
            if "jsd" in terms.active:
                found["jsd"] = divergences.jsd(columns, p, q, terms.beta)
            if "mse" in terms.active:
                found["mse"] = divergences.mse(columns, p, q, terms.of_logits)
            if "cosine" in terms.active:
                found["cosine"] = divergences.cosine(columns, p, q, terms.of_logits)
        scale = temperature**2 if terms.scaled else jnp.ones_like(temperature)
        slope = jnp.zeros_like(logits)
        for name in found.keys() & terms.active:
            slope = slope + self._scalars[name] * scale / temperature * found[name][1]
        return {name: scale * value for name, (value, _) in found.items()}, slope

    def _soft_label_weight(self, teacher: Array, labels: Array, cross_entropy: Array) -> Array:
        """1 - exp(-student's / teacher's cross entropy), a constant to derivatives (WSL, arXiv:2102.00650, eq. 10)."""
        of_teacher = self._columns.logsumexp(teacher) - self._columns.at(teacher, labels)
        return 1 - jnp.exp(-cross_entropy / (of_teacher + 1e-7))

    def _side(self, logits: Array, lse: Array | None) -> Side:
        if not self._terms.softened:
            lse = self._columns.logsumexp(logits) if lse is None else lse
            return Side(logits, logits - lse)
        soft = logits / self._scalars["temperature"]
        return Side(soft, soft - self._columns.logsumexp(soft))

    def _logits(self, hidden: Float[Array, "token embed"], whose: str) -> Float[Array, "token column"]:
        return self._columns.masked(_product("te,ev->tv", hidden, self._unembeds[whose]))


def _joined(chunks: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `_Device.chunks`."""
    return chunks.reshape(-1, *shape[2:])[: math.prod(shape[:2])].reshape(shape)


def _names(terms: Terms, tokens: dict[str, Array]) -> list[str]:
    """The parts there will be."""
    taught = ["kl", *sorted(terms.active - {"next_token", "z_loss", "kl"})]
    return ["next_token", "z_loss", *(taught if tokens.keys() & {"teacher", "ids"} else [])]


def _total(terms: Terms, parts: Parts, scalars: Scalars) -> Float[Array, ""]:
    total = jnp.zeros((), jnp.float32)
    for name in parts.keys() & terms.active:
        total = total + scalars[name] * parts[name]
    return total


def _inputs(pin: Constrain, student: Any, tokens: Any, teacher_unembed: Any) -> tuple[dict[str, Array], ...]:
    """All by token; and the unembeddings, with columns for an even split."""
    hidden, unembed = student
    unembeds = {"student": unembed} | ({} if teacher_unembed is None else {"teacher": teacher_unembed})
    missing = -unembed.shape[1] % pin.size(pin.parts(COLUMNS))
    if missing:
        unembeds = {name: jnp.pad(array, ((0, 0), (0, missing))) for name, array in unembeds.items()}
    return tokens | {"hidden": hidden}, unembeds


def _manual(pin: Constrain, on_device: Any, outputs: Any) -> Any:
    return pin.manual(on_device, (("batch", "length"), (None, COLUMNS), ()), outputs)


def _product(equation: str, left: Array, right: Array) -> Array:
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)
