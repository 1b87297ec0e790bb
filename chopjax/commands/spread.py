"""Whether batches can be spread over a mesh; known from the settings and the mesh's sizes alone."""

import math
from collections.abc import Mapping

from chopjax.commands.settings import Settings
from chopjax.errors import UserError
from chopjax.sharding.rules import RULES


def check_batches(chosen: Settings, mesh_shape: Mapping[str, int]) -> None:
    """Refuses batches and a length that the mesh does not divide, all at once.

    Args:
        chosen: settings of a run.
        mesh_shape: mesh axis → size.

    Raises:
        UserError: names every field that is to be changed.
    """
    wrong, parts = [], math.prod(mesh_shape[axis] for axis in RULES["length"])
    if chosen.data.length % parts:
        wrong.append(
            f"data.length is {chosen.data.length}, which mesh.context={parts} does not divide; change one of them"
        )
    shards, accumulate = math.prod(mesh_shape[axis] for axis in RULES["batch"]), chosen.train.accumulate
    fields = {
        "train.batch / train.accumulate" if accumulate > 1 else "train.batch": chosen.train.batch // accumulate,
        "score.batch": chosen.score.batch,
        "evaluate.batch": chosen.evaluate.batch,
    }
    if odd := [f"{field} is {batch}" for field, batch in fields.items() if batch % shards]:
        wrong.append(
            f"{' and '.join(odd)}, which the {shards} parts of mesh.data x mesh.fsdp do not divide; "
            f"make {'each' if len(odd) > 1 else 'it'} a multiple of {shards}"
        )
    if wrong:
        raise UserError("; ".join(wrong))
