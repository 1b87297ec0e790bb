"""Every recipe resolves; the shipped ones say what their papers say, down to the student's parameters."""

import dataclasses
import re
import runpy
from pathlib import Path

import pytest

from chopjax.aot import topology
from chopjax.axes import Sizes
from chopjax.chop.apply import chop_config
from chopjax.chop.build import build_plan
from chopjax.chop.config import PlanConfig
from chopjax.chop.plan import Plan
from chopjax.commands import cli, rounds, settings
from chopjax.commands.evidence import zeros
from chopjax.commands.settings import Settings
from chopjax.errors import UserError
from chopjax.hf.checkpoint import open_config
from chopjax.hf.families import Family, target_family
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import count, declare
from chopjax.sharding import rules

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclasses.dataclass(frozen=True)
class Shipped:
    """What a recipe starts from, in `configs/sources`; parameters of the student after each round; chips."""

    of: str
    parameters: tuple[int, ...]
    chips: int

    @property
    def source(self) -> ModelConfig:
        """The model that is made smaller."""
        return open_config(CONFIGS / "sources" / self.of)[3]

    @property
    def family(self) -> Family:
        """The family that it is of."""
        return open_config(CONFIGS / "sources" / self.of)[2]


SHIPPED = {
    "llama31_8b_to_4b_width": Shipped("Llama-3.1-8B", (4_512_746_496,), 64),
    "llama31_8b_to_4b_depth": Shipped("Llama-3.1-8B", (4_540_469_248,), 64),
    "llama2_7b_layerchop": Shipped("Llama-2-7b-hf", (3_500_281_856,), 64),
    "minitron_15b_to_8b_to_4b": Shipped("Nemotron-4-15B", (8_271_699_968, 4_190_509_056), 64),
    "mistral_nemo_12b_to_8b": Shipped("Mistral-Nemo-Base-2407", (8_414_105_600,), 128),
    "qwen3_8b_to_6b": Shipped("Qwen3-8B", (5_988_774_912,), 64),
}

shipped = pytest.mark.parametrize("name", SHIPPED)
all_and_by_tensor = pytest.mark.parametrize("tensor", [1, 8], ids=["fsdp", "tensor"])


def resolved(name: str, *arg: str) -> Settings:
    """The settings of a recipe, read as the command line reads it."""
    return settings.from_mapping(runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](*arg))


def in_rounds(name: str) -> list[Settings]:
    """The settings of each round, or of the only one there is."""
    chosen = resolved(name)
    return rounds.each(chosen.changed({"source": "source", "workdir": "w"}), "bfloat16") if chosen.rounds else [chosen]


def plan_of(chosen: PlanConfig, source: Sizes) -> Plan:
    """What is kept where all scores are equal."""
    return build_plan(chosen, source, zeros(source, chosen))


def plans(name: str) -> list[Plan]:
    """The plan of each round."""
    found, config = [], SHIPPED[name].source
    for chosen in in_rounds(name):
        found.append(plan_of(chosen.plan, config.sizes))
        config = chop_config(config, found[-1])
    return found


def models(name: str) -> list[ModelConfig]:
    """The source, and the student after each round."""
    found = [SHIPPED[name].source]
    for plan in plans(name):
        found.append(chop_config(found[-1], plan))
    return found


def mesh(chips: int, tensor: int) -> dict[str, int]:
    """The two ways that `docs/recipes.md` names: all on `fsdp`, or eight of them on `tensor`."""
    return {**dict.fromkeys(rules.MESH_AXES, 1), "fsdp": chips // tensor, "tensor": tensor}


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


@pytest.mark.parametrize("name", sorted({path.stem for path in CONFIGS.glob("*.py")} - set(SHIPPED)))
def test_a_recipe_that_has_no_use_for_a_path_refuses_it(name: str) -> None:
    with pytest.raises(
        UserError, match=r"configs/\w+\.py line \d+: this recipe takes no argument; name text as --config"
    ):
        cli.parse(["train", "--config", f"{CONFIGS}/{name}.py:my.txt"])


@shipped
def test_the_students_have_the_published_sizes(name: str) -> None:
    students, family = models(name)[1:], SHIPPED[name].family
    assert tuple(count(student) for student in students) == SHIPPED[name].parameters
    for student in students:
        # Stock classes of the source's own family take it. Where heads no longer make up the width, the user is told.
        odd = student.q_heads * student.head_dim != student.embed
        assert target_family(family, student) == (family, family.head_dim_note if odd else None)


@shipped
@all_and_by_tensor
def test_the_mesh_holds_source_and_students(name: str, tensor: int) -> None:
    for config in models(name):
        leaves = {path: leaf.axes for path, leaf in declare(config).items()}
        rules.check(leaves, config.sizes, mesh(SHIPPED[name].chips, tensor))


@shipped
@all_and_by_tensor
def test_the_mesh_divides_every_batch(name: str, tensor: int) -> None:
    chosen, parts = resolved(name), mesh(SHIPPED[name].chips, tensor)["fsdp"]
    assert chosen.train.batch // chosen.train.accumulate % parts == 0
    assert chosen.evaluate.batch % parts == 0 and chosen.evaluate.rows % chosen.evaluate.batch == 0
    assert chosen.score.batch % parts == 0 and chosen.score.rows % chosen.score.batch == 0
    assert chosen.loss.chunk == SHIPPED[name].chips * 512


@shipped
def test_the_recipe_says_which_pod_it_is_for(name: str) -> None:
    text = (CONFIGS / f"{name}.py").read_text(encoding="utf-8")
    pod = re.search(r"Meant for (v\w+-\d+)", text)
    assert pod and topology.parse(pod[1]).chips == SHIPPED[name].chips


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
    plan = plans("llama31_8b_to_4b_width")[0]
    assert plan.kept["embed"].shape == (3072,) and plan.kept["mlp"].shape == (32, 9216)
    assert set(plan.kept) == {"embed", "mlp"}
    assert resolved("llama31_8b_to_4b_width").score.rows == 1024


def test_minitron_by_depth_keeps_the_first_fifteen_layers_and_the_last() -> None:
    plan = plans("llama31_8b_to_4b_depth")[0]
    assert plan.layers == [*range(15), 31]
    assert set(plan.kept) == {"layers"}


def test_layerchop() -> None:
    chosen, plan = resolved("llama2_7b_layerchop"), plans("llama2_7b_layerchop")[0]
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


def test_mistral_nemo() -> None:
    chosen, plan = resolved("mistral_nemo_12b_to_8b"), plans("mistral_nemo_12b_to_8b")[0]
    assert {axis: kept.shape[-1] for axis, kept in plan.kept.items()} == {"embed": 4096, "mlp": 11_520}
    assert (chosen.train.batch, chosen.data.length, chosen.score.rows) == (768, 8192, 1024)
    assert tokens(chosen) == pytest.approx(380e9, rel=1e-4)
    schedule = chosen.optimizer.schedule
    assert (schedule.kind, schedule.warmup_steps, schedule.learning_rate) == ("cosine", 60, 1e-4)
    assert schedule.learning_rate * schedule.final_fraction == pytest.approx(4.5e-7)
    assert (chosen.loss.kl, chosen.loss.next_token, chosen.loss.temperature) == (1.0, 0.0, 1.0)


def test_qwen3() -> None:
    chosen, plan = resolved("qwen3_8b_to_6b"), plans("qwen3_8b_to_6b")[0]
    kept = {axis: kept.shape[-1] for axis, kept in plan.kept.items()}
    assert kept == {"layers": 30, "embed": 3584, "mlp": 11_776}
    assert (chosen.train.batch, chosen.data.length) == (768, 8192)
    assert tokens(chosen) == pytest.approx(80e9, rel=1e-4)
    schedule = chosen.optimizer.schedule
    assert (schedule.kind, schedule.warmup_steps, schedule.learning_rate) == ("cosine", 100, 1e-4)
    assert schedule.learning_rate * schedule.final_fraction == pytest.approx(1e-5)


def test_minitron_in_two_rounds() -> None:
    first, second = in_rounds("minitron_15b_to_8b_to_4b")
    assert first.teacher == second.teacher == first.source  # the 15B teaches the 4B too
    assert second.source == first.export.folder
    for chosen in (first, second):
        assert (chosen.train.batch, chosen.data.length, chosen.score.rows) == (1152, 4096, 1024)
        assert tokens(chosen) == pytest.approx(94e9, rel=1e-4)
        schedule = chosen.optimizer.schedule
        assert (schedule.kind, schedule.learning_rate) == ("cosine", 2e-4)
        assert schedule.learning_rate * schedule.final_fraction == pytest.approx(4.5e-7)
        assert (chosen.plan.widths_by, chosen.plan.over_batch, chosen.plan.over_sequence) == (
            "activation",
            "l2",
            "mean",
        )
        assert (chosen.loss.kl, chosen.loss.next_token) == (1.0, 0.0)
    eight, four = models("minitron_15b_to_8b_to_4b")[1:]
    assert (eight.embed, eight.q_heads, eight.kv_heads, eight.mlp, eight.layers) == (4096, 48, 8, 16_384, 32)
    assert (four.embed, four.q_heads, four.kv_heads, four.mlp, four.layers) == (3072, 24, 8, 9216, 32)
