#!/usr/bin/env bash
# Create or update .venv. See --help.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
usage: bash scripts/dev_env.sh

Creates .venv and installs requirements.txt in the versions of requirements.lock. The first run takes several minutes
and about 6 GB. Later runs do nothing until one of these files changes.

  PYTHON=/path/to/python3  interpreter, 3.11 or newer (default: the newest on the PATH); to change it, delete .venv

As root on Debian or Ubuntu, the system libraries of OpenCV are installed as well.
TEXT
}

die() { printf 'error: %s\n' "$*" >&2 && exit 1; }
is_supported() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

case ${1:-} in
    '') ;;
    -h | --help) usage && exit ;;
    *) usage >&2 && exit 2 ;;
esac

python=.venv/bin/python stamp=.venv/.dev_env
checksum=$(cat requirements.txt requirements.lock scripts/dev_env.sh | sha256sum)
if [[ -f $stamp && $(<"$stamp") == "$checksum" ]] && is_supported $python; then exit; fi

# A killed installation may have left incomplete packages, so it starts again with an empty environment.
if ! is_supported $python || [[ -f $stamp && $(<"$stamp") == unfinished ]]; then
    PATH=${PATH//"$PWD/.venv/bin:"/} # the environment cannot recreate itself
    candidates=(python3.13 python3.12 python3.11 python3)
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if is_supported "$candidate"; then break; fi
    done
    is_supported "$candidate" || die "no Python 3.11 or newer with venv (${candidates[*]});" \
        "install one (Debian, Ubuntu: apt-get install python3 python3-venv) or set PYTHON"
    "$candidate" -m venv --clear .venv
fi

trap 'exit 130' INT # pip turns Ctrl-C into an ordinary error
echo unfinished >$stamp
status=0
PIP_DISABLE_PIP_VERSION_CHECK=1 $python -m pip install -r requirements.txt -c requirements.lock || status=$?
((status > 128)) || rm -f $stamp # unless it was killed, pip can continue in the same environment
((status == 0)) || die "pip could not install requirements.txt; see above"

# Bare servers and containers lack two system libraries of opencv-python.
if ! $python -c 'import cv2' 2>/dev/null; then
    libraries=(libgl1 libglib2.0-0)
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        apt-get update -qq || true # an old package list may be good enough
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${libraries[@]}" >&2 || true
    fi
    $python -c 'import cv2' || die "OpenCV cannot be imported; install ${libraries[*]} and run this script again"
fi
echo "$checksum" >$stamp
