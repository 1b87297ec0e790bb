"""Optimizer state chopped by the same gather as the parameters that it belongs to."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from chopjax.axes import Leaf, unflatten
from chopjax.chop.apply import gather
from chopjax.chop.plan import Plan
from chopjax.errors import UserError


def chop_optimizer_state(
    plan: Plan, leaves: Mapping[str, Leaf], optimizer: optax.GradientTransformation, state: optax.OptState
) -> optax.OptState:
    """The state that `optimizer` would have for the chopped parameters: moments cut, counts left alone.

    Args:
        plan: what to keep.
        leaves: declarations of the source's parameters by flat path.
        optimizer: what made `state`, for parameters declared by `leaves`.
        state: its state in source sizes.

    Raises:
        UserError: the plan edits weights; see `refuse_edits`.
    """
    refuse_edits(plan)
    # Optax compares Python scalars with arrays, which strict promotion of dtypes forbids.
    with jax.numpy_dtype_promotion("standard"):
        declared: Any = unflatten(leaves)
        return optax.tree_utils.tree_map_params(optimizer, lambda a, leaf: gather(a, leaf, plan), state, declared)


def refuse_edits(plan: Plan) -> None:
    """Refuses a plan with edits, which moments cannot follow.

    The gradient of a merged head is the sum of those of its members, and its square has their products in it, which no
    optimizer kept; the map of a head residual would make second moments negative.

    Raises:
        UserError: names the edit.
    """
    if plan.edits:
        raise UserError(
            f"train.steps_before_chop: the optimizer's moments cannot follow the plan's {plan.edits[0].name}; "
            "set it to 0, or plan without that"
        )
