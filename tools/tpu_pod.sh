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
            in a row, each within an hour, while its slice is there is given up. Where gcloud does not answer, for want
            of a network or of quota, it is asked again, after pauses of up to ten minutes and for as long as it takes;
            where Google refuses the credentials or the request itself, or gcloud the command, keep ends
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
  --dry-run                 print the commands and do nothing; stands before --

The workdir has to outlive the slice and be seen by all hosts: --config.workdir=gs://BUCKET/RUN, or a mounted disk.

example: tools/tpu_pod.sh keep --name chop --zone us-west4-a --accelerator-type v5litepod-64 --spot \
             -- --config configs/llama31_8b_to_4b_width.py --config.workdir=gs://BUCKET/llama31-4b
TEXT
}

ACTIONS=() NAME='' STATE='' ZONE='' PROJECT='' TYPE='' SLICES=1 VERSION='' RETRIES=100 POLL=30 SPOT='' RESERVED=''
CREATE=() SEND=() TRAIN=()
while [[ $# -gt 0 ]]; do
    case $1 in
    create | wait | install | run | delete | keep) ACTIONS+=("$1") && shift && continue ;;
    all) ACTIONS+=(create wait install run delete) && shift && continue ;;
    --help | -h) usage && exit ;;
    --dry-run) DRY_RUN=yes && shift && continue ;;
    --spot) SPOT=$1 && shift && continue ;;
    --reserved) RESERVED=$1 && shift && continue ;;
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
[[ -z $SPOT || -z $RESERVED ]] || fail "--spot and --reserved exclude each other; give one of them"
CREATE+=($SPOT $RESERVED)
check_number --slices "$SLICES" 1
check_number --retries "$RETRIES" 1
check_number --poll "$POLL" 0
if asked create keep; then
    [[ -n $TYPE ]] || fail "--accelerator-type is needed; see --help"
    [[ -n $VERSION ]] || VERSION=$(runtime_version "$TYPE")
fi
check_sent "${SEND[@]}"
check_train run keep
check_checkout install keep
if asked keep || { asked install && asked run; }; then check_recipe; fi
needs_gcloud
PLACE=("--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})
queued() { run gcloud compute tpus queued-resources "$@" "${PLACE[@]}"; }

# Ended after LIMIT seconds where that is set, since a connection may also hang.
gcloud() {
    if [[ -n ${LIMIT:-} ]] && command -v timeout >/dev/null; then
        timeout --kill-after=10 "$LIMIT" gcloud "$@"
    else
        command gcloud "$@"
    fi
}

# What gcloud says where asking again is no use. That it could not *refresh* credentials may be the network's fault.
NO_PROJECT='attribute \[project\]|core/project|project property|Project number'
BAD_COMMAND='Error parsing|not properly specified|Invalid value for|Invalid choice|must be specified|unrecognized'
UNKNOWN_ACCOUNT='invalid_grant|invalid_client|UNAUTHENTICATED|invalid authentication credentials'
UNKNOWN_ACCOUNT+='|do not currently have an active account|default credentials were not found|[Rr]eauthentication'
NO_PERMISSION='PERMISSION_DENIED|does not have permission|SERVICE_DISABLED'
# What it says in trouble that passes, of the network, of quota or of Google's servers.
PASSING='gcloud crashed|problem refreshing|Max retries|[Tt]imed? ?out|[Cc]onnection|[Nn]etwork|HTTPError 5|capacity'
PASSING+='|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|INTERNAL|ABORTED|CANCELLED|UNKNOWN'
LONGEST_PAUSE=600 ANSWER_SECONDS=${ANSWER_SECONDS:-300}

# Asks gcloud until it answers. The answer is then in ANSWER; the status is 1 if there is no such request, which for
# create means that there is one already. UNANSWERED counts all that was asked in vain; ANSWERED has what ever was
# answered.
ANSWER='' UNANSWERED=0 ANSWERED=''
ask() {
    local said reason status pause=$POLL LIMIT=$ANSWER_SECONDS
    while true; do
        said=$(mktemp) status=0
        ANSWER=$(queued "$@" 2>"$said") || status=$?
        cat "$said" >&2
        reason=$(sed -n '/^+ /d; /ERROR/,$p' "$said" | tr -s '\n' ' ') # what it lacks stands in the third line
        [[ -n $reason ]] || reason=$(sed '/^+ /d' "$said" | tail -n 1)
        rm -f "$said"
        reason=${reason%% The attribute can be set*} reason=${reason:0:300} reason=${reason% }
        if ((status == 0)) && [[ -n $ANSWER || $1 != describe || -n $DRY_RUN ]]; then ANSWERED+=" $1" && return 0; fi
        judge "$1" "$status" "$reason" || { ANSWERED+=" $1" && return 1; }
        UNANSWERED=$((UNANSWERED + 1))
        echo "gcloud gave no answer to $1 (${reason:-status $status}); asked again in $pause s" >&2
        sleep "$pause"
        pause=$((2 * pause < LONGEST_PAUSE ? 2 * pause : LONGEST_PAUSE))
    done
}

# Whether to ask again after a failure: judge WHAT STATUS REASON. Ends where that is no use.
judge() {
    local left="; $NAME is left as it is"
    [[ $1 != create || ! $3 =~ ALREADY_EXISTS ]] || return 1
    [[ $1 == create || ! $3 =~ NOT_FOUND ]] || return 1
    [[ ! $3 =~ $UNKNOWN_ACCOUNT ]] || fail "$1: Google refuses the credentials ($3); run gcloud auth login$left"
    [[ ! $3 =~ $NO_PERMISSION ]] || fail "$1: this account lacks a permission ($3)$left"
    [[ ! $3 =~ $NO_PROJECT ]] ||
        fail "$1: gcloud has no project to work in ($3); give --project ID, or run gcloud config set project ID"
    [[ $1 == delete || ! $3 =~ INVALID_ARGUMENT|NOT_FOUND ]] ||
        fail "$1: Google refuses the request ($3); see to the flags"
    # 2 is gcloud's status for wrong arguments.
    (($2 != 2)) && [[ ! $3 =~ $BAD_COMMAND ]] || fail "$1: gcloud does not understand the command ($3)$left"
    # What is not known here may pass too, but hardly where gcloud never answered such a question before.
    [[ $1 == delete || " $ANSWERED " == *" $1 "* || ! $3 =~ ^ERROR:\ \(gcloud || $3 =~ $PASSING ]] ||
        fail "$1: gcloud cannot do it ($3)$left"
}

# create [ask]: once, or until there is an answer
create() {
    local nodes=("--node-id=$NAME")
    ((SLICES == 1)) || nodes=("--node-count=$SLICES" "--node-prefix=$NAME")
    "${1:-queued}" create "$NAME" "${nodes[@]}" "--accelerator-type=$TYPE" "--runtime-version=$VERSION" "${CREATE[@]}"
}

# Puts the state of the request into STATE; nothing if there is no request.
look() { if ask describe "$NAME" '--format=value(state.state)'; then STATE=$ANSWER; else STATE=''; fi; }

wait_for_slice() {
    local absent=0
    while true; do
        look
        [[ -z $DRY_RUN ]] || return 0
        case $STATE in
        ACTIVE) return 0 ;;
        FAILED | SUSPENDING | SUSPENDED | DELETING) echo "$NAME is $STATE" >&2 && return 1 ;;
        '') absent=$((absent + 1)) ;; # a new request may take a moment to be seen
        *) absent=0 ;;
        esac
        ((absent < 10)) || { echo "there is no request $NAME" >&2 && return 1; }
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

# delete [ask]: once, or until there is an answer
delete() { "${1:-queued}" delete "$NAME" --force --quiet; }

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
    local attempt began unanswered broken=0
    for ((attempt = 1; attempt <= RETRIES; attempt++)); do
        echo "attempt $attempt of $RETRIES" >&2
        look
        # A slice that an earlier call of this script asked for is used.
        [[ -n $STATE ]] || create ask || true
        if wait_for_slice; then
            began=$SECONDS
            if install && run_to_end; then
                delete ask || true
                return 0
            fi
            sleep $((2 * POLL)) # until a slice that is taken back is said to be
            unanswered=$UNANSWERED
            look
            if [[ $STATE == ACTIVE ]]; then
                ((UNANSWERED == unanswered)) || continue # it was the network here that broke off
                ((SECONDS - began < 3600)) || broken=0   # it got somewhere before
                broken=$((broken + 1))
                ((broken < 3)) && continue
                delete ask || true
                fail "keep: the run broke off three times on a slice that was there; its messages say why"
            fi
        fi
        broken=0
        delete ask || true # it may be gone
    done
    fail "keep: not finished after $RETRIES attempts"
}

for action in "${ACTIONS[@]}"; do
    case $action in
    wait) wait_for_slice ;;
    run) train ;;
    *) "$action" ;;
    esac
done
