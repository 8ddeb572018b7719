#!/usr/bin/env bash
# Fetches what the stages start from, each thing to where core/config.py expects it: see usage() or --help.
set -euo pipefail
export LC_ALL=C # [A-Za-z] below means ASCII only

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
ava_url=${ASC_AVA_URL:-https://s3.amazonaws.com/ava-dataset}
utility_url=${ASC_UTILITY_URL:-https://filedn.com/l0kNCNuXuEq70c3iUHsXxJ7/active-speakers-context}
detector_url=${ASC_DETECTOR_URL:-https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet}
jobs=${ASC_DOWNLOAD_JOBS:-4}
tries=4

usage() {
    cat <<'EOF'
usage: bash scripts/downloads.sh WHAT...

  annotations  official AVA-ActiveSpeaker csv files, train and val   -> <root>/csv/{train,val}/
  utility      augmented csv files: optional, the official ones do   -> <root>/csv/
  weights      the published STE.pth and ASC.pth                     -> <root>/models/
  videos       the films of AVA: hundreds of gigabytes               -> <root>/videos/trainval/
  videos-val   of these the ones in <root>/csv/val, a fifth: enough to evaluate
  detector     the YuNet face detector                               -> <root>/models/

What is there already is not fetched again, and what broke off goes on where it stopped (a *.part file beside its
place holds the beginning): run the same command again. A file under its final name is whole. Items that fail do not
stop the others; they are listed at the end, and the exit status is 1.

Environment:
  ASC_DATA_ROOT       <root>, as core/config.py reads it; default: ava. A relative one counts from the project's
                      root, where the other scripts are run, wherever this one is called from.
  ASC_DOWNLOAD_JOBS   films fetched at a time; default: 4
  ASC_AVA_URL         other places to fetch from, say a mirror: of AVA (with annotations/ and trainval/ below it),
  ASC_UTILITY_URL     of the augmented csv files and the weights,
  ASC_DETECTOR_URL    of the detector's file

Needs curl and python3.
EOF
}

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "error: $*"
    exit 2
}

# note_failure ITEM REASON: for now and for the list at the end: a file, because films run in processes of their own.
note_failure() {
    say "failed: $1: $2"
    printf '  %s: %s\n' "$1" "$2" >>"$failures"
}

# Prints why a file cannot be what was asked for, or nothing: servers answer with pages where a file has moved, and
# repositories that keep large files elsewhere answer with a note of where.
wrong_content() {
    local start
    [[ -s $1 ]] || printf 'the server sent an empty file'
    start=$(head -c 512 -- "$1" | tr -d '\0' | tr '[:upper:]' '[:lower:]')
    case $start in
        *'<!doctype html'* | *'<html'*) printf 'the server sent a web page instead of the file' ;;
        '<?xml'*) printf 'the server sent an XML message instead of the file' ;;
        'version https://git-lfs.'*) printf 'the server sent a Git LFS pointer instead of the file' ;;
        *) ;;
    esac
}

# fetch URL FILE: FILE is whole afterwards, or not there and the reason noted. In a subshell, which holds the lock.
fetch() (
    url=$1 file=$2 part=$2.part
    if [[ -s $file ]]; then
        say "there already: $file"
        return 0
    fi
    if ! { mkdir -p -- "$(dirname -- "$file")" && : >>"$part"; }; then
        note_failure "$file" "cannot be written"
        return 1
    fi
    exec 9>>"$part"
    # Two writers would mix their bytes. Where there is no flock, it is up to the user.
    if command -v flock >/dev/null && ! flock --nonblock 9; then
        note_failure "$file" "another run is fetching it"
        return 1
    fi
    if [[ -s $file ]]; then
        say "fetched by another run: $file"
        return 0
    fi

    pause=0
    for ((try = 1; try <= tries; try++)); do
        sleep "$pause"
        pause=$((2 ** try))
        status=0
        # --write-out goes to stdout; the body goes on in $part from where it ends.
        code=$(curl --fail --location --globoff --proto '=http,https' --continue-at - --output "$part" \
            --connect-timeout 30 --speed-limit 1000 --speed-time 60 "${progress[@]}" --show-error \
            --write-out '%{http_code}' -- "$url") || status=$?
        if ((status == 33)) || [[ $code == 416 ]]; then
            # The server cannot go on from there: it does not know how to, or its file ends before or at that point.
            : >"$part"
            reason="the server cannot continue a download"
            pause=0
            continue
        fi
        case $status in
            0)
                reason=$(wrong_content "$part")
                if [[ -n $reason ]]; then
                    : >"$part"
                    break
                fi
                if mv -f -- "$part" "$file"; then
                    say "fetched: $file"
                    return 0
                fi
                reason="cannot be written"
                break
                ;;
            18 | 56) reason="the connection broke off (curl's status $status)" ;;
            22)
                reason="the server answered $code"
                # What is not there, or not ours to have, will not be there in a second.
                [[ $code == 5?? || $code == 408 || $code == 429 ]] || break
                ;;
            *) reason="curl's status $status" ;;
        esac
    done
    [[ -s $part ]] || rm -f -- "$part"
    note_failure "$file" "$reason: $url"
    return 1
)

# unpack ARCHIVE FOLDER: only plain files named like annotations, whatever else an archive may hold and wherever it
# would put it. FOLDER appears when all are written.
unpack() {
    local archive=$1 folder=$2
    rm -rf -- "$folder.part"
    mkdir -p -- "$folder.part"
    "$python" - "$archive" "$folder.part" <<'EOF' || return 1
import os, re, shutil, sys, tarfile

archive, folder = sys.argv[1:]
count = 0
try:
    with tarfile.open(archive) as members:
        for member in members:
            *parents, name = member.name.split("/")
            if member.isdir():
                continue
            unsafe = not member.isfile() or ".." in parents or member.name.startswith("/")
            if unsafe or not re.fullmatch(r"[A-Za-z0-9_-]+-activespeaker\.csv", name):
                print(f"left out of {os.path.basename(archive)}: {member.name!r}", file=sys.stderr)
                continue
            with open(os.path.join(folder, name), "xb") as target:
                shutil.copyfileobj(members.extractfile(member), target)
            count += 1
except (tarfile.TarError, EOFError, OSError) as error:
    sys.exit(f"{archive}: {error}")
if not count:
    sys.exit(f"{archive}: holds no annotations")
EOF
    # An empty folder made by hand is no obstacle; anything else in it is the user's.
    rmdir -- "$folder" 2>/dev/null || true
    if [[ -e $folder ]]; then
        say "$folder holds something else: move it away"
        return 1
    fi
    mv -- "$folder.part" "$folder"
}

get_annotations() {
    local split archive folder files
    for split in train val; do
        folder=$csv_dir/$split
        files=("$folder"/*-activespeaker.csv)
        if [[ -e ${files[0]} ]]; then
            say "there already: $folder (${#files[@]} files)"
            continue
        fi
        archive=$csv_dir/ava_activespeaker_${split}_v1.0.tar.bz2
        fetch "$ava_url/annotations/${archive##*/}" "$archive" || continue
        if unpack "$archive" "$folder"; then
            files=("$folder"/*-activespeaker.csv)
            say "unpacked: $folder (${#files[@]} files)"
            rm -f -- "$archive"
        else
            # Fetched anew next time, as it may be the archive that is damaged.
            rm -rf -- "$archive" "$folder.part"
            note_failure "$folder" "cannot be unpacked from ${archive##*/}"
        fi
    done
}

get_utility() {
    local split
    for split in train val test; do
        fetch "$utility_url/ava_activespeaker_${split}_augmented.csv" \
            "$csv_dir/ava_activespeaker_${split}_augmented.csv" || true
    done
}

get_weights() {
    fetch "$utility_url/STE.pth" "$models_dir/STE.pth" || true
    fetch "$utility_url/ASC.pth" "$models_dir/ASC.pth" || true
}

get_detector() {
    local name=face_detection_yunet_2023mar.onnx
    fetch "$detector_url/$name" "$models_dir/$name" || true
}

fetch_film() {
    fetch "$ava_url/trainval/$1" "$films_dir/$1"
}

# get_videos [SPLIT]: all films, or those that this split has annotations of.
get_videos() {
    local split=${1:-} name names=() list
    list=$(dirname -- "$films_dir")/ava_speech_file_names_v1.txt
    fetch "$ava_url/annotations/ava_speech_file_names_v1.txt" "$list" || return 0
    while IFS= read -r name || [[ -n $name ]]; do
        name=${name%$'\r'}
        [[ -n $name ]] || continue
        # The list comes from elsewhere, and its names become paths here.
        if [[ ! $name =~ ^[A-Za-z0-9_-]+\.[A-Za-z0-9]+$ ]]; then
            note_failure "$(printf '%q' "$name")" "not a plain film name: left out"
        elif [[ -z $split || -e $csv_dir/$split/${name%.*}-activespeaker.csv ]]; then
            names+=("$name")
        fi
    done <"$list"
    say "${#names[@]} films, $jobs at a time"
    if ((!${#names[@]})); then
        [[ -z $split ]] || note_failure "$csv_dir/$split" "annotations of no listed film: fetch them first"
        return 0
    fi

    export failures films_dir ava_url tries
    export -f fetch fetch_film note_failure say wrong_content
    # Several progress bars would overwrite each other. 123: some failed, and each has noted it.
    # shellcheck disable=SC2016 # expanded by the inner shell
    printf '%s\n' "${names[@]}" | xargs -n 1 -P "$jobs" bash -c \
        'set -euo pipefail; progress=(--silent); fetch_film "$1"' fetch_film ||
        [[ $? == 123 ]] || note_failure "$films_dir" "stopped before all films were tried"
}

main() {
    local what
    (($#)) || {
        usage >&2
        exit 2
    }
    for what in "$@"; do
        case $what in
            -h | --help)
                usage
                return
                ;;
            annotations | utility | weights | videos | videos-val | detector) ;;
            *)
                usage >&2
                fail "not known: $what"
                ;;
        esac
    done
    ava_url=${ava_url%/} utility_url=${utility_url%/} detector_url=${detector_url%/}
    [[ $jobs =~ ^[1-9][0-9]*$ ]] || fail "ASC_DOWNLOAD_JOBS must be a positive number, not $jobs"
    command -v curl >/dev/null || fail "curl is missing (Debian, Ubuntu: apt-get install curl ca-certificates)"
    python=$root/.venv/bin/python
    [[ -x $python ]] || python=$(command -v python3) || fail "python3 is missing: run scripts/dev_env.sh first"

    cd -- "$root"
    local paths
    paths=$(PYTHONPATH=$root "$python" -c '
import os
from core import config
for path in config.annotation_csvs["val"], config.STE_forward_params["weights"]:
    print(os.path.abspath(os.path.dirname(path)))
print(os.path.abspath(config.data_inputs["ava_video_dir"]))')
    { read -r csv_dir && read -r models_dir && read -r films_dir; } <<<"$paths"

    progress=(--silent)
    [[ ! -t 2 ]] || progress=(--progress-bar)
    failures=$(mktemp)
    trap 'rm -f -- "$failures"' EXIT
    for what in "$@"; do
        case $what in
            videos-val) get_videos val ;;
            *) "get_$what" ;;
        esac
    done
    if [[ -s $failures ]]; then
        say "error: $(grep -c '' "$failures") failed; run the same command again to go on:"
        cat -- "$failures" >&2
        exit 1
    fi
}

main "$@"
