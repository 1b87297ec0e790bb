"""Each step is written exactly once, whenever the run was killed."""

import json
import pathlib
import signal
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from gcs import Store
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax import paths
from chopjax.errors import UserError
from chopjax.train import metrics
from chopjax.train.metrics import MetricsWriter, read


def lines(folder: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_hold_plain_numbers(tmp_path: pathlib.Path) -> None:
    with MetricsWriter(tmp_path / "run") as writer:
        writer.write(0, {"loss": np.float32(1.1), "tokens": 12})
        writer.write(5, {"loss": jnp.float32(float("nan")), "tokens": jnp.int32(7), "mfu": None, "x": 1e300})
    assert lines(tmp_path / "run") == [
        {"step": 0, "loss": float(np.float32(1.1)), "tokens": 12},
        {"step": 5, "loss": None, "tokens": 7, "mfu": None, "x": 1e300},
    ]


def test_a_step_is_not_written_twice(tmp_path: pathlib.Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(3, {})
        with pytest.raises(ValueError, match="step 3 come after those of step 3"):
            writer.write(3, {})


@pytest.mark.parametrize("remote", [False, True])
def test_values_may_come_after_the_line(remote: bool, tmp_path: pathlib.Path, cloud: Store, bucket: str) -> None:
    folder = f"gs://{bucket}/run" if remote else tmp_path
    with MetricsWriter(folder) as writer:
        writer.write(1, {"loss": 1 / 3})
        writer.write(2, {"tokens": 8, "loss": 0.1})
    with MetricsWriter(folder, resumed_at=2) as writer:
        writer.amend(2, {"tokens": 8, "heldout": np.float32(0.25)})
        writer.amend(3, {"heldout": None})
        writer.write(4, {})
        with pytest.raises(ValueError, match="step 3 come after those of step 4"):
            writer.amend(3, {})
    assert (paths.make(folder) / "metrics.jsonl").read_text().splitlines() == [
        json.dumps({"step": 1, "loss": 1 / 3}),
        '{"step": 2, "tokens": 8, "loss": 0.1, "heldout": 0.25}',
        '{"step": 3, "heldout": null}',
        '{"step": 4}',
    ]


@settings(max_examples=20, deadline=None)
@given(last=st.integers(0, 9), resumed=st.integers(0, 12), cut=st.integers(0, 30))
def test_resuming_leaves_each_step_once(tmp_path_factory: Any, last: int, resumed: int, cut: int) -> None:
    folder = tmp_path_factory.mktemp("run")
    with MetricsWriter(folder) as writer:
        for step in range(last + 1):
            writer.write(step, {"loss": step / 3, "run": 1})
    path = folder / "metrics.jsonl"
    with open(path, "a") as file:  # what a kill in the middle of a write leaves
        file.write((json.dumps({"step": last + 1, "loss": 0.1, "run": 1}) + "\n")[:cut])
    with MetricsWriter(folder, resumed_at=resumed) as writer:
        for step in range(min(last, resumed) + 1, last + 4):
            writer.write(step, {"loss": step / 3, "run": 2})
    written = lines(folder)
    assert [line["step"] for line in written] == list(range(last + 4))
    assert [line["run"] for line in written] == [1 if step <= min(last, resumed) else 2 for step in range(last + 4)]
    assert [line["loss"] for line in written] == [step / 3 for step in range(last + 4)]
    assert list(folder.iterdir()) == [path]


def test_a_new_run_starts_an_empty_file(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        with MetricsWriter(tmp_path) as writer:
            writer.write(0, {})
            writer.write(1, {})
    assert [line["step"] for line in lines(tmp_path)] == [0, 1]


# Writes as fast as it can until it is killed.
ENDLESS = """
import itertools, sys
from chopjax.train.metrics import MetricsWriter
with MetricsWriter(sys.argv[1]) as writer:
    for step in itertools.count():
        writer.write(step, {str(name): step / 7 for name in range(50)})
        print(step, flush=True)
"""


def test_a_killed_run_loses_no_line(tmp_path: pathlib.Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        for _ in range(25):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        last = max([int(text) for text in process.stdout if text.endswith("\n")], default=24)
    process.wait()
    with MetricsWriter(tmp_path, resumed_at=last):
        pass
    assert [line["step"] for line in lines(tmp_path)] == list(range(last + 1))


def test_only_the_writer_writes(tmp_path: pathlib.Path) -> None:
    with MetricsWriter(tmp_path / "run", writer=False) as writer:
        writer.write(1, {"loss": 1.0})
        writer.write(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_trackers_see_every_line(tmp_path: pathlib.Path) -> None:
    class Seen:
        def __init__(self) -> None:
            self.lines: list[Any] = []

        def write(self, step: int, values: Any) -> None:
            self.lines.append((step, values))

        def close(self) -> None:
            self.lines.append("closed")

    seen = Seen()
    with MetricsWriter(tmp_path, trackers=[seen]) as writer:
        writer.write(2, {"loss": jnp.float32(0.5)})
    assert seen.lines == [(2, {"loss": 0.5}), "closed"]


def test_a_half_written_last_line_is_skipped_and_damage_elsewhere_is_said(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read(path) == []
    path.write_text('{"step": 1, "loss": 2}\n\n{"step": 2, "lo')
    assert read(path) == [{"step": 1, "loss": 2}]
    path.write_bytes(b'{"step": 1, "loss": 2}\n{"step": 2, "l\xff\xfe')  # as a disk may after its power was cut
    with MetricsWriter(tmp_path, resumed_at=1):
        pass
    assert path.read_bytes() == b'{"step": 1, "loss": 2}\n'
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl: line 2: not valid JSON \(.*\); delete the line"):
        read(path)


def test_in_a_store_lines_are_there_before_a_checkpoint(
    cloud: Store, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics._Object, "flush", lambda self: None)  # as where time is short
    name, url = f"{bucket}/run/metrics.jsonl", f"gs://{bucket}/run"
    writer = MetricsWriter(url)
    writer.write(1, {"loss": 0.5})
    assert name not in cloud.objects
    writer.settle()
    assert cloud.objects[name][0] == b'{"step": 1, "loss": 0.5}\n'
    number = cloud.objects[name][1]
    writer.settle()
    assert cloud.objects[name][1] == number  # nothing new, nothing put
    writer.write(2, {"loss": 0.25})
    writer.close()
    cloud.put(name, cloud.objects[name][0] + b'{"step": 3, "lo\xff')
    with MetricsWriter(url, resumed_at=1) as writer:
        writer.write(2, {"loss": 0.125})
    assert read(paths.make(url) / "metrics.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.125}]


def test_in_a_store_lines_are_put_as_often_as_costs_little(
    cloud: Store, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock[0])
    put = metrics.files.write_text
    monkeypatch.setattr(metrics.files, "write_text", lambda *words: (put(*words), clock.append(clock.pop() + 1.0)))
    name, seen = f"{bucket}/metrics.jsonl", []
    with MetricsWriter(f"gs://{bucket}") as writer:
        for step in range(4):
            writer.write(step, {})
            seen.append(cloud.objects[name][0].count(b"\n"))
            clock[0] += 24.0  # a put takes one second, and so is made every 50
    assert seen == [1, 1, 1, 4] and cloud.objects[name][0].count(b"\n") == 4
