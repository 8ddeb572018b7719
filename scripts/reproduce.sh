#!/usr/bin/env bash
# Reproduce the results of the paper on AVA-ActiveSpeaker, from the downloads to the official mAP. See --help.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
usage: bash scripts/reproduce.sh [--published-weights] [--device D] [--root DIR]

Downloads AVA-ActiveSpeaker, trains both networks with the settings of the paper, and evaluates them. At the end, the
expected output of each stage is printed. To resume, run the same command again.

  --published-weights  do not train: evaluate the authors' STE.pth and ASC.pth; downloads only the validation videos
  --device D           number of the CUDA device, or cpu (default: 0)
  --root DIR           data directory, relative to the project directory (default: ASC_DATA_ROOT, else ava)

Disk space, in addition to the videos (hundreds of gigabytes): 75 GB, or 15 GB with --published-weights.
Time, in addition to the download: about 1.3 hours with a GPU of 20 TFLOP/s and 16 cores (10 minutes with
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
            (($# > 1)) || { usage >&2 && exit 2; }
            if [[ $1 == --root ]]; then ASC_DATA_ROOT=$2; else device=$2; fi
            shift 2
            ;;
        -h | --help) usage && exit ;;
        *) usage >&2 && exit 2 ;;
    esac
done
export ASC_DATA_ROOT=${ASC_DATA_ROOT:-ava}
results=$ASC_DATA_ROOT/results
if [[ $published ]]; then
    downloads=(annotations weights videos-val) options=(--published-weights --splits val)
else
    downloads=(annotations videos)
    options=(--ste-epochs "${REPRODUCE_STE_EPOCHS:-100}" --asc-epochs "${REPRODUCE_ASC_EPOCHS:-15}") # fewer in tests
fi

trap 'printf "interrupted; run the same command again to resume\n" >&2; exit 130' INT
bash scripts/dev_env.sh
# An unusable device and missing ImageNet weights are errors before anything large is downloaded.
.venv/bin/python - "$device" "$published" <<'PYTHON'
from pathlib import Path

from core.config import STE_inputs
from core.models import imagenet_weights
from core.runtime import cli
from core.runtime.device import get_device


def check(args):
    get_device(args.device)
    if not args.published and not Path(STE_inputs["models_out"], "ste_encoder", "last.ckpt").exists():
        imagenet_weights(depth=18)


parser = cli.Parser(None)
parser.add_argument("device", type=cli.device_name)
parser.add_argument("published")
cli.launch(check, parser)
PYTHON

printf '\n== Downloads\n'
bash scripts/downloads.sh "${downloads[@]}"
.venv/bin/python scripts/run_stages.py "$device" "${options[@]}"
printf '\n== Comparison of both networks\n'
.venv/bin/python scripts/evaluate.py --ava-video-dir "$ASC_DATA_ROOT/videos/trainval" \
    --plots "$results/report$published" --json "$results/asc_predictions_val${published}_report.json" \
    --ground-truth "$results/ground_truth_val.csv" --predictions \
    "$results/ste_predictions_val$published.csv" "$results/asc_predictions_val$published.csv"
cat <<'TEXT'

== Expected on AVA (with --published-weights: only val, no stages 4 and 7)
stage 1: 153 wavs (val: 33)
stage 2: 29723 slices (train), 8015 slices (val)
stage 3: 2676314 crops (train), 768307 crops (val)
stage 4: first epoch of the released code, in models/ste_encoder/ste_encoder_logs.csv:
    train_loss_av 0.4122, train_loss_audio 0.4527, train_loss_video 0.5219, train_auc 0.8203, train_ap 0.5196
    val_loss_av 0.3937, val_loss_audio 0.4344, val_loss_video 0.5141, val_auc 0.8473, val_ap 0.5725
stage 5: features of 120 of 120 videos (train), features of 33 of 33 videos (val)
stage 6: official mAP 79.5, measured by a user of the released code
stage 8: predictions of 33 videos
stage 9: official mAP 87.1 in the paper, 83.6 retrained by others (WASD)
TEXT
