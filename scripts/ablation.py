"""What context is worth: the paper's ablation of refinements, speakers, moments and stride, three seeds of each.

    python scripts/ablation.py cpu --output-dir ablation --precision bf16
    python scripts/ablation.py 0 --features-train-full ava/ste_features/train --features-val-full ava/ste_features/val

The first makes a mini AVA on which context is needed, trains one short-term encoder on it and takes its features; the
second begins with features at hand, AVA's or others, and their annotations. Both write, into the output directory,

    ablation.md, ablation.json    the one table: mean and standard deviation over the seeds, single runs
    ablation.png                  a panel for each axis
    seed_<K>/<network>/           weights and logs of every run

The same command goes on where it was; other sizes or recipes need another directory. Baselines that see one cue
alone, and the encoder itself, are in the table too. The first takes 6 GB, and 50 minutes on two cores with bfloat16.
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
from core.formats.features import FeatureStore, encoder_sha256
from core.reports.plots import plot_ablation
from core.runtime.cli import (
    Parser,
    device_name,
    launch,
    odd_positive,
    positive_float,
    positive_int,
    print_settings,
    seed,
    worker_count,
)
from core.runtime.device import device_label, get_device
from core.runtime.errors import InputError, RunError
from core.runtime.files import write_bytes, write_json

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "val")
ON_MINI_AVA = {"epochs": 2, "learning_rate": 3e-4}  # a hundredth of AVA's rows: fewer and larger steps do


def get_args_parser() -> Parser:
    defaults = ASC_optimization_params

    def default_of(name: str) -> str:
        return f"(default: {ON_MINI_AVA[name]} on the mini AVA, {defaults[name]} on features at hand)"

    parser = Parser(__doc__)
    parser.add_argument("cuda_device", type=device_name, help="number of the CUDA device, or cpu")
    parser.add_argument("--output-dir", default="ablation", help="everything goes here")
    parser.add_argument("--features-train-full", help="features to train on (default: those of a mini AVA)")
    parser.add_argument("--features-val-full", help="features to validate on")
    parser.add_argument("--csv-train-full", help=f"their annotations (default: {annotation_csvs['train']})")
    parser.add_argument("--csv-val-full", help=f"their annotations (default: {annotation_csvs['val']})")
    parser.add_argument("--videos", type=positive_int, default=45, help="films of the mini AVA")
    parser.add_argument("--seconds", type=positive_float, default=16.0, help="length of each of them")
    parser.add_argument("--clip-length", type=odd_positive, default=11, help="crops in the encoder's clips")
    parser.add_argument("--ste-epochs", type=positive_int, default=50, help="passes of the encoder over the tracks")
    parser.add_argument("--epochs", type=positive_int, help=f"passes of each context network {default_of('epochs')}")
    parser.add_argument(
        "--batch-size", type=positive_int, default=defaults["batch_size"], help="contexts a step of theirs"
    )
    parser.add_argument("--learning-rate", type=positive_float, help=f"of Adam {default_of('learning_rate')}")
    parser.add_argument(
        "--workers", type=worker_count, default=defaults["workers"], help="processes that read their data"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of all networks")
    parser.add_argument("--seeds", type=positive_int, default=3, help="runs of each context network")
    parser.add_argument("--seed", type=seed, default=0, help="of films, encoder and the first run; the others follow")
    return parser


def make_features(args: argparse.Namespace, root: Path) -> dict[str, dict[str, str]]:
    """Run the numbered stages up to the features on a mini AVA, each of which skips what it has done.

    Returns the directories of features and of annotations by split. Raises InputError or RunError as a stage does.
    """
    device, weights = args.cuda_device, root / "models" / "ste_encoder" / f"{args.ste_epochs}.pth"
    precision = ("--precision", args.precision)

    def stage(script: str, *arguments: object) -> None:
        command = [script, *map(str, arguments)]
        print("\n$ python", *command)
        code = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env={**os.environ, "ASC_DATA_ROOT": str(root)}, check=False
        ).returncode
        if code:
            kind = InputError if code == 2 else RunError
            raise kind(f"{script} ended with exit status {code}; what it says above is the reason")

    size = ("--videos", args.videos, "--seconds", args.seconds, "--seed", args.seed)
    stage("scripts/make_mini_ava.py", "--root", root, "--hard", *size)
    stage("data/extract_audio_tracks.py")
    for split in SPLITS:
        stage("data/slice_audio_tracks.py", "--split", split)
        stage("data/extract_face_crops_time.py", "--split", split)
    training = ("--no-pretrained", "--epochs", args.ste_epochs, "--batch-size", 16, "--seed", args.seed, "--resume")
    stage("STE_train.py", args.clip_length, device, *training, *precision)
    for split in SPLITS:
        forward = ("--split", split, "--weights", weights, "--batch-size", 32)
        stage("STE_forward.py", args.clip_length, device, *forward, *precision)
    return {
        "features": {split: str(root / "ste_features" / split) for split in SPLITS},
        "annotations": {split: str(root / "csv" / split) for split in SPLITS},
    }


def given_features(args: argparse.Namespace) -> dict[str, dict[str, str]]:
    """The directories that the flags name, as `make_features` returns them."""
    return {
        "features": {"train": args.features_train_full, "val": args.features_val_full},
        "annotations": {split: getattr(args, f"csv_{split}_full") or annotation_csvs[split] for split in SPLITS},
    }


def main(args: argparse.Namespace) -> None:
    given = [args.features_train_full, args.features_val_full]
    if any(given) != all(given):
        raise InputError("pass both --features-train-full and --features-val-full, or neither")
    if not any(given) and (args.csv_train_full or args.csv_val_full):
        raise InputError("--csv-train-full and --csv-val-full go with features at hand; those of the mini AVA are its")
    recipe = ASC_optimization_params if any(given) else ON_MINI_AVA
    for name in ON_MINI_AVA:
        if getattr(args, name) is None:
            setattr(args, name, recipe[name])
    print_settings(vars(args))
    started = time.monotonic()
    device, output_dir = get_device(args.cuda_device), Path(args.output_dir)
    sources = given_features(args) if any(given) else make_features(args, (output_dir / "mini_ava").absolute())
    annotations = {split: read_annotations(source) for split, source in sources["annotations"].items()}
    stores = {split: FeatureStore(source) for split, source in sources["features"].items()}
    seeds = list(range(args.seed, args.seed + args.seeds))
    taken = ("epochs", "batch_size", "learning_rate", "workers", "precision")
    params = {**ASC_optimization_params, **{name: getattr(args, name) for name in taken}}
    encoders = [encoder_sha256(sources["features"][split]) for split in SPLITS]
    if len(set(encoders)) > 1:
        raise InputError("the features to train and to validate on are those of two encoders")
    params["encoder_sha256"] = encoders[0]

    print(f"\n{device_label(device)}; baselines, {len(stores['train'].table)} rows to train")
    references = ablation.references(annotations, stores, seeds)
    runs = [(variant, number) for number in seeds for variant in ablation.VARIANTS]
    results = {}
    for done, (variant, number) in enumerate(runs):
        print(f"\n{done + 1} of {len(runs)}: {variant.name}, seed {number}")
        begun = time.monotonic()
        results[variant, number] = ablation.train_variant(variant, stores, output_dir, params, number, device)
        print(f"official mAP: {100 * results[variant, number]:.2f}, {time.monotonic() - begun:.0f} s")

    table = ablation.tabulate(references, results, seeds)
    text = ablation.markdown(table)
    write_bytes(output_dir / "ablation.md", text.encode())
    plain = table.astype(object).where(table.notna(), None)  # json has no NaN
    write_json(output_dir / "ablation.json", {**vars(args), "table": plain.to_dict("records")})
    plot_ablation(output_dir / "ablation.png", table, [ablation.STE])
    print(f"\n{text}\n{time.monotonic() - started:.0f} s; table and picture: {output_dir}/ablation.md, .json, .png")


if __name__ == "__main__":
    launch(main, get_args_parser())
