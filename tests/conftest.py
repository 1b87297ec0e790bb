"""Strict JAX for every test: what only works by implicit promotion, or on one device, is a defect."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# `make gpu` has the GPU first; nothing but its own tests is for that.
os.environ["JAX_PLATFORMS"] = os.environ.get("CHOPJAX_TESTS_ON", "cpu")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")

from gcs import bucket, cloud  # noqa: E402, F401
from smollm2 import smollm2_folder  # noqa: E402, F401
