#!/usr/bin/env bash
# The paper's numbers on AVA-ActiveSpeaker: every numbered stage, from the downloads on: see usage() or --help.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'EOF'
usage: bash scripts/reproduce.sh [--published-weights] [--device D] [--root DIR]

Fetches AVA-ActiveSpeaker, trains both networks with the paper's settings and ends with the official mAP. After each
stage stands what it should have said. The same command goes on where it was, however it ended.

  --published-weights  train nothing: evaluate the authors' STE.pth and ASC.pth, for which val alone is fetched
  --device D           number of the CUDA device, or cpu (default: 0)
  --root DIR           where everything goes, seen from the project's directory (default: ASC_DATA_ROOT, else ava)

Disk, beside the films (hundreds of gigabytes): 75 GB, or 15 GB with --published-weights. Time, beside the download:
two hours with a GPU of 10 TFLOP/s and 16 cores, a quarter of an hour with --published-weights; on two cores without a
GPU four days, or five hours. The last two are reckoned from rates that were measured, the others from those that
docs/scale.md assumes.

A film that cannot be had or read ends it: all of them count in the figures. To go on without some of train, run the
stages that it prints one by one, those of the encoder with --skip-missing; where one of val lacks, evaluation refuses.
EOF
}

published='' device=0
while (($#)); do
    case $1 in
        --published-weights) published=_published && shift ;;
        --device | --root)
            (($# > 1)) || { printf 'error: %s needs a value (--help says more)\n' "$1" >&2 && exit 2; }
            if [[ $1 == --root ]]; then ASC_DATA_ROOT=$2; else device=$2; fi
            shift 2
            ;;
        -h | --help) usage && exit ;;
        *) usage >&2 && exit 2 ;;
    esac
done
export ASC_DATA_ROOT=${ASC_DATA_ROOT:-ava}
# For tests: a run of other sizes needs a root of its own.
ste_epochs=${REPRODUCE_STE_EPOCHS:-100} asc_epochs=${REPRODUCE_ASC_EPOCHS:-15}

# stage NAME EXPECTED COMMAND...: ends this script with the command's exit status where that fails.
stage() {
    local name=$1 expected=$2 status=0
    shift 2
    printf '\n== %s\n$ ASC_DATA_ROOT=%q' "$name" "$ASC_DATA_ROOT"
    printf ' %q' "$@"
    printf '\n'
    if [[ $1 == python ]]; then
        .venv/bin/python "${@:2}" || status=$?
    else
        "$@" || status=$?
    fi
    if ((status)); then
        printf 'error: "%s" ended with exit status %d; once the reason above is mended, the same command goes on\n' \
            "$name" "$status" >&2
        exit "$status"
    fi
    printf 'on AVA: %s\n' "$expected"
}

# Python dies of a Ctrl-C while it loads torch, and downloads.sh always: neither says how to go on.
trap 'printf "interrupted: the same command goes on\n" >&2; exit 130' INT
bash scripts/dev_env.sh
# Before anything large is fetched: is the device there, are ImageNet's weights? Then how much is free, and where things
# lie. ImageNet's are needed for the first epoch alone.
places=$(
    .venv/bin/python - "$device" "$published" <<'EOF'
import os
import shutil
import sys
from argparse import ArgumentTypeError

from core import config
from core.runtime.cli import device_name
from core.runtime.errors import InputError
from core.models import imagenet_weights
from core.runtime.device import get_device

try:
    get_device(device_name(sys.argv[1]))
    if not (sys.argv[2] or os.path.exists(os.path.join(config.STE_inputs["models_out"], "ste_encoder", "last.ckpt"))):
        imagenet_weights()
    os.makedirs(config.DATA_ROOT, exist_ok=True)
    print(shutil.disk_usage(config.DATA_ROOT).free >> 30)
except (ArgumentTypeError, InputError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
print(config.STE_inputs["models_out"])
print(config.ASC_inputs["models_out"])
print(os.path.dirname(config.STE_forward_params["weights"]))  # where downloads.sh puts both
print(config.STE_forward_params["output_dir"])
print(config.ASC_forward_params["output_dir"])
for stage in ("ste", "asc"):
    print(os.path.splitext(config.postprocessing_params[f"{stage}_predictions_csv"])[0])
print(config.postprocessing_params["ground_truth_csv"])
print(config.data_inputs["ava_video_dir"])
EOF
)
{
    IFS= read -r free && IFS= read -r ste_models && IFS= read -r asc_models && IFS= read -r published_models &&
        IFS= read -r features && IFS= read -r predictions && IFS= read -r ste_scores && IFS= read -r asc_scores &&
        IFS= read -r truth && IFS= read -r films
} <<<"$places"
# Results of other weights are not mixed with one's own.
features+=$published predictions+=$published ste_scores+=$published.csv asc_scores+=$published.csv
splits=(train val) wavs=153 needs=75
ste=$ste_models/ste_encoder/$ste_epochs.pth asc=$asc_models/ASC_len_11_stride_4_speakers_3/$asc_epochs.pth
if [[ $published ]]; then
    splits=(val) wavs='33 (with the films of train 153)' needs=15
    ste=$published_models/STE.pth asc=$published_models/ASC.pth
fi
warning=
((free > needs)) || warning='warning: '
printf '%s%d GB are free in %s; all that is made, part of which may be there already, takes %d GB beside the films\n' \
    "$warning" "$free" "$ASC_DATA_ROOT" "$needs"

declare -A slices=([train]=29723 [val]=8015) crops=([train]=2676314 [val]=768307) videos=([train]=120 [val]=33)
if [[ $published ]]; then
    stage "Annotations and weights" "120 and 33 annotated films, STE.pth, ASC.pth" \
        bash scripts/downloads.sh annotations weights
    .venv/bin/python - "$ste" "$asc" <<'EOF'
import sys

from core.runtime.errors import InputError
from core.models import active_speakers_context, short_term_encoder
from core.runtime.device import load_weights

try:
    load_weights(short_term_encoder(11), sys.argv[1], "not the paper's encoder")
    load_weights(active_speakers_context(11, 3), sys.argv[2], "not the paper's context network")
except InputError as error:
    print(f"error: {error} (remove it, and the same command fetches it again)", file=sys.stderr)
    sys.exit(2)
EOF
    stage "Films of val" "33 films" bash scripts/downloads.sh videos-val
else
    stage "Annotations and films" "153 films" bash scripts/downloads.sh annotations videos
fi
stage "1 Audio tracks" "$wavs wavs, written or there already; 0 failed" python data/extract_audio_tracks.py
for split in "${splits[@]}"; do
    stage "2 Audio slices, $split" "${slices[$split]} slices, written or there already; 0 failed" \
        python data/slice_audio_tracks.py --split "$split"
    stage "3 Face crops, $split" "${crops[$split]} crops, written or there already; 0 failed" \
        python data/extract_face_crops_time.py --split "$split"
done
if [[ ! $published ]]; then
    stage "4 Train the short-term encoder" "100 epochs done; the first of them, as users of the released code saw it:" \
        python STE_train.py 11 "$device" --epochs "$ste_epochs" --resume
    line='train loss_av %.4f loss_audio %.4f loss_video %.4f auc %.4f ap %.4f  |  '
    line+='val loss_av %.4f loss_audio %.4f loss_video %.4f auc %.4f ap %.4f\n'
    # Where decimals have a comma, 0.4122 is no number.
    # shellcheck disable=SC2059 # one format for both
    LC_ALL=C printf "        $line" 0.4122 0.4527 0.5219 0.8203 0.5196 0.3937 0.4344 0.5141 0.8473 0.5725
    LC_ALL=C awk -F, "NR == 2 {printf \"here:   $line\", \$3, \$4, \$5, \$6, \$7, \$8, \$9, \$10, \$11, \$12}" \
        "$ste_models/ste_encoder/ste_encoder_logs.csv"
fi
for split in "${splits[@]}"; do
    stage "5 Features, $split" "features of ${videos[$split]} videos" python STE_forward.py 11 "$device" \
        --split "$split" --weights "$ste" --output-dir "$features/$split"
done
stage "6 mAP of the short-term encoder" "official mAP: 79.5, as a user of the released code measured it" \
    python STE_postprocessing.py --forward-dir "$features/val" --predictions-csv "$ste_scores"
if [[ ! $published ]]; then
    stage "7 Train the context network" "15 epochs done" \
        python ASC_train.py 11 4 3 "$device" --epochs "$asc_epochs" --resume
fi
stage "8 Predictions in context" "predictions of 33 videos" python ASC_forward.py 11 4 3 "$device" \
    --features-val-full "$features/val" --weights "$asc" --output-dir "$predictions"
paper="official mAP: 87.1 in the paper"
[[ $published ]] || paper+=", 83.6 as others (WASD) retrained it"
stage "9 mAP of the context network" "$paper" \
    python ASC_prediction_postprocessing.py --predictions-dir "$predictions" --predictions-csv "$asc_scores"
stage "Both, compared" "the context network 4 to 8 points above the encoder" python scripts/evaluate.py \
    --ava-video-dir "$films" --plots "$(dirname -- "$asc_scores")/report$published" \
    --json "${asc_scores%.csv}_report.json" --ground-truth "$truth" --predictions "$ste_scores" "$asc_scores"
