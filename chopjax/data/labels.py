"""What each position of a packed row is to predict."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int


def next_token_labels(
    tokens: Int[Array, "batch length"],
    segment_ids: Int[Array, "batch length"],
    targets: Bool[Array, "batch length"] | None = None,
) -> tuple[Int[Array, "batch length"], Float32[Array, "batch length"]]:
    """The next token of the same document, and where there is one to predict.

    Args:
        tokens: token ids.
        segment_ids: document of each token; 0 is padding.
        targets: which tokens are to be predicted, as those of an assistant's answer are; all of them if None.

    Returns:
        labels: the token after each, of the dtype of `tokens`; 0 at the end of a row.
        weights: 1 where the next token belongs to the same segment and is a target, else 0: at the end of a document,
            at the end of a row, in padding, and before what is no target.
    """
    labels = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))
    following = jnp.pad(segment_ids[:, 1:], ((0, 0), (0, 1)))
    inside = (segment_ids != 0) & (segment_ids == following)
    if targets is not None:
        inside &= jnp.pad(targets[:, 1:], ((0, 0), (0, 1)))
    return labels, inside.astype(jnp.float32)
