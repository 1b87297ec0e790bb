"""What is kept and learned for a matching, by hand, and models that cannot be matched."""

import dataclasses

import jax
import numpy as np
import pytest
from models.random_params import WINDOWED

from chopjax.distill.hidden_config import HiddenConfig
from chopjax.distill.matching import declare_projections, match, projection_sizes
from chopjax.distill.projections import init_projections
from chopjax.errors import UserError

TEACHER = dataclasses.replace(WINDOWED, layers=5, kind_of_layer=(0, 1, 0, 1, 0))
NARROW = dataclasses.replace(WINDOWED, embed=4)
KEPT = {"layers": np.asarray([0, 2, 4]), "embed": np.asarray([7, 0, 14, 3])}
EVERY = {"block_output": 1.0, "mlp_input": 1.0, "embedding": 1.0, "embedding_table": 1.0}


def test_what_is_kept() -> None:
    matching = match(HiddenConfig(block_output=1, mlp_input=1, relation=1, layers=(0, 2)), NARROW, TEACHER, KEPT)
    assert matching.pairs == ((0, 0), (2, 4))
    # Blocks' outputs are read one layer later, and that of the last one by the final norm.
    assert matching.student_keep == {"attention_norm": (1,), "mlp_norm": (0, 2), "q": (0, 2), "k": (0, 2), "v": (0, 2)}
    assert matching.teacher_keep == {"attention_norm": (1,), "mlp_norm": (0, 4), "q": (0, 4), "k": (0, 4), "v": (0, 4)}
    raw = match(HiddenConfig(block_output=1, after_norm=False), NARROW, TEACHER, KEPT)
    assert raw.student_keep == {"block_output": (0, 1, 2)} and raw.teacher_keep == {"block_output": (0, 2, 4)}


def test_embeddings_alone_need_no_map() -> None:
    matching = match(HiddenConfig(embedding=1, project="shared"), NARROW, TEACHER)
    assert matching.pairs == () and matching.student_keep == {}


def test_declared_projections() -> None:
    def shapes(**fields) -> dict:
        matching = match(HiddenConfig(**EVERY, **fields), NARROW, TEACHER, KEPT)
        sizes = projection_sizes(matching)
        return {path: leaf.shape(sizes) for path, leaf in declare_projections(matching).items()}

    assert shapes(project="gather") == {}
    assert shapes(project="shared") == {"projections/shared/kernel": (4, 15)}
    assert shapes(project="per_layer", layers=(0, 2)) == {
        "projections/block_output/kernel": (2, 4, 15),
        "projections/mlp_input/kernel": (2, 4, 15),
        "projections/embedding/kernel": (4, 15),
        "projections/embedding_table/kernel": (4, 15),
    }


def test_projections_start_by_putting_channels_back() -> None:
    config = HiddenConfig(block_output=1, embedding=1, project="per_layer")
    kernels = init_projections(match(config, NARROW, TEACHER, KEPT), jax.random.key(0))["projections"]
    x = np.arange(1.0, 5.0, dtype=np.float32)
    wanted = np.zeros(15)
    wanted[[7, 0, 14, 3]] = x
    for kernel in (*kernels["block_output"]["kernel"], kernels["embedding"]["kernel"]):
        np.testing.assert_array_equal(x @ np.asarray(kernel), wanted)


def test_projections_start_as_identity_or_random() -> None:
    config = HiddenConfig(embedding=1, embedding_table=1, project="per_layer")
    same = init_projections(match(config, WINDOWED, TEACHER), jax.random.key(0))["projections"]
    np.testing.assert_array_equal(same["embedding"]["kernel"], np.eye(15))
    wide = dataclasses.replace(WINDOWED, embed=400), dataclasses.replace(TEACHER, embed=500)
    drawn = init_projections(match(config, *wide), jax.random.key(0))["projections"]
    assert np.std(drawn["embedding"]["kernel"]) == pytest.approx(1 / 20, rel=0.01)
    assert np.any(drawn["embedding"]["kernel"] != drawn["embedding_table"]["kernel"])


HEADS = dataclasses.replace(WINDOWED, q_per_kv=2)


@pytest.mark.parametrize(
    ("fields", "student", "kept", "says"),
    [
        ({"block_output": 1}, WINDOWED, None, "no plan"),
        ({"block_output": 1, "project": "none"}, NARROW, KEPT, "hidden.block_output compares 4 channels .* 15"),
        ({"embedding": 1}, NARROW, None, "without a plan that keeps channels"),
        ({"embedding": 1}, WINDOWED, KEPT, "the plan keeps 4 channels, but the student has 15"),
        ({"heads": 1}, HEADS, {"layers": [0, 1, 4]}, "hidden.heads compares heads one by one"),
        ({"heads": 1}, WINDOWED, {}, "the plan's 5 layers are not those of a student of 3"),
        ({"heads": 1, "layer_map": "last"}, HEADS, None, "hidden.heads compares heads one by one.* 6 of 6 on 3"),
        ({"relation": 1, "layer_map": "last", "relation_heads": 4}, HEADS, None, "divide the student's 3 heads of 6"),
    ],
)
def test_models_that_cannot_be_matched_are_refused(fields: dict, student, kept, says: str) -> None:
    with pytest.raises(UserError, match=says):
        match(HiddenConfig(**fields), student, TEACHER, kept)
