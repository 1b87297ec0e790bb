"""A stage that is killed, or whose disk fails, at each of its file operations.

`tests/commands/interrupted_stages.py` makes a stage from one input, then from a second, is interrupted, and runs again.
Here it is judged for more failures than in the tests of `commands`.
"""

import errno
import json
import pathlib
import subprocess
import sys
from typing import Any

from torture.findings import Options, Tally

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "commands" / "interrupted_stages.py"
ACTIONS = {"kill": "kill"} | {
    name: str(getattr(errno, name)) for name in ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EACCES", "ENOENT")
}
NAMES = ("box.json", "box/a", "box/b")


def run(options: Options) -> Tally:
    """Interrupts the stage at every operation; the seed chooses nothing here."""
    tally = Tally("stages", options, "interruptions")
    folder = options.folder / "stages"
    folder.mkdir(parents=True, exist_ok=True)
    for name in [options.case.partition("@")[0]] if options.case else ACTIONS:
        command = [sys.executable, str(SCRIPT), str(folder), ACTIONS[name]]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            tally.add(name, f"status {ended.returncode}", details=ended.stderr)
            continue
        for number, place in enumerate(json.loads(ended.stdout), 1):
            tally.count += 1
            if problem := _problem(name, place):
                tally.add(f"{name}@{number}", problem, details=json.dumps(place, indent=1))
    return tally


def _problem(name: str, place: dict[str, Any]) -> str:
    """What is wrong after the interruption at one operation."""
    one, two = (dict.fromkeys(NAMES, text) for text in ("one", "two"))
    if place["after"] != two:
        return f"run again, the outputs are {place['after']}"
    if place["back"] != one:
        return f"with the first input again, the outputs are {place['back']}"
    expected = one if place["again"] else two
    if name == "kill":
        return "" if place["refused"] == expected else f"after a refused input, the outputs are {place['refused']}"
    left = {file: text for file, text in place["left"].items() if ".before" not in file}
    return "" if left == expected else f"after the failure, the outputs are {left}"
