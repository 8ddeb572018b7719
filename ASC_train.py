"""Stage 7: train the context network on the features of the short-term encoder.

    python ASC_train.py 11 4 3 0
    python ASC_train.py 11 4 3 0 --resume
    python ASC_train.py 11 4 3 cpu
    torchrun --nproc-per-node=4 ASC_train.py 11 4 3 0 --resume

Reads the features that STE_forward.py wrote for train and val. Writes to
<models-out>/ASC_len_<clip_length>_stride_<skip_frames>_speakers_<speakers>/: the weights of every epoch, the log, and
last.ckpt to resume from.
"""

import argparse

import torch

from core.config import ASC_inputs, ASC_optimization_params
from core.datasets import context_datasets, require_trainable
from core.formats.features import FeatureStore, encoder_of, require_same_encoder, store_digests
from core.loaders import context_loaders
from core.models import active_speakers_context
from core.runtime import cli, distributed
from core.runtime.checkpoint import BEST_FILE, TRAINING_IDENTITY, TrainingRun
from core.runtime.device import device_label, get_device, parameter_count, set_precision
from core.runtime.errors import RunError
from core.runtime.weights import load_weights
from core.training import asc_losses, context_run_name, fit


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("clip_length", type=cli.odd_positive, help="number of steps in a context (L): 11 in the paper")
    parser.add_argument("skip_frames", type=cli.positive_int, help="rows between two steps (stride): 4 in the paper")
    parser.add_argument("speakers", type=cli.positive_int, help="number of speakers in a context (S): 3 in the paper")
    parser.add_argument("cuda_device", type=cli.device_name, help="number of the CUDA device, or cpu")
    parser.add_argument("--features-train-full", default=ASC_inputs["features_train_full"], help="training features")
    parser.add_argument("--features-val-full", default=ASC_inputs["features_val_full"], help="validation features")
    cli.add_mismatch_argument(parser)
    cli.add_training_arguments(parser, ASC_optimization_params, ASC_inputs["models_out"])
    return parser


def main(args: argparse.Namespace) -> None:
    device = get_device(args.cuda_device)
    args.precision = set_precision(args.precision, device)
    encoder = encoder_of(args.features_train_full)
    settings = {**ASC_optimization_params, **vars(args), **encoder}
    cli.print_settings(settings)
    torch.manual_seed(args.seed)
    context_shape = (args.clip_length, args.skip_frames, args.speakers)
    identity = (*TRAINING_IDENTITY, "clip_length", "skip_frames", "speakers", "encoder_sha256")
    run = TrainingRun(args.models_out, context_run_name(*context_shape), settings, args.resume, identity)

    sources = {"train": args.features_train_full, "val": args.features_val_full}
    require_same_encoder({source: encoder_of(source) for source in sources.values()}, args.allow_mismatch)
    stores = {split: FeatureStore(source) for split, source in sources.items()}
    tables = {split: store.table for split, store in stores.items()}
    require_trainable(tables, sources)
    run.set_data(store_digests(stores))
    datasets = context_datasets(stores, context_shape, args.seed, device)
    loaders = context_loaders(datasets, args, device)

    feature_size = stores["train"].feature_size
    model = active_speakers_context(args.clip_length, args.speakers, feature_size=feature_size)
    if args.init_weights and run.epoch == 0 and distributed.is_main_process():  # other ranks receive those of rank 0
        shape = f"clip_length {args.clip_length}, speakers {args.speakers} and {feature_size} features per row"
        hint = f"were they trained with {shape}?"
        load_weights(model, args.init_weights, hint)
    model = model.to(device)
    sizes = ", ".join(f"{len(dataset)} {split} rows" for split, dataset in datasets.items())
    print(f"{device_label(device)}; {parameter_count(model):,} parameters; {sizes}")
    try:
        fit(run, model, asc_losses, loaders["train"], loaders["val"], settings, device)
    except RunError:  # if the loss is not finite, features that are not finite are the likely cause
        for dataset in datasets.values():
            dataset.require_finite()
        raise
    weights = run.directory / BEST_FILE
    cli.print_next(
        *("ASC_forward.py", *context_shape, args.cuda_device, "--weights", weights),
        features_val_full=(args.features_val_full, ASC_inputs["features_val_full"]),
        allow_mismatch=(args.allow_mismatch, False),
    )


if __name__ == "__main__":
    cli.launch(main, get_args_parser(), all_ranks=True)
