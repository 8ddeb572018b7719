#!/usr/bin/env bash
# Makes the environment that everything here runs in, or brings it up to date: see usage() or --help.
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
requirements=$root/requirements.txt
lock=$root/requirements.lock
# What the last run left behind: "unfinished" while installing, then the fingerprint of what was installed.
stamp=$venv/.dev_env

usage() {
    cat <<'EOF'
usage: bash scripts/dev_env.sh

Makes .venv in the project's root and installs requirements.txt into it, in the versions of requirements.lock.
The first run takes minutes and, on Linux, about 6 GB (torch brings its CUDA libraries). Later runs do nothing
until one of these files changes. It may be run from any directory.

  PYTHON=/path/to/python3   the interpreter to use, 3.10 or newer; default: the newest of python3.13 to python3.10
                            on the PATH, else python3. To change it later, delete .venv first.

As root on Debian or Ubuntu it also installs the two system libraries that OpenCV needs, where they are missing.
EOF
}

say() { printf 'dev_env: %s\n' "$*" >&2; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# The location is part of it because the programs in .venv/bin name their interpreter by its full path.
fingerprint() {
    printf '%s %s\n' "$(cat -- "$requirements" "$lock" "${BASH_SOURCE[0]}" | cksum)" "$venv"
}

is_supported() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

is_up_to_date() {
    [[ -f $stamp && $(<"$stamp") == "$(fingerprint)" ]] && is_supported "$venv/bin/python"
}

# An environment without a stamp was made by hand, or its last update was refused: pip can go on with it. One in which
# an update was cut off may hold half a package that pip takes for a whole one; one that was moved still has programs
# that start the old place's interpreter.
is_usable() {
    if [[ -f $stamp ]]; then
        [[ $(<"$stamp") == *" $venv" ]] || return 1
    fi
    is_supported "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        is_supported "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.10 or newer that runs"
        printf '%s\n' "$PYTHON"
        return
    fi
    # Each is run, not only looked up: version managers put names on the PATH that start nothing.
    for candidate in python3.13 python3.12 python3.11 python3.10 python3; do
        if is_supported "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "no Python 3.10 or newer on the PATH: install one (Debian, Ubuntu: apt-get install python3 python3-venv)" \
        "or set PYTHON to it"
}

make_venv() {
    local python version
    python=$(find_python)
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        fail "$python has no venv module: install it (Debian, Ubuntu: apt-get install python$version-venv)"
    if [[ -e $venv || -L $venv ]]; then
        say ".venv is broken, unfinished or moved: making it anew"
        rm -rf -- "$venv"
    fi
    say "making .venv with Python $version"
    mkdir -p -- "$venv"
    printf 'unfinished\n' >"$stamp"
    "$python" -m venv "$venv" || fail "$python could not make $venv"
}

install_packages() {
    say "installing requirements.txt (the first time: some minutes, about 6 GB)"
    printf 'unfinished\n' >"$stamp"
    # pip turns Ctrl-C into an ordinary failure, after which the stamp would be removed below.
    trap 'exit 130' INT
    # A refusal (no network, no such version) leaves no stamp: the next run goes on with what is there.
    local status=0
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/python" -m pip install -r "$requirements" -c "$lock" || status=$?
    if ((status > 128)); then
        fail "pip was killed (status $status) before it had installed requirements.txt: run this again"
    elif ((status > 0)); then
        rm -f -- "$stamp"
        fail "pip could not install requirements.txt: its messages above say why; run this again to go on"
    fi
}

# opencv-python leaves these to the system, and bare servers and containers lack them.
lacks_system_libraries() {
    local message
    message=$("$venv/bin/python" -c 'import cv2' 2>&1) && return 1
    [[ $message == *'cannot open shared object file'* ]]
}

install_system_libraries() {
    local packages=(libgl1 libglib2.0-0)
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        say "OpenCV needs system libraries: apt-get install ${packages[*]}"
        # An old package list is good enough if it has the two, so the install alone decides.
        apt-get update -qq || true
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >&2 || true
    fi
    if lacks_system_libraries; then
        rm -f -- "$stamp"
        fail "OpenCV does not load without system libraries: apt-get install ${packages[*]} (as root), then run this" \
            "again"
    fi
}

main() {
    case ${1:-} in
        '') ;;
        -h | --help)
            usage
            return
            ;;
        *)
            usage >&2
            exit 2
            ;;
    esac

    # Where .venv is activated, its python must not be the one that makes it anew.
    PATH=:$PATH:
    PATH=${PATH//":$venv/bin:"/:}
    PATH=${PATH#:}
    PATH=${PATH%:}

    is_up_to_date && return

    # Two runs at once would install over each other: the second waits. Where there is no flock, it is up to the user.
    if command -v flock >/dev/null; then
        exec 9<"$root"
        flock --nonblock 9 || {
            say "waiting for another run to finish"
            flock 9
        }
        is_up_to_date && return
    fi

    is_usable || make_venv
    install_packages
    if lacks_system_libraries; then
        install_system_libraries
    fi
    # Written last and under its final name at once: whatever stops this script, the stamp never says more than is done.
    fingerprint >"$stamp.new"
    mv -f -- "$stamp.new" "$stamp"
    say "ready: $("$venv/bin/python" --version) in .venv"
}

main "$@"
