"""Metrics in TensorBoard's event files, and on Weights & Biases as far as its own calls."""

import pathlib
import sys
import types
from typing import Any

import pytest

from chopjax.errors import UserError
from chopjax.train.metrics import MetricsWriter
from chopjax.train.trackers import TensorBoard, WeightsAndBiases


def events(folder: pathlib.Path) -> list[tuple[int, str, float]]:
    """(step, tag, value) of every scalar in the folder's event files."""
    import struct

    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return found


def test_tensorboard_holds_the_finite_values(tmp_path: pathlib.Path) -> None:
    with MetricsWriter(tmp_path, trackers=[TensorBoard(tmp_path)]) as writer:
        writer.write(1, {"loss": 0.5, "kl": float("nan")})
        writer.write(3, {"loss": 0.25, "tokens": 12})
    assert events(tmp_path / "tensorboard") == [(1, "loss", 0.5), (3, "loss", 0.25), (3, "tokens", 12.0)]


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((values, step)), finish=lambda: calls.append("finished")
    )

    def init(**options: Any) -> Any:
        calls.append(options)
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with MetricsWriter(tmp_path, trackers=[WeightsAndBiases("chops", tmp_path, {"seed": 1})]) as writer:
        writer.write(1, {"loss": 0.5, "kl": float("inf")})
    assert calls[0]["id"] == calls[0]["name"] == tmp_path.name
    assert calls[0]["resume"] == "allow" and calls[0]["project"] == "chops" and calls[0]["config"] == {"seed": 1}
    assert calls[1:] == [({"loss": 0.5}, 1), "finished"]
    WeightsAndBiases("chops", tmp_path, {}, "teacher")
    assert calls[-1]["id"] == calls[-1]["name"] == f"{tmp_path.name}-teacher"


def test_weights_and_biases_that_is_not_installed_is_said(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        UserError, match=r"train.wandb is set but wandb is not installed; pip install 'chopjax\[wandb\]'"
    ):
        WeightsAndBiases("chops", tmp_path, {})
