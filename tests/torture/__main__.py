"""The torture harness: `make torture`, or `python -m torture`. See docs/torture.md."""

import argparse
import importlib
import os
import pathlib
import random
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence

CAMPAIGNS = ("hosts", "kills", "fuzz", "handles", "stages")  # the longest first
# Seconds after which a campaign begins nothing new; `full` has no limit.
SECONDS = {"hosts": 600, "kills": 1100, "fuzz": 1100, "handles": 300, "stages": 120}
AT_ONCE = {"short": 1, "default": 2, "full": 2}  # in `make test` other tests run beside it
BROKE = 3


def main() -> int:
    """Runs the campaigns in processes of their own; returns the exit status."""
    chosen = _arguments()
    folder, seed = pathlib.Path(chosen.folder).absolute(), chosen.seed
    if chosen.campaign:
        return _campaign(chosen.campaign, folder, seed, chosen.size, chosen.case)
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    only, case = chosen.only.split(",") if chosen.only else list(CAMPAIGNS), chosen.case
    if case:
        name, _, case = case.partition(":")
        only = [name]
    if unknown := set(only) - set(CAMPAIGNS):
        print(f"no campaign {', '.join(sorted(unknown))}; there are {', '.join(CAMPAIGNS)}", file=sys.stderr)
        return 2
    print(f"torture: seed {seed}, in {folder}", flush=True)
    _make_workbench(folder)
    return _all([name for name in CAMPAIGNS if name in only], folder, seed, chosen.size, case)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make torture", description=__doc__)
    parser.add_argument("--folder", default="runs/torture", help="works there; findings are kept in its `findings`")
    parser.add_argument("--seed", type=int, help="of all random choices; drawn and printed if not given")
    parser.add_argument("--size", choices=("short", "default", "full"), default="default")
    parser.add_argument("--only", default="", help=f"some of {','.join(CAMPAIGNS)}")
    parser.add_argument("--case", default="", help="one case alone, as a finding names it")
    parser.add_argument("--campaign", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def _campaign(name: str, folder: pathlib.Path, seed: int, size: str, case: str) -> int:
    from torture.findings import Options

    seconds = 0.0 if size == "full" or case else SECONDS[name]
    try:
        tally = importlib.import_module(f"torture.{name}").run(Options(folder, seed, size, case, seconds))
    except Exception:
        traceback.print_exc()
        return BROKE
    print(tally.line(), flush=True)
    return 1 if tally.findings else 0


def _make_workbench(folder: pathlib.Path) -> None:
    from torture import workbench

    workbench.make(folder / "workbench")


def _all(names: Sequence[str], folder: pathlib.Path, seed: int, size: str, case: str) -> int:
    """As many as `AT_ONCE` at a time; the last line says whether anything was found."""
    slots, lines, statuses = threading.Semaphore(AT_ONCE[size]), dict.fromkeys(names, ""), dict.fromkeys(names, 1)
    began = time.monotonic()

    def one(name: str) -> None:
        arguments = [f"--campaign={name}", f"--folder={folder}", f"--seed={seed}", f"--size={size}", f"--case={case}"]
        with slots:
            command = [sys.executable, "-m", "torture", *arguments]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace")
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(f"{name}: "):
                    lines[name] = line.rstrip()
                else:
                    print(line, end="", flush=True)
            statuses[name] = process.wait()

    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        print(lines[name] or f"{name}: the harness itself failed, with status {statuses[name]}")
    failed = [name for name in names if statuses[name]]
    took = f"{(time.monotonic() - began) / 60:.0f} minutes"
    print(f"torture: {'findings in ' + ', '.join(failed) if failed else 'no finding'}, seed {seed}, {took}")
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "JAX_PLATFORMS": "cpu"}
    sys.exit(main())
