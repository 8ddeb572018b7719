"""Stage 5: predictions and features of the short-term encoder for every row of a split.

    python STE_forward.py 11 0 --split train --weights ava/models/ste_encoder/100.pth
    python STE_forward.py 11 0 --split val --weights ava/models/ste_encoder/100.pth
    python STE_forward.py 11 cpu --split val
    torchrun --nproc-per-node=4 STE_forward.py 11 0 --split train

Reads crops and wavs, writes <output-dir>/<video_id>.csv and .npy. Videos that are there, of the same rows, are kept, so
the same command goes on where it was. Several ranks share the videos.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from core.config import STE_forward_params, STE_inputs, annotation_csvs
from core.datasets import ClipReader
from core.formats.annotations import read_annotations
from core.formats.clips import drop_missing
from core.formats.features import STE_FORWARD_SETTINGS
from core.formats.predictions import holds_rows
from core.inference import encode_videos
from core.models import short_term_encoder
from core.runtime import distributed
from core.runtime.cli import (
    Parser,
    add_split_arguments,
    device_name,
    launch,
    odd_positive,
    positive_int,
    print_settings,
    worker_count,
)
from core.runtime.device import device_label, get_device, load_weights, tune_malloc
from core.runtime.provenance import OutputDirectory


def get_args_parser() -> Parser:
    defaults = STE_forward_params
    parser = Parser(__doc__)
    parser.add_argument("clip_length", type=odd_positive, help="crops in a clip, as the weights were trained: 11")
    parser.add_argument("cuda_device", type=device_name, help="number of the CUDA device, or cpu")
    add_split_arguments(parser)
    parser.add_argument("--audio-dir", default=STE_inputs["audio_dir"], help="<split>/<entity_id>.wav")
    parser.add_argument("--video-dir", default=STE_inputs["video_dir"], help="<split>/<entity_id>/<timestamp>.jpg")
    parser.add_argument("--weights", default=defaults["weights"], help="state_dict of the encoder")
    output_dir = f"{defaults['output_dir']}/<split>".replace("%", "%%")
    parser.add_argument("--output-dir", help=f"features go here (default: {output_dir})")
    parser.add_argument("--batch-size", type=positive_int, default=defaults["batch_size"], help="clips at a time")
    parser.add_argument("--workers", type=worker_count, default=defaults["workers"], help="processes that read crops")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=defaults["precision"], help="of the network")
    parser.add_argument("--text-features", action="store_true", help="write the csv in the released format")
    parser.add_argument("--skip-missing", action="store_true", help="leave out rows without crop or wav")
    parser.add_argument("--overwrite", action="store_true", help="make videos that are there again")
    return parser


@torch.inference_mode()
def main(args: argparse.Namespace) -> None:
    args.csv = args.csv or annotation_csvs[args.split]
    args.output_dir = args.output_dir or str(Path(STE_forward_params["output_dir"], args.split))
    print_settings(vars(args))
    device = get_device(args.cuda_device)
    output_dir = Path(args.output_dir)

    model = short_term_encoder(args.clip_length)
    digest = load_weights(model, args.weights, f"is clip_length {args.clip_length} what they were trained with?")
    model = model.to(device, memory_format=torch.channels_last).eval()
    settings = {**vars(args), "weights_sha256": digest}
    identity_keys = ("clip_length", "csv", "split", "precision", "text_features", "skip_missing", "weights_sha256")
    results = OutputDirectory(
        output_dir, STE_FORWARD_SETTINGS, settings, identity_keys, (".csv", ".npy"), args.overwrite
    )

    table = read_annotations(args.csv)
    distributed.require_same("annotations", table.digest)
    audio_dir, video_dir = Path(args.audio_dir, args.split), Path(args.video_dir, args.split)

    def is_current(csv_file: Path, video: int) -> bool:
        return holds_rows(csv_file, table, table.rows_of_video(video), some=args.skip_missing)

    done = results.done(table.video_ids, is_current)
    print(f"{device_label(device)}; {len(table)} rows of {len(done)} videos, {sum(done)} videos were there already")
    table = table.keep(~np.array(done)[table.video])
    if len(table):
        table = drop_missing(table, audio_dir, video_dir, args.skip_missing)
    settings["videos"] = sum(done) + len(np.unique(table.video))  # ASC_train.py looks whether all are there
    results.begin(table.video_ids)
    mine = distributed.local_items(np.bincount(table.video, minlength=len(done)))
    table = table.keep(np.isin(table.video, mine))
    if len(table):
        tune_malloc()
        reader = ClipReader(table, audio_dir, video_dir, args.clip_length)
        options = {name: getattr(args, name) for name in ("batch_size", "workers", "precision", "text_features")}
        encode_videos(model, reader, output_dir, device, **options)
    distributed.wait_for_all()
    print(f"features of {len(done)} videos: {output_dir}")
    again = f"STE_forward.py {args.clip_length} {args.cuda_device} --split val --weights {args.weights}"
    print(f"next: python {again if args.split == 'train' else 'STE_postprocessing.py'}")


if __name__ == "__main__":
    launch(main, get_args_parser(), all_ranks=True)
