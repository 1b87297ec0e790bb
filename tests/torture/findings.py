"""What a campaign reports: how often it tried, and each fault with the command that repeats it."""

import dataclasses
import os
import pathlib
import shutil
import tempfile


@dataclasses.dataclass(frozen=True)
class Options:
    """How a campaign runs.

    Attributes:
        folder: where it works; `FOLDER/findings` holds the inputs that failed.
        seed: every random choice follows from it.
        size: `short` (inside `make test`), `default` or `full`.
        case: run this case alone, by the name that its finding has; empty for all.
        seconds: no new case begins after so many seconds; 0 for no limit.
    """

    folder: pathlib.Path
    seed: int
    size: str = "default"
    case: str = ""
    seconds: float = 0.0

    def temporary(self, campaign: str) -> pathlib.Path:
        """Where the temporary files of a campaign go."""
        return self.folder / f"{campaign}-tmp"

    def use_temporary(self, campaign: str) -> None:
        """Empties that folder, and has it used by this process and all that it starts."""
        folder = self.temporary(campaign)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


@dataclasses.dataclass(frozen=True)
class Finding:
    """A fault.

    Attributes:
        case: its name within the campaign.
        text: one line.
    """

    case: str
    text: str


@dataclasses.dataclass
class Tally:
    """The results of one campaign.

    Attributes:
        campaign: its name.
        unit: what is counted, in the plural.
        count: how many there were.
        notes: a few words for the last line.
        findings: in the order in which they came.
    """

    campaign: str
    options: Options
    unit: str
    count: int = 0
    notes: str = ""
    findings: list[Finding] = dataclasses.field(default_factory=list)

    def add(self, case: str, text: str, *evidence: pathlib.Path, details: str = "") -> None:
        """Prints a finding and keeps copies of the files and folders that show it."""
        self.findings.append(Finding(case, text))
        kept = self.options.folder / "findings" / f"{self.campaign}-{case}".replace("/", "-").replace(":", "-")
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for path in evidence:
            _keep(path, kept / path.name)
        command = f"make torture SEED={self.options.seed} CASE={self.campaign}:{case}"
        (kept / "finding.txt").write_text(f"{text}\n\n{command}\n\n{details}", encoding="utf-8", errors="replace")
        print(f"FINDING {self.campaign}:{case}: {text}\n    kept in {kept}\n    repeat: {command}", flush=True)

    def line(self) -> str:
        """The campaign in one line."""
        found = f"{len(self.findings)} finding{'s' * (len(self.findings) != 1)}" if self.findings else "no finding"
        return f"{self.campaign}: {self.count} {self.unit}, {found}" + (f" ({self.notes})" if self.notes else "")


def _keep(path: pathlib.Path, copy: pathlib.Path) -> None:
    """Copies a file or a folder; a pipe and a broken link are left out."""
    if path.is_dir():
        copy.mkdir(exist_ok=True)
        for entry in path.iterdir():
            _keep(entry, copy / entry.name) if not entry.is_symlink() else _keep_link(entry, copy / entry.name)
    elif path.is_file():
        shutil.copyfile(path, copy)


def _keep_link(path: pathlib.Path, copy: pathlib.Path) -> None:
    copy.symlink_to(path.readlink())
