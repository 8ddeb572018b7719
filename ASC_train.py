"""Stage 7: train the context network on the features of the short-term encoder.

    python ASC_train.py 11 4 3 0
    python ASC_train.py 11 4 3 0 --resume
    python ASC_train.py 11 4 3 cpu
    torchrun --nproc-per-node=4 ASC_train.py 11 4 3 0 --resume

Reads what STE_forward.py wrote for train and val, writes <models-out>/ASC_len_<clip_length>_stride_<skip_frames>_
speakers_<speakers>/: weights of every epoch, the log, and last.ckpt to go on from.
"""

import argparse

from core.config import ASC_inputs, ASC_optimization_params
from core.datasets import context_datasets
from core.formats.features import FeatureStore, encoder_sha256
from core.loaders import require_even_batch, split_loaders
from core.models import active_speakers_context
from core.runtime.checkpoint import TrainingRun
from core.runtime.cli import (
    Parser,
    add_training_arguments,
    device_name,
    launch,
    odd_positive,
    positive_int,
    print_settings,
)
from core.runtime.device import device_label, get_device, parameter_count, seed_torch
from core.runtime.errors import RunError
from core.training import asc_losses, context_run_name, fit


def get_args_parser() -> Parser:
    inputs = ASC_inputs
    parser = Parser(__doc__)
    parser.add_argument("clip_length", type=odd_positive, help="moments in a context: 11 in the paper")
    parser.add_argument("skip_frames", type=positive_int, help="rows between two moments: 4 in the paper")
    parser.add_argument("speakers", type=positive_int, help="faces in a context: 3 in the paper")
    parser.add_argument("cuda_device", type=device_name, help="number of the CUDA device, or cpu")
    parser.add_argument("--features-train-full", default=inputs["features_train_full"], help="features to train on")
    parser.add_argument("--features-val-full", default=inputs["features_val_full"], help="features to validate on")
    add_training_arguments(parser, ASC_optimization_params, inputs["models_out"])
    return parser


def main(args: argparse.Namespace) -> None:
    settings = {**ASC_optimization_params, **vars(args)}
    settings["encoder_sha256"] = encoder_sha256(args.features_train_full)
    print_settings(settings)
    device = get_device(args.cuda_device)
    require_even_batch(args.batch_size)
    seed_torch(args.seed)
    shape = (args.clip_length, args.skip_frames, args.speakers)
    run_directory = TrainingRun(args.models_out, context_run_name(*shape), settings, args.resume)

    stores = {"train": FeatureStore(args.features_train_full), "val": FeatureStore(args.features_val_full)}
    run_directory.set_data({split: store.table.digest() for split, store in stores.items()})
    datasets = context_datasets(stores, shape, args.seed, args.workers, device)
    loaders = split_loaders(datasets, args, device)

    model = active_speakers_context(args.clip_length, args.speakers).to(device)
    sizes = ", ".join(f"{len(dataset)} rows to {split}" for split, dataset in datasets.items())
    print(f"{device_label(device)}; {parameter_count(model):,} parameters; {sizes}")
    try:
        fit(run_directory, model, asc_losses, loaders["train"], loaders["val"], settings, device)
    except RunError:  # a loss that is not finite, for which features that are not are to blame first
        for dataset in datasets.values():
            dataset.require_finite()
        raise
    weights = run_directory.directory / f"{run_directory.epoch}.pth"
    print(f"next: python ASC_forward.py {' '.join(map(str, shape))} {args.cuda_device} --weights {weights}")


if __name__ == "__main__":
    launch(main, get_args_parser(), all_ranks=True)
