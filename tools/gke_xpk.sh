#!/usr/bin/env bash
# chopjax on a GKE cluster, as an xpk workload: see --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=launching.sh
source "$(dirname "${BASH_SOURCE[0]}")/launching.sh"

usage() {
    cat <<'TEXT'
usage: tools/gke_xpk.sh ACTION [ACTION ...] --workload NAME --cluster CLUSTER --image IMAGE [FLAG ...] [-- TRAIN_FLAG ...]

On a cluster that xpk made (xpk cluster create). Actions are done in the order given:
  build     build the image of tools/Dockerfile from this checkout, and push it to IMAGE
  create    start the workload: python -m chopjax.train TRAIN_FLAG ... --config.mesh.distributed=True on every host
  list      the workload's state
  delete    delete the workload

  --workload NAME           of the workload
  --cluster CLUSTER         the cluster
  --image IMAGE             such as us-docker.pkg.dev/PROJECT/REPOSITORY/chopjax:1
  --tpu-type TYPE           such as v5litepod-64, v6e-64, v5p-128
  --num-slices N            default 1
  --project PROJECT, --zone ZONE   default: gcloud's own settings
  --max-restarts N          after failures and lost machines; default 50
  --grace SECONDS           from the warning to the end, in which a checkpoint is written; default 300
  --priority PRIORITY       very-low, low, medium (default), high, very-high
  --dry-run                 print the commands and do nothing; stands before --

Recipes are in the image, as configs/. The workdir is to be gs://BUCKET/RUN; the cluster's service account needs to
write there.

example: tools/gke_xpk.sh build create --workload chop --cluster pods --tpu-type v6e-64 --image IMAGE \
             -- --config configs/qwen3_8b_to_6b.py --config.workdir=gs://BUCKET/qwen3-6b
TEXT
}

ACTIONS=() WORKLOAD='' CLUSTER='' IMAGE='' TYPE='' SLICES=1 RESTARTS=50 GRACE=300
PRIORITY='' PLACE=() TRAIN=()
while [[ $# -gt 0 ]]; do
    case $1 in
    build | create | list | delete) ACTIONS+=("$1") && shift && continue ;;
    --help | -h) usage && exit ;;
    --dry-run) DRY_RUN=yes && shift && continue ;;
    --) shift && TRAIN=("$@") && break ;;
    --workload | --cluster | --image | --tpu-type | --num-slices | --project | --zone | --max-restarts | --grace | --priority) ;;
    *) fail "$1: unknown; see --help" ;;
    esac
    GIVEN=$(value "$@")
    case $1 in
    --workload) WORKLOAD=$GIVEN ;;
    --cluster) CLUSTER=$GIVEN ;;
    --image) IMAGE=$GIVEN ;;
    --tpu-type) TYPE=$GIVEN ;;
    --num-slices) SLICES=$GIVEN ;;
    --project | --zone) PLACE+=("$1=$GIVEN") ;;
    --max-restarts) RESTARTS=$GIVEN ;;
    --grace) GRACE=$GIVEN ;;
    --priority) PRIORITY=$GIVEN ;;
    esac
    shift 2
done
[[ ${#ACTIONS[@]} -gt 0 ]] || fail "no action; see --help"

need() {
    local name
    for name in "$@"; do
        [[ -n ${!name} ]] || fail "--$(echo "${name/TYPE/tpu-type}" | tr '[:upper:]' '[:lower:]') is needed; see --help"
    done
}

if asked build; then need IMAGE && needs docker https://docs.docker.com/engine/install; fi
if asked create; then need WORKLOAD CLUSTER IMAGE TYPE; fi
if asked list delete; then need WORKLOAD CLUSTER; fi
if asked create list delete; then needs xpk https://github.com/AI-Hypercomputer/xpk; fi
check_number --num-slices "$SLICES" 1
check_number --max-restarts "$RESTARTS" 0
check_number --grace "$GRACE" 0
[[ $PRIORITY =~ ^((very-)?(low|high)|medium)?$ ]] || fail "--priority $PRIORITY: see --help for what there is"
check_train create
if asked build && asked create; then
    RECIPE=$(recipe)
    [[ $RECIPE == /* || $RECIPE == configs/* && -f $(root)/$RECIPE ]] ||
        fail "--config $RECIPE: not in configs/ of this checkout, from where the image has its recipes"
fi

build() {
    run docker build --file "$(root)/tools/Dockerfile" --tag "$IMAGE" "$(root)"
    run docker push "$IMAGE"
}

create() {
    # A machine that is taken back ends the process in order; 42 is among the statuses that xpk restarts.
    local command
    command="exec python -m chopjax.train $(quoted "${TRAIN[@]}") --config.mesh.distributed=True"
    run xpk workload create "--workload=$WORKLOAD" "--cluster=$CLUSTER" "--tpu-type=$TYPE" "--num-slices=$SLICES" \
        "--docker-image=$IMAGE" "--max-restarts=$RESTARTS" "--termination-grace-period-seconds=$GRACE" \
        --env=CHOPJAX_PREEMPTED_STATUS=42 \
        ${PRIORITY:+"--priority=$PRIORITY"} "${PLACE[@]}" "--command=$command"
}

list() { run xpk workload list "--cluster=$CLUSTER" "--filter-by-job=$WORKLOAD" "${PLACE[@]}"; }

delete() { run xpk workload delete "--workload=$WORKLOAD" "--cluster=$CLUSTER" "${PLACE[@]}"; }

for action in "${ACTIONS[@]}"; do "$action"; done
