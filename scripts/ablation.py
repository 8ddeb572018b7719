"""Ablation of the context network: refinements, speakers, steps and stride, each with several seeds.

    python scripts/ablation.py cpu --output-dir ablation --precision bf16
    python scripts/ablation.py 0 --features-train-full ava/ste_features/train --features-val-full ava/ste_features/val

The first command generates a mini AVA that needs context, trains the short-term encoder on it and extracts its
features. It takes 6 GB of disk, and 50 minutes on two cores with bfloat16. The second command uses existing features
and their annotations. Written to the output directory:

    ablation.md, ablation.json    mAP of every network: mean, standard deviation and single runs
    ablation.png                  one panel per axis
    seed_<K>/<network>/           weights and logs of every run

The table includes the short-term encoder alone and baselines with a single cue. To resume, run the same command again;
other settings need another output directory.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core import ablation
from core.config import ASC_optimization_params, annotation_csvs
from core.formats.annotations import read_annotations
from core.formats.features import FeatureStore, encoder_of, require_same_encoder
from core.reports.plots import plot_ablation
from core.runtime import cli
from core.runtime.device import device_label, get_device, set_precision
from core.runtime.errors import InputError
from core.runtime.files import write_bytes, write_json

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "val")
MINI_AVA_DEFAULTS = {"epochs": 2, "learning_rate": 3e-4}  # for 1 % of AVA's rows


def get_args_parser() -> cli.Parser:
    params, mini_ava = ASC_optimization_params, MINI_AVA_DEFAULTS
    epochs = f"context networks: epochs (default: {mini_ava['epochs']} on a mini AVA, else {params['epochs']})"
    rate = f"{mini_ava['learning_rate']} on a mini AVA, else {params['learning_rate']}"
    parser = cli.Parser(__doc__)
    parser.add_argument("cuda_device", type=cli.device_name, help="number of the CUDA device, or cpu")
    parser.add_argument("--output-dir", default="ablation", help="output directory")
    parser.add_argument("--features-train-full", help="training features (default: those of a mini AVA)")
    parser.add_argument("--features-val-full", help="validation features")
    parser.add_argument("--csv-train-full", help="annotations of the training features (default: AVA's)")
    parser.add_argument("--csv-val-full", help="annotations of the validation features (default: AVA's)")
    cli.add_clip_boxes_argument(parser)
    cli.add_mismatch_argument(parser)
    parser.add_argument("--videos", type=cli.positive_int, default=45, help="mini AVA: number of videos")
    parser.add_argument("--seconds", type=cli.positive_float, default=16.0, help="mini AVA: length of each video")
    parser.add_argument("--clip-length", type=cli.odd_positive, default=11, help="short-term encoder: crops per clip")
    parser.add_argument("--ste-epochs", type=cli.positive_int, default=50, help="short-term encoder: number of epochs")
    parser.add_argument("--epochs", type=cli.positive_int, help=epochs)
    parser.add_argument("--batch-size", type=cli.positive_int, default=params["batch_size"], help="contexts per batch")
    parser.add_argument("--learning-rate", type=cli.positive_float, help=f"initial learning rate (default: {rate})")
    cli.add_workers_argument(parser, params["workers"])
    cli.add_precision_argument(parser, params["precision"], training=True)
    parser.add_argument("--seeds", type=cli.positive_int, default=3, help="number of consecutive seeds per network")
    parser.add_argument("--seed", type=cli.seed, default=0, help="seed of the mini AVA, the encoder and the first runs")
    return parser


def make_features(args: argparse.Namespace, root: Path) -> int:
    """Make a mini AVA and run stages 1 to 5 on it. Returns an exit status; the stages print their errors."""
    mini_ava = ("--videos", args.videos, "--seconds", args.seconds, "--seed", args.seed)
    encoder = ("--clip-length", args.clip_length, "--no-pretrained", "--ste-epochs", args.ste_epochs)
    options = ("--ste-batch-size", 16, "--forward-batch-size", 32, "--precision", args.precision, "--seed", args.seed)
    for script, *arguments in (
        ("scripts/make_mini_ava.py", "--root", root, "--hard", *mini_ava),
        ("scripts/run_stages.py", args.cuda_device, "--stages", "1-5", *encoder, *options),
    ):
        command = [script, *map(str, arguments)]
        print("\n$ python", *command)
        environment = {**os.environ, "ASC_DATA_ROOT": str(root)}
        status = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=False).returncode
        if status:
            return status
    return 0


def main(args: argparse.Namespace) -> int:
    output_dir = Path(args.output_dir)
    root = (output_dir / "mini_ava").absolute()
    given = (args.features_train_full, args.features_val_full, args.csv_train_full, args.csv_val_full)
    defaults = ASC_optimization_params
    if all(given[:2]):
        features = dict(zip(SPLITS, given[:2], strict=True))
        csvs = {split: getattr(args, f"csv_{split}_full") or annotation_csvs[split] for split in SPLITS}
    elif any(given):
        raise InputError("pass both --features-train-full and --features-val-full, or no features and annotations")
    else:
        features = {split: root / "ste_features" / split for split in SPLITS}
        csvs = {split: root / "csv" / split for split in SPLITS}
        defaults = MINI_AVA_DEFAULTS
    args.epochs = args.epochs or defaults["epochs"]
    args.learning_rate = args.learning_rate or defaults["learning_rate"]
    device = get_device(args.cuda_device)
    args.precision = set_precision(args.precision, device)
    cli.print_settings(vars(args))
    started = time.monotonic()
    if not any(given) and (status := make_features(args, root)):
        return status
    annotations = {split: read_annotations(csvs[split], args.clip_boxes) for split in SPLITS}
    stores = {split: FeatureStore(features[split]) for split in SPLITS}
    seeds = list(range(args.seed, args.seed + args.seeds))
    encoders = {path: encoder_of(path) for path in features.values()}
    require_same_encoder(encoders, args.allow_mismatch)
    params = {
        **ASC_optimization_params,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "workers": args.workers,
        "precision": args.precision,
        **encoders[features["train"]],
    }

    print(f"\n{device_label(device)}; training baselines on {len(stores['train'].table)} rows")
    references = ablation.references(annotations, stores, seeds)
    runs = [(variant, run_seed) for run_seed in seeds for variant in ablation.VARIANTS]
    results = {}
    for index, (variant, run_seed) in enumerate(runs):
        print(f"\n{index + 1} of {len(runs)}: {variant.name}, seed {run_seed}")
        value = ablation.train_variant(variant, stores, output_dir, params, run_seed, device)
        results[variant, run_seed] = value
        print(f"mAP: {100 * value:.2f}")

    table = ablation.tabulate(references, results, seeds)
    text = ablation.markdown(table)
    write_bytes(output_dir / "ablation.md", text.encode())
    without_nan = table.astype(object).where(table.notna(), None)  # JSON has no NaN
    write_json(output_dir / "ablation.json", {**vars(args), "table": without_nan.to_dict("records")})
    plot_ablation(output_dir / "ablation.png", table, ablation.STE)
    print(f"\n{text}\n{time.monotonic() - started:.0f} s; results: {output_dir}/ablation.md, .json, .png")
    return 0


if __name__ == "__main__":
    cli.launch(main, get_args_parser())
