"""Runs one reader in a forked process, as a command would, and judges how it ended.

A reader may accept an input or refuse it in one short line with exit status 2. Everything else is a fault: a
traceback, a wrong result, more time or memory than any damaged file deserves, a file written or read outside.
"""

import dataclasses
import faulthandler
import json
import os
import pathlib
import resource
import signal
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

GROWN_BYTES = 500 << 20
ADDRESS_BYTES = 3 << 30  # address space that a reader may take: a larger request ends in MemoryError at once
LINE_CHARACTERS = 1000

Reader = Callable[[], str]
"""Reads the input; returns what is wrong with the result, empty if nothing is."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a reader ended: `accepted`, `refused` or a fault, and more on it."""

    kind: str
    text: str = ""
    stderr: str = ""

    @property
    def good(self) -> bool:
        return self.kind in ("accepted", "refused")


@dataclasses.dataclass(frozen=True)
class Sandbox:
    """Where readers run.

    Attributes:
        scratch: a folder for the output of readers.
        config: a config file; readers run under the command line's own handling of errors.
        inside: folders that a reader may write to.
        readable: folders that it may read besides.
        cpu_seconds: that a reader may take.
        wall_seconds: after which it counts as waiting, as at a pipe; more than its CPU time, for busy machines.
    """

    scratch: pathlib.Path
    config: pathlib.Path
    inside: Sequence[pathlib.Path]
    readable: Sequence[pathlib.Path]
    cpu_seconds: int = 10
    wall_seconds: int = 30

    def run(self, read: Reader) -> Outcome:
        """Forks, reads and judges."""
        out, report = self.scratch / "reader.out", self.scratch / "reader.json"
        report.unlink(missing_ok=True)
        process = os.fork()
        if not process:
            self._child(read, out, report)
        status = _wait(process, self.wall_seconds + 10)
        stderr = out.read_text(encoding="utf-8", errors="replace")
        facts = json.loads(report.read_text()) if report.exists() else None
        return _judge(status, stderr, facts, self)

    def _child(self, read: Reader, out: pathlib.Path, report: pathlib.Path) -> None:
        """Never returns."""
        status = 70
        try:
            descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(descriptor, 2)
            facts: dict[str, Any] = {"wrong": "", "outside": [], "reading": True}
            before = _peak_bytes()
            sys.addaudithook(self._hook(facts))
            _limit(self)
            status = self._status(read, facts)
            faulthandler.cancel_dump_traceback_later()
            sys.stderr.flush()
            facts["grown"] = _peak_bytes() - before
            facts["outside"] = facts["outside"][:5]
            descriptor = os.open(report, os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, json.dumps(facts).encode("utf-8", "replace"))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _status(self, read: Reader, facts: dict[str, Any]) -> int:
        """The exit status of a command that does nothing but read."""
        from chopjax.commands import cli

        sys.argv = ["reader", f"--config={self.config}"]

        def main(chosen: Any) -> None:
            facts["wrong"] = read()

        try:
            cli.run(main, required=())
        except SystemExit as end:
            return int(end.code or 0)
        except BaseException as error:
            facts["reading"] = False
            traceback.print_exception(error)
            return 1
        finally:
            facts["reading"] = False
        return 0

    def _hook(self, facts: dict[str, Any]) -> Callable[[str, tuple[Any, ...]], None]:
        """Notes files outside, programs and connections, as long as the reader works."""
        outside = facts["outside"]
        writable = tuple(map(str, self.inside))
        libraries = {str(pathlib.Path(path).resolve()) for path in (*sysconfig.get_paths().values(), sys.prefix)}
        known = ("/proc/", "/sys/", "/dev/", "/usr/", "/etc/", "/lib")
        checkout = str(pathlib.Path(__file__).resolve().parents[2])
        readable = (
            *writable,
            str(self.config),
            *map(str, self.readable),
            *libraries,
            *known,
            checkout,
            *filter(None, sys.path),
        )
        secret = ("/etc/passwd", "/etc/shadow")

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if not facts["reading"]:
                return
            if event in ("os.system", "subprocess.Popen", "socket.connect"):
                outside.append(event)
            if event != "open" or not isinstance(arguments[0], str | bytes):
                return
            path, flags = os.path.abspath(os.fsdecode(arguments[0])), arguments[2] or 0
            written = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if written and not path.startswith((*writable, "/dev/")):
                outside.append(f"wrote {path}")
            elif not written and (not path.startswith(readable) or path in secret):
                outside.append(f"read {path}")

        return hook


def _limit(sandbox: Sandbox) -> None:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ADDRESS_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    seconds = int(time.process_time()) + sandbox.cpu_seconds
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.dump_traceback_later(sandbox.wall_seconds, exit=True)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _wait(process: int, seconds: float) -> int:
    """Exit status, negative for a signal; one that outlives its own limits is killed."""
    deadline = time.monotonic() + seconds
    pause = 0.001
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _judge(status: int, stderr: str, facts: dict[str, Any] | None, sandbox: Sandbox) -> Outcome:
    lines = [line for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if status == -signal.SIGXCPU:
        return Outcome("slow", f"over {sandbox.cpu_seconds} s of CPU time", stderr)
    if "Timeout (" in stderr or status == -signal.SIGKILL:
        return Outcome("slow", f"waited for more than {sandbox.wall_seconds} s", stderr)
    if facts is None:
        return Outcome("died", f"status {status}: {last}", stderr)
    if facts["outside"]:
        return Outcome("outside", "; ".join(facts["outside"]), stderr)
    if facts["grown"] > GROWN_BYTES:
        return Outcome("memory", f"grew by {facts['grown'] >> 20} MB", stderr)
    if "Traceback (most recent call last)" in stderr or status not in (0, 2):
        return Outcome("traceback", f"status {status}: {last[:300]} {_frame(lines)}", stderr)
    if status == 2:
        if not last.startswith("error: ") or len(last) > LINE_CHARACTERS:
            return Outcome("message", f"not one short line ({len(last)} characters): {last[:200]}", stderr)
        return Outcome("refused", last, stderr)
    return Outcome("wrong", facts["wrong"], stderr) if facts["wrong"] else Outcome("accepted", "", stderr)


def _frame(lines: Sequence[str]) -> str:
    """The innermost line of chopjax in a traceback."""
    frames = [line.strip() for line in lines if line.strip().startswith("File ") and "/chopjax/" in line]
    return frames[-1].replace(str(pathlib.Path(__file__).resolve().parents[2]) + "/", "") if frames else ""
