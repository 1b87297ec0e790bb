"""What rows bring to learning, in whole runs: targets of a cached teacher, the student's own words, chats."""

import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from array_record.python import array_record_module
from data.chats import CHATML, turns, with_template, write_chats
from data.conftest import SENTENCES
from end_to_end import runs
from end_to_end.flows import CUT, STEP, Flow, check_same, run_here
from end_to_end.runs import Death
from end_to_end.test_errors import refused

from chopjax.commands import heal, training
from chopjax.commands.run import Run
from chopjax.data.batches import Batches, one_pass
from chopjax.data.labels import next_token_labels
from chopjax.hf.checkpoint import open_checkpoint
from chopjax.hf.reading import load_params
from chopjax.models import decoder
from chopjax.sharding.mesh import place_batch
from chopjax.train.on_policy import is_sampled

PLACES = ("tokens", "segment_ids", "targets")
CACHED = ("cache.kind=top_k", "cache.k=5", "loss.temperature=1.5", "train.evaluate_every=4")


@pytest.fixture(scope="module")
def cache(place: runs.Place, narrow: pathlib.Path) -> pathlib.Path:
    """What the teacher says of the rows; read only."""
    overrides = (*CUT, *CACHED, f"cache.path={narrow.with_name('cache')}")
    runs.done(place, "cache_teacher", place.arguments(narrow, *overrides))
    return narrow.with_name("cache")


def test_a_teacher_that_is_not_there(
    place: runs.Place, narrow: pathlib.Path, cache: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    flow = Flow(place, narrow, tmp_path, *CACHED, f"cache.path={cache}")
    whole = flow.copied("whole")
    # It would die if it loaded the teacher.
    ended = runs.run(place, "heal", flow.arguments("whole"), death=Death("chopjax.commands.run:Run.load_teacher", 1))
    assert ended.status == 0, ended.stderr
    lines = runs.metrics(whole)
    assert ["heldout_kl" in line for line in lines] == [False, False, False, True] * 2
    assert lines[-1]["kl"] < lines[0]["kl"] and lines[-1]["heldout_kl"] < lines[3]["heldout_kl"]
    check_same(flow.killed("killed", Death(STEP, 5, after=tmp_path / "killed" / "checkpoints" / "3")), whole)
    # The same losses beside a teacher in memory, of a student that learns nothing, so that steps can be compared.
    idle = ("cache.kind=off", "loss.top_k=5", "train.learning_rate=0.0")
    beside = runs.metrics(flow.whole("beside", *idle))
    assert lines[0]["kl"] == pytest.approx(beside[0]["kl"], rel=1e-2)
    # Such a student shows the held-out KL of the cache, whose temperature it has.
    still = runs.metrics(flow.whole("still", "train.learning_rate=0.0", "train.steps=4"))
    falling = ("loss.temperature=6.0", "loss.schedules=({'field': 'temperature', 'final': 1.5},)")
    hot = runs.metrics(flow.whole("hot", *idle, *falling))
    # A temperature that is a constant of the program divides otherwise than one that is computed, by an ulp or so.
    assert hot[-1]["kl"] == pytest.approx(beside[-1]["kl"], abs=1e-6)
    assert all(abs(line["kl"] / other["kl"] - 1) > 1e-3 for line, other in zip(hot[:-1], beside[:-1], strict=True))
    assert still[-1]["heldout_kl"] == pytest.approx(heldout_kl(place, whole, cache), rel=1e-2)


def heldout_kl(place: runs.Place, workdir: pathlib.Path, cache: pathlib.Path) -> float:
    """Of the chopped model, from dense logits at temperature 1.5: the five most probable tokens, and all others."""
    run = run_here(place, workdir, *CUT, *CACHED, f"cache.path={cache}")
    (rows,) = run.student_data.heldout().values()
    (batch,) = one_pass([rows], 8, limit=8)
    log_p, log_q = (log_probabilities(run, folder, batch, 1.5) for folder in (place.source, workdir / "student"))
    p, q = np.exp(log_p), np.exp(log_q)
    kept = np.argsort(-p, axis=-1)[..., :5]
    some_p, some_q = (np.take_along_axis(array, kept, -1) for array in (p, q))
    tails = 1 - some_p.sum(-1), 1 - some_q.sum(-1)
    kl = (some_p * np.log(some_p / some_q)).sum(-1) + tails[0] * np.log(tails[0] / tails[1])
    weights = np.asarray(next_token_labels(batch["tokens"], batch["segment_ids"])[1])
    return float((kl * weights).sum() / weights.sum())


def log_probabilities(
    run: Run, folder: pathlib.Path, batch: dict[str, np.ndarray], temperature: float = 1.0
) -> np.ndarray:
    """float64 [batch, length, token], dense."""
    model = open_checkpoint(folder)
    params, inputs = load_params(model), (jnp.asarray(batch[name]) for name in ("tokens", "positions", "segment_ids"))
    hidden = jax.jit(decoder.forward, static_argnums=0)(model.config, params, *inputs).hidden
    logits = np.asarray(decoder.logits(model.config, params, hidden), np.float64)[..., : run.tokenizer.vocab]
    logits = logits / temperature
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def test_a_cache_of_something_else_is_refused(
    place: runs.Place, narrow: pathlib.Path, cache: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    flow = Flow(place, narrow, tmp_path, *CACHED)
    flow.copied("run")

    def said(folder: pathlib.Path, words: str, *overrides: str) -> None:
        ended = runs.run(place, "heal", flow.arguments("run", f"cache.path={folder}", *overrides))
        refused(ended.status, ended.stdout, ended.stderr, words)

    said(tmp_path / "none", "run python -m chopjax.cache_teacher with this config first")
    runs.model(tmp_path / "other", seed=9)
    said(cache, "teacher", f"teacher={tmp_path}/other")
    said(cache, "loss.temperature", "loss.temperature=1.0")
    shifted = pathlib.Path(shutil.copytree(cache, tmp_path / "shifted"))
    (shard,) = shifted.glob("*/train/*.arrayrecord")
    reader = array_record_module.ArrayRecordReader(str(shard))
    records = reader.read_all()
    kept = [index for index, record in enumerate(records) if record]
    moved = list(records)
    for index, other in zip(kept, kept[1:] + kept[:1], strict=True):
        moved[index] = records[other]
    writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1,uncompressed")
    for record in moved:
        writer.write(record)
    writer.close()
    file = shard.with_name("cache.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"shard_bytes": [shard.stat().st_size]}))
    said(shifted, "is of other tokens than row ")


ON_POLICY = ("on_policy.share=0.5", "on_policy.prompt=7", "loss.kl=0.0", "loss.jsd=1.0", "hidden.embedding=0.1")


def test_batches_that_the_student_writes(place: runs.Place, narrow: pathlib.Path, tmp_path: pathlib.Path) -> None:
    flow = Flow(place, narrow, tmp_path, *ON_POLICY, "hidden.project=shared")
    whole = flow.whole()
    sampled = [is_sampled(0, step, 0.5) for step in range(runs.STEPS)]
    assert sum(sampled) == runs.STEPS // 2
    check_same(flow.killed("killed", Death(STEP, 5, after=tmp_path / "killed" / "checkpoints" / "3")), whole)
    # Up to the first of them all is as it is without.
    first = sampled.index(True)
    plain = runs.metrics(flow.whole("plain", "on_policy.share=0.0", f"train.steps={runs.STEPS}"))
    lines = runs.metrics(whole)
    for line, other in zip(lines[:first], plain[:first], strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-6)
    assert lines[first]["loss"] != pytest.approx(plain[first]["loss"], rel=1e-3)
    assert lines[-1]["jsd"] < lines[0]["jsd"]


def test_what_a_student_writes_is_all_that_counts(
    place: runs.Place, narrow: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = pathlib.Path(shutil.copytree(narrow, tmp_path / "run"))
    run = run_here(place, workdir, *CUT, *ON_POLICY, "hidden.project=shared")
    found = []

    def steps(step: Any, state: Any, teacher: Any, batches: Any, mesh: Any, until: int, after: Any, before: Any) -> Any:
        for done in range(4):
            given = place_batch(mesh, next(batches))
            batch = before(done, state, given)
            _, metrics = step(jax.tree.map(jnp.copy, state), teacher, batch)
            found.append([jax.device_get(part) for part in (given, batch, metrics)])
        return state

    monkeypatch.setattr(training, "train", steps)
    training.train_phase(run, heal._healing(run), heal.identity(run))
    for done, (given, batch, metrics) in enumerate(found):
        assert batch.keys() == {"tokens", "segment_ids", "positions", "targets"}
        inside = np.asarray(next_token_labels(given["tokens"], given["segment_ids"])[1]).sum()
        if is_sampled(0, done, 0.5):
            assert not batch["targets"][:, :7].any()
            assert metrics["tokens"] == batch["targets"].sum() < inside
            assert (batch["tokens"][:, 7:] != given["tokens"][:, 7:]).mean() > 0.5
        else:
            np.testing.assert_array_equal(batch["tokens"], given["tokens"])
            assert batch["targets"].all() and metrics["tokens"] == inside


def test_of_chats_only_answers_count(place: runs.Place, tmp_path: pathlib.Path) -> None:
    model = with_template(pathlib.Path(shutil.copytree(place.source, tmp_path / "model")), CHATML)
    chats = [turns(f"{n}: {SENTENCES[n % 5]}", SENTENCES[n % 3], "Why?", f"{n} {SENTENCES[n % 4]}") for n in range(40)]
    write_chats(tmp_path / "chats.jsonl", chats)
    sources = (
        {"path": str(place.folder / "text.jsonl"), "weight": 1.0},
        {"path": str(tmp_path / "chats.jsonl"), "messages": "messages", "weight": 2.0},
    )
    overrides = (*CUT, f"source={model}", f"data.sources={sources}", "loss.next_token=1.0", "train.steps=3")
    runs.done(place, "train", place.arguments(tmp_path / "run", *overrides, "train.warmup_steps=0"))
    run = run_here(place, tmp_path / "run", *overrides)
    batch = next(iter(Batches(run.student_data.mixture(), 8, run.settings.seed, threads=0)))
    assert 0.1 < batch["targets"].mean() < 0.9
    log_q = log_probabilities(run, tmp_path / "run" / "student", batch)
    log_p = log_probabilities(run, model, batch)
    labels, weights = (np.asarray(array) for array in next_token_labels(*(batch[name] for name in PLACES)))
    nll = -np.take_along_axis(log_q, labels[..., None], -1)[..., 0]
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    first = runs.metrics(tmp_path / "run")[0]
    assert first["next_token"] == pytest.approx((nll * weights).sum() / weights.sum(), rel=1e-5)
    assert first["kl"] == pytest.approx((kl * weights).sum() / weights.sum(), rel=1e-5)
    everywhere = np.asarray(next_token_labels(batch["tokens"], batch["segment_ids"])[1])
    assert first["next_token"] != pytest.approx((nll * everywhere).sum() / everywhere.sum(), rel=1e-3)
