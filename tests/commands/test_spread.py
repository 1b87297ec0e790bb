"""Batches that a mesh does not divide."""

import re

import pytest

from chopjax.commands import settings
from chopjax.commands.spread import check_batches
from chopjax.errors import UserError
from chopjax.sharding import rules

CHOSEN = settings.from_mapping(
    {
        "data": {"length": 1000},
        "train": {"batch": 1152, "accumulate": 18},
        "score": {"batch": 64},
        "evaluate": {"batch": 96},
    }
)


def mesh(**sizes: int) -> dict[str, int]:
    return {**dict.fromkeys(rules.MESH_AXES, 1), **sizes}


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 32}, {"data": 4, "fsdp": 8, "tensor": 3, "context": 8}])
def test_what_divides_passes(sizes: dict[str, int]) -> None:
    check_batches(CHOSEN, mesh(**sizes))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            {"fsdp": 64},
            "evaluate.batch is 96, which the 64 parts of mesh.data x mesh.fsdp do not divide; make it a multiple of 64",
        ),
        (
            {"data": 2, "fsdp": 24, "context": 3},
            "data.length is 1000, which mesh.context=3 does not divide; change one of them; "
            "train.batch / train.accumulate is 64 and score.batch is 64, which the 48 parts of mesh.data x mesh.fsdp "
            "do not divide; make each a multiple of 48",
        ),
    ],
)
def test_all_that_does_not_divide_is_said_at_once(sizes: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said) + "$"):
        check_batches(CHOSEN, mesh(**sizes))
