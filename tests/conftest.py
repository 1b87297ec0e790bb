"""Strict JAX for every test: what only works by implicit promotion, or on one device, is a defect."""

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# `make gpu` has the GPU first; nothing but its own tests is for that.
os.environ["JAX_PLATFORMS"] = os.environ.get("CHOPJAX_TESTS_ON", "cpu")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")

from gcs import bucket, cloud  # noqa: E402, F401
from smollm2 import smollm2_folder  # noqa: E402, F401

# The rooms whose files take longest; begun first, so that all processes of `make test` end at about the same time.
LONGEST = ("end_to_end", "torture", "aot", "notebooks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest rooms first."""
    items.sort(key=lambda item: item.path.parent.name not in LONGEST)


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """What a file compiled serves no other; the programs of all tests would take 8 GB."""
    yield
    jax.clear_caches()
