"""Checkpoints come back bit for bit, on any mesh, and only whole ones are ever seen."""

import dataclasses
import functools
import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gcs import Store
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp
from train.saved_states import IDENTITY, TARGET, abstract_arrays, saved

from chopjax.errors import Preempted, UserError
from chopjax.train import preemption
from chopjax.train.checkpoints import UNREAD, Checkpoints


@functools.partial(jax.tree_util.register_dataclass, data_fields=["step", "params", "opt_state"], meta_fields=[])
@dataclasses.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any


def mesh(*shape: int) -> Mesh:
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def shardings(on: Mesh, state: Any) -> Any:
    """Kernels cut over fsdp and tensor, everything else whole."""

    def one(leaf: Any) -> NamedSharding:
        return NamedSharding(on, PartitionSpec("fsdp", "tensor") if leaf.ndim == 2 else PartitionSpec())

    return jax.tree.map(one, state)


def make(seed: int, on: Mesh) -> State:
    """A state with float32, bfloat16 and int32 leaves, a NaN, an infinity and a negative zero."""
    keys = jax.random.split(jax.random.key(seed), 2)
    kernel = jax.random.normal(keys[0], (8, 6)).at[0, :3].set(jnp.array([jnp.nan, jnp.inf, -0.0]))
    params = {"layers": {"up": {"kernel": kernel}}, "norm": {"scale": jax.random.normal(keys[1], (5,), jnp.bfloat16)}}
    with jax.numpy_dtype_promotion("standard"):
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mu_dtype=jnp.bfloat16))
        state = State(jnp.int32(seed), params, optimizer.init(params))
    return jax.device_put(state, shardings(on, state))


def abstract(state: Any, on: Mesh) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings(on, state),
    )


def assert_same_bits(left: Any, right: Any) -> None:
    assert str(jax.tree.structure(left)) == str(jax.tree.structure(right))
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 2), (2, 2, 2)])
def test_state_comes_back_bit_for_bit_on_any_mesh(shape: tuple[int, int, int], tmp_path: pathlib.Path) -> None:
    saved = make(3, mesh(2, 4, 1))
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        checkpoints.save(3, saved, {"row": 96, "order": "a"})
    target = abstract(saved, mesh(*shape))
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        restored = checkpoints.restore(target)
    assert restored is not None
    assert (restored.step, restored.position) == (3, {"row": 96, "order": "a"})
    assert_same_bits(restored.state, saved)
    for leaf, wanted in zip(jax.tree.leaves(restored.state), jax.tree.leaves(target), strict=True):
        assert leaf.sharding == wanted.sharding


def test_a_saved_state_may_be_donated_at_once(tmp_path: pathlib.Path) -> None:
    on = mesh(1, 4, 2)
    grow = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + jnp.ones((), leaf.dtype), state), donate_argnums=0)
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        state = make(1, on)
        checkpoints.save(1, state, {})
        grow(state)
        restored = checkpoints.restore(abstract(make(1, on), on))
    assert restored is not None
    assert_same_bits(restored.state, make(1, on))


def test_what_is_not_to_be_read_is_left_out(tmp_path: pathlib.Path) -> None:
    on = mesh(1, 4, 2)
    whole = make(1, on)
    target = abstract(whole, on)
    target = dataclasses.replace(target, opt_state=jax.tree.map(lambda leaf: UNREAD, target.opt_state))
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        checkpoints.save(1, whole, {})
        restored = checkpoints.restore(target)
        assert restored is not None
        assert_same_bits(restored.state.params, whole.params)
        assert all(leaf is UNREAD for leaf in jax.tree.leaves(restored.state.opt_state))
        with pytest.raises(UserError, match="more is absent there"):
            checkpoints.restore(dataclasses.replace(target, params=target.params | {"more": UNREAD}))


def test_arrays_are_stored_as_they_are(tmp_path: pathlib.Path) -> None:
    """Compressing them would hold all of them in memory twice."""
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(2**18)}, {})
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) >= 2**20


def test_the_last_and_the_best_are_kept(tmp_path: pathlib.Path) -> None:
    state = {"x": jnp.ones(3)}
    losses = {1: 2.0, 2: 0.5, 3: float("nan"), 4: None, 5: 1.0}
    with Checkpoints(tmp_path, IDENTITY, keep=2, keep_best=1) as checkpoints:
        assert checkpoints.latest is None and checkpoints.best is None
        for step, loss in losses.items():
            checkpoints.save(step, state, {}, None if loss is None else {"heldout_loss": loss})
        checkpoints.wait()
        assert (checkpoints.steps, checkpoints.latest, checkpoints.best) == ([2, 4, 5], 5, 2)
    # What was best is known to the next process too.
    with Checkpoints(tmp_path, IDENTITY, keep=2, keep_best=1) as checkpoints:
        assert (checkpoints.steps, checkpoints.best) == ([2, 4, 5], 2)
        checkpoints.save(6, state, {}, {"heldout_loss": 0.25})
        checkpoints.wait()
        assert (checkpoints.steps, checkpoints.best) == ([5, 6], 6)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["5", "6"]


def test_figures_may_come_after_the_save(tmp_path: pathlib.Path) -> None:
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        for step, figures in ((1, {"heldout_loss": 0.5}), (2, None)):
            checkpoints.save(step, {"x": jnp.zeros(2)}, {}, figures)
        checkpoints.add_metrics(2, {"heldout_loss": 0.25})
        assert checkpoints.best == 2
        checkpoints.add_metrics(1, {"heldout_loss": 0.125})  # it has its own
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        assert checkpoints.best == 2
        assert checkpoints.restore(abstract_arrays(x=((2,), jnp.float32))).step == 2


def test_a_step_is_saved_once(tmp_path: pathlib.Path) -> None:
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        checkpoints.save(4, {"x": jnp.zeros(2)}, {"row": 1})
        checkpoints.save(4, {"x": jnp.ones(2)}, {"row": 2})
        restored = checkpoints.restore(abstract_arrays(x=((2,), jnp.float32)))
    assert restored is not None
    assert restored.position == {"row": 1}


def test_an_empty_folder_restores_nothing(tmp_path: pathlib.Path) -> None:
    with Checkpoints(tmp_path / "new", IDENTITY) as checkpoints:
        assert checkpoints.restore(abstract_arrays(x=((2,), jnp.float32))) is None


def test_another_identity_is_refused(tmp_path: pathlib.Path) -> None:
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(2)}, {})
    with pytest.raises(UserError, match=r"train.learning_rate = 0.0003, not 0.001; put it back or set another workdir"):
        Checkpoints(tmp_path, IDENTITY | {"train.learning_rate": 1e-3})
    with pytest.raises(UserError, match=r"plan.layers = \[0, 2\], not \[0, 1\]"):
        Checkpoints(tmp_path, IDENTITY | {"plan.layers": (0, 1)})
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        assert checkpoints.latest == 1
    with pytest.raises(UserError, match=r"/2: written by a newer chopjax \(format 2, this one reads up to 1\)"):
        with Checkpoints(tmp_path / "newer", IDENTITY | {"format": 2}) as checkpoints:
            checkpoints.save(2, {"x": jnp.zeros(2)}, {})
        Checkpoints(tmp_path / "newer", IDENTITY)
    newer = {"train.new": 0}
    with Checkpoints(tmp_path, IDENTITY | newer, defaults=newer) as checkpoints:
        assert checkpoints.latest == 1
    with pytest.raises(UserError, match=r"train.new = 0, not 2; put it back"):
        Checkpoints(tmp_path, IDENTITY | {"train.new": 2}, defaults=newer)
    assert json.loads((tmp_path / "1" / "identity" / "data.json").read_text())["plan.layers"] == [0, 2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"x": ((3,), jnp.float32)}, r"x is float32\[2\] there and float32\[3\] in this run"),
        ({"x": ((2,), jnp.bfloat16)}, r"x is float32\[2\] there and bfloat16\[2\] in this run"),
        ({"x": ((2,), jnp.float32), "y": ((1,), jnp.float32)}, r"y is absent there"),
        ({}, r"x is float32\[2\] there and absent in this run"),
    ],
)
def test_other_arrays_are_refused(given: dict, said: str, tmp_path: pathlib.Path) -> None:
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(2)}, {})
        with pytest.raises(UserError, match=said):
            checkpoints.restore(abstract_arrays(**given))
        with pytest.raises(UserError, match=r"no checkpoint of step 9; there are \[1\]"):
            checkpoints.restore(abstract_arrays(x=((2,), jnp.float32)), step=9)


# Saves a state that follows from its step, over and over, until it is killed.
ENDLESS = """
import sys
import jax.numpy as jnp
from chopjax.train.checkpoints import Checkpoints

with Checkpoints(sys.argv[1], {}, keep=2, keep_best=1) as checkpoints:
    step = checkpoints.latest or 0
    while True:
        step += 1
        state = {str(leaf): jnp.full((64, 257), step * 10 + leaf, jnp.float32) for leaf in range(7)}
        checkpoints.save(step, state, {"row": step * 8}, {"heldout_loss": 1 / step})
        print(step, flush=True)  # every step before this one is on disk
"""


def test_a_run_killed_while_saving_leaves_the_newest_whole_checkpoint(tmp_path: pathlib.Path) -> None:
    moment = random.Random(0)
    target = abstract_arrays(**{str(leaf): ((64, 257), jnp.float32) for leaf in range(7)})
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process.stdout:
            for _ in range(3):
                process.stdout.readline()
            time.sleep(moment.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            printed = [int(line) for line in process.stdout]
        process.wait()
        with Checkpoints(tmp_path, {}, keep=2, keep_best=1) as checkpoints:
            restored = checkpoints.restore(target)
            assert restored is not None and restored.step >= max(printed, default=2) - 1
            assert restored.position == {"row": restored.step * 8}
            for name, leaf in restored.state.items():
                assert (np.asarray(leaf) == restored.step * 10 + int(name)).all()
        assert {entry.name for entry in tmp_path.iterdir()} == {str(step) for step in checkpoints.steps}


def test_many_saves_leave_no_thread_and_no_file_open(tmp_path: pathlib.Path) -> None:
    def held() -> tuple[int, int]:
        checkpoints.wait()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        for step in range(1, 31):
            checkpoints.save(step, {"x": jnp.arange(9.0)}, {})
            if step == 5:
                before = held()
        assert held() == before


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can grow above 64 kB, as on a disk that has no more space."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("then", ["save", "wait", "close"])
def test_a_write_that_the_disk_refuses_is_said_in_one_line(
    then: str, full_disk: None, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 1)
    large, checkpoints = {"x": jnp.zeros(2**16)}, Checkpoints(tmp_path, IDENTITY, keep=2)
    with pytest.raises(UserError) as caught, checkpoints:
        checkpoints.save(2, large, {})
        if then != "close":
            getattr(checkpoints, then)(*([3, large, {}] if then == "save" else []))
    assert str(caught.value) == (
        f"{tmp_path}/2 could not be written (File too large); the checkpoints before it are whole. See to the space "
        "left and the permissions; then the same command goes on"
    )
    assert not caplog.records and capfd.readouterr() == ("", "")
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        restored = checkpoints.resume(abstract_arrays(**TARGET))
    assert restored is not None and restored.step == 1


@pytest.mark.parametrize(("number", "stop"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.parametrize("method", ["resume", "restore"])
def test_a_signal_while_it_loads_is_no_damage(
    number: int, stop: type[BaseException], method: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, before = tmp_path / "checkpoints", signal.getsignal(signal.SIGTERM)
    saved(folder, 1, 2)
    with Checkpoints(folder, IDENTITY) as checkpoints:
        load = checkpoints._orbax.load_checkpointables

        def told(*words: Any) -> Any:
            try:
                os.kill(os.getpid(), number)
            except BaseException as error:  # what becomes of exceptions in an event loop
                raise ValueError("Event loop stopped before Future completed.") from error
            return load(*words)

        monkeypatch.setattr(checkpoints._orbax, "load_checkpointables", told)
        with pytest.raises(stop), preemption.caught():
            getattr(checkpoints, method)(abstract_arrays(**TARGET))
        assert checkpoints.steps == [1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoints"]
    signal.signal(signal.SIGTERM, before)


def test_one_that_is_told_to_end_while_it_opens_closes_what_it_opened(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, closed = signal.getsignal(signal.SIGTERM), []
    monkeypatch.setattr(Checkpoints, "_refuse_another_identity", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    close = ocp.training.Checkpointer.close
    monkeypatch.setattr(ocp.training.Checkpointer, "close", lambda self: closed.append(close(self)))
    with pytest.raises(Preempted), preemption.caught():
        Checkpoints(tmp_path, IDENTITY)
    assert len(closed) == 1
    signal.signal(signal.SIGTERM, before)


def test_a_half_written_one_is_said(tmp_path: pathlib.Path) -> None:
    saved(tmp_path, 1)
    half = tmp_path / "2.orbax-checkpoint-tmp"
    (half / "state").mkdir(parents=True)
    said: list[str] = []
    with Checkpoints(tmp_path, IDENTITY, say=said.append) as checkpoints:
        assert checkpoints.resume(abstract_arrays(**TARGET)).step == 1
    assert said == [f"{half} was left half-written by a run that was cut off; it is removed"]
    assert [file.name for file in tmp_path.iterdir()] == ["1"]


def test_in_a_store_what_lacks_its_last_file_is_said_and_removed(cloud: Store, bucket: str) -> None:
    folder = f"gs://{bucket}/run/checkpoints"
    saved(folder, 3, 6, 9, 12)
    del cloud.objects[f"{bucket}/run/checkpoints/9/commit_success.txt"]
    for name in [name for name in cloud.names(f"{bucket}/run/checkpoints/12") if not name.startswith("state/")]:
        del cloud.objects[f"{bucket}/run/checkpoints/12/{name}"]
    cloud.put(f"{bucket}/run/checkpoints/notes.txt", b"a person's")
    said: list[str] = []
    with Checkpoints(folder, IDENTITY, keep=4, say=said.append) as checkpoints:
        assert checkpoints.resume(abstract_arrays(**TARGET)).step == 6 and checkpoints.steps == [3, 6]
    assert said == [
        f"{folder}/{step} was left half-written by a run that was cut off; it is removed" for step in (9, 12)
    ]
    assert {name.split("/")[0] for name in cloud.names(f"{bucket}/run/checkpoints")} == {"3", "6", "notes.txt"}
    said.clear()
    with Checkpoints(folder, IDENTITY, keep=4, say=said.append) as checkpoints:
        assert checkpoints.latest == 6 and not said
