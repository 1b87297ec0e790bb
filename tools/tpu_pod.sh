#!/usr/bin/env bash
# chopjax on a pod slice of several hosts, or on several slices: see --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=launching.sh
source "$(dirname "${BASH_SOURCE[0]}")/launching.sh"

usage() {
    cat <<'TEXT'
usage: tools/tpu_pod.sh ACTION [ACTION ...] --name NAME --zone ZONE [FLAG ...] [-- TRAIN_FLAG ...]

A pod slice of several hosts, asked for as a queued resource. Actions are done in the order given:
  create    ask for the slice
  wait      until it is there
  install   on all hosts: this checkout, as committed, with Python 3.12, and --send
  run       on all hosts: python -m chopjax.train TRAIN_FLAG ... --config.mesh.distributed=True
  delete    delete the slice and the request
  keep      create, wait, install, run; when the slice is taken back, all of it again, until the run says that it is
            finished; then delete. The run goes on from its newest whole checkpoint. A run that breaks off three times
            in a row, each within an hour, while its slice is there is given up
  all       create wait install run delete; after a failure nothing is deleted

  --name NAME               of the queued resource and of its node
  --zone ZONE               where, such as us-west4-a
  --project PROJECT         default: gcloud's own setting
  --accelerator-type TYPE   such as v5litepod-64, v6e-64, v5p-128 (the number counts cores for v4 and v5p)
  --slices N                slices of that type, joined over the data-center network; default 1
  --version VERSION         runtime version; default by type
  --spot | --reserved       a Spot slice, which may be taken back; or one out of a reservation
  --network NETWORK, --subnetwork SUBNETWORK, --service-account ACCOUNT
  --send PATH               a file or folder here that git does not have; may be repeated; lands in chopjax/ there
  --retries N               of keep: attempts in all; default 100
  --poll SECONDS            of wait: between two looks at the request; default 30
  --dry-run                 print the commands and do nothing

The workdir has to outlive the slice and be seen by all hosts: --config.workdir=gs://BUCKET/RUN, or a mounted disk.

example: tools/tpu_pod.sh keep --name chop --zone us-west4-a --accelerator-type v5litepod-64 --spot \
             -- --config configs/llama31_8b_to_4b_width.py --config.workdir=gs://BUCKET/llama31-4b
TEXT
}

ACTIONS=() NAME='' ZONE='' PROJECT='' TYPE='' SLICES=1 VERSION='' RETRIES=100 POLL=30
CREATE=() SEND=() TRAIN=()
while [[ $# -gt 0 ]]; do
    case $1 in
    create | wait | install | run | delete | keep) ACTIONS+=("$1") && shift && continue ;;
    all) ACTIONS+=(create wait install run delete) && shift && continue ;;
    --help | -h) usage && exit ;;
    --dry-run) DRY_RUN=yes && shift && continue ;;
    --spot | --reserved) CREATE+=("$1") && shift && continue ;;
    --) shift && TRAIN=("$@") && break ;;
    --name | --zone | --project | --accelerator-type | --version | --network | --subnetwork | --service-account) ;;
    --slices | --send | --retries | --poll) ;;
    *) fail "$1: unknown; see --help" ;;
    esac
    GIVEN=$(value "$@")
    case $1 in
    --name) NAME=$GIVEN ;;
    --zone) ZONE=$GIVEN ;;
    --project) PROJECT=$GIVEN ;;
    --accelerator-type) TYPE=$GIVEN ;;
    --version) VERSION=$GIVEN ;;
    --slices) SLICES=$GIVEN ;;
    --send) SEND+=("$GIVEN") ;;
    --retries) RETRIES=$GIVEN ;;
    --poll) POLL=$GIVEN ;;
    *) CREATE+=("$1=$GIVEN") ;;
    esac
    shift 2
done
[[ ${#ACTIONS[@]} -gt 0 ]] || fail "no action; see --help"
[[ -n $NAME && -n $ZONE ]] || fail "--name and --zone are needed; see --help"
[[ "$SLICES$RETRIES$POLL" =~ ^[0-9]+$ ]] || fail "--slices, --retries and --poll are numbers"
PLACE=("--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})
queued() { run gcloud compute tpus queued-resources "$@" "${PLACE[@]}"; }

create() {
    [[ -n $TYPE ]] || fail "create: --accelerator-type is needed; see --help"
    [[ -n $VERSION ]] || VERSION=$(runtime_version "$TYPE")
    local nodes=("--node-id=$NAME")
    ((SLICES == 1)) || nodes=("--node-count=$SLICES" "--node-prefix=$NAME")
    queued create "$NAME" "${nodes[@]}" "--accelerator-type=$TYPE" "--runtime-version=$VERSION" "${CREATE[@]}"
}

state() { queued describe "$NAME" '--format=value(state.state)'; }

wait_for_slice() {
    local now unknown=0
    while true; do
        if now=$(state); then unknown=0; else now=unknown && unknown=$((unknown + 1)); fi
        [[ -z $DRY_RUN ]] || return 0
        case $now in
        ACTIVE) return 0 ;;
        FAILED | SUSPENDING | SUSPENDED | DELETING) echo "$NAME is $now" >&2 && return 1 ;;
        esac
        ((unknown < 10)) || fail "wait: no word of $NAME from gcloud"
        sleep "$POLL"
    done
}

# On every host of every slice at once; 0 only if it ended well on all of them.
on_all() { queued ssh "$NAME" --node=all --worker=all "--command=$1"; }

to_all() { queued scp --recurse "$1" "$NAME:$2" --node=all --worker=all; }

# Every step is joined to the next, for inside the condition of `keep` a failure would not end it.
install() {
    local packed path
    packed=$(mktemp -d)/chopjax.tar.gz
    pack_checkout "$packed" && to_all "$packed" chopjax.tar.gz && rm -rf "${packed%/*}" &&
        on_all "$(install_command)" || return
    for path in "${SEND[@]}"; do to_all "$path" chopjax/ || return; done
}

train() { on_all "$(train_command "${TRAIN[@]}" --config.mesh.distributed=True)"; }

delete() { queued delete "$NAME" --force --quiet; }

# A run that was told to end saves and ends well too, so its status alone does not say that it is finished.
run_to_end() {
    local log found
    log=$(mktemp)
    train | tee "$log"
    grep -q 'train: finished' "$log" && found=yes || found=${DRY_RUN}
    rm -f "$log"
    [[ -n $found ]]
}

keep() {
    local attempt began broken=0
    for ((attempt = 1; attempt <= RETRIES; attempt++)); do
        echo "attempt $attempt of $RETRIES" >&2
        # A slice that an earlier call of this script asked for is used.
        if [[ -n $(state) ]] || create; then
            if wait_for_slice; then
                began=$SECONDS
                if install && run_to_end; then
                    delete
                    return 0
                fi
                sleep $((2 * POLL))  # until a slice that is taken back is said to be
                if [[ $(state) == ACTIVE ]]; then
                    ((SECONDS - began < 3600)) || broken=0 # it got somewhere before
                    broken=$((broken + 1))
                    ((broken < 3)) && continue
                    delete
                    fail "keep: the run broke off three times on a slice that was there; its messages say why"
                fi
            fi
        fi
        broken=0
        delete || true # it may be gone, or never have been
    done
    fail "keep: not finished after $RETRIES attempts"
}

case " ${ACTIONS[*]} " in
*' run '* | *' keep '*) [[ ${#TRAIN[@]} -gt 0 ]] || fail "give the flags of chopjax.train after --" ;;
esac
for action in "${ACTIONS[@]}"; do
    case $action in
    wait) wait_for_slice ;;
    run) train ;;
    *) "$action" ;;
    esac
done
