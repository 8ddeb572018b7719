"""Stage 8: predictions of the context network for every row of a feature store.

    python ASC_forward.py 11 4 3 0 --weights ava/models/ASC_len_11_stride_4_speakers_3/15.pth
    python ASC_forward.py 11 4 3 cpu
    torchrun --nproc-per-node=4 ASC_forward.py 11 4 3 0

Reads what STE_forward.py wrote, writes <output-dir>/<video_id>.csv. Videos that are there, of the same rows, are kept,
so the same command goes on where it was. What a row draws depends on the seed alone. Several ranks share the videos.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from core.config import ASC_forward_params, ASC_inputs_forward
from core.datasets import ASCDataset
from core.formats.features import FeatureStore, encoder_sha256
from core.formats.predictions import holds_rows
from core.inference import predict_videos
from core.models import active_speakers_context
from core.runtime import distributed
from core.runtime.cli import Parser, device_name, launch, odd_positive, positive_int, print_settings, seed
from core.runtime.device import device_label, get_device, load_weights, tune_malloc
from core.runtime.provenance import OutputDirectory


def get_args_parser() -> Parser:
    defaults = ASC_forward_params
    parser = Parser(__doc__)
    parser.add_argument("clips", type=odd_positive, help="moments in a context, as the weights were trained: 11")
    parser.add_argument("time_stride", type=positive_int, help="rows between two moments: 4")
    parser.add_argument("speakers", type=positive_int, help="faces in a context: 3")
    parser.add_argument("cuda_device", type=device_name, help="number of the CUDA device, or cpu")
    parser.add_argument(
        "--features-val-full", default=ASC_inputs_forward["features_val_full"], help="what STE_forward.py wrote"
    )
    parser.add_argument("--weights", default=ASC_inputs_forward["weights"], help="state_dict of the context network")
    parser.add_argument("--output-dir", default=defaults["output_dir"], help="predictions go here")
    parser.add_argument("--batch-size", type=positive_int, default=defaults["batch_size"], help="contexts at a time")
    parser.add_argument("--seed", type=seed, default=defaults["seed"], help="of the speakers drawn into a context")
    parser.add_argument("--overwrite", action="store_true", help="make videos that are there again")
    return parser


@torch.inference_mode()
def main(args: argparse.Namespace) -> None:
    print_settings(vars(args))
    device = get_device(args.cuda_device)
    output_dir = Path(args.output_dir)

    model = active_speakers_context(args.clips, args.speakers)
    digest = load_weights(model, args.weights, f"were they trained with clips {args.clips}, speakers {args.speakers}?")
    model = model.to(device).eval()
    encoder = encoder_sha256(args.features_val_full)
    settings = {**vars(args), "weights_sha256": digest, "encoder_sha256": encoder}
    identity_keys = (
        "clips",
        "time_stride",
        "speakers",
        "features_val_full",
        "seed",
        "weights_sha256",
        "encoder_sha256",
    )
    results = OutputDirectory(output_dir, "ASC_forward_cfg.json", settings, identity_keys, (".csv",), args.overwrite)

    store = FeatureStore(args.features_val_full)
    table = store.table
    distributed.require_same("features", table.digest)
    dataset = ASCDataset(store, args.clips, args.time_stride, args.speakers, args.seed)

    def is_current(csv_file: Path, video: int) -> bool:
        is_newer = csv_file.stat().st_mtime_ns >= store.files[video].stat().st_mtime_ns
        return is_newer and holds_rows(csv_file, table, table.rows_of_video(video))

    done = results.done(table.video_ids, is_current)
    results.begin(table.video_ids)
    print(f"{device_label(device)}; {len(table)} rows of {len(done)} videos, {sum(done)} videos were there already")
    tune_malloc()
    counts = np.bincount(table.video, minlength=len(done))
    mine = [video for video in distributed.local_items(np.where(done, 0, counts)) if not done[video]]
    predict_videos(model, dataset, mine, output_dir, device, batch_size=args.batch_size)
    distributed.wait_for_all()
    print(f"predictions of {len(table.video_ids)} videos: {output_dir}")
    print("next: python ASC_prediction_postprocessing.py")


if __name__ == "__main__":
    launch(main, get_args_parser(), all_ranks=True)
