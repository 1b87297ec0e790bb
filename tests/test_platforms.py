"""JAX is kept from libtpu only where nothing but a CPU can be there."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from chopjax.platforms import PINNED, allow_pinned_memory, skip_absent_tpus


@pytest.mark.parametrize(
    ("installed", "vendor", "chosen", "wanted"),
    [
        ({"libtpu"}, "0x8086", None, "cpu"),
        ({"libtpu"}, "0x1ae0", None, None),
        ({"libtpu", "jax_plugins"}, "0x8086", None, None),
        (set(), "0x8086", None, None),
        ({"libtpu"}, "0x8086", "tpu", "tpu"),
    ],
)
def test_platforms(
    installed: set[str],
    vendor: str,
    chosen: str | None,
    wanted: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "0000:00:04.0").mkdir()
    (tmp_path / "0000:00:04.0" / "vendor").write_text(f"{vendor}\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setenv("JAX_PLATFORMS", chosen or "")
    if chosen is None:
        monkeypatch.delenv("JAX_PLATFORMS")
    skip_absent_tpus(tmp_path)
    assert os.environ.get("JAX_PLATFORMS") == wanted


def test_what_may_be_pinned_is_what_is_there_unless_somebody_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**27}.__getitem__)
    monkeypatch.setenv(PINNED, "70")
    allow_pinned_memory()
    assert os.environ[PINNED] == "70"
    monkeypatch.delenv(PINNED)
    allow_pinned_memory()
    assert os.environ[PINNED] == "512"


GIVEN_BACK = """
import pathlib, resource, sys
import numpy as np
from chopjax import platforms
if sys.argv[1] == "keep":
    platforms.keep_memory(pathlib.Path(sys.argv[2]))
np.ones(2**25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    np.ones(2**25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(tmp_path: pathlib.Path, keep: str, **env: str) -> int:
    """Pages that the system had to find for 8 arrays of 256 MiB after a first one."""
    env = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "GLIBC_TUNABLES")} | env
    command = [sys.executable, "-c", GIVEN_BACK, keep, str(tmp_path)]
    return int(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_was_given_back_is_taken_again(tmp_path: pathlib.Path) -> None:
    from_the_system = faults(tmp_path, "", JAX_PLATFORMS="cpu")
    assert from_the_system > 100  # at least one for each huge page
    assert faults(tmp_path, "keep", JAX_PLATFORMS="cpu") < from_the_system / 10
    assert faults(tmp_path, "keep", JAX_PLATFORMS="tpu") > from_the_system / 2
    assert faults(tmp_path, "keep", JAX_PLATFORMS="cpu", GLIBC_TUNABLES="glibc.malloc.top_pad=0") > from_the_system / 2
