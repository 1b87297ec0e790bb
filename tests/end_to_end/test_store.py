"""The whole flow with everything in a store: source, text, rows, checkpoints, metrics, stages, export.

Processes of their own reach a service of this machine that speaks Google's protocol, through the clients that would
reach Google.
"""

import dataclasses
import json
import pathlib

import gcs
import pytest
from end_to_end import runs
from end_to_end.runs import Death, Ended, Place
from gcs import Store

from chopjax import files
from chopjax.commands import cli, rounds
from chopjax.commands import plan as planning
from chopjax.commands.run import Run
from chopjax.commands.settings import Settings
from chopjax.errors import UserError
from chopjax.hf.checkpoint import open_checkpoint

STEP, END = "chopjax.commands.watch:Watch.after", "chopjax.folders:_Bound.finish"


@dataclasses.dataclass(frozen=True)
class Reaching:
    """Prepares a process to take the service for Google's, and maybe to die."""

    address: str
    death: Death | None = None

    def prepare(self) -> None:
        gcs.use(self.address)
        if self.death:
            self.death.prepare()


@dataclasses.dataclass(frozen=True)
class Flow:
    """Commands on a workdir in a bucket, which holds the model and the text too."""

    place: Place
    cloud: Store
    bucket: str

    @classmethod
    def make(cls, place: Place, cloud: Store, bucket: str) -> "Flow":
        for file in [place.folder / "text.jsonl", *place.source.iterdir()]:
            cloud.put(f"{bucket}/in/{file.relative_to(place.folder).as_posix()}", file.read_bytes())
        return cls(place, cloud, bucket)

    def ended(self, command: str, death: Death | None = None, *overrides: str) -> Ended:
        text, model = f"gs://{self.bucket}/in/t*.jsonl", f"gs://{self.bucket}/in/model"
        # The source is called as where the text is one file, so that the rows are the same.
        named = (f"data.sources=({{'path': '{text}', 'name': 'text.jsonl'}},)", f"source={model}", *overrides)
        arguments = self.place.arguments(pathlib.Path("run"), *named)
        arguments = [word.replace("workdir=run", f"workdir=gs://{self.bucket}/run") for word in arguments]
        return runs.run(self.place, command, arguments, death=Reaching(self.cloud.address, death))  # type: ignore

    def done(self, command: str) -> Ended:
        ended = self.ended(command)
        assert ended.status == 0, ended.stderr
        return ended

    def killed(self, command: str, death: Death) -> Ended:
        ended = self.ended(command, death)
        assert ended.status == -9, ended.stderr
        return ended

    def names(self, folder: str) -> list[str]:
        return self.cloud.names(f"{self.bucket}/{folder}")

    def content(self, name: str) -> bytes:
        return self.cloud.objects[f"{self.bucket}/{name}"][0]

    def json(self, name: str) -> dict:
        return json.loads(self.content(name))


def test_a_run_in_a_store_that_dies_twice(place: Place, whole: pathlib.Path, cloud: Store, bucket: str) -> None:
    flow = Flow.make(place, cloud, bucket)
    flow.done("chop")
    assert {"rows/manifest.json", "plan.json", "scores/scores.safetensors"} <= set(flow.names("run"))
    assert flow.content("run/student/model.safetensors") == (whole / "student" / "model.safetensors").read_bytes()

    # A save waits for the one before, so that of step 3 is whole; that of step 6 is not.
    flow.killed("heal", Death(STEP, 7))
    assert "commit_success.txt" in flow.names("run/checkpoints/3")
    cloud.put(f"{bucket}/run/checkpoints/6/state/manifest.ocdbt", b"half")
    cloud.objects.pop(f"{bucket}/run/checkpoints/6/commit_success.txt", None)
    assert json.loads(flow.content("run/metrics.jsonl").splitlines()[-1])["step"] >= 6

    half = f"gs://{bucket}/run/checkpoints/6 was left half-written by a run that was cut off; it is removed"
    assert half in flow.killed("heal", Death(END, 1)).stdout
    # Weights were put already, but nobody takes the folder for a model.
    assert flow.names("run/export") == ["model.safetensors"]
    with pytest.raises(UserError, match=r"config.json: missing"):
        open_checkpoint(f"gs://{bucket}/run/export")
    assert not flow.json("run/stages/export.json")["finished"]

    ended = flow.done("train")
    assert "train: done before, skipped" in ended.stdout and ended.stdout.endswith("train: finished\n")
    assert "export: was cut off and starts again" in ended.stdout
    lines = [json.loads(line) for line in flow.content("run/metrics.jsonl").splitlines()]
    kept = runs.metrics(whole)
    assert [{name: line[name] for name in other} for line, other in zip(lines, kept, strict=True)] == kept
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert flow.content(f"run/export/{name}") == (whole / "export" / name).read_bytes()
    assert {"8/commit_success.txt", "6/commit_success.txt"} <= set(flow.names("run/checkpoints"))
    assert {"summary.json", "report.html", "evaluation.json", "samples.json"} <= set(flow.names("run"))
    assert not [name for name in flow.names("run") if name.endswith((".before", ".writing", ".tmp"))]

    before = dict(cloud.objects)
    again = flow.done("train")
    assert again.stdout.count("done before, skipped") == 8 and "rows are there already" in again.stdout
    changed = {name.removeprefix(f"{bucket}/") for name in cloud.objects if cloud.objects[name] != before.get(name)}
    # What every start writes; no stage wrote anything.
    assert changed <= {"run/config.json", "run/rows/manifest.json", "run/sharding.txt"}
    assert cloud.objects.keys() == before.keys()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("workdir=s3://bucket/run", "workdir: s3://bucket/run: Orbax and ArrayRecord know of no store but gs://"),
        ("data.rows=az://bucket/rows", "data.rows: az://bucket/rows: Orbax and ArrayRecord know of no store but gs://"),
        ("cache.kind=top_k", "cache.path: a teacher's cache is kept on a disk that all hosts share"),
        ("export.folder=ftp://host/x", "ftp://host/x: ftp:// is not read"),
    ],
)
def test_what_no_store_can_do_is_said_before_anything(place: Place, override: str, said: str) -> None:
    words = [f"--config={place.recipe}", "--config.workdir=gs://bucket/run", f"--config.{override}"]
    with pytest.raises(UserError, match=f"^{said}"):
        Run(cli.parse(["train", *words]))


def test_a_source_that_is_not_there_is_named(cloud: Store, bucket: str) -> None:
    with pytest.raises(UserError, match=rf"^gs://{bucket}/model/config.json: missing; name a folder in Hugging Face"):
        open_checkpoint(f"gs://{bucket}/model")


def test_rounds_have_folders_of_their_own_in_a_store(bucket: str) -> None:
    chosen = Settings(source="a", workdir=f"gs://{bucket}/run", rounds=({"plan.mlp": 8}, {"plan.mlp": 4}))
    first, second = rounds.each(chosen, "bfloat16")
    assert (first.workdir, second.workdir) == (f"gs://{bucket}/run/round-1", f"gs://{bucket}/run/round-2")
    assert first.export.folder == second.source == f"gs://{bucket}/run/round-1/export"
    assert second.export.folder == f"gs://{bucket}/run/export"


def test_a_plan_in_a_store(place: Place, cloud: Store, bucket: str, whole: pathlib.Path) -> None:
    words = [*place.arguments(whole), f"--config.plan.file=gs://{bucket}/plan.json"]
    one = Run(cli.parse(["plan", *words]))
    with pytest.raises(UserError, match=rf"plan.file: gs://{bucket}/plan.json is no file"):
        planning.inputs(one)
    cloud.put(f"{bucket}/plan.json", (whole / "plan.json").read_bytes())
    assert planning.inputs(one)["plan.file (contents)"] == files.fingerprint(whole / "plan.json")
    assert not one.trimmed and planning.foreseen(one).layers == [0, 2, 3]
