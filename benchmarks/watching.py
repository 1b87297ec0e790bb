"""A command of chopjax, watched from within: the seconds of its stages, and the most memory in each.

Kept apart from the command's own code: a thread samples this process, and `Stages.run` is wrapped.
"""

import collections
import contextlib
import json
import pathlib
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

EVERY = 0.05  # seconds between samples


def watch(workdir: pathlib.Path, given: list[str]) -> None:
    """`chopjax.train` in this process, and `WORKDIR/watched.json` of its stages."""
    from chopjax.commands import cli
    from chopjax.commands.stages import Stages

    watching, original = Watching(), Stages.run

    def run(self: Stages, stage: Any, inputs: Any, work: Any) -> bool:
        def watched() -> None:
            with watching.stage(stage.name):
                work()

        return original(self, stage, inputs, watched)

    Stages.run = run  # type: ignore[method-assign]
    sys.argv = ["chopjax.train", *given]
    try:
        with watching.stage("the rest"):
            cli.run("train")
    finally:
        workdir.mkdir(exist_ok=True)
        (workdir / "watched.json").write_text(json.dumps(watching.found))


class Watching:
    """Samples this process from a thread of its own."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        self._open: list[str] = []
        self._where: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self._main = threading.main_thread().ident
        threading.Thread(target=self._sample, daemon=True).start()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts what is in here as this stage's, but for stages inside it."""
        self.found[name] = {"seconds": 0.0, "gpu": 0.0, "host": 0.0, "mostly": []}
        before, began = statistics().get("peak_bytes_in_use", 0), time.monotonic()
        self._open.append(name)
        try:
            yield
        finally:
            self._open.pop()
            row, spent = self.found[name], time.monotonic() - began
            row["seconds"] += spent
            if self._open:
                self.found[self._open[-1]]["seconds"] -= spent
            peak = statistics().get("peak_bytes_in_use", 0)
            if self._open and peak > before:
                row["gpu"] = peak / 1e9
            samples = self._where[name].total() or 1
            row["mostly"] = [f"{where} {n / samples:.0%}" for where, n in self._where[name].most_common(5)]

    def _sample(self) -> None:
        while True:
            time.sleep(EVERY)
            if not self._open:
                continue
            name = self._open[-1]
            row = self.found[name]
            row["gpu"] = max(row["gpu"], statistics().get("bytes_in_use", 0) / 1e9)
            status = dict(re.findall(r"(\w+):\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text()))
            row["host"] = max(row["host"], (int(status["VmRSS"]) - int(status["RssFile"])) * 1024 / 1e9)
            frame = sys._current_frames().get(self._main or 0)
            while frame and "/chopjax/" not in frame.f_code.co_filename:
                frame = frame.f_back
            if frame:
                place = pathlib.Path(frame.f_code.co_filename).with_suffix("").parts[-2:]
                self._where[name][f"{'.'.join(place)}.{frame.f_code.co_name}"] += 1


def statistics() -> dict[str, int]:
    """Of the first device's allocator, once there is a device."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    if not getattr(bridge, "_backends", None):
        return {}
    return sys.modules["jax"].devices()[0].memory_stats() or {}
