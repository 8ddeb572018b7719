"""Stage 8: logits of the context network for every row of a feature store.

    python ASC_forward.py 11 4 3 0 --weights ava/models/ASC_len_11_stride_4_speakers_3/15.pth
    python ASC_forward.py 11 4 3 cpu
    torchrun --nproc-per-node=4 ASC_forward.py 11 4 3 0

Reads the features that STE_forward.py wrote, writes <output-dir>/<video_id>.csv. Finished videos with the same rows are
kept, so the same command resumes. Contexts depend only on the seed and the row. With several ranks, each works on its
own videos.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from core.config import ASC_forward_params, ASC_inputs_forward, postprocessing_params, result_options
from core.datasets import ASCDataset
from core.formats.annotations import find_annotations
from core.formats.features import STE_FORWARD_SETTINGS, FeatureStore, encoder_of, require_trained_on
from core.inference import predict_videos
from core.models import active_speakers_context
from core.runtime import cli, distributed
from core.runtime.device import device_label, get_device, peak_memory, set_precision
from core.runtime.errors import InputError
from core.runtime.files import read_settings
from core.runtime.resume import OutputDirectory
from core.runtime.weights import load_weights


def get_args_parser() -> cli.Parser:
    inputs, params = ASC_inputs_forward, ASC_forward_params
    parser = cli.Parser(__doc__)
    parser.add_argument("clips", type=cli.odd_positive, help="number of steps in a context (L), as in training: 11")
    parser.add_argument("time_stride", type=cli.positive_int, help="rows between two steps of a context: 4")
    parser.add_argument("speakers", type=cli.positive_int, help="number of speakers in a context (S): 3")
    parser.add_argument("cuda_device", type=cli.device_name, help="number of the CUDA device, or cpu")
    parser.add_argument("--features-val-full", default=inputs["features_val_full"], help="output of STE_forward.py")
    parser.add_argument("--weights", default=inputs["weights"], help="state_dict of the context network")
    parser.add_argument("--output-dir", default=params["output_dir"], help="directory of the predictions")
    parser.add_argument("--batch-size", type=cli.positive_int, default=params["batch_size"], help="contexts per batch")
    cli.add_precision_argument(parser, params["precision"])
    parser.add_argument("--seed", type=cli.seed, default=params["seed"], help="seed of the choice of speakers")
    cli.add_mismatch_argument(parser)
    parser.add_argument("--overwrite", action="store_true", help="recreate finished videos")
    return parser


@torch.inference_mode()
def main(args: argparse.Namespace) -> None:
    device = get_device(args.cuda_device)
    args.precision = set_precision(args.precision, device)
    cli.print_settings(vars(args))

    encoder = encoder_of(args.features_val_full)
    require_trained_on(args.weights, encoder, args.time_stride, args.allow_mismatch)
    store = FeatureStore(args.features_val_full)
    model = active_speakers_context(args.clips, args.speakers, feature_size=store.feature_size)
    shape = f"clips {args.clips}, speakers {args.speakers} and {store.feature_size} features per row"
    weights_sha256 = load_weights(model, args.weights, f"were they trained with {shape}?")
    model = model.to(device).eval()

    output_dir = Path(args.output_dir)
    settings = {**vars(args), "weights_sha256": weights_sha256, **encoder}
    identity = ("weights_sha256", "encoder_sha256", "clips", "time_stride", "speakers", "precision", "seed")
    results = OutputDirectory(output_dir / "ASC_forward_cfg.json", settings, identity, (".csv",), args.overwrite)
    table = store.table
    distributed.require_same("features", lambda: store.digests)
    settings["features"] = dict(zip(table.video_ids, store.digests, strict=True))
    saved_features = results.saved.get("features", {})
    dataset = ASCDataset(store, args.clips, args.time_stride, args.speakers, args.seed)

    def is_current(_: Path, video: int) -> bool:
        return saved_features.get(table.video_ids[video]) == store.digests[video]

    done = np.array(results.done(table.video_ids, is_current))
    print(f"{device_label(device)}; {len(table)} rows of {len(done)} videos, {done.sum()} videos already done")
    results.begin(table.video_ids, done)

    num_rows = np.bincount(table.video, minlength=len(done))
    videos = [video for video in distributed.local_items(np.where(done, 0, num_rows)) if not done[video]]
    predict_videos(model, dataset, videos, output_dir, device, batch_size=args.batch_size, precision=args.precision)
    distributed.wait_for_all()
    print(f"predictions of {len(done)} videos{peak_memory(device)}: {output_dir}")
    encoding = read_settings(Path(args.features_val_full, STE_FORWARD_SETTINGS))
    ground_truth = postprocessing_params["ground_truth"]
    csv = encoding.get("csv", ground_truth)
    try:
        find_annotations(csv)
    except InputError:  # the annotations have been moved
        csv = ground_truth
    cli.print_next(
        "ASC_prediction_postprocessing.py",
        predictions_dir=(args.output_dir, ASC_forward_params["output_dir"]),
        ground_truth=(csv, ground_truth),
        clip_boxes=(encoding.get("clip_boxes", False), False),
        only_predicted=(encoding.get("skip_missing", False), False),
        **result_options(encoding.get("split", "val"), postprocessing_params["asc_predictions_csv"]),
    )


if __name__ == "__main__":
    cli.launch(main, get_args_parser(), all_ranks=True)
