#!/usr/bin/env bash
# Download annotations, videos and weights to where core/config.py expects them. See --help.
set -euo pipefail
export LC_ALL=C # [A-Za-z] means ASCII letters
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
usage: bash scripts/downloads.sh ITEM...

  annotations  official AVA-ActiveSpeaker csv files, train and val   -> <root>/csv/{train,val}/
  utility      augmented csv files (optional)                        -> <root>/csv/
  weights      published weights, STE.pth and ASC.pth                -> <root>/models/
  videos       AVA videos, hundreds of gigabytes                     -> <root>/videos/trainval/
  videos-val   only the videos annotated in <root>/csv/val (a fifth)
  detector     YuNet face detector                                   -> <root>/models/
  lr-asd       LR-ASD's weights for AVA and for videos in the wild   -> <root>/models/lr_asd/

Existing files are skipped. An interrupted download is continued from its *.part file if the same command is run again.
Files that cannot be downloaded are listed, and the exit status is 1.

Environment variables:
  ASC_DATA_ROOT  <root>, relative to the project directory (default: ava)
  ASC_AVA_URL, ASC_UTILITY_URL, ASC_DETECTOR_URL, ASC_LR_ASD_URL  mirrors

Requires curl 7.75 or newer, tar and bzip2.
TEXT
}

ava_url=${ASC_AVA_URL:-https://s3.amazonaws.com/ava-dataset}
utility_url=${ASC_UTILITY_URL:-https://filedn.com/l0kNCNuXuEq70c3iUHsXxJ7/active-speakers-context}
detector_url=${ASC_DETECTOR_URL:-https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet}
lr_asd_url=${ASC_LR_ASD_URL:-https://github.com/Junhua-Liao/LR-ASD/raw/1b6dcd2d8fc2895683de6508ec6294ec47d388ca/weight}
detector=face_detection_yunet_2023mar.onnx
declare -A sha256=(
    [$detector]=8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4
    [pretrain_AVA.model]=85e6c77fc981595234790d1e128ebb60352d37726b2445e0ef8891e2512fe9e3
    [finetuning_TalkSet.model]=6b4ef53694e874e96cf630198dc479c78aebb3993bbf166aee3d926dfe7d9342
)
status=0

die() { printf 'error: %s\n' "$*" >&2 && exit 2; }
failed() { printf 'failed: %s: %s\n' "$@" >&2 && status=1; }

# fetch URL DIRECTORY NAME...: download URL/NAME to DIRECTORY/NAME for every NAME that does not exist yet.
fetch() {
    local url=${1%/} directory=$2 name part code http message missing=() quiet=()
    for name in "${@:3}"; do
        if [[ -s $directory/$name ]]; then echo "exists: $directory/$name"; else missing+=("$name"); fi
    done
    ((${#missing[@]})) || return 0
    mkdir -p -- "$directory"
    [[ -t 2 ]] || quiet=(--silent --no-progress-meter)
    # curl prints a line for every file it has finished. stdbuf: print it at once.
    while IFS='|' read -r part code http message; do
        name=${part##*/} name=${name%.part}
        if [[ $code != 0 ]]; then
            failed "$directory/$name" "$message ($url/$name)"
            # The server cannot continue this file: start again next time.
            [[ $code != 33 && $http != 416 ]] || rm -f -- "$part"
        elif [[ ! -s $part ]] || ! is_intact "$part" "$name"; then
            failed "$directory/$name" "empty file or wrong SHA-256 ($url/$name)"
            rm -f -- "$part"
        else
            mv -f -- "$part" "$directory/$name"
            echo "downloaded: $directory/$name"
        fi
    done < <(
        for name in "${missing[@]}"; do
            printf 'url = "%s/%s"\noutput = "%s/%s.part"\n' "$url" "$name" "$directory" "$name"
        done | stdbuf -oL curl --config - --parallel --parallel-max 4 --fail --location --continue-at - \
            --retry 4 --retry-all-errors --connect-timeout 30 --speed-limit 1000 --speed-time 60 --globoff \
            --proto '=http,https' "${quiet[@]}" \
            --write-out '%{filename_effective}|%{exitcode}|%{http_code}|%{errormsg}\n'
    )
    for name in "${missing[@]}"; do [[ -s $directory/$name ]] || status=1; done
}

# is_intact FILE NAME: true if the SHA-256 of the file is that of NAME, or if none is known.
is_intact() { [[ ! -v sha256[$2] ]] || sha256sum --check --status <<<"${sha256[$2]}  $1"; }

# unpack ARCHIVE DIRECTORY: extract regular files with names of annotations. DIRECTORY appears when it is complete.
unpack() {
    local part=$2.part name='.*/[A-Za-z0-9_-]+-activespeaker\.csv'
    rm -rf -- "$part"
    mkdir -p -- "$part"/{all,csv}
    tar --extract --bzip2 --file "$1" --directory "$part/all" --no-same-owner --wildcards '*-activespeaker.csv' &&
        find "$part/all" -type f -regex "$name" -exec mv -t "$part/csv" {} + &&
        [[ $(ls -- "$part/csv") ]] && mv -T -- "$part/csv" "$2" || failed "$2" "cannot be unpacked from $1"
    rm -rf -- "$part" "$1"
}

get_annotations() {
    local split archive
    for split in train val; do
        archive=ava_activespeaker_${split}_v1.0.tar.bz2
        if compgen -G "csv/$split/*-activespeaker.csv" >/dev/null; then echo "exists: csv/$split" && continue; fi
        fetch "$ava_url/annotations" csv "$archive"
        [[ ! -s csv/$archive ]] || unpack "csv/$archive" "csv/$split"
    done
}

# get_videos [SPLIT]: download all videos, or only those annotated in csv/SPLIT.
get_videos() {
    local list=ava_speech_file_names_v1.txt listed name names=()
    fetch "$ava_url/annotations" videos "$list"
    [[ -s videos/$list ]] || return 0
    mapfile -t listed < <(tr -d '\r' <"videos/$list" | grep -xE '[A-Za-z0-9_-]+\.[A-Za-z0-9]+')
    for name in "${listed[@]}"; do
        if [[ $# == 0 || -e csv/$1/${name%.*}-activespeaker.csv ]]; then names+=("$name"); fi
    done
    ((${#names[@]})) || failed videos/trainval "no listed video has annotations: download the annotations first"
    fetch "$ava_url/trainval" videos/trainval "${names[@]}"
}

(($#)) || { usage >&2 && exit 2; }
for item in "$@"; do
    case $item in
        -h | --help) usage && exit ;;
        annotations | utility | weights | videos | videos-val | detector | lr-asd) ;;
        *) die "unknown item $item (see --help)" ;;
    esac
done
for program in curl bzip2; do
    command -v $program >/dev/null || die "$program is missing (Debian, Ubuntu: apt-get install $program)"
done

mkdir -p -- "${ASC_DATA_ROOT:=ava}"
cd -- "$ASC_DATA_ROOT"
exec 9<.
flock --nonblock 9 || die "another download to $PWD is running"
for item in "$@"; do
    case $item in
        annotations) get_annotations ;;
        utility) fetch "$utility_url" csv ava_activespeaker_{train,val,test}_augmented.csv ;;
        weights) fetch "$utility_url" models STE.pth ASC.pth ;;
        videos) get_videos ;;
        videos-val) get_videos val ;;
        detector) fetch "$detector_url" models $detector ;;
        lr-asd) fetch "$lr_asd_url" models/lr_asd {pretrain_AVA,finetuning_TalkSet}.model ;;
    esac
done
((status == 0)) || echo "error: some downloads failed; run the same command again to retry" >&2
exit "$status"
