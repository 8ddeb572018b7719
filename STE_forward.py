"""Stage 5: logits and features of the short-term encoder for every row of a split.

    python STE_forward.py 11 0 --split train --weights ava/models/ste_encoder/100.pth
    python STE_forward.py 11 0 --split val --weights ava/models/ste_encoder/100.pth
    python STE_forward.py 11 cpu --split val
    torchrun --nproc-per-node=4 STE_forward.py 11 0 --split train

Reads crops and wavs, writes <output-dir>/<video_id>.csv and <video_id>.npy. Finished videos with the same rows are
kept, so the same command resumes. With several ranks, each works on its own videos.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from core.config import (
    ASC_inputs,
    STE_forward_params,
    STE_inputs,
    annotation_csvs,
    postprocessing_params,
    result_options,
)
from core.datasets import ClipReader
from core.encoders import ENCODERS, add_encoder_argument, find_encoder
from core.formats.annotations import annotations_of, read_annotations
from core.formats.clips import drop_missing
from core.formats.features import STE_FORWARD_SETTINGS
from core.formats.predictions import holds_rows
from core.inference import encode_videos
from core.runtime import cli, distributed
from core.runtime.device import (
    default_precision,
    device_label,
    get_device,
    memory_format,
    move_to,
    peak_memory,
    set_precision,
)
from core.runtime.errors import InputError
from core.runtime.resume import OutputDirectory
from core.runtime.weights import load_weights

NAMES = tuple(name for name, encoder in ENCODERS.items() if not encoder.region)


def get_args_parser() -> cli.Parser:
    defaults = STE_forward_params
    parser = cli.Parser(__doc__)
    parser.add_argument("clip_length", type=cli.odd_positive, help="number of crops in a clip, as in training: 11")
    parser.add_argument("cuda_device", type=cli.device_name, help="number of the CUDA device, or cpu")
    cli.add_split_arguments(parser)
    parser.add_argument("--audio-dir", default=STE_inputs["audio_dir"], help="directory of <split>/<entity_id>.wav")
    video_dir = STE_inputs["video_dir"]
    parser.add_argument("--video-dir", default=video_dir, help="directory of <split>/<entity_id>/<timestamp>.jpg")
    add_encoder_argument(parser, NAMES)
    parser.add_argument("--weights", default=defaults["weights"], help="state_dict of the encoder")
    output_dir = f"{defaults['output_dir']}/<split>".replace("%", "%%")
    parser.add_argument("--output-dir", help=f"directory of the features (default: {output_dir})")
    parser.add_argument("--batch-size", type=cli.positive_int, default=defaults["batch_size"], help="clips per batch")
    cli.add_workers_argument(parser, defaults["workers"])
    cli.add_precision_argument(parser, defaults["precision"])
    parser.add_argument("--text-features", action="store_true", help="write the csv in the released format")
    parser.add_argument("--skip-missing", action="store_true", help="leave out rows without a crop or wav")
    parser.add_argument("--overwrite", action="store_true", help="recreate finished videos")
    return parser


@torch.inference_mode()
def main(args: argparse.Namespace) -> None:
    args.csv = args.csv or annotation_csvs[args.split]
    args.output_dir = args.output_dir or str(Path(STE_forward_params["output_dir"], args.split))
    encoder = find_encoder(args.encoder, NAMES)
    args.weights = encoder.find_weights(args.weights, "--weights")
    device = get_device(args.cuda_device)
    args.precision = set_precision(args.precision, device)
    cli.print_settings(vars(args))

    model = encoder.build(args.clip_length)
    hint = f"were they trained with clip_length {args.clip_length} and --encoder {args.encoder}?"
    weights_sha256 = load_weights(model, args.weights, hint, encoder.advice)
    move_to(device, model, memory_format(device, args.precision)).eval()

    output_dir = Path(args.output_dir)
    settings = {**vars(args), "weights_sha256": weights_sha256, "feature_size": model.feature_size}
    identity = ("encoder", "weights_sha256", "clip_length", "split", "precision", "text_features", "skip_missing")
    settings_file = output_dir / STE_FORWARD_SETTINGS
    results = OutputDirectory(settings_file, settings, identity, (".csv", ".npy"), args.overwrite)
    table = read_annotations(args.csv, args.clip_boxes)
    distributed.require_same("annotations", table.digest)

    audio_dir, video_dir = Path(args.audio_dir, args.split), Path(args.video_dir, args.split)
    usable = table
    if args.skip_missing:
        usable = drop_missing(table, audio_dir, video_dir, True, args.clip_length, may_be_empty=True)

    def is_current(csv_file: Path, video: int) -> bool:
        return holds_rows(csv_file, table, usable, video)

    done = np.array(results.done(table.video_ids, is_current))
    print(f"{device_label(device)}; {len(table)} rows of {len(done)} videos, {done.sum()} videos already done")
    usable = usable.keep(~done[usable.video])
    if not args.skip_missing:
        drop_missing(usable, audio_dir, video_dir, False, args.clip_length)  # raises an error if a file is missing
    elif not len(usable) and not done.any():
        raise InputError(f"{args.csv}: no row has both a crop and a wav")
    settings["videos"] = int(done.sum()) + len(np.unique(usable.video))  # FeatureStore checks that none is missing
    results.begin(table.video_ids, done)

    videos = distributed.local_items(np.bincount(usable.video, minlength=len(done)))
    local = usable.keep(np.isin(usable.video, videos))
    if len(local):
        reader = ClipReader(local, audio_dir, video_dir, args.clip_length)
        options = {"batch_size": args.batch_size, "workers": args.workers, "precision": args.precision}
        options |= {"whole_tracks": encoder.input == "track", "text_features": args.text_features}
        encode_videos(model, reader, output_dir, device, **options)
    distributed.wait_for_all()
    print(f"features of {settings['videos']} of {len(done)} videos{peak_memory(device)}: {output_dir}")
    if args.split == "train":
        cli.print_next(
            *("STE_forward.py", args.clip_length, args.cuda_device, "--split", "val", "--weights", args.weights),
            encoder=(args.encoder, "resnet18"),
            csv=(annotations_of("val", args.csv, "train"), annotation_csvs["val"]),
            audio_dir=(args.audio_dir, STE_inputs["audio_dir"]),
            video_dir=(args.video_dir, STE_inputs["video_dir"]),
            output_dir=(str(output_dir.with_name("val")), ASC_inputs["features_val_full"]),
            precision=(args.precision, STE_forward_params["precision"] or default_precision(device)),
            clip_boxes=(args.clip_boxes, False),
            skip_missing=(args.skip_missing, False),
        )
    else:
        cli.print_next(
            "STE_postprocessing.py",
            forward_dir=(args.output_dir, ASC_inputs["features_val_full"]),
            ground_truth=(args.csv, postprocessing_params["ground_truth"]),
            clip_boxes=(args.clip_boxes, False),
            only_predicted=(args.skip_missing, False),
            **result_options(args.split, postprocessing_params["ste_predictions_csv"]),
        )


if __name__ == "__main__":
    cli.launch(main, get_args_parser(), all_ranks=True)
