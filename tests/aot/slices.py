"""Slices of TPUs that tests compile for; without libtpu those tests are skipped."""

import importlib.util

import pytest

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiling for TPUs needs libtpu: pip install libtpu"
)
