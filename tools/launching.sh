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

# needs PROGRAM PAGE: ends here where a program is missing, which --dry-run does not need.
needs() { [[ -n $DRY_RUN ]] || type -P "$1" >/dev/null || fail "$1 is not installed, or not on PATH; see $2"; }

needs_gcloud() { needs gcloud https://cloud.google.com/sdk/docs/install; }

# A flag's value: `value "$@"` where $@ is the rest of the command line, from the flag on.
value() {
    [[ $# -ge 2 && -n $2 && $2 != --* ]] || fail "$1 wants a value; see --help"
    printf '%s' "$2"
}

# asked ACTION ...: whether one of them is among ACTIONS.
asked() {
    local action
    for action in "$@"; do
        [[ " ${ACTIONS[*]} " != *" $action "* ]] || return 0
    done
    return 1
}

# check_number FLAG VALUE LEAST. Bash would read a number that begins with 0 as octal.
check_number() {
    [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] && (($2 >= $3)) ||
        fail "$1 $2: give a whole number of $3 or more, without leading zeros"
}

# check_sent PATH ...: what is to be sent has to be here.
check_sent() {
    local path
    for path in "$@"; do [[ -e $path ]] || fail "--send $path: there is no such file or folder"; done
}

# The recipe among the flags of chopjax.train, without its argument.
recipe() {
    local word found=''
    for word in "${TRAIN[@]}"; do
        case $found$word in
        --config | -config) found=here: && continue ;;
        --config=* | -config=* | here:*) word=${word#*config=} && word=${word#./} && echo "${word%%:*}" && return ;;
        esac
    done
}

# The recipe has to be on the hosts: in the commit that `install` sends or in what --send does, or on a disk of theirs.
check_recipe() {
    local recipe path
    recipe=$(recipe)
    [[ $recipe != /* ]] && type -P git >/dev/null || return 0
    ! git -C "$(root)" cat-file -e "HEAD:$recipe" 2>/dev/null || return 0
    for path in "${SEND[@]}"; do
        path=${path%/}
        [[ $recipe/ != "${path##*/}"/* || ! -f $(dirname "$path")/$recipe ]] || return 0
    done
    fail "--config $recipe: not in the commit that install sends, nor in what --send does; commit it, or give --send"
}

# check_train ACTION ...: what follows -- is for chopjax.train alone, and one of these actions cannot do without.
check_train() {
    local word config=''
    for word in "${TRAIN[@]}"; do
        [[ ! $word =~ ^--?config(=|$) ]] || config=yes
        [[ $word != --* || $word =~ ^--(no)?config([.=]|$) ]] ||
            fail "$word after --: all there goes to chopjax.train, which has no such flag; put this script's before --"
    done
    ! asked "$@" || [[ -n $config ]] || fail "give the flags of chopjax.train after --, with --config FILE among them"
}

# What `install` packs is the commit that is checked out, so there has to be one.
check_checkout() {
    [[ -z $DRY_RUN ]] && asked "$@" || return 0
    needs git https://git-scm.com
    git -C "$(root)" rev-parse --quiet --verify HEAD >/dev/null 2>&1 ||
        fail "$(root) is no git checkout with a commit, and the commit is what install sends; git clone chopjax"
}

root() { (cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd); }

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
    run git -C "$(root)" archive --format=tar.gz --prefix=chopjax/ --output="$1" HEAD
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
