#!/usr/bin/env bash
# Every numbered stage through its real command line on a small AVA made on the spot: see usage() or --help.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'EOF'
usage: bash scripts/demo.sh [--seed K] [--root DIR] [--pictures DIR]

Makes the environment and a mini AVA, trains both networks from random weights, and ends with a table of the official
mAP beside the share of positive rows, pictures of val videos' scores over time, and one film with its faces marked as
scripts/detect_speakers.py marks them. It runs on the first CUDA device if there is one, else on the CPU, where it takes
some four minutes on two cores.

  --seed K        of the films, the weights and every draw (default: 0)
  --root DIR      where everything goes (default: demo/seed_K); the same command again goes on where it was
  --pictures DIR  put the pictures that the README shows there

Sizes, as environment variables: DEMO_VIDEOS DEMO_SECONDS DEMO_STE_EPOCHS DEMO_ASC_EPOCHS
EOF
}

seed=0
root=
pictures=
while (($#)); do
    case $1 in
        --seed) seed=${2:?--seed needs a number} && shift 2 ;;
        --root) root=${2:?--root needs a directory} && shift 2 ;;
        --pictures) pictures=${2:?--pictures needs a directory} && shift 2 ;;
        -h | --help) usage && exit ;;
        *) usage >&2 && exit 2 ;;
    esac
done
export ASC_DATA_ROOT=${root:-demo/seed_$seed}

stage() {
    printf '\n== %s\n$ python %s\n' "$1" "${*:2}"
    .venv/bin/python "${@:2}"
}

bash scripts/dev_env.sh
started=$SECONDS

device=cpu precision=fp32
if .venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    device=0
elif grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null; then
    precision=bf16 # twice as fast where the processor has it
fi
models=$ASC_DATA_ROOT/models
results=$ASC_DATA_ROOT/results
ste_epochs=${DEMO_STE_EPOCHS:-24}
asc_epochs=${DEMO_ASC_EPOCHS:-3}

stage "A mini AVA" scripts/make_mini_ava.py --root "$ASC_DATA_ROOT" \
    --videos "${DEMO_VIDEOS:-12}" --seconds "${DEMO_SECONDS:-12}" --seed "$seed"
stage "1 Audio tracks" data/extract_audio_tracks.py
for split in train val; do
    stage "2 Audio slices, $split" data/slice_audio_tracks.py --split $split
    stage "3 Face crops, $split" data/extract_face_crops_time.py --split $split
done
# Few films and random weights: smaller batches than the paper's make more steps of them, and ASC needs a larger one.
stage "4 Train the short-term encoder" STE_train.py 11 $device --no-pretrained --epochs "$ste_epochs" --batch-size 16 \
    --precision $precision --seed "$seed" --resume
for split in train val; do
    stage "5 Features, $split" STE_forward.py 11 $device --split $split --precision $precision --batch-size 32 \
        --weights "$models/ste_encoder/$ste_epochs.pth"
done
stage "6 mAP of the short-term encoder" STE_postprocessing.py
stage "7 Train the context network" ASC_train.py 11 4 3 $device --epochs "$asc_epochs" --learning-rate 3e-4 \
    --seed "$seed" --resume
stage "8 Predictions in context" ASC_forward.py 11 4 3 $device --seed "$seed" \
    --weights "$models/ASC_len_11_stride_4_speakers_3/$asc_epochs.pth"
stage "9 mAP of the context network" ASC_prediction_postprocessing.py
stage "Both, compared" scripts/evaluate.py --ava-video-dir "$ASC_DATA_ROOT/videos/trainval" --plots "$results" \
    --json "$results/val.json" --ground-truth "$results/ground_truth_val.csv" \
    --predictions "$results/ste_predictions_val.csv" "$results/asc_predictions_val.csv"
# The val film with the most rows, by the annotations' tracks: finding faces would take a detector that is to be fetched.
csv=$(ls -S "$ASC_DATA_ROOT"/csv/val/*-activespeaker.csv | head -n 1)
film=$(basename -- "$csv" -activespeaker.csv)
speakers=$ASC_DATA_ROOT/own_video
stage "Who speaks when, in one film" scripts/detect_speakers.py "$ASC_DATA_ROOT/videos/trainval/$film.mp4" $device \
    --output-dir "$speakers" --tracks "$csv" --precision $precision --seed "$seed" \
    --ste-weights "$models/ste_encoder/$ste_epochs.pth" \
    --asc-weights "$models/ASC_len_11_stride_4_speakers_3/$asc_epochs.pth"
printf '\nDone in %d s. Everything is in %s; look at %s/scores_*.png and %s/*_speakers.mp4\n' $((SECONDS - started)) \
    "$ASC_DATA_ROOT" "$results" "$speakers"

if [[ -n $pictures ]]; then
    mkdir -p -- "$pictures"
    cp -- "$results/precision_recall.png" "$pictures/demo_precision_recall.png"
    scores=("$results/scores_$film.png" "$results"/scores_*.png) # drawn for the five worst videos alone
    [[ -e ${scores[0]} ]] || scores=("${scores[@]:1}")
    cp -- "${scores[0]}" "$pictures/demo_scores.png"
    cp -- "$speakers/timeline.png" "$pictures/demo_timeline.png"
    # Of the frames with the most faces, the one in which scores are furthest apart.
    .venv/bin/python - "$speakers" "$film" "$pictures/demo_frame.jpg" <<'EOF'
import sys
from pathlib import Path

import pandas as pd

from core.media.reader import VideoReader
import cv2

directory, film, target = sys.argv[1:]
moments = pd.read_csv(Path(directory, "tracks.csv")).groupby("frame_timestamp")["score"].agg(["size", "min", "max"])
moments = moments[moments["size"] == moments["size"].max()]
with VideoReader(Path(directory, f"{film}_speakers.mp4")) as marked:
    image = next(marked.frames([(moments["max"] - moments["min"]).idxmax()], 60.0))
cv2.imwrite(target, image, [cv2.IMWRITE_JPEG_QUALITY, 92])
EOF
    printf 'The pictures of the README are in %s\n' "$pictures"
fi
