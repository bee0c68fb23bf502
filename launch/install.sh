# Sourced by the other scripts here; after it
#   ready [EXTRA ...]   leaves in $python an interpreter that has dermjax and these extras installed: the active virtual
#                       environment's, else that of .venv at the repository's root, which it makes with the newest Python
#                       of 3.13, 3.12 and 3.11 that it finds, pyenv's included
#   only VERSION        before ready: this Python alone, in an environment of its own, .venv-VERSION
#   run COMMAND ...     runs a command; with DRY_RUN=1 it prints it instead
#   refuse MESSAGE      ends with one line on stderr and exit code 2
# Python 3.14 or newer is used only where an active environment has it, and a line says that it is not tested.
# An install is done once: a stamp in the environment holds the sha256 of what it was made from.
# shellcheck shell=bash

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
tested='3.13 3.12 3.11' # what the tests pass with, the newest first
pythons=$tested
venv=${VIRTUAL_ENV:-$root/.venv}

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

only() {
    [[ $1 == 3.?? && " $tested " == *" $1 "* ]] || refuse "there is no line for Python $1; there are $tested"
    pythons=$1
    venv=$root/.venv-$1
}

# `|| return`, since bash ignores `set -e` in what is called before && or ||
ready() {
    local extra base key version
    python=$venv/bin/python
    key=$({ cat "$root/pyproject.toml" "$root/launch/constraints.txt" && echo "$root"; } | digest)
    if installed "$key" core "$@"; then
        return
    fi
    if "$python" -m pip --version > /dev/null 2>&1; then
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        case $version in
            3.11 | 3.12 | 3.13) ;;
            3.1[4-9] | 3.[2-9]?) echo "launch/$(basename -- "$0"): Python $version is newer than the tested $tested" >&2 ;;
            *) refuse "the Python of $venv is $version, older than 3.11; use another environment" ;;
        esac
    else
        [[ $venv != "${VIRTUAL_ENV:-}" ]] || refuse "the active environment $venv has no pip; deactivate it, or give it pip"
        base=$(find_python) || return
        run "$base" -m venv "$venv" || return
    fi
    run "$python" -m pip install --constraint "$root/launch/constraints.txt" --editable "$root$(extras "$@")" || return
    if [[ ${DRY_RUN:-} != 1 ]]; then
        for extra in core "$@"; do
            echo "$key" > "$venv/dermjax-$extra"
        done
    fi
}

installed() {
    local key=$1 extra
    for extra in "${@:2}"; do
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
    local version name
    for version in $pythons; do
        # pyenv's shims are there also for versions that are not switched on, and then fail; its folders do not
        for name in "python$version" python3 python "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version".*/bin/python; do
            if makes_environments "$name" "$version"; then
                command -v "$name"
                return
            fi
        done
    done
    refuse "no Python ${pythons// /, } with venv and pip found; install one, or activate an environment"
}

# Debian's python3 is there without ensurepip until python3-venv is installed
makes_environments() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])' "$2" 2> /dev/null
}
