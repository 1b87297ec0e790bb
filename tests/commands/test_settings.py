"""One source of defaults, checked values, and a config that can be written and read back."""

import json
import pathlib
import subprocess
import sys

import pytest

from chopjax import checks
from chopjax.commands import settings
from chopjax.commands.defaults import default_config
from chopjax.commands.settings import Settings
from chopjax.errors import UserError


def test_defaults_are_those_of_the_dataclasses() -> None:
    assert settings.from_mapping(default_config()) == Settings()


def test_sections_share_no_field_but_the_steps() -> None:
    defaults = Settings()
    loop, optimizer = checks.fields(defaults.train, "train"), checks.fields(defaults.optimizer, "train")
    assert set(loop) & set(optimizer) == {"train.steps"}
    assert loop["train.steps"] == optimizer["train.steps"]


def test_train_section_feeds_the_loop_the_optimizer_and_its_schedule() -> None:
    train = {"steps": 5, "batch": 6, "learning_rate": 1, "schedule": "wsd", "optimizer": "lion", "b2": 0.99}
    chosen = settings.from_mapping({"train": train})
    assert (chosen.train.steps, chosen.train.batch) == (5, 6)
    assert (chosen.optimizer.name, chosen.optimizer.b2) == ("lion", 0.99)
    schedule = chosen.optimizer.schedule
    assert (schedule.kind, schedule.steps, schedule.learning_rate) == ("wsd", 5, 1.0)
    assert isinstance(schedule.learning_rate, float)
    assert {f"train.{name}" for name in train} <= set(chosen.dotted("train"))


def test_defaults_of_listed_entries_are_known_too() -> None:
    known = settings.defaults()
    assert (known["seed"], known["train.learning_rate"]) == (0, Settings().optimizer.schedule.learning_rate)
    source = settings.from_mapping({"data": {"sources": [{"path": "a"}]}}).dotted("data")["data.sources"]
    assert source == [{**known["data.sources[]"], "path": "a"}]
    assert {name for name in known if name.endswith("[]")} == {"data.sources[]", "loss.schedules[]"}


def test_settings_import_without_jax() -> None:
    code = "import sys, chopjax.commands.cli, chopjax.commands.stages; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_written_config_reads_back_equal(tmp_path: pathlib.Path) -> None:
    config = default_config()
    config.source, config.workdir = "model", str(tmp_path / "run")
    config.plan.layers = (0, 2, 7)
    config.data.sources = ({"path": "a", "weight": 3}, {"hub": "b"})
    config.train.learning_rate = 3e-5
    config.train.schedule = "wsd"
    config.mesh.fallbacks = ("kv_heads",)
    resolved = settings.from_mapping(config)
    path = settings.write(resolved)
    assert path == tmp_path / "run" / "config.json"
    assert settings.from_mapping(json.loads(path.read_text())) == resolved
    assert [entry.name for entry in path.parent.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"sources": 1}, 'config.sources is not a field; did you mean "source"?'),
        ({"train": {"lerning_rate": 1.0}}, 'train.lerning_rate is not a field; did you mean "learning_rate"?'),
        ({"data": {"sources": [{"path": "a", "wieght": 1}]}}, 'data.sources[0].wieght is not a field; did you mean "w'),
        ({"seed": "3"}, "seed is '3'; give a value of type int"),
        ({"seed": 2**63}, "seed is 9223372036854775808; give a number of at most 64 bits"),
        ({"seed": True}, "seed is True; give a value of type int"),
        ({"train": {"batch": 0}}, "train.batch is 0; give 1 or more"),
        ({"train": {"batch": 9, "accumulate": 2}}, "train.accumulate = 2 does not divide"),
        ({"train": {"optimizer": "sgd"}}, "train.optimizer is 'sgd'; give one of adamw, lion"),
        ({"train": {"schedule": "linear"}}, "train.schedule is 'linear'; give one of"),
        ({"train": {"remat": "some"}}, "train.remat is 'some'; choose one of"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate is nan; give a number of 0 or more"),
        ({"train": {"clip": float("inf")}}, "train.clip is inf; give a finite number"),
        ({"data": {"sources": ["a.txt"]}}, "data.sources[0] is 'a.txt'; give a mapping such as {...} of path, hub"),
        ({"train": {"b2": 1.5}}, "train.b2 is 1.5; give a number from 0 to below 1"),
        ({"plan": {"layers": (3, 1)}}, "plan.layers is (3, 1); give kept layers from 0, ascending"),
        ({"plan": {"layers": (-1, 1)}}, "plan.layers is (-1, 1); give kept layers from 0, ascending"),
        ({"plan": {"layers": (0,), "remove_layers": 1}}, "plan.layers and plan.remove_layers are both set"),
        ({"plan": {"mlp": -4}}, "plan.mlp is -4; give 0 or more"),
        ({"score": {"rows": 0}}, "score.rows is 0; give 1 or more"),
        ({"mesh": {"tensor": 0}}, "mesh.tensor is 0; give a number of devices"),
        ({"mesh": {"tensor": -1}}, "more than one of mesh.data, mesh.fsdp, mesh.context, mesh.tensor is -1"),
        ({"loss": {"kl": 0.0}}, "loss.cosine, loss.wsl are all 0; give at least one of them a weight"),
        ({"evaluate": {"window": 4, "stride": 5}}, "evaluate.stride is 5; give at most evaluate.window = 4"),
        ({"export": {"dtype": "float8"}}, "export.dtype is 'float8'; choose one of"),
    ],
)
def test_bad_values_name_the_field_and_the_mend(config: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        settings.from_mapping(config)
    assert said in str(caught.value)


def test_identity_ignores_what_cannot_change_the_result() -> None:
    config = default_config()
    before = settings.from_mapping(config).identity("train", "mesh", "seed")
    config.train.log_every, config.train.keep, config.mesh.tensor = 3, 9, 2
    assert settings.from_mapping(config).identity("train", "mesh", "seed") == before
    config.train.learning_rate = 0.5
    changed = settings.from_mapping(config).identity("train", "mesh", "seed")
    assert {name for name in changed if changed[name] != before[name]} == {"train.learning_rate"}
    assert "seed" in before and "plan.mlp" not in before
