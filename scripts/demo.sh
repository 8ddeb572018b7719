#!/usr/bin/env bash
# Train and evaluate both networks on a synthetic mini AVA. See --help.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
usage: bash scripts/demo.sh [--seed K] [--root DIR]

Creates .venv and a synthetic mini AVA, trains both networks from random weights, and runs all nine stages. It ends with
a table of mAP, plots of the scores, and a page to watch who speaks when. It uses the first CUDA device if there is one,
else the CPU, and takes 4 to 10 minutes on two cores.

  --seed K        random seed (default: 0)
  --root DIR      output directory (default: demo/seed_K); to resume, run the same command again

Environment variables for other sizes: DEMO_VIDEOS DEMO_SECONDS DEMO_STE_EPOCHS DEMO_ASC_EPOCHS
TEXT
}

seed=0 root=''
while (($#)); do
    case $1 in
        --seed) seed=${2:?--seed needs a number} && shift 2 ;;
        --root) root=${2:?--root needs a directory} && shift 2 ;;
        -h | --help) usage && exit ;;
        *) usage >&2 && exit 2 ;;
    esac
done
export ASC_DATA_ROOT=${root:-demo/seed_$seed}
videos=$ASC_DATA_ROOT/videos/trainval models=$ASC_DATA_ROOT/models results=$ASC_DATA_ROOT/results
speakers=$ASC_DATA_ROOT/own_video
ste_epochs=${DEMO_STE_EPOCHS:-24} asc_epochs=${DEMO_ASC_EPOCHS:-3}

run() {
    printf '\n== %s\n$ python %s\n' "$1" "${*:2}"
    .venv/bin/python "${@:2}"
}

bash scripts/dev_env.sh
started=$SECONDS
device=cpu precision=()
if .venv/bin/python -c 'from core.runtime.device import get_device; get_device("0")' 2>/dev/null; then
    device=0
elif grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null; then
    precision=(--precision bf16) # twice as fast on processors that support it
fi

run "A mini AVA" scripts/make_mini_ava.py --root "$ASC_DATA_ROOT" \
    --videos "${DEMO_VIDEOS:-12}" --seconds "${DEMO_SECONDS:-12}" --seed "$seed"
# A small dataset and random weights: smaller batches than in the paper, and a higher learning rate for ASC.
.venv/bin/python scripts/run_stages.py $device --no-pretrained "${precision[@]}" --seed "$seed" \
    --ste-epochs "$ste_epochs" --ste-batch-size 16 --forward-batch-size 32 \
    --asc-epochs "$asc_epochs" --asc-learning-rate 3e-4
run "Comparison of both networks" scripts/evaluate.py --ava-video-dir "$videos" --plots "$results" \
    --json "$results/val.json" --ground-truth "$results/ground_truth_val.csv" \
    --predictions "$results/ste_predictions_val.csv" "$results/asc_predictions_val.csv"
# The validation video with the most rows. Annotated tracks are used, because the face detector must be downloaded.
csv=$(ls -S "$ASC_DATA_ROOT"/csv/val/*-activespeaker.csv | head -n 1)
video=$(basename -- "$csv" -activespeaker.csv)
run "Active speakers in one video" scripts/detect_speakers.py "$videos/$video.mp4" $device \
    --output-dir "$speakers" --tracks "$csv" "${precision[@]}" --seed "$seed" \
    --ste-weights "$models/ste_encoder/$ste_epochs.pth" \
    --asc-weights "$models/ASC_len_11_stride_4_speakers_3/$asc_epochs.pth"
printf '\nDone in %d s. See %s/scores_*.png, and open %s/review.html in a browser\n' $((SECONDS - started)) \
    "$results" "$speakers"
