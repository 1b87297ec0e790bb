"""A stage that is interrupted at each of its file operations, in processes of their own: prints what came of each.

python interrupted_stages.py FOLDER kill|ERRNO

The stage was made from other inputs before. An audit hook sees every file operation of Python. At the n-th the process
ends at once, or the operation fails with this error number. Then the same command runs again undisturbed.
"""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable

from chopjax import files
from chopjax.commands.stages import Stage, Stages
from chopjax.errors import UserError
from chopjax.folders import written_whole

KILLED, REFUSED, ENDED, WRONG = 99, 98, 97, 96
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
STAGE = Stage("box", ("box", "box.json"))


def make(run: pathlib.Path, text: str, fails: bool = False) -> bool:
    """Makes the stage, whose input and outputs are the text."""

    def work() -> None:
        with written_whole(run / "box") as place:
            (place / "a").write_text(text)
            (place / "b").write_text(text)
        files.write_json(run / "box.json", text)
        if fails:
            raise UserError("refused")

    return Stages(run, say=lambda line: None).run(STAGE, {"text": text}, work)


def interrupted(action: str, at: int, work: Callable[[], object]) -> int:
    """Runs `work` in a process of its own that is interrupted at one file operation; its exit status."""
    if process := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in OPERATIONS:
            seen += 1
            if seen == at and action == "kill":
                os._exit(KILLED)
            if seen == at:
                raise OSError(int(action), os.strerror(int(action)))

    sys.addaudithook(hook)
    try:
        work()
    except OSError as error:
        os._exit(REFUSED if str(error.errno) == action else WRONG)
    except BaseException:
        os._exit(WRONG)
    os._exit(ENDED if seen >= at else 0)


def contents(run: pathlib.Path) -> dict[str, str]:
    """What there is, hidden or not, but for the record."""
    found = {str(file.relative_to(run)): file.read_text() for file in sorted(run.rglob("*")) if file.is_file()}
    return {name: text.strip('"\n') for name, text in found.items() if name != "stages/box.json"}


def fresh(folder: pathlib.Path) -> pathlib.Path:
    """A workdir in which the stage was made from "one"."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    make(folder, "one")
    return folder


def main(folder: pathlib.Path, action: str) -> None:
    """Prints a JSON list with an object for each place of interruption."""
    found: list[dict[str, object]] = []
    while True:
        run = fresh(folder / "run")
        status = interrupted(action, len(found) + 1, functools.partial(make, run, "two"))
        if not status:
            break
        left, again = contents(run), make(run, "two")
        after = contents(run)
        interrupted(action, len(found) + 1, functools.partial(make, fresh(run), "two"))
        with contextlib.suppress(UserError):
            make(run, "three", fails=True)
        refused = contents(run)
        make(run, "one")
        found.append(
            {"status": status, "left": left, "again": again, "after": after, "refused": refused, "back": contents(run)}
        )
    print(json.dumps(found))


if __name__ == "__main__":
    os.fsync = lambda descriptor: None  # nothing here loses power, and a shared disk may take long
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
