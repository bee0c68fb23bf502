# Sourced by the other scripts here; after it
#   ready [EXTRA ...]   leaves in $python an interpreter that has dermjax and these extras installed: the active virtual
#                       environment's, else that of .venv at the repository's root, which it makes
#   run COMMAND ...     runs a command; with DRY_RUN=1 it prints it instead
#   refuse MESSAGE      ends with one line on stderr and exit code 2
# An install is done once: a stamp in the environment holds the sha256 of what it was made from.
# shellcheck shell=bash

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

run() {
    if [[ ${DRY_RUN:-} == 1 ]]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

refuse() {
    echo "launch/$(basename -- "$0"): $1" >&2
    exit 2
}

ready() {
    local venv=${VIRTUAL_ENV:-$root/.venv} extra base key
    python=$venv/bin/python
    key=$({ cat "$root/pyproject.toml" "$root/launch/constraints.txt" && echo "$root"; } | digest)
    if installed "$venv" "$key" core "$@"; then
        return
    fi
    if ! "$python" -m pip --version > /dev/null 2>&1; then
        [[ -z ${VIRTUAL_ENV:-} ]] || refuse "the active environment $venv has no pip; deactivate it, or give it pip"
        base=$(find_python)
        run "$base" -m venv "$venv"
    elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        refuse "the Python of $venv is older than 3.11; use another environment"
    fi
    run "$python" -m pip install --constraint "$root/launch/constraints.txt" --editable "$root$(extras "$@")"
    if [[ ${DRY_RUN:-} != 1 ]]; then
        for extra in core "$@"; do
            echo "$key" > "$venv/dermjax-$extra"
        done
    fi
}

installed() {
    local venv=$1 key=$2 extra
    for extra in "${@:3}"; do
        [[ -f $venv/dermjax-$extra && $(< "$venv/dermjax-$extra") == "$key" ]] || return 1
    done
}

# [dev,parity] for dev parity, nothing for nothing
extras() {
    local IFS=,
    [[ $# == 0 ]] || echo "[$*]"
}

digest() {
    if command -v sha256sum > /dev/null; then sha256sum; else shasum -a 256; fi
}

find_python() {
    local name
    # 3.11 first: the pins are tested with it
    for name in python3.11 python3.12 python3.13 python3.14 python3 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
            command -v "$name"
            return
        fi
    done
    refuse "no Python 3.11 or newer found; install one, or activate an environment that has it"
}
