"""What README.md and docs/ say can be done: their Python runs, their commands parse, their fields and files exist."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from data.conftest import build_tokenizer
from hf.plain_checkpoints import plain_checkpoint
from ml_collections import config_dict

from chopjax.aot import topology
from chopjax.aot.flags import flags
from chopjax.chop.plan import Plan
from chopjax.commands import cli, settings
from chopjax.commands.settings import Settings
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.models.config import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/design.md", "docs/recipes.md")}

pages = pytest.mark.parametrize("page", PAGES)


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language, without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", PAGES[page], re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def command_lines() -> list[list[str]]:
    """Every `python -m chopjax.X ...` of the shell blocks, as X and its arguments; the launch scripts start `train`."""
    found = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                text = line.strip()
                text = text[:-1] if text.count("'") % 2 else text  # the end of a command that is quoted as a whole
                if match := re.search(r"python -m chopjax\.(.*)", text):
                    found.append(shlex.split(match[1]))
                elif match := re.search(r"^tools/\w+\.sh .* -- (.*)", text):
                    found.append(["train", *shlex.split(match[1])])
    return found


def launches() -> list[str]:
    """The commands of the shell blocks that start a launch script."""
    lines = [line.strip() for block in blocks("README.md", "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("tools/")]


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    [text] = blocks("README.md", "python")
    # As many layers and neurons as the model that the text names, so that its numbers mean the same.
    config = ModelConfig(layers=30, embed=18, kv_heads=3, q_per_kv=3, head_dim=4, mlp=1536, vocab=311, positions=64)
    build_tokenizer(plain_checkpoint(tmp_path / "runs/models/smollm2-135m-instruct", config, scale=0.1))
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert "largest activation by layer: (30,)" in said
    difference = re.search(r"differ by at most (\S+)", said)
    assert difference and float(difference[1]) < 1e-4
    student = open_checkpoint(tmp_path / "runs/by_hand").config
    assert (student.layers, student.mlp) == (24, 1280)


def test_every_command_line_parses() -> None:
    found = command_lines()
    assert len(found) >= 3
    for command, *arguments in found:
        assert (ROOT / "chopjax" / f"{command}.py").exists() or (ROOT / "chopjax" / command / "__main__.py").exists()
        arguments = [argument.replace("configs/", f"{ROOT}/configs/") for argument in arguments]
        if command == "aot":
            options, arguments = flags().parse_known_args(arguments)
            assert topology.parse(options.topology).chips
        chosen = cli.parse([command, *arguments])
        assert chosen.source and (chosen.workdir or command == "aot")


def test_the_table_lists_every_command() -> None:
    modules = {file.stem for file in (ROOT / "chopjax").glob("*.py") if "__main__" in file.read_text()}
    modules |= {file.parent.name for file in (ROOT / "chopjax").glob("*/__main__.py")}
    assert set(re.findall(r"^\| `python -m chopjax\.(\w+)`", PAGES["README.md"], re.MULTILINE)) == modules


@pages
def test_every_field_exists(page: str) -> None:
    known = Settings().dotted()
    sections = sorted({name.split(".")[0] for name in known if "." in name})
    text = re.sub(r"\w+\.(?:json|safetensors|html)", "", PAGES[page])
    fields = re.findall(rf"(?:`|config\.)((?:{'|'.join(sections)})\.[a-z]\w*)", text)
    assert [field for field in fields if field not in known] == []
    assert page == "docs/design.md" or len(fields) > 3


@pages
def test_every_file_exists(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", PAGES[page])
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
    paths = re.findall(r"`((?:configs|chopjax|docs|tools|notebooks|benchmarks)/[\w./]+)`", PAGES[page])
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_list_of_recipes_is_complete() -> None:
    listed = re.findall(r"^\| `(\w+\.py)` \|", PAGES["docs/recipes.md"], re.MULTILINE)
    assert sorted(listed) == sorted(file.name for file in (ROOT / "configs").glob("*.py"))


def test_the_recipe_of_the_documentation_resolves() -> None:
    [text] = blocks("docs/recipes.md", "py")
    names: dict = {}
    exec(compile(text, "docs/recipes.md", "exec"), names)
    config = names["get_config"]("some/text")
    assert isinstance(config, config_dict.ConfigDict)
    chosen = settings.from_mapping(config)
    assert (chosen.plan.remove_layers, chosen.data.sources[0].path) == (8, "some/text")
    assert settings.from_mapping(names["get_config"]()).data.sources[0].hub


@pytest.mark.parametrize("command", launches())
def test_the_launch_scripts_take_what_is_shown(command: str) -> None:
    """Shown with `--dry-run`, so that it costs nothing to try what is printed."""
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--dry-run" in command and "+ gcloud compute tpus" in done.stderr and "--dry-run" not in done.stderr


def test_what_is_installed_for_a_pod_is_what_its_steps_need() -> None:
    steps = PAGES["README.md"].split("## Llama-3.1-8B to 4.5B on a TPU pod")[1].split("\n## ")[0]
    installed = steps.index("pip install --constraint constraints.txt -e '.[tpu,gcs,datasets]'")
    assert installed < steps.index("hf download") < steps.index("chopjax.prepare_data")
    assert "-c constraints.txt -e '.[tpu,gcs,datasets]'" in (ROOT / "tools/launching.sh").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"tpu", "gcs", "datasets"} <= set(extras)


def test_the_plan_of_the_documentation_is_one() -> None:
    [text] = blocks("docs/recipes.md", "json")
    assert json.loads(text)["format"] == 1
    plan = Plan.from_json(text)
    assert plan.layers == [0, 1, 3] and plan.sizes["mlp"] == 4
