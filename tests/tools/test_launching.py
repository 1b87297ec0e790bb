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
TRAIN = ["--", "--config", "configs/qwen3_8b_to_6b.py:some text", "--config.workdir=gs://bucket/run"]
WORKLOAD = ["--workload", "chop", "--cluster", "pods", "--image", "host/chopjax:1", "--tpu-type", "v6e-64"]
SAID = "chopjax.train --config 'configs/qwen3_8b_to_6b.py:some text' --config.workdir=gs://bucket/run"


def called(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(TOOLS / script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
        check=False,
    )


def stand_ins(folder: Path) -> str:
    """A PATH on which whatever could make something only writes to `calls` that it was called."""
    for name in ("gcloud", "docker", "xpk"):
        (folder / name).write_text(f"#!/bin/bash\necho {name} $* >> {folder}/calls\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


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


WRONG = {
    "tpu_vm.sh": {
        ("all",): "give the flags of chopjax.train after --, with --config FILE among them",
        ("all", "--", "--config.train.steps=9"): "give the flags of chopjax.train after --, with --config FILE",
        ("create", "--accelerator-type", "tpu9-8"): "give --version",
        ("all", "--send", "/nonexistent", *TRAIN): "--send /nonexistent: there is no such file or folder",
        ("all", "--into", __file__, *TRAIN): "that is no folder",
    },
    "tpu_pod.sh": {
        ("all", "--accelerator-type", "v6e-64"): "give the flags of chopjax.train after --",
        ("keep", *TRAIN): "--accelerator-type is needed",
        ("keep", "--accelerator-type", "tpu9-8", *TRAIN): "give --version",
        ("keep", "--accelerator-type", "v6e-64", "--send", "/nonexistent", *TRAIN): "--send /nonexistent: there is no",
        ("keep", "--accelerator-type", "v6e-64", "--spot", "--reserved", *TRAIN): "give one of them",
        ("wait", "--poll", "09"): "--poll 09: give a whole number of 0 or more, without leading zeros",
        ("wait", "--poll", "1.5"): "--poll 1.5: give a whole number",
        ("wait", "--retries", "08"): "--retries 08: give a whole number of 1 or more",
        ("wait", "--retries", "0"): "--retries 0: give a whole number of 1 or more",
        ("wait", "--slices", "08"): "--slices 08: give a whole number of 1 or more",
        ("wait", "--slices", "0"): "--slices 0: give a whole number of 1 or more",
        ("wait", "--retries", "9" * 30): "give a whole number",
        ("wait", "--project", "--spot"): "--project wants a value",
    },
    "gke_xpk.sh": {
        ("build", "create", *WORKLOAD): "give the flags of chopjax.train after --",
        ("build", "create", *WORKLOAD[2:], *TRAIN): "--workload is needed",
        ("build", "delete", *WORKLOAD[4:]): "--workload is needed",
        ("build", *WORKLOAD, "--num-slices", "abc"): "--num-slices abc: give a whole number of 1 or more",
        ("build", *WORKLOAD, "--max-restarts", "-3"): "--max-restarts -3: give a whole number of 0 or more",
        ("build", *WORKLOAD, "--grace", "5m"): "--grace 5m: give a whole number of 0 or more",
        ("build", *WORKLOAD, "--priority", "urgent"): "--priority urgent: see --help",
    },
}


@pytest.mark.parametrize(
    ("script", "wrong", "said"), [(script, *one) for script, all_ in WRONG.items() for one in all_.items()]
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["real", "dry"])
def test_arguments_are_judged_before_anything_is_done(
    script: str, wrong: tuple[str, ...], said: str, dry: list[str], tmp_path: Path
) -> None:
    place = [] if script == "gke_xpk.sh" else PLACE
    done = called(script, *dry, *place, *wrong, PATH=stand_ins(tmp_path))
    assert (done.returncode, done.stdout, (tmp_path / "calls").exists()) == (2, "", False)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{script}: ") and said in line


RUN = {
    "tpu_vm.sh": ["all", *PLACE],
    "tpu_pod.sh": ["keep", *PLACE, "--accelerator-type", "v6e-64"],
    "gke_xpk.sh": ["build", "create", *WORKLOAD],
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flag", ["--config=configs/typo.py:x", "--config=typo.py"])
def test_a_recipe_that_would_not_be_there_is_refused(script: str, flag: str, tmp_path: Path) -> None:
    done = called(script, *RUN[script], "--", flag, PATH=stand_ins(tmp_path))
    assert (done.returncode, (tmp_path / "calls").exists()) == (2, False)
    (line,) = done.stderr.splitlines()
    assert re.match(rf"{script}: --config (configs/)?typo\.py: not in (the commit|configs/)", line)
    # One on a disk of the hosts is not ours to judge.
    assert called(script, "--dry-run", *RUN[script], "--", "--config", "/mnt/typo.py").returncode == 0


@pytest.mark.parametrize("script", ["tpu_vm.sh", "tpu_pod.sh"])
def test_a_recipe_may_be_sent(script: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "new.py").touch()
    for sent, config in (("mine/new.py", "new.py:a:b"), ("mine", "./mine/new.py"), ("mine/", "mine/new.py")):
        words = ["--dry-run", *RUN[script], "--send", f"{tmp_path}/{sent}", "--", "--config", config]
        assert called(script, *words).returncode == 0
    done = called(script, *RUN[script], "--send", f"{tmp_path}/mine", "--", "--config", "mine/old.py")
    assert done.returncode == 2 and "--config mine/old.py: not in the commit" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flag", ["--dry-run", "--spot", "--send=my.py"])
def test_a_flag_of_the_script_among_those_of_the_run_is_refused(script: str, flag: str, tmp_path: Path) -> None:
    done = called(script, *RUN[script], *TRAIN, flag, PATH=stand_ins(tmp_path))
    assert (done.returncode, (tmp_path / "calls").exists()) == (2, False)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{script}: {flag} after --: ") and line.endswith("put this script's before --")


@pytest.mark.parametrize("script", ["tpu_vm.sh", "tpu_pod.sh"])
def test_what_cannot_be_packed_is_refused_before_anything_is_made(script: str, tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    for name in (script, "launching.sh"):
        shutil.copy(TOOLS / name, tmp_path / "tools")
    path = stand_ins(tmp_path)
    words = ["bash", str(tmp_path / "tools" / script), "all", *PLACE, "--accelerator-type", "v6e-8", *TRAIN]
    environment = os.environ | {"PATH": path, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert (done.returncode, (tmp_path / "calls").exists()) == (2, False)
    (line,) = done.stderr.splitlines()
    assert "is no git checkout with a commit" in line


def test_one_vm_from_beginning_to_end() -> None:
    flags = ["--spot", "--project", "mine", "--send", __file__, "--fetch", "runs/mine/export"]
    create, pack, send, install, copy, run, make, fetch, delete = commands("tpu_vm.sh", "all", *PLACE, *flags, *TRAIN)
    place = "--zone=us-west4-a --project=mine"
    vm = "gcloud compute tpus tpu-vm"
    assert create == f"{vm} create chop --accelerator-type=v5litepod-8 --version=v2-alpha-tpuv5-lite --spot {place}"
    assert pack == "git -C ROOT archive --format=tar.gz --prefix=chopjax/ PACKED HEAD"
    assert send == f"{vm} scp PACKED chop:chopjax.tar.gz {place}"
    assert copy == f"{vm} scp --recurse ROOT/tests/tools/test_launching.py chop:chopjax/ {place}"
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
error() { echo "ERROR: $1" >&2; exit "${2:-1}"; }
fail() { error "(gcloud.compute.tpus.queued-resources) $@"; }
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
"project "*) fail "Error parsing [queued_resource].
The [queued_resource] resource is not properly specified.
Failed to find attribute [project]. The attribute can be set in the following ways:
- set the property core/project" ;;
"called "*) error "(gcloud) The project property must be set to a valid project ID, not the project name [My own]" ;;
"number "*) fail "The value of --project flag was set to Project number." ;;
"malformed "*) fail "INVALID_ARGUMENT: Request contains an invalid argument." ;;
"nodes create "*) fail "Invalid value for [--node-count]: Node count must be greater than 1" ;;
"unknown "*) fail "Something that no one has heard of" ;;
"crashes describe 1") error "gcloud crashed (ConnectionError): HTTPSConnectionPool(host='tpu.googleapis.com')" ;;
"odd describe 2") fail "Something that no one has heard of" ;;
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
    ("mode", "unanswered", "runs"),
    [("hiccups", 21, 1), ("quota", 6, 1), ("hangs", 1, 1), ("outage", 4, 5), ("crashes", 1, 1), ("odd", 1, 1)],
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
        ("malformed", "describe: Google refuses the request (ERROR: "),
        ("project", "describe: gcloud has no project to work in (ERROR: "),
        ("called", "describe: gcloud has no project to work in (ERROR: "),
        ("number", "describe: gcloud has no project to work in (ERROR: "),
        ("nodes", "create: gcloud does not understand the command (ERROR: "),
        ("unknown", "describe: gcloud cannot do it (ERROR: "),
        ("usage", "describe: gcloud does not understand the command (ERROR: "),
    ],
)
def test_who_keeps_a_slice_ends_where_asking_again_is_no_use(mode: str, said: str, tmp_path: Path) -> None:
    done, calls = kept(tmp_path, mode)
    assert done.returncode == 2 and "delete" not in calls and len(calls) <= 3
    (last,) = [line for line in done.stderr.splitlines() if line.startswith("tpu_pod.sh: ")]
    assert last == done.stderr.splitlines()[-1] and last.startswith(f"tpu_pod.sh: {said}")
    assert "no project" not in said or "give --project ID" in last


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
    build, push, create, list_, delete = commands(
        "gke_xpk.sh", "build", "create", "list", "delete", *WORKLOAD, "--zone", "us-west4-a", *TRAIN
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
