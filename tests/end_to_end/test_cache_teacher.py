"""The teacher's targets on disk: what the teacher says, whoever wrote them, on any mesh, after any death."""

import itertools
import json
import pathlib
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from end_to_end import runs
from end_to_end.runs import Death

from chopjax.commands import cache_teacher, cli
from chopjax.commands.run import Run
from chopjax.data.batches import Batches, spread
from chopjax.data.rows import Rows
from chopjax.distill import targets
from chopjax.errors import UserError
from chopjax.models import decoder

TOP = ("cache.kind=top_k", "cache.k=5", "cache.shard_rows=7", "loss.temperature=1.5")
DRAWS = ("cache.kind=samples", "cache.samples=6", "cache.shard_rows=7", "loss.temperature=1.5")
# Vocabulary of 307: not to be split over two devices.
EIGHT = ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "mesh.fallbacks=('vocab',)", "evaluate.batch=12")

TWO = """
import os, sys, traceback
import jax
port, process = int(sys.argv[1]), int(sys.argv[2])
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from chopjax.commands import cli
sys.argv = ["cache_teacher", *sys.argv[3:]]
try:
    cli.run("cache_teacher")
except BaseException:
    traceback.print_exc()
    os._exit(1)  # else it would wait for the other process, which waits for it
"""


def command(place: runs.Place, workdir: pathlib.Path, *overrides: str, **options: Any) -> runs.Ended:
    return runs.done(place, "cache_teacher", place.arguments(workdir, *overrides), **options)


def shards(workdir: pathlib.Path) -> dict[str, str]:
    """A digest of each shard."""
    found = runs.contents(workdir / "cache")
    return {name: digest for name, digest in found.items() if name.endswith(".arrayrecord")}


@pytest.fixture(scope="module")
def top(place: runs.Place, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A workdir with the most probable tokens, by one device; read only."""
    workdir = tmp_path_factory.mktemp("top") / "run"
    command(place, workdir, *TOP)
    return workdir


@pytest.fixture(scope="module")
def draws(place: runs.Place, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A workdir with random draws, by one device; read only."""
    workdir = tmp_path_factory.mktemp("draws") / "run"
    command(place, workdir, *DRAWS)
    return workdir


def run_of(place: runs.Place, workdir: pathlib.Path, *overrides: str) -> Run:
    return Run(cli.parse(["here", *place.arguments(workdir, *overrides)]))


def dense(place: runs.Place, workdir: pathlib.Path, row: dict[str, np.ndarray]) -> np.ndarray:
    """The teacher's distribution over the tokenizer's words at each place of a row, at temperature 1.5."""
    run = run_of(place, workdir, "mesh.data=8", "mesh.fsdp=1", "train.batch=8", "score.batch=8", "evaluate.batch=8")
    params, config = run.load_teacher(), run.teacher_config
    inputs = (row[name][None] for name in ("tokens", "positions", "segment_ids"))
    hidden = decoder.forward(config, params, *inputs).hidden
    logits = np.asarray(decoder.logits(config, params, hidden), np.float64)[0, :, : run.student_tokenizer.vocab] / 1.5
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def test_what_is_kept_is_what_the_teacher_says(place: runs.Place, top: pathlib.Path, draws: pathlib.Path) -> None:
    run = run_of(place, top, *TOP)
    ((rows, _),) = cache_teacher.mixture(run)
    row = next(iter(Batches([(rows, 1.0)], 1, run.settings.seed, threads=0)))
    row = {name: value[0] for name, value in row.items()}
    p, kept = dense(place, top, row), row["target_ids"][:, 0] >= 0
    assert kept.sum() > 12
    expected = np.argsort(-p, axis=1)[:, :5]
    np.testing.assert_array_equal(row["target_ids"][kept], expected[kept])
    probs = np.take_along_axis(p, expected, 1)[kept]
    np.testing.assert_allclose(row["target_probs"][kept], probs, rtol=8e-3)
    np.testing.assert_allclose(row["target_tail"][kept], 1 - probs.sum(1), rtol=8e-3)
    ((rows, _),) = cache_teacher.mixture(run_of(place, draws, *DRAWS))
    row = next(iter(Batches([(rows, 1.0)], 1, run.settings.seed, threads=0)))
    row = {name: value[0] for name, value in row.items()}
    np.testing.assert_allclose(row["target_offset"][kept], (p * np.log(p)).sum(1)[kept], atol=3e-4)
    np.testing.assert_allclose(row["target_probs"].sum(1), kept.astype(np.float32), rtol=1e-6)
    # Draws follow the distribution: the mean probability of what is drawn, against what is to be expected.
    drawn = np.where(row["target_ids"] >= 0, row["target_probs"] * np.take_along_axis(p, row["target_ids"], 1), 0)
    expected_mean, spread = (p**2).sum(1)[kept], (p**3).sum(1)[kept] - (p**2).sum(1)[kept] ** 2
    assert abs(drawn.sum(1)[kept].mean() - expected_mean.mean()) < 4 * np.sqrt(spread.sum() / 6) / kept.sum()


def evaluated(run: Run, heldout: Rows) -> np.ndarray:
    """The held-out rows that evaluation reads."""
    return spread([len(heldout)], run.settings.evaluate.rows)[0]


def check_same(place: runs.Place, ours: pathlib.Path, theirs: pathlib.Path, asked: tuple[str, ...]) -> None:
    """The same tokens, drawn as often; probabilities and entropies to one step of their scale.

    Bytes may differ, for the order of sums decides which step is the nearest.
    """
    assert shards(ours).keys() == shards(theirs).keys()
    found = []
    for workdir in (ours, theirs):
        run = run_of(place, workdir, *asked)
        batches = Batches(cache_teacher.mixture(run), 1, run.settings.seed, threads=0)
        (heldout,) = cache_teacher.heldout(run).values()
        found.append([*itertools.islice(batches, 32), *(heldout[int(row)] for row in evaluated(run, heldout))])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one["target_ids"], other["target_ids"])
        np.testing.assert_allclose(one["target_probs"], other["target_probs"], rtol=8e-3 if asked is TOP else 0)
        np.testing.assert_allclose(one["target_offset"], other["target_offset"], rtol=1e-2, atol=3e-4)


def test_eight_devices_write_what_one_writes(
    place: runs.Place, top: pathlib.Path, draws: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """In batches and chunks of other sizes too."""
    command(place, tmp_path / "draws", *DRAWS, *EIGHT, devices=8)
    check_same(place, tmp_path / "draws", draws, DRAWS)
    command(place, tmp_path / "top", *TOP, *EIGHT, devices=8)
    check_same(place, tmp_path / "top", top, TOP)


def test_two_processes_write_what_one_writes(place: runs.Place, draws: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = place.arguments(tmp_path / "run", *DRAWS, "mesh.distributed=True")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(port), str(process), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=place.environment,
        )
        for process in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    check_same(place, tmp_path / "run", draws, DRAWS)


def test_killed_and_started_again_it_writes_the_same(
    place: runs.Place, draws: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    arguments = place.arguments(tmp_path / "run", *DRAWS)
    ended = runs.run(place, "cache_teacher", arguments, death=Death("chopjax.data.rows:Rows.__getitem__", call=20))
    assert ended.status < 0
    begun = shards(tmp_path / "run")
    assert 0 < len(begun) < len(shards(draws))
    again = runs.done(place, "cache_teacher", arguments)
    assert f"in {len(shards(draws)) - len(begun)} of" not in again.stdout  # the held-out part has shards of its own
    assert runs.contents(tmp_path / "run" / "cache") == runs.contents(draws / "cache")
    assert "is there already" in runs.done(place, "cache_teacher", arguments).stdout


def test_rows_that_no_step_reaches_are_left_out(place: runs.Place, draws: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = next(path for path in (draws / "cache").iterdir() if path.is_dir())
    said = json.loads((folder / "train" / "cache.json").read_text())
    assert said["row_count"] > 33 and said["selection"]["last"] == 32
    run = run_of(place, draws, *DRAWS)
    batches = Batches(cache_teacher.mixture(run), 4, run.settings.seed, threads=0)
    for _ in range(8):
        found = targets.of_batch(next(batches))
        assert found is not None and found.ids.shape == (4, 24, 6)
    with pytest.raises(UserError, match="no targets were kept for row"):
        for _ in range(said["row_count"]):
            next(batches)
    command(place, tmp_path / "all", *DRAWS, "cache.rows=all")
    everything = cache_teacher.mixture(run_of(place, draws, *DRAWS, f"cache.path={tmp_path}/all/cache", "seed=5"))[0][0]
    for index in range(len(everything)):
        assert (everything[index]["target_ids"][:, 0] >= 0).any()
    # Rows that both caches have are the same.
    some = cache_teacher.mixture(run)[0][0]
    one = np.flatnonzero(cache_teacher._kept(run)[f"{folder.name}/train"])[3]
    for name, value in some[one].items():
        np.testing.assert_array_equal(value, everything[one][name])


def test_held_out_rows_have_targets_too(place: runs.Place, top: pathlib.Path) -> None:
    run = run_of(place, top, *TOP)
    ((name, rows),) = cache_teacher.heldout(run).items()
    plain = run.student_data.heldout()[name]
    assert isinstance(plain, Rows) and len(rows) == len(plain)
    assert len(evaluated(run, rows)) == min(len(rows), run.settings.evaluate.rows)
    for index in evaluated(run, rows):
        assert (rows[int(index)]["target_ids"][:, 0] >= 0).any()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), "cache.kind is 'off'"),
        (("cache.kind=top_k", "cache.k=400"), "cache.k is 400, but the tokenizer has only"),
        (("cache.kind=top_k", "loss.jsd=1.0"), "loss.jsd needs the whole distribution"),
        (("cache.kind=samples", "plan.vocab=200"), "plan.vocab trims the vocabulary, and the student does not exist"),
        ((*DRAWS, "loss.temperature=2.0"), "was begun with loss.temperature 1.5, but this run has 2.0"),
        (("cache.kind=top_k", "loss.temperature=1.5"), "was begun with cache.kind samples, but this run has top_k"),
    ],
)
def test_what_cannot_be_is_refused(place: runs.Place, draws: pathlib.Path, tmp_path, overrides, said) -> None:
    where = (f"cache.path={draws}/cache",) if "begun" in said else ()
    ended = runs.run(place, "cache_teacher", place.arguments(tmp_path / "run", *overrides, *where))
    assert ended.status == 2
    assert ended.stderr.startswith("error: ") and said in ended.stderr and ended.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "cache").exists()
