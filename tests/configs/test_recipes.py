"""Every recipe resolves; the shipped ones say what their papers say, down to the student's parameters."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from chopjax.chop.apply import chop_config
from chopjax.chop.build import axes_to_score, build_plan
from chopjax.chop.plan import Plan
from chopjax.commands import settings
from chopjax.commands.settings import Settings
from chopjax.hf.families import FAMILIES, target_family
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import count, declare
from chopjax.sharding import rules

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

LLAMA31_8B = ModelConfig(
    layers=32, embed=4096, kv_heads=8, q_per_kv=4, head_dim=128, mlp=14_336, vocab=128_256, positions=131_072
)
LLAMA2_7B = ModelConfig(
    layers=32, embed=4096, kv_heads=32, q_per_kv=1, head_dim=128, mlp=11_008, vocab=32_000, positions=4096
)
SHIPPED = {
    "llama31_8b_to_4b_width": (LLAMA31_8B, 4_512_746_496),
    "llama31_8b_to_4b_depth": (LLAMA31_8B, 4_540_469_248),
    "llama2_7b_layerchop": (LLAMA2_7B, 3_500_281_856),
}
# 64 chips in the two ways that `docs/recipes.md` names.
MESHES = ({"data": 1, "fsdp": 64, "tensor": 1}, {"data": 1, "fsdp": 8, "tensor": 8})

shipped = pytest.mark.parametrize("name", SHIPPED)


def resolved(name: str, *arg: str) -> Settings:
    """The settings of a recipe, read as the command line reads it."""
    return settings.from_mapping(runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](*arg))


def plan_of(name: str) -> Plan:
    """What the recipe keeps where all scores are equal."""
    chosen, source = resolved(name).plan, SHIPPED[name][0].sizes
    shapes = {"mlp": (source["layers"], source["mlp"]), "embed": (source["embed"],)}
    scores = {axis: np.zeros(shapes[axis]) for axis in axes_to_score(chosen, source)}
    return build_plan(chosen, source, scores)


def tokens(chosen: Settings) -> int:
    return chosen.train.steps * chosen.train.batch * chosen.data.length


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_every_recipe_resolves(name: str) -> None:
    assert settings.from_mapping(settings.nested(resolved(name).dotted())) == resolved(name)


@shipped
def test_a_path_takes_the_place_of_the_hub(name: str, tmp_path: Path) -> None:
    chosen = resolved(name, str(tmp_path)).data
    assert [source.path for source in chosen.sources] == [str(tmp_path)]
    assert chosen.heldout_fraction > 0
    from_hub = resolved(name).data
    assert all(source.hub for source in from_hub.sources)
    assert from_hub.heldout_fraction > 0 or any(source.heldout for source in from_hub.sources)


@shipped
def test_the_student_has_the_published_size(name: str) -> None:
    source, parameters = SHIPPED[name]
    student = chop_config(source, plan_of(name))
    assert count(student) == parameters
    # Stock Llama classes take it, and there is nothing to tell the user.
    assert target_family(FAMILIES["llama"], student) == (FAMILIES["llama"], None)


@shipped
@pytest.mark.parametrize("mesh", MESHES, ids=["fsdp", "tensor"])
def test_the_mesh_holds_source_and_student(name: str, mesh: dict[str, int]) -> None:
    source = SHIPPED[name][0]
    for config in (source, chop_config(source, plan_of(name))):
        rules.check({path: leaf.axes for path, leaf in declare(config).items()}, config.sizes, mesh)


@shipped
@pytest.mark.parametrize("mesh", MESHES, ids=["fsdp", "tensor"])
def test_the_mesh_divides_every_batch(name: str, mesh: dict[str, int]) -> None:
    chosen, parts = resolved(name), mesh["data"] * mesh["fsdp"]
    assert chosen.train.batch // chosen.train.accumulate % parts == 0
    assert chosen.evaluate.batch % parts == 0 and chosen.evaluate.rows % chosen.evaluate.batch == 0
    assert chosen.score.batch % parts == 0 and chosen.score.rows % chosen.score.batch == 0


@pytest.mark.parametrize("name", ["llama31_8b_to_4b_width", "llama31_8b_to_4b_depth"])
def test_minitron_in_practice(name: str) -> None:
    chosen = resolved(name)
    assert (chosen.train.batch, chosen.data.length) == (1152, 8192)
    assert tokens(chosen) == pytest.approx(94e9, rel=1e-4)
    schedule = chosen.optimizer.schedule
    assert (schedule.kind, schedule.warmup_steps, schedule.steps) == ("cosine", 40, chosen.train.steps)
    assert schedule.learning_rate == 1e-4 and schedule.learning_rate * schedule.final_fraction == pytest.approx(1e-5)
    assert (chosen.loss.kl, chosen.loss.next_token, chosen.loss.temperature) == (1.0, 0.0, 1.0)
    assert chosen.teacher == "" and chosen.optimizer.name == "adamw"


def test_minitron_by_width_keeps_all_layers_and_heads() -> None:
    plan = plan_of("llama31_8b_to_4b_width")
    assert plan.kept["embed"].shape == (3072,) and plan.kept["mlp"].shape == (32, 9216)
    assert set(plan.kept) == {"embed", "mlp"}
    assert resolved("llama31_8b_to_4b_width").score.rows == 1024


def test_minitron_by_depth_keeps_the_first_fifteen_layers_and_the_last() -> None:
    plan = plan_of("llama31_8b_to_4b_depth")
    assert plan.layers == [*range(15), 31]
    assert set(plan.kept) == {"layers"}


def test_layerchop() -> None:
    chosen, plan = resolved("llama2_7b_layerchop"), plan_of("llama2_7b_layerchop")
    assert plan.layers == [0, *range(17, 32)] and set(plan.kept) == {"layers"}
    assert chosen.train.batch * chosen.data.length == pytest.approx(4e6, rel=0.05)
    assert tokens(chosen) == pytest.approx(160e9, rel=1e-4)
    assert chosen.train.steps_before_chop == 500
    optimizer, schedule = chosen.optimizer, chosen.optimizer.schedule
    assert (optimizer.name, optimizer.b1, optimizer.b2, optimizer.weight_decay) == ("adamw", 0.9, 0.95, 0.1)
    assert (schedule.kind, schedule.learning_rate, schedule.warmup_steps) == ("cosine", 3e-4, 2000)
    assert schedule.final_fraction == 0.1
    assert (chosen.loss.next_token, chosen.loss.kl) == (1.0, 0.0)
    assert chosen.evaluate.rows * chosen.data.length >= 13.2e6
