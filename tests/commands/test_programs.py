"""Compiled programs in a folder or a store: kept, loaded, and made anew where they are damaged."""

import os
import pathlib
import re
import subprocess
import sys

import gcs
import pytest
from gcs import Store

from chopjax.commands import programs
from chopjax.errors import UserError

# What is in memory is forgotten before each call, as by a start.
STARTS = """
import sys
import jax
import numpy as np
from chopjax import paths
from chopjax.commands import programs

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
folder = paths.make(sys.argv[1])
programs.use(folder, print)

@jax.jit
def f(x):
    return x * 3 + 1

def start():
    jax.clear_caches()
    assert float(f(np.float32(2))) == 7
    print(programs.told())

start()
start()
(entry,) = folder.iterdir()
entry.write_bytes(entry.read_bytes()[:-9])
start()
start()
"""


def starts(folder: str, **environment: str) -> list[str]:
    command = [sys.executable, "-W", "error::UserWarning", "-c", STARTS, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_damaged_object_is_replaced_in_a_store(cloud: Store, bucket: str) -> None:
    folder = f"gs://{bucket}/programs"
    said = starts(folder, **gcs.environment(cloud.address))
    compiled = f"compiled programs: 0 loaded from {folder}, 1 compiled and kept there"
    loaded = f"compiled programs: 1 loaded from {folder}, 0 compiled and kept there"
    assert said[:2] == [compiled, loaded] and said[3:] == [compiled, loaded]
    assert re.fullmatch(
        f"compilation_cache: jit_f cannot be loaded from {folder} [(].+[)]; it is compiled anew", said[2]
    )
    (name,) = cloud.names(f"{bucket}/programs")
    assert re.fullmatch("jit_f-[0-9a-f]{64}-cache", name)


def test_a_folder_that_cannot_be_made_is_said_before_any_work(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"compilation_cache: .*/file/programs cannot be made \(.+\); name another"):
        programs.use(tmp_path / "file" / "programs", print)
