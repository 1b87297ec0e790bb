#!/usr/bin/env bash
# chopjax on one TPU VM: see --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=launching.sh
source "$(dirname "${BASH_SOURCE[0]}")/launching.sh"

usage() {
    cat <<'TEXT'
usage: tools/tpu_vm.sh ACTION [ACTION ...] --name NAME --zone ZONE [FLAG ...] [-- TRAIN_FLAG ...]

One TPU VM (a host with up to 8 chips). Actions are done in the order given:
  create    make the VM
  install   send this checkout, as committed, and install it there with Python 3.12
  copy      send what is not in the checkout: --send
  run       python -m chopjax.train TRAIN_FLAG ... there; again after an interruption, it goes on
  fetch     bring --fetch here
  delete    delete the VM with its disk
  all       create install copy run fetch delete; after a failure nothing is deleted

  --name NAME               of the VM
  --zone ZONE               where, such as us-west4-a
  --project PROJECT         default: gcloud's own setting
  --accelerator-type TYPE   default v5litepod-8; also v6e-8, v5p-8, v4-8
  --version VERSION         runtime version; default by type
  --spot                    a Spot VM, which is cheaper and may be taken back
  --network NETWORK, --subnetwork SUBNETWORK, --service-account ACCOUNT
  --data-disk NAME          a persistent disk of that name, attached for reading and writing; mounting it is yours
  --send PATH               a file or folder here (a config, a model, text); may be repeated; lands in chopjax/ there
  --fetch PATH              a path there, from chopjax/; may be repeated; comes to --into
  --into FOLDER             default: fetched
  --dry-run                 print the commands and do nothing; stands before --

example: tools/tpu_vm.sh all --name chop --zone us-west4-a --fetch runs/mine/export \
             -- --config configs/base.py --config.source=HuggingFaceTB/SmolLM2-360M --config.workdir=runs/mine
TEXT
}

ACTIONS=() NAME='' ZONE='' PROJECT='' TYPE=v5litepod-8 VERSION='' INTO=fetched
CREATE=() SEND=() FETCH=() TRAIN=()
while [[ $# -gt 0 ]]; do
    case $1 in
    create | install | copy | run | fetch | delete) ACTIONS+=("$1") && shift && continue ;;
    all) ACTIONS+=(create install copy run fetch delete) && shift && continue ;;
    --help | -h) usage && exit ;;
    --dry-run) DRY_RUN=yes && shift && continue ;;
    --spot) CREATE+=(--spot) && shift && continue ;;
    --) shift && TRAIN=("$@") && break ;;
    --name | --zone | --project | --accelerator-type | --version | --network | --subnetwork | --service-account) ;;
    --data-disk | --send | --fetch | --into) ;;
    *) fail "$1: unknown; see --help" ;;
    esac
    GIVEN=$(value "$@")
    case $1 in
    --name) NAME=$GIVEN ;;
    --zone) ZONE=$GIVEN ;;
    --project) PROJECT=$GIVEN ;;
    --accelerator-type) TYPE=$GIVEN ;;
    --version) VERSION=$GIVEN ;;
    --data-disk) CREATE+=("--data-disk=source=$GIVEN,mode=read-write") ;;
    --send) SEND+=("$GIVEN") ;;
    --fetch) FETCH+=("$GIVEN") ;;
    --into) INTO=$GIVEN ;;
    *) CREATE+=("$1=$GIVEN") ;;
    esac
    shift 2
done
[[ ${#ACTIONS[@]} -gt 0 ]] || fail "no action; see --help"
[[ -n $NAME && -n $ZONE ]] || fail "--name and --zone are needed; see --help"
[[ -n $VERSION ]] || ! asked create || VERSION=$(runtime_version "$TYPE")
[[ ! -e $INTO || -d $INTO ]] || fail "--into $INTO: that is no folder"
check_sent "${SEND[@]}"
check_train run
check_checkout install
if asked install && asked run; then check_recipe; fi
needs_gcloud
PLACE=("--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})

tpu_vm() { run gcloud compute tpus tpu-vm "$@" "${PLACE[@]}"; }
on_vm() { tpu_vm ssh "$NAME" --command="$1"; }

create() {
    tpu_vm create "$NAME" "--accelerator-type=$TYPE" "--version=$VERSION" "${CREATE[@]}"
}

install() {
    local packed
    packed=$(mktemp -d)/chopjax.tar.gz
    pack_checkout "$packed"
    tpu_vm scp "$packed" "$NAME:chopjax.tar.gz"
    rm -rf "${packed%/*}"
    on_vm "$(install_command)"
}

copy() {
    local path
    for path in "${SEND[@]}"; do
        tpu_vm scp --recurse "$path" "$NAME:chopjax/"
    done
}

train() { on_vm "$(train_command "${TRAIN[@]}")"; }

fetch() {
    local path
    run mkdir -p "$INTO"
    for path in "${FETCH[@]}"; do
        tpu_vm scp --recurse "$NAME:chopjax/$path" "$INTO"
    done
}

for action in "${ACTIONS[@]}"; do
    case $action in
    run) train ;;
    delete) tpu_vm delete "$NAME" --quiet ;;
    *) "$action" ;;
    esac
done
