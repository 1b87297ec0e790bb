"""The command line as a person meets it: whole processes, one line, exit status 2, at once."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from chopjax.commands import cli
from chopjax.commands.settings import Settings
from chopjax.errors import Preempted, UserError

RECIPE = """
from chopjax.commands.defaults import default_config


def get_config(arg=""):
    config = default_config()
    config.source = "model"
    config.workdir = "run"
    if arg == "layers":
        config.plan.layers = (0, 3)
    if arg == "unknown":
        config.trian = 1
    if arg == "type":
        config.train.steps = "many"
    if arg == "missing":
        open("nowhere/at-all")
    if arg == "bug":
        1 / 0
    return None if arg == "none" else config
"""

# A command that prints what it was given, and shows whether jax was imported on the way.
COMMAND = """
import sys
from chopjax.commands import cli
from chopjax.errors import UserError

def main(settings):
    if settings.seed == 7:
        raise UserError("model.safetensors: tensor x\\nholds NaN")
    if settings.seed == 8:
        raise ValueError("a bug")
    if settings.seed == 9:
        open("/dev/null/x")
    if settings.seed == 11:
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']")
    if settings.seed == 10:
        raise KeyboardInterrupt
    print(settings.train.steps, settings.plan.layers, settings.export.folder, "jax" in sys.modules)

cli.run(main, positional=POSITIONAL)
"""


@pytest.fixture
def recipe(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return str(path)


def run(*arguments: str, positional: str = "") -> subprocess.CompletedProcess:
    code = COMMAND.replace("POSITIONAL", repr(positional))
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


def refused(result: subprocess.CompletedProcess) -> str:
    """The one line of a refusal."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_overrides_reach_the_command_without_jax(recipe: str) -> None:
    result = run(f"--config={recipe}:layers", "--config.train.steps=7")
    assert (result.returncode, result.stdout, result.stderr) == (0, "7 (0, 3)  False\n", "")


def test_bad_input_found_later_is_one_line_and_a_bug_keeps_its_traceback(recipe: str) -> None:
    assert "tensor x holds NaN" in refused(run(f"--config={recipe}", "--config.seed=7"))
    assert "/dev/null/x: Not a directory; see to the path" in refused(run(f"--config={recipe}", "--config.seed=9"))
    assert "No space left on device (RESOURCE_EXHAUSTED" in refused(run(f"--config={recipe}", "--config.seed=11"))
    stopped = run(f"--config={recipe}", "--config.seed=10")
    assert (stopped.returncode, stopped.stderr) == (130, "interrupted; the same command goes on where it was\n")
    bug = run(f"--config={recipe}", "--config.seed=8")
    assert bug.returncode == 1 and "Traceback" in bug.stderr and "ValueError: a bug" in bug.stderr


@pytest.mark.parametrize("status", [None, "42"])
def test_being_told_to_end_is_no_failure_unless_the_machinery_asks(
    status: str | None, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(settings: Settings) -> None:
        raise Preempted("told to end")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["chopjax", f"--config={recipe}"])
    if status:
        monkeypatch.setenv("CHOPJAX_PREEMPTED_STATUS", status)
    with pytest.raises(SystemExit) as stopped:
        cli.run(main)
    assert stopped.value.code == int(status or 0)
    signal.signal(signal.SIGTERM, before)  # which is ignored from then on


# Gets SIGTERM where PLACE is, and tries to swallow what comes of it, as some libraries do while they are imported.
TOLD = """
import atexit, importlib.util, os, pathlib, signal, sys

def told():
    os.kill(os.getpid(), signal.SIGTERM)

class Trap:
    def find_spec(self, name, *_):
        if name == PLACE:
            told()
        if name == "chopjax.commands.slow":
            return importlib.util.spec_from_file_location(name, SLOW)

sys.meta_path.insert(0, Trap())
from chopjax.commands import cli
cli.run("slow")
"""
SLOW = """
import __main__, atexit
try:
    __main__.told() if PLACE == "import" else None
except BaseException as error:
    raise ImportError("initialization failed")
atexit.register(__main__.told)

def main(settings):
    try:
        __main__.told() if PLACE in ("main", "library") else None
    except BaseException as error:
        __main__.told()  # and again while it ends
        if PLACE == "library":
            raise RuntimeError("event loop stopped") from error
        raise
    assert PLACE == "none", "went on"
    print("finished")
"""


@pytest.mark.parametrize("where", ["ml_collections", "import", "main", "library", "none"])
def test_told_to_end_at_any_time_until_it_has_ended(where: str, recipe: str, tmp_path: pathlib.Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW.replace("PLACE", repr(where)))
    code = TOLD.replace("PLACE", repr(where)).replace("SLOW", repr(str(slow)))
    words = [sys.executable, "-c", code, f"--config={recipe}"]
    environment = os.environ | {"CHOPJAX_PREEMPTED_STATUS": "42"}
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)
    said = "finished\n" if where == "none" else "told to end (SIGTERM); the same command goes on\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (0 if where == "none" else 42, said, "")


@pytest.mark.parametrize("command", ["train", "chop", "evaluate", "score", "plan", "export", "verify", "prepare_data"])
def test_every_command_refuses_a_typo_at_once(command: str, recipe: str, tmp_path: pathlib.Path) -> None:
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", f"chopjax.{command}", "--config", recipe, "--config.train.step=3"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert time.monotonic() - began < 3
    assert 'did you mean "train.steps"?' in refused(result)
    assert not (tmp_path / "run").exists()


def parsed(*arguments: str, positional: str = "") -> Settings:
    return cli.parse(["command", *arguments], positional, required=("source", "workdir"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--config is missing"),
        (["--config.train.steps=3"], "--config is missing"),
        (["--config"], "config file (empty) does not exist"),
        (["--config=nowhere.py"], "config file nowhere.py does not exist"),
        (["--config=RECIPE:unknown"], 'RECIPE line 12: \'Key "trian" does not exist'),
        (["--config=RECIPE:unknown"], 'Did you mean "train"'),
        (["--config=RECIPE:type"], "RECIPE line 14: Could not override field 'steps'"),
        (["--config=RECIPE:missing"], "RECIPE line 16: [Errno 2]"),
        (["--config=RECIPE:none"], "get_config() returned NoneType"),
        (["--config=RECIPE", "--config.sead=3"], '--config.sead is not a field; did you mean "seed"?'),
        (
            ["--config=RECIPE", "--config.zzzz=3"],
            "--config.zzzz is not a field; there are cache, compilation_cache, correction, data",
        ),
        (["--config=RECIPE", "--config.mesh.fspd=3"], 'did you mean "mesh.fsdp"?'),
        (["--config=RECIPE", "--config.train.steps=many"], "invalid literal for int()"),
        (["--config=RECIPE", "--config.train.steps=2.5"], "invalid literal for int()"),
        (["--config=RECIPE", "--config.train.steps"], "Missing value for flag --config.train.steps"),
        (["--config=RECIPE", "--config.train=3"], "--config.train=3"),
        (["--config=RECIPE", "--config.train.steps=-1"], "train.steps is -1; give 1 or more"),
        (["--config=RECIPE", "--config.plan.layers=(0,1.5)"], "plan.layers[1] is 1.5; give a value of type int"),
        (
            ["--config=RECIPE", "--config.plan.layers=0-3,9-7"],
            "plan.layers has '9-7'; give numbers and ascending ranges",
        ),
        (["--config=RECIPE", "--config.plan.layers=0,x"], "plan.layers has 'x'; give numbers and ascending ranges"),
        (["--config=RECIPE", "--config.plan.layers=0-99999999999"], "plan.layers has '0-99999999999'; give numbers"),
        (["--config=RECIPE", "--config.plan.layers={'a': 1}"], "plan.layers is {'a': 1}; give a value of type tuple"),
        (["--config=RECIPE", "--config.plan.layers_by=lats"], "plan.layers_by is 'lats'; choose one of 'max_gap'"),
        (["--config=RECIPE", "--config.source="], "source is empty; set it in the config file or give --config.source"),
        (["--config=RECIPE", "--confg.seed=1"], "Unknown command line flag 'confg.seed'"),
        (["--config=RECIPE", "seed=1"], "'seed=1' is not expected"),
    ],
)
def test_refusals_name_the_field_and_the_mend(arguments: list[str], said: str, recipe: str) -> None:
    with pytest.raises(UserError) as caught:
        parsed(*[argument.replace("RECIPE", recipe) for argument in arguments])
    assert said.replace("RECIPE", recipe) in str(caught.value)
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)


def test_a_syntax_error_is_said_with_its_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("x = 1\ny = (\n")
    with pytest.raises(UserError, match=r"broken.py line 2: '\(' was never closed"):
        parsed(f"--config={path}")


def test_a_bug_in_the_config_file_keeps_its_traceback(recipe: str) -> None:
    with pytest.raises(ZeroDivisionError):
        parsed(f"--config={recipe}:bug")


@pytest.mark.parametrize("text", ["(0,1,5)", "0,1,5", "[0, 1, 5]"])
def test_tuples_are_overridden_in_any_spelling(text: str, recipe: str) -> None:
    assert parsed("--config", recipe, f"--config.plan.layers={text}").plan.layers == (0, 1, 5)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("0-3,12-14", (0, 1, 2, 3, 12, 13, 14)),
        ("'0-3, 12-14'", (0, 1, 2, 3, 12, 13, 14)),
        ("0-3, 7", (0, 1, 2, 3, 7)),
        ("2", (2,)),
        ("5-5", (5,)),
        ("()", ()),
    ],
)
def test_layers_are_given_as_ranges(text: str, kept: tuple[int, ...], recipe: str) -> None:
    assert parsed("--config", recipe, f"--config.plan.layers={text}").plan.layers == kept


def test_a_recipe_gives_layers_as_ranges(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "recipe.py"
    lines = (
        "config = default_config()",
        'config.plan.layers = "0-1,5"',
        "config.search.layers = range(2, 5)",
        "return config",
    )
    body = "".join(f"    {line}\n" for line in lines)
    path.write_text(f"from chopjax.commands.defaults import default_config\n\n\ndef get_config():\n{body}")
    chosen = parsed(f"--config={path}", "--config.source=a", "--config.workdir=b")
    assert chosen.plan.layers == (0, 1, 5) and chosen.search.layers == (2, 3, 4)


def test_sources_are_overridden_as_a_tuple_of_mappings(recipe: str) -> None:
    settings = parsed(f"--config={recipe}", "--config.data.sources=({'path': 'a.txt', 'weight': 2},)")
    assert [(source.path, source.weight) for source in settings.data.sources] == [("a.txt", 2.0)]


def test_a_positional_argument_stands_for_its_field() -> None:
    settings = parsed("elsewhere", "--config.export.dtype=float32", positional="export.folder")
    assert (settings.export.folder, settings.export.dtype, settings.source) == ("elsewhere", "float32", "")
    with pytest.raises(UserError, match="give a config file or export.folder"):
        parsed(positional="export.folder")
    with pytest.raises(UserError, match="'b' is not expected"):
        parsed("a", "b", positional="export.folder")


def test_help_lists_the_fields(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed("--help")
    assert caught.value.code == 0
    assert "--config.train.steps=1000" in capsys.readouterr().out


def test_help_into_a_pipe_that_is_closed() -> None:
    command = [sys.executable, "-c", "from chopjax.commands import cli; cli.run('plan')", "--help"]
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_base_config_is_the_defaults() -> None:
    base = pathlib.Path(__file__).parents[2] / "configs" / "base.py"
    settings = parsed(f"--config={base}", "--config.source=model", "--config.workdir=run")
    assert settings == Settings(source="model", workdir="run")
