"""JAX is kept from libtpu only where nothing but a CPU can be there."""

import importlib.util
import os
import pathlib

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
