"""Stage 5: predictions and features of the short-term encoder for every row of a split.

    python STE_forward.py 11 0 --split train --weights ava/models/ste_encoder/100.pth
    python STE_forward.py 11 0 --split val --weights ava/models/ste_encoder/100.pth
    python STE_forward.py 11 cpu --split val

Reads crops and wavs, writes <output-dir>/<video_id>.csv and .npy. Videos that are there are kept, so the same command
goes on where it was.
"""

import argparse
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from core.annotations import read_annotations
from core.command_line import (
    Parser,
    add_split_arguments,
    describe,
    device_name,
    odd_positive,
    positive_int,
    require_same_settings,
    run,
    worker_count,
)
from core.config import STE_forward_params, STE_inputs, annotation_csvs
from core.dataset import ClipReader, STETrackDataset, clip_batches, drop_missing, item_loader
from core.io import has_features, remove_features, writing_features
from core.models import short_term_encoder
from core.progress import progress
from core.util import autocast, device_label, get_device, input_dtype, load_weights


def get_args_parser() -> Parser:
    defaults = STE_forward_params
    parser = Parser(__doc__)
    parser.add_argument("clip_length", type=odd_positive, help="crops in a clip, as the weights were trained: 11")
    parser.add_argument("cuda_device", type=device_name, help="number of the CUDA device, or cpu")
    add_split_arguments(parser)
    parser.add_argument("--audio-dir", default=STE_inputs["audio_dir"], help="<split>/<entity_id>.wav")
    parser.add_argument("--video-dir", default=STE_inputs["video_dir"], help="<split>/<entity_id>/<timestamp>.jpg")
    parser.add_argument("--weights", default=defaults["weights"], help="state_dict of the encoder")
    parser.add_argument("--output-dir", help=f"features go here (default: {defaults['output_dir']}/<split>)")
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
    describe(vars(args))
    device = get_device(args.cuda_device)
    output_dir = Path(args.output_dir)

    model = short_term_encoder(args.clip_length)
    digest = load_weights(model, args.weights, f"is clip_length {args.clip_length} what they were trained with?")
    model = model.to(device, memory_format=torch.channels_last).eval()
    decisive = ("clip_length", "csv", "split", "precision", "text_features", "skip_missing")
    settings = {**vars(args), "weights_sha256": digest}
    require_same_settings(output_dir / "STE_forward_cfg.json", settings, (*decisive, "weights_sha256"), args.overwrite)

    table = read_annotations(args.csv)
    audio_dir, video_dir = Path(args.audio_dir, args.split), Path(args.video_dir, args.split)
    if args.overwrite:
        for video_id in table.video_ids:
            remove_features(output_dir, video_id)
    done = [has_features(output_dir, video_id) for video_id in table.video_ids]
    total = len(table)
    table = table.keep(~np.array(done)[table.video])
    print(f"{device_label(device)}; {total} rows of {len(done)} videos, {sum(done)} videos were there already")
    if len(table):
        table = drop_missing(table, audio_dir, video_dir, args.skip_missing)
        dataset = STETrackDataset(ClipReader(table, audio_dir, video_dir, args.clip_length))
        loader = item_loader(dataset, args.workers, device)
        with progress(total=len(table), unit="row") as bar:
            for video, group in groupby(zip(dataset.video, loader, strict=True), key=lambda item: item[0]):
                rows_of_video = np.flatnonzero(table.video == video)
                with writing_features(output_dir, table, rows_of_video, args.text_features) as (logits, features):
                    pieces = (piece for _, piece in group)
                    for rows, audio, clips in clip_batches(
                        pieces, args.batch_size, device, input_dtype(args.precision)
                    ):
                        with autocast(device, args.precision):
                            joint, _, _, encoded = model(audio, clips)
                        at = np.searchsorted(rows_of_video, rows)
                        logits[at] = joint.float().cpu().numpy()
                        features[at] = encoded.float().cpu().numpy()
                        bar.update(len(rows))
    print(f"features of {len(done)} videos: {output_dir}")
    after = "STE_postprocessing.py" if args.split == "val" else "STE_forward.py 11 0 --split val"
    print(f"next: python {after}")


if __name__ == "__main__":
    run(main, get_args_parser())
