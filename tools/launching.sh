# What tpu_vm.sh, tpu_pod.sh and gke_xpk.sh share; they source it.

# shellcheck shell=bash

DRY_RUN=${DRY_RUN:-}

if ((BASH_VERSINFO[0] < 5)); then
    echo "${0##*/}: needs bash 5; this is $BASH_VERSION" >&2
    exit 2
fi

fail() {
    echo "${0##*/}: $*" >&2
    exit 2
}

# Words as a shell would read them back.
quoted() {
    local word line=''
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
        line+=" $word"
    done
    echo "${line# }"
}

# Prints a command as it could be typed, and runs it unless --dry-run was given.
run() {
    echo "+ $(quoted "$@")" >&2
    [[ -n $DRY_RUN ]] || "$@"
}

# Ends here where gcloud is missing, which --dry-run does not need.
needs_gcloud() {
    [[ -n $DRY_RUN ]] || type -P gcloud >/dev/null ||
        fail "gcloud is not installed, or not on PATH; see https://cloud.google.com/sdk/docs/install"
}

# A flag's value: `value --zone "$@"` where $@ is the rest of the command line.
value() {
    [[ $# -ge 2 && -n $2 ]] || fail "$1 wants a value; see --help"
    printf '%s' "$2"
}

# The software of a TPU VM by its accelerator type, as Google's table of runtime versions has it.
runtime_version() {
    case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "--accelerator-type $1: its runtime version is not known here; give --version" ;;
    esac
}

# The checkout as git has it, in a file. What is not committed does not travel: a run is to be repeatable.
pack_checkout() {
    local root
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    run git -C "$root" archive --format=tar.gz --prefix=chopjax/ --output="$1" HEAD
}

# Run on a VM: unpacks the checkout and installs it in a Python of its own, since the VM's may be too old.
install_command() {
    echo "set -e; rm -rf chopjax/chopjax; tar xzf chopjax.tar.gz;" \
        "command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh;" \
        "export PATH=\$HOME/.local/bin:\$PATH; cd chopjax;" \
        "[ -d .venv ] || uv venv --python 3.12 .venv;" \
        "uv pip install --python .venv/bin/python -c constraints.txt -e '.[tpu,gcs,datasets]'"
}

# Run on a VM: the training command with its arguments quoted for the shell there. What a broken connection left running
# is told to end first: the chips are one process's.
train_command() {
    local there="'^\.venv/bin/python -m chopjax\.train'"
    echo "cd chopjax; pkill -f $there;" \
        "for i in \$(seq 300); do pgrep -f $there >/dev/null || break; sleep 1; done; pkill -KILL -f $there;" \
        "exec .venv/bin/python -m chopjax.train $(quoted "$@")"
}
