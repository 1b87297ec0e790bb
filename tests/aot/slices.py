"""Slices of TPUs and boxes of GPUs that tests compile for; without their compilers those tests are skipped."""

import importlib.util

import pytest

from chopjax.aot import gpus

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiling for TPUs needs libtpu: pip install libtpu"
)
needs_cuda = pytest.mark.skipif(
    len(gpus.versions()) < 2,
    reason="compiling for GPUs needs JAX's CUDA plugin and cuDNN: pip install 'chopjax[cuda]'",
)
