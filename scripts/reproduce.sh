#!/usr/bin/env bash
# Reproduce the results of the paper on AVA-ActiveSpeaker, from the downloads to the official mAP. See --help.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
usage: bash scripts/reproduce.sh [--published-weights] [--device D] [--root DIR]

Downloads AVA-ActiveSpeaker, trains both networks with the settings of the paper, and evaluates them. After each stage,
the expected output is printed. To resume, run the same command again.

  --published-weights  do not train: evaluate the authors' STE.pth and ASC.pth; downloads only the validation videos
  --device D           number of the CUDA device, or cpu (default: 0)
  --root DIR           data directory, relative to the project directory (default: ASC_DATA_ROOT, else ava)

Disk space, in addition to the videos (hundreds of gigabytes): 75 GB, or 15 GB with --published-weights.
Time, in addition to the download: about 2 hours with a GPU of 10 TFLOP/s and 16 cores (15 minutes with
--published-weights), or 4 days on two cores without a GPU (5 hours). These are estimates.

A missing or unreadable video stops the script, because all videos count in the reported mAP. To train without some of
the videos, run the printed commands one by one, and add --skip-missing to those of the short-term encoder.
TEXT
}

published='' device=0
while (($#)); do
    case $1 in
        --published-weights) published=_published && shift ;;
        --device | --root)
            (($# > 1)) || { printf 'error: %s needs a value (see --help)\n' "$1" >&2 && exit 2; }
            if [[ $1 == --root ]]; then ASC_DATA_ROOT=$2; else device=$2; fi
            shift 2
            ;;
        -h | --help) usage && exit ;;
        *) usage >&2 && exit 2 ;;
    esac
done
export ASC_DATA_ROOT=${ASC_DATA_ROOT:-ava}
models=$ASC_DATA_ROOT/models results=$ASC_DATA_ROOT/results
options=(--ste-epochs "${REPRODUCE_STE_EPOCHS:-100}" --asc-epochs "${REPRODUCE_ASC_EPOCHS:-15}") # fewer in tests
[[ -z $published ]] || options=(--published-weights)

# Report unusable devices and weights before anything large is downloaded.
check() {
    .venv/bin/python - "$@" <<'PYTHON'
import sys
from argparse import ArgumentTypeError

from core.models import active_speakers_context, imagenet_weights, short_term_encoder
from core.runtime.cli import device_name
from core.runtime.device import get_device, load_weights
from core.runtime.errors import InputError

subject, *values = sys.argv[1:]
advice = ""
try:
    if subject == "device":
        get_device(device_name(*values))
    elif subject == "imagenet":
        imagenet_weights()
    else:
        advice = "; delete the file and run the same command again to download it"
        load_weights(short_term_encoder(11), values[0], "not the encoder of the paper")
        load_weights(active_speakers_context(11, 3), values[1], "not the context network of the paper")
except (ArgumentTypeError, InputError) as error:
    print(f"error: {error}{advice}", file=sys.stderr)
    sys.exit(2)
PYTHON
}

expect() { printf 'expected on AVA: %s\n' "$1"; }

# stage NUMBER EXPECTED [OPTION...]
stage() {
    .venv/bin/python scripts/run_stages.py "$device" --stages "$1" "${options[@]}" "${@:3}"
    expect "$2"
}

trap 'printf "interrupted; run the same command again to resume\n" >&2; exit 130' INT
bash scripts/dev_env.sh
check device "$device"
needed=15
if [[ -z $published ]]; then
    needed=75
    [[ -e $models/ste_encoder/last.ckpt ]] || check imagenet # needed only for the first epoch
fi
mkdir -p -- "$ASC_DATA_ROOT"
free=$(df --output=avail --block-size=1G -- "$ASC_DATA_ROOT" | tail -n 1)
printf '%s: %d GB free, %d GB needed in addition to the videos\n' "$ASC_DATA_ROOT" "$free" "$needed"

printf '\n== Downloads\n'
if [[ $published ]]; then
    bash scripts/downloads.sh annotations weights
    check weights "$models/STE.pth" "$models/ASC.pth"
    bash scripts/downloads.sh videos-val
    expect "33 videos"
    stage 1 "33 wavs written or skipped (153 with the training videos), 0 failed"
else
    bash scripts/downloads.sh annotations videos
    expect "153 videos"
    stage 1 "153 wavs written or skipped, 0 failed"
    stage 2 "29723 slices written or skipped, 0 failed" --splits train
    stage 3 "2676314 crops written or skipped, 0 failed" --splits train
fi
stage 2 "8015 slices written or skipped, 0 failed" --splits val
stage 3 "768307 crops written or skipped, 0 failed" --splits val
if [[ -z $published ]]; then
    stage 4 "100 epochs done"
    printf 'first epoch of the released code:'
    LC_ALL=C printf ' %s %.4f' train_loss_av .4122 train_loss_audio .4527 train_loss_video .5219 train_auc .8203 \
        train_ap .5196 val_loss_av .3937 val_loss_audio .4344 val_loss_video .5141 val_auc .8473 val_ap .5725
    LC_ALL=C awk -F, 'NR == 1 { split($0, name); printf "\nfirst epoch here:" }
        NR == 2 { for (i = 3; i <= NF; i++) printf " %s %.4f", name[i], $i; print "" }' \
        "$models/ste_encoder/ste_encoder_logs.csv"
    stage 5 "features of 120 videos" --splits train
fi
stage 5 "features of 33 videos" --splits val
stage 6 "official mAP: 79.5, measured by a user of the released code"
[[ $published ]] || stage 7 "15 epochs done"
stage 8 "predictions of 33 videos"
stage 9 "official mAP: 87.1 in the paper, 83.6 retrained by others (WASD)"
printf '\n== Comparison of both networks\n'
.venv/bin/python scripts/evaluate.py --ava-video-dir "$ASC_DATA_ROOT/videos/trainval" \
    --plots "$results/report$published" --json "$results/asc_predictions_val${published}_report.json" \
    --ground-truth "$results/ground_truth_val.csv" --predictions \
    "$results/ste_predictions_val$published.csv" "$results/asc_predictions_val$published.csv"
expect "ASC 4 to 8 points above STE"
