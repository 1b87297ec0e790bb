"""The launch scripts, as far as they can be run without a cloud: what they would do, and with a stand-in for gcloud."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SCRIPTS = ("tpu_vm.sh", "tpu_pod.sh", "gke_xpk.sh")
PLACE = ["--name", "chop", "--zone", "us-west4-a"]
TRAIN = ["--", "--config", "configs/base.py:some text", "--config.workdir=gs://bucket/run"]
SAID = "chopjax.train --config 'configs/base.py:some text' --config.workdir=gs://bucket/run"


def called(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(TOOLS / script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
        check=False,
    )


def commands(script: str, *arguments: str) -> list[str]:
    """What a dry run prints, one command a line, with the folder of the packed checkout left out."""
    done = called(script, "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    found = [line[2:] for line in done.stderr.splitlines() if line.startswith("+ ")]
    return [re.sub(r"\S*/chopjax\.tar\.gz", "PACKED", line).replace(str(TOOLS.parent), "ROOT") for line in found]


@pytest.mark.parametrize("script", [*SCRIPTS, "launching.sh"])
def test_it_is_bash(script: str) -> None:
    subprocess.run(["bash", "-n", str(TOOLS / script)], check=True, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_flag_that_is_read(script: str) -> None:
    helped = called(script, "--help")
    assert helped.returncode == 0 and helped.stdout.startswith(f"usage: tools/{script} ACTION")
    code = (TOOLS / script).read_text().split("TEXT\n}", 1)[1]
    read = {flag for line in re.findall(r"^    (--[^)]*)\)", code, re.M) for flag in re.findall(r"--[a-z-]+", line)}
    assert {flag for flag in read if flag not in helped.stdout} <= {"--help", "--"}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("wrong", [[], ["launch"], ["--nmae", "chop"], ["create"], ["create", "--name"]])
def test_mistakes_are_said_in_one_line(script: str, wrong: list[str]) -> None:
    done = called(script, *wrong)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(f"{script}: ")


def test_one_vm_from_beginning_to_end() -> None:
    flags = ["--spot", "--project", "mine", "--send", "my.py", "--fetch", "runs/mine/export"]
    create, pack, send, install, copy, run, make, fetch, delete = commands("tpu_vm.sh", "all", *PLACE, *flags, *TRAIN)
    place = "--zone=us-west4-a --project=mine"
    vm = "gcloud compute tpus tpu-vm"
    assert create == f"{vm} create chop --accelerator-type=v5litepod-8 --version=v2-alpha-tpuv5-lite --spot {place}"
    assert pack == "git -C ROOT archive --format=tar.gz --prefix=chopjax/ PACKED HEAD"
    assert send == f"{vm} scp PACKED chop:chopjax.tar.gz {place}"
    assert copy == f"{vm} scp --recurse my.py chop:chopjax/ {place}"
    assert install.startswith(f"{vm} ssh chop '--command=set -e;") and ".[tpu,gcs,datasets]" in install
    assert run.startswith(f"{vm} ssh chop '--command=cd chopjax;") and run.endswith(f" {place}")
    assert SAID in run.replace(r"'\''", "'")
    assert (make, fetch) == ("mkdir -p fetched", f"{vm} scp --recurse chop:chopjax/runs/mine/export fetched {place}")
    assert delete == f"{vm} delete chop --quiet {place}"


@pytest.mark.parametrize(
    ("accelerator", "version"),
    [("v5p-8", "v2-alpha-tpuv5"), ("v6e-8", "v2-alpha-tpuv6e"), ("v4-8", "tpu-ubuntu2204-base")],
)
def test_the_runtime_version_goes_by_the_chip(accelerator: str, version: str) -> None:
    (create,) = commands("tpu_vm.sh", "create", *PLACE, "--accelerator-type", accelerator)
    assert f"--accelerator-type={accelerator} --version={version} " in create


def test_a_chip_that_is_not_known_needs_its_version() -> None:
    done = called("tpu_vm.sh", "create", *PLACE, "--accelerator-type", "tpu9-8", "--dry-run")
    assert done.returncode == 2 and "give --version" in done.stderr
    assert (
        "--version=v9" in commands("tpu_vm.sh", "create", *PLACE, "--accelerator-type", "tpu9-8", "--version", "v9")[0]
    )


def test_a_pod_slice() -> None:
    flags = ["--accelerator-type", "v5p-128", "--reserved"]
    create, wait, _, send, install, run, delete = commands("tpu_pod.sh", "all", *PLACE, *flags, *TRAIN)
    queued, zone = "gcloud compute tpus queued-resources", "--zone=us-west4-a"
    wanted = "--node-id=chop --accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 --reserved"
    assert create == f"{queued} create chop {wanted} {zone}"
    assert wait == f"{queued} describe chop '--format=value(state.state)' {zone}"
    assert send == f"{queued} scp --recurse PACKED chop:chopjax.tar.gz --node=all --worker=all {zone}"
    for line in (install, run):
        assert line.startswith(f"{queued} ssh chop --node=all --worker=all '--command=")
    assert f"{SAID} --config.mesh.distributed=True" in run.replace(r"'\''", "'")
    assert delete == f"{queued} delete chop --force --quiet {zone}"


def test_several_slices() -> None:
    flags = ["--accelerator-type", "v6e-64", "--slices", "4"]
    (create,) = commands("tpu_pod.sh", "create", *PLACE, *flags)
    assert " --node-count=4 --node-prefix=chop --accelerator-type=v6e-64 " in create


# Does to the slice what MODE says, and fails as gcloud does, with the same beginning of a line for a lost network as
# for credentials that are refused.
GCLOUD = """#!/usr/bin/env bash
echo "$4" >> calls
asked=$(grep -c "$4" calls)
fail() { echo "ERROR: (gcloud.compute.tpus.queued-resources) $1" >&2; exit "${2:-1}"; }
tokens="There was a problem refreshing your current auth tokens:"
network="$tokens HTTPSConnectionPool(host='oauth2.googleapis.com', port=443): Max retries exceeded"
case "$MODE $4 $asked" in
"hiccups describe "[2468] | "hiccups describe 1"?) exit 0 ;;
"hiccups describe "?) fail "$network" ;;
"hiccups create 1") touch state; fail "DEADLINE_EXCEEDED" ;;  # it was done, but nobody said so
"hiccups delete 1") fail "UNAVAILABLE: the service is unavailable" ;;
"hangs describe 1") exec sleep 50 ;;
"outage describe"*) [[ ! -f outage ]] || { rm outage; fail "$network"; } ;;
"quota create "[1-6]) fail "RESOURCE_EXHAUSTED: Quota limit has been exceeded" ;;
"expired describe 2") fail "$tokens ('invalid_grant: Token has been expired or revoked.')" ;;
"nobody "*) fail "You do not currently have an active account selected." ;;
"denied "*) fail "PERMISSION_DENIED: Permission 'tpu.queuedResources.get' denied" ;;
"wrong create "*) fail "INVALID_ARGUMENT: Invalid accelerator type" ;;
"usage "*) fail "argument --zone: Bad value" 2 ;;
esac
[[ $4 != create || ! -f state ]] || fail "ALREADY_EXISTS: there is one"
[[ $4 != describe && $4 != delete || -f state ]] || fail "NOT_FOUND: Resource 'chop' was not found"
case "$4" in
create) echo ACTIVE > state ;;
describe) [[ -s state ]] || echo ACTIVE > state; cat state ;;
delete) rm state ;;
ssh)
    case "$*" in *chopjax.train*) ;; *) exit 0 ;; esac
    echo run >> runs
    case "$MODE $(wc -l < runs)" in
    "taken 1") echo SUSPENDED > state ;;  # saved, and ended well
    "outage "[1-4]) touch outage; exit 255 ;;
    broken*) exit 1 ;;
    *) echo "train: finished" ;;
    esac ;;
esac
"""


def kept(folder: Path, mode: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """`keep` with a stand-in for gcloud that is told what becomes of the slice; and what it was asked."""
    (folder / "gcloud").write_text(GCLOUD)
    (folder / "gcloud").chmod(0o755)
    script = [str(TOOLS / "tpu_pod.sh"), "keep", *PLACE, "--accelerator-type", "v6e-64", "--poll", "0", *TRAIN]
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "MODE": mode, "ANSWER_SECONDS": "2"}
    done = subprocess.run(
        ["bash", *script], cwd=folder, capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    return done, (folder / "calls").read_text().split()


def test_a_slice_that_is_taken_back_is_asked_for_again(tmp_path: Path) -> None:
    done, calls = kept(tmp_path, "taken")
    assert done.returncode == 0, done.stderr
    assert calls.count("create") == 2 and calls.count("delete") == 2
    assert calls[-1] == "delete" and (tmp_path / "runs").read_text().count("run") == 2


def test_a_run_that_breaks_off_is_given_up_with_its_slice(tmp_path: Path) -> None:
    done, calls = kept(tmp_path, "broken")
    assert done.returncode == 2 and "broke off three times" in done.stderr
    assert calls.count("create") == 1 and calls[-1] == "delete"
    assert (tmp_path / "runs").read_text().count("run") == 3


@pytest.mark.parametrize(
    ("mode", "unanswered", "runs"), [("hiccups", 21, 1), ("quota", 6, 1), ("hangs", 1, 1), ("outage", 4, 5)]
)
def test_who_keeps_a_slice_asks_until_there_is_an_answer(mode: str, unanswered: int, runs: int, tmp_path: Path) -> None:
    done, calls = kept(tmp_path, mode)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("gcloud gave no answer to") == unanswered
    # Nothing was taken for a slice that is gone.
    assert calls.count("delete") == 1 + (mode == "hiccups") and calls[-1] == "delete" and "attempt 6" not in done.stderr
    assert not (tmp_path / "state").exists() and (tmp_path / "runs").read_text().count("run") == runs


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (
            "expired",
            "describe: Google refuses the credentials (ERROR: (gcloud.compute",
        ),
        (
            "nobody",
            "describe: Google refuses the credentials (ERROR: (gcloud.compute",
        ),
        ("denied", "describe: this account lacks a permission (ERROR: "),
        ("wrong", "create: Google refuses the request (ERROR: "),
        ("usage", "describe: gcloud does not understand the command (ERROR: "),
    ],
)
def test_who_keeps_a_slice_ends_where_asking_again_is_no_use(mode: str, said: str, tmp_path: Path) -> None:
    done, calls = kept(tmp_path, mode)
    assert done.returncode == 2 and "delete" not in calls and len(calls) <= 3
    (last,) = [line for line in done.stderr.splitlines() if line.startswith("tpu_pod.sh: ")]
    assert last == done.stderr.splitlines()[-1] and last.startswith(f"tpu_pod.sh: {said}")


@pytest.mark.parametrize("script", ["tpu_vm.sh", "tpu_pod.sh"])
def test_a_missing_gcloud_is_said_at_once(script: str, tmp_path: Path) -> None:
    for name in ("bash", "dirname", "cat"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    done = called(script, "delete", *PLACE, PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{script}: gcloud is not installed, or not on PATH; see https://")
    assert called(script, "delete", *PLACE, "--dry-run", PATH=str(tmp_path)).returncode == 0


def test_the_pauses_grow(tmp_path: Path) -> None:
    (tmp_path / "gcloud").write_text("#!/bin/bash\n[[ -f tenth ]] && echo ACTIVE || { echo no network >&2; exit 1; }\n")
    (tmp_path / "sleep").write_text("#!/bin/bash\necho $1 >> pauses\n(($(wc -l < pauses) < 9)) || touch tenth\n")
    for name in ("gcloud", "sleep"):
        (tmp_path / name).chmod(0o755)
    words = ["bash", str(TOOLS / "tpu_pod.sh"), "wait", *PLACE]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(words, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "pauses").read_text().split() == ["30", "60", "120", "240", "480", "600", "600", "600", "600"]


def test_a_workload_on_gke() -> None:
    flags = ["--workload", "chop", "--cluster", "pods", "--image", "host/chopjax:1", "--tpu-type", "v6e-64"]
    build, push, create, list_, delete = commands(
        "gke_xpk.sh", "build", "create", "list", "delete", *flags, "--zone", "us-west4-a", *TRAIN
    )
    assert build == "docker build --file ROOT/tools/Dockerfile --tag host/chopjax:1 ROOT"
    assert push == "docker push host/chopjax:1"
    workload = "--workload=chop --cluster=pods"
    wanted = f"{workload} --tpu-type=v6e-64 --num-slices=1 --docker-image=host/chopjax:1 --max-restarts=50"
    ending = "--termination-grace-period-seconds=300 --env=CHOPJAX_PREEMPTED_STATUS=42"
    assert create.startswith(f"xpk workload create {wanted} {ending} --zone=us-west4-a '--command=exec python -m ")
    assert f"python -m {SAID} --config.mesh.distributed=True" in create.replace(r"'\''", "'")
    assert list_ == "xpk workload list --cluster=pods --filter-by-job=chop --zone=us-west4-a"
    assert delete == f"xpk workload delete {workload} --zone=us-west4-a"


def test_the_image_copies_only_what_it_may_see_and_is_no_root() -> None:
    lines = (TOOLS / "Dockerfile").read_text().splitlines()
    seen = {line[1:] for line in (TOOLS / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
    assert copied == seen and all((TOOLS.parent / name).exists() for name in copied)
    assert "USER chopjax" in lines and lines[-1] == 'ENTRYPOINT ["python", "-m", "chopjax.train"]'
