"""Which heads are merged with which, and which leave a residual in which. Imports without jax."""

import numpy as np
from jaxtyping import Float, Int

from chopjax.axes import Leaf, Role
from chopjax.chop.edits import HeadResidual, MergeKvHeads
from chopjax.errors import UserError

SCORE = Leaf(("layers",), (), ("kv_heads", "q_per_kv"), Role.NORM)


def head_similarity(
    k: Float[np.ndarray, "layers embed kv_heads head_dim"], v: Float[np.ndarray, "layers embed kv_heads head_dim"]
) -> Float[np.ndarray, "layers kv_heads kv_heads"]:
    """Cosine of the key and value kernels of every two heads, the mean of both, in float64."""
    return (_cosines(k) + _cosines(v)) / 2


def group_heads(
    similarity: Float[np.ndarray, "layers kv_heads kv_heads"], members: int
) -> Int[np.ndarray, "layers groups members"]:
    """Groups of heads that go well together, found greedily in each layer.

    The two most similar heads that are left begin a group, and the head most similar to its members on average joins
    until it has `members`. Members are ascending, groups in the order of their first members; ties go to the lowest.

    Raises:
        UserError: `members` does not divide the heads.
    """
    _check(similarity.shape[-1], members)
    return np.stack([_grouped(of_layer, members) for of_layer in similarity]).astype(np.int32)


def neighbours(layers: int, kv_heads: int, members: int) -> Int[np.ndarray, "layers groups members"]:
    """Groups of consecutive heads.

    Raises:
        UserError: `members` does not divide the heads.
    """
    _check(kv_heads, members)
    groups = np.arange(kv_heads, dtype=np.int32).reshape(1, -1, members)
    return np.repeat(groups, layers, axis=0)


def merged_score(
    score: Float[np.ndarray, "layers kv_heads q_per_kv"], merge: MergeKvHeads
) -> Float[np.ndarray, "layers groups q_per_group"]:
    """Scores of query heads, of the student's layers, in the numbering that they have after the merge."""
    return merge.apply(score, SCORE)


def head_residual(
    score: Float[np.ndarray, "*around heads"], kept: Int[np.ndarray, "*around kept"], sign: str, axis: str = "q_per_kv"
) -> HeadResidual:
    """Minitron's pairs: the worst kept head with the best dropped one, the second worst with the second best, ...

    With L heads ranked best first from 1 and K of them kept, that is kept head i with dropped head 2K − i + 1, for i
    from 2K − L + 1 to K (arXiv 2407.14679, section 2.3; the printed range begins one lower, at a head that is not
    there).

    Args:
        score: of every head, for each student index of the axes around; higher is kept.
        kept: the plan's list for `axis`, made from this score.
        sign: `minitron` or `laco`; see `HeadResidual`.
        axis: `q_per_kv`, or `kv_heads` for multi-head attention.

    Raises:
        UserError: more than half of the heads go, so that some have no partner.
    """
    heads, count = score.shape[-1], kept.shape[-1]
    if 2 * count < heads:
        raise UserError(
            f"plan.head_residual: only {count} of {heads} heads along {axis} stay, and each takes in one dropped head "
            f"at most; keep {-(-heads // 2)} or more, or set it to off"
        )
    best_first = np.argsort(-score, axis=-1, kind="stable")
    stays = (best_first[..., None] == kept[..., None, :]).any(axis=-1)
    # A stable sort by whether a head stays leaves both parts ranked.
    ranked = np.take_along_axis(best_first, np.argsort(~stays, axis=-1, kind="stable"), axis=-1)
    dropped = ranked[..., count:]
    partners = ranked[..., 2 * count - heads : count][..., ::-1]
    return HeadResidual(axis, sign, np.stack([partners, dropped], axis=-1).astype(np.int32))


def _check(heads: int, members: int) -> None:
    if members < 1 or heads % members:
        raise UserError(f"plan.kv_heads: {heads} heads cannot be merged in groups of {members}; it must divide them")


def _cosines(kernel: np.ndarray) -> np.ndarray:
    heads = np.moveaxis(kernel.astype(np.float64), 2, 1).reshape(kernel.shape[0], kernel.shape[2], -1)
    heads = heads / np.maximum(np.linalg.norm(heads, axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    return heads @ heads.swapaxes(1, 2)


def _grouped(similarity: Float[np.ndarray, "kv_heads kv_heads"], members: int) -> np.ndarray:
    left = list(range(len(similarity)))
    groups: list[list[int]] = []
    while left:
        group: list[int] = []
        if members > 1:
            pairs = [(a, b) for a in left for b in left if a < b]
            group += pairs[int(np.argmax([similarity[pair] for pair in pairs]))]
        while len(group) < members:
            rest = [head for head in left if head not in group]
            towards = similarity[:, group].sum(axis=-1)
            group.append(rest[int(np.argmax(towards[rest]))])
        groups.append(sorted(group))
        left = [head for head in left if head not in group]
    return np.asarray(sorted(groups))
