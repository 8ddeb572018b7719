"""Stage 4: train the short-term encoder.

    python STE_train.py 11 0
    python STE_train.py 11 0 --resume
    python STE_train.py 11 cpu --no-pretrained
    torchrun --nproc-per-node=4 STE_train.py 11 0 --resume

Reads annotations, crops and wavs of train and val. Writes to <models-out>/ste_encoder/: the weights of every epoch, the
log, and last.ckpt to resume from.
"""

import argparse
from pathlib import Path

import torch

from core.config import STE_inputs, STE_optimization_params
from core.datasets import ClipReader, STEDataset, require_trainable
from core.encoders import ENCODERS, add_encoder_argument, find_encoder
from core.formats.annotations import read_annotations
from core.formats.clips import drop_missing
from core.loaders import clip_loaders
from core.runtime import cli, distributed
from core.runtime.checkpoint import BEST_FILE, TRAINING_IDENTITY, TrainingRun
from core.runtime.device import device_label, get_device, memory_format, move_to, parameter_count, set_precision
from core.runtime.weights import load_weights
from core.training import fit, ste_losses

NAMES = tuple(name for name, encoder in ENCODERS.items() if encoder.input == "clip")


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("clip_length", type=cli.odd_positive, help="number of crops in a clip: 11 in the paper")
    parser.add_argument("cuda_device", type=cli.device_name, help="number of the CUDA device, or cpu")
    add_encoder_argument(parser, NAMES)
    parser.add_argument("--csv-train-full", default=STE_inputs["csv_train_full"], help="training annotations")
    parser.add_argument("--csv-val-full", default=STE_inputs["csv_val_full"], help="validation annotations")
    parser.add_argument("--audio-dir", default=STE_inputs["audio_dir"], help="directory of {train,val}/<entity_id>.wav")
    crops = "directory of {train,val}/<entity_id>/<timestamp>.jpg"
    parser.add_argument("--video-dir", default=STE_inputs["video_dir"], help=crops)
    parser.add_argument("--no-pretrained", action="store_true", help="start from random weights instead of ImageNet's")
    cli.add_clip_boxes_argument(parser)
    parser.add_argument("--skip-missing", action="store_true", help="leave out rows without a crop or wav")
    cli.add_training_arguments(parser, STE_optimization_params, STE_inputs["models_out"])
    return parser


def main(args: argparse.Namespace) -> None:
    encoder = find_encoder(args.encoder, NAMES)
    device = get_device(args.cuda_device)
    args.precision = set_precision(args.precision, device)
    settings = {**STE_optimization_params, **vars(args)}
    cli.print_settings(settings)
    torch.manual_seed(args.seed)
    identity = (*TRAINING_IDENTITY, "encoder", "clip_length", "no_pretrained", "skip_missing")
    run = TrainingRun(args.models_out, "ste_encoder", settings, args.resume, identity)

    datasets, csvs = {}, {"train": args.csv_train_full, "val": args.csv_val_full}
    for split, csv in csvs.items():
        audio_dir, video_dir = Path(args.audio_dir, split), Path(args.video_dir, split)
        table = drop_missing(
            read_annotations(csv, args.clip_boxes), audio_dir, video_dir, args.skip_missing, args.clip_length
        )
        reader = ClipReader(table, audio_dir, video_dir, args.clip_length)
        datasets[split] = STEDataset(reader, args.seed, split == "train", device)
    tables = {split: dataset.reader.table for split, dataset in datasets.items()}
    require_trainable(tables, csvs)
    run.set_data({f"{split}_rows": table.digest() for split, table in tables.items()})
    loaders = clip_loaders(datasets, args, device)

    first = run.epoch == 0 and distributed.is_main_process()  # other ranks receive the weights of rank 0
    pretrained = first and not args.no_pretrained and not args.init_weights
    model = encoder.build(args.clip_length, pretrained)
    if first and args.init_weights:
        hint = f"were they trained with clip_length {args.clip_length} and --encoder {args.encoder}?"
        load_weights(model, args.init_weights, hint, encoder.advice)
    move_to(device, model, memory_format(device, args.precision))
    sizes = ", ".join(f"{len(dataset)} {split} tracks" for split, dataset in datasets.items())
    print(f"{device_label(device)}; {parameter_count(model):,} parameters; {sizes}")
    fit(run, model, ste_losses, loaders["train"], loaders["val"], settings, device)
    weights = run.directory / BEST_FILE
    cli.print_next(
        *("STE_forward.py", args.clip_length, args.cuda_device, "--split", "train", "--weights", weights),
        encoder=(args.encoder, "resnet18"),
        csv=(args.csv_train_full, STE_inputs["csv_train_full"]),
        audio_dir=(args.audio_dir, STE_inputs["audio_dir"]),
        video_dir=(args.video_dir, STE_inputs["video_dir"]),
        clip_boxes=(args.clip_boxes, False),
        skip_missing=(args.skip_missing, False),
    )


if __name__ == "__main__":
    cli.launch(main, get_args_parser(), all_ranks=True)
