"""Runs of the flow on a tiny model, each in a process of its own, which may be made to die anywhere.

The processes are forked from a server that has imported chopjax already but has not started JAX: each takes a second
instead of the many that the imports take, and is otherwise a process like any other, with its own exit status.
"""

import dataclasses
import functools
import hashlib
import importlib
import json
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from data.conftest import SENTENCES, build_tokenizer
from hf.plain_checkpoints import plain_checkpoint

from chopjax.models.config import ModelConfig

MODEL = ModelConfig(layers=4, embed=36, kv_heads=2, q_per_kv=2, head_dim=6, mlp=20, vocab=307, positions=64)
STEPS = 8
CLOCKED = ("tokens_per_second", "tflops", "mfu", "goodput")

RECIPE = """
from chopjax.commands.defaults import default_config


def get_config(arg=""):
    config = default_config()
    config.source = "SOURCE"
    config.workdir = "WORKDIR"
    config.data.sources = ({"path": "TEXT"},)
    config.data.length = 24
    config.data.heldout_fraction = 0.2
    config.data.threads = 1
    config.score.rows = 6
    config.score.batch = 4
    config.plan.layers_by = "middle"
    config.plan.remove_layers = 1
    config.plan.mlp = 12
    config.loss.chunk = 32
    config.train.steps = STEPS
    config.train.batch = 4
    config.train.learning_rate = 1e-2
    config.train.warmup_steps = 2
    config.train.compute_dtype = "float32"
    config.train.remat = "none"
    config.train.log_every = 1
    config.train.save_every = 3
    config.train.tensorboard = False
    config.evaluate.rows = 8
    config.evaluate.batch = 4
    config.evaluate.prompts = ("Water runs",)
    config.evaluate.new_tokens = 4
    return config
"""


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder with a model, a text and a recipe that uses both."""

    folder: pathlib.Path

    @classmethod
    def make(cls, folder: pathlib.Path) -> "Place":
        """Writes all three."""
        model(folder / "model", seed=7)
        texts = [f"{index}: " + " ".join(SENTENCES[: 1 + index % 5]) for index in range(60)]
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (folder / "text.jsonl").write_text("".join(lines), encoding="utf-8")
        names = {"SOURCE": folder / "model", "TEXT": folder / "text.jsonl", "WORKDIR": folder / "run", "STEPS": STEPS}
        recipe = functools.reduce(lambda text, name: text.replace(name, str(names[name])), names, RECIPE)
        (folder / "recipe.py").write_text(recipe)
        return cls(folder)

    @property
    def recipe(self) -> pathlib.Path:
        """The config file."""
        return self.folder / "recipe.py"

    @property
    def source(self) -> pathlib.Path:
        """The checkpoint to make smaller."""
        return self.folder / "model"

    @property
    def options(self) -> dict[str, Any]:
        """JAX's own: all processes share what XLA compiled."""
        return {
            "jax_compilation_cache_dir": str(self.folder / "compiled"),
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }

    @property
    def environment(self) -> dict[str, str]:
        """That of a process that is to have these options."""
        return os.environ | {name.upper(): str(value) for name, value in self.options.items()}

    def arguments(self, workdir: pathlib.Path, *overrides: str) -> list[str]:
        """The command line after the command's name; overrides as `train.steps=3`."""
        settings = (f"workdir={workdir}", *overrides)
        return [f"--config={self.recipe}", *(f"--config.{setting}" for setting in settings)]


def model(folder: pathlib.Path, seed: int, config: ModelConfig = MODEL, **options: Any) -> pathlib.Path:
    """A random checkpoint with a tokenizer."""
    plain_checkpoint(folder, config, seed=seed, scale=0.3, **options)
    return build_tokenizer(folder)


def intercept(method: str, before: Callable[[], None]) -> None:
    """Has `before` called ahead of every call of a method, such as `chopjax.module:Class.method`, in this process."""
    module, _, path = method.partition(":")
    owner, name = path.rpartition(".")[::2]
    holder = functools.reduce(getattr, owner.split("."), importlib.import_module(module))
    original = getattr(holder, name)

    def intercepted(*args: Any, **kwargs: Any) -> Any:
        before()
        return original(*args, **kwargs)

    setattr(holder, name, intercepted)


class Prepared(Protocol):
    """Is called in a process before its command begins."""

    def prepare(self) -> None:
        """Changes the process."""


@dataclasses.dataclass(frozen=True)
class Death:
    """SIGKILL, or another signal, at the `call`-th call of a method; none if it is called less often.

    Attributes:
        method: as `chopjax.module:Class.method`.
        call: counted from 1.
        delay: seconds after the call began, while it goes on.
        after: a path that has to exist first; the call waits for it, as for a save in the background.
        signal: what the process is sent.
        slow: seconds that this call and all after it take longer.
    """

    method: str
    call: int
    delay: float = 0.0
    after: pathlib.Path | None = None
    signal: int = signal.SIGKILL
    slow: float = 0.0

    def prepare(self) -> None:
        """Puts the trap in place, in this process."""
        calls = 0

        def count() -> None:
            nonlocal calls
            calls += 1
            time.sleep(self.slow if calls > self.call else 0.0)
            if calls == self.call:
                while self.after and not self.after.exists():
                    time.sleep(0.01)
                if not self.delay:
                    os.kill(os.getpid(), self.signal)
                else:
                    threading.Thread(target=self._die, daemon=True).start()

        intercept(self.method, count)

    def _die(self) -> None:
        time.sleep(self.delay)
        os.kill(os.getpid(), self.signal)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status, negative for a signal, and what it said."""

    status: int
    stdout: str
    stderr: str


@dataclasses.dataclass(frozen=True)
class Started:
    """A process that was started, and the files that its output goes to."""

    process: Any
    files: tuple[pathlib.Path, pathlib.Path]

    def text(self) -> tuple[str, str]:
        """What it has printed so far, and its errors."""
        texts = [file.read_text(encoding="utf-8", errors="replace") if file.exists() else "" for file in self.files]
        return texts[0], texts[1]

    def wait(self, seconds: float = 300) -> Ended:
        """Waits for its end."""
        self.process.join(timeout=seconds)
        assert self.process.exitcode is not None, "a run did not end"
        return Ended(self.process.exitcode, *self.text())


def start(
    place: Place, command: str, arguments: Sequence[str], devices: int = 1, death: Prepared | None = None
) -> Started:
    """`python -m chopjax.COMMAND ARGUMENTS` on so many CPU devices; `heal` trains and exports what
    was chopped, its teacher first where that is asked for, `states` see `_states`, `ahead` see `_ahead`."""
    tag = os.urandom(4).hex()
    files = (place.folder / f"{tag}.stdout", place.folder / f"{tag}.stderr")
    process = _server().Process(target=_main, args=(command, list(arguments), devices, death, place, list(files)))
    process.start()
    return Started(process, files)


def run(place: Place, command: str, arguments: Sequence[str], devices: int = 1, death: Prepared | None = None) -> Ended:
    """`start`, and waits for the end."""
    return start(place, command, arguments, devices, death).wait()


def done(place: Place, command: str, arguments: Sequence[str], devices: int = 1) -> Ended:
    """`run`, which must end well."""
    ended = run(place, command, arguments, devices)
    assert ended.status == 0, ended.stderr
    return ended


@functools.cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    models = "transformers.models.llama.modeling_llama"  # with torch, where that is installed
    context.set_forkserver_preload(["chopjax.commands.train", "chopjax.commands.prepare_data", "transformers", models])
    return context


def _main(
    command: str,
    arguments: list[str],
    devices: int,
    death: Prepared | None,
    place: Place,
    said: list[pathlib.Path],
) -> None:
    """What such a process does."""
    for number, file in enumerate(said, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    import jax

    from chopjax.commands import cli

    jax.config.update("jax_num_cpu_devices", devices)
    for name, value in place.options.items():
        jax.config.update(name, value)
    if death:
        death.prepare()
    sys.argv = [command, *arguments]
    cli.run({"heal": _heal, "states": _states, "ahead": _ahead}.get(command, command))


def _heal(chosen: Any) -> None:
    from chopjax.commands import correct, export, heal
    from chopjax.commands.run import begin

    started = begin(chosen)
    correct.make(started)
    heal.make(started)
    export.make(started)


def _ahead(chosen: Any) -> None:
    """Compiles the training step from shapes alone, as for devices that are not there, and keeps it."""
    import jax

    from chopjax.aot import compiling
    from chopjax.commands import programs
    from chopjax.commands.foreseen import foresee

    programs.use_for_others(pathlib.Path(chosen.compilation_cache), print)
    compiling.compile(foresee(chosen).training(), jax.devices())


def _states(chosen: Any) -> None:
    """Writes the state after the steps before the chop and the one that goes on: `before.npz`, `after.npz`."""
    from chopjax.commands import heal, training
    from chopjax.commands.run import begin

    started, restore = begin(chosen), training.Checkpoints.restore

    def restored(*args: Any) -> Any:
        found = restore(*args)
        if found:
            _save(started.workdir / "before.npz", found.state)
        return found

    def train(step: Any, state: Any, *rest: Any) -> None:
        _save(started.workdir / "after.npz", state)
        os._exit(0)

    training.Checkpoints.restore, training.train = restored, train  # type: ignore[method-assign, assignment]
    heal.make(started)


def _save(file: pathlib.Path, state: Any) -> None:
    """Arrays under names such as `opt_state/1/0/mu:layers/mlp/up/kernel`; those of no parameter without a colon."""
    import jax

    arrays = {}
    for path, value in jax.tree_util.tree_leaves_with_path(state):
        keys = [[], []]
        for key in path:
            keys[isinstance(key, jax.tree_util.DictKey)].append(jax.tree_util.keystr([key], simple=True))
        arrays[":".join("/".join(part) for part in keys if part)] = np.asarray(value)
    np.savez(file, **arrays)


def metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a run, without what a clock says."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if not name.startswith(CLOCKED)} for line in lines]


def contents(folder: pathlib.Path) -> dict[str, str]:
    """A digest of every file under a folder, hidden ones too."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files}
