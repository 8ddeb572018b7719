"""Stage 3: extract the face crops of all annotated frames as JPEGs.

    python data/extract_face_crops_time.py --split train
    python data/extract_face_crops_time.py --split val

Reads <ava-video-dir>/<video_id>.<ext>, writes <output-dir>/<split>/<entity_id>/<timestamp>.jpg for every row of the
annotations. Each video is decoded once. Existing crops are skipped.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from core.config import STE_inputs, annotation_csvs, data_inputs
from core.formats.annotations import annotations_of, read_annotations
from core.formats.clips import crop_path
from core.media.container import list_videos
from core.media.crops import extract_crops, rows_without_crop
from core.media.reader import VideoReader
from core.runtime import cli
from core.runtime.errors import InputError
from core.runtime.files import require_directory
from core.runtime.jobs import FAILURES, Outcome, print_outcome, run_jobs
from core.runtime.resume import Manifest

SETTINGS_FILE = "extract_face_crops_time_cfg.json"


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    cli.add_split_arguments(parser)
    parser.add_argument("--ava-video-dir", default=data_inputs["ava_video_dir"], help="directory of <video_id>.<ext>")
    parser.add_argument("--output-dir", default=STE_inputs["video_dir"], help="output directory of all splits")
    parser.add_argument("--workers", type=cli.positive_int, default=2, help="number of videos processed in parallel")
    parser.add_argument("--overwrite", action="store_true", help="recreate existing crops")
    return parser


def main(args: argparse.Namespace) -> int:
    args.csv = args.csv or annotation_csvs[args.split]
    cli.print_settings(vars(args))
    paths = list_videos(require_directory(args.ava_video_dir, "the videos, <video_id>.<ext>"))
    table = read_annotations(args.csv, args.clip_boxes)
    output_dir = Path(args.output_dir, args.split)

    def extract(video: int, outcome: Outcome, advance: Callable[[int], None]) -> None:
        rows = table.rows_of_video(video)
        missing = rows_without_crop(table, rows, output_dir)
        todo = rows if args.overwrite else missing
        outcome.skipped += len(rows) - len(todo)
        advance(len(rows) - len(todo))
        for row in todo if args.overwrite else ():  # also if they cannot be extracted again
            crop_path(output_dir, table.entity_ids[table.entity[row]], table.timestamp[row]).unlink(missing_ok=True)
        if len(todo):
            path = paths.get(table.video_ids[video])
            if path is None:
                raise InputError(f"no video of this name in {args.ava_video_dir}")
            with VideoReader(path) as reader:
                extract_crops(table, todo, reader, output_dir, outcome, advance)

    videos, name = range(len(table.video_ids)), table.video_ids.__getitem__
    num_rows = np.bincount(table.video, minlength=len(videos)).__getitem__
    digest = table.digest()
    manifest = Manifest(output_dir / SETTINGS_FILE, vars(args), overwrite=args.overwrite)
    first_digest = manifest.settings["rows"] = manifest.saved.get("rows", digest)
    with manifest.filling():
        outcome = run_jobs(extract, videos, name, num_rows, "row", args.workers, output_dir)
    if digest != first_digest and outcome.skipped:
        outcome.notes.append("annotations differ from the first run's; if boxes have changed, pass --overwrite")
    status = print_outcome(outcome, "crops", output_dir)
    crops, clip_boxes = (args.output_dir, STE_inputs["video_dir"]), (args.clip_boxes, False)
    failed = any(Path(args.output_dir, split, FAILURES).exists() for split in annotation_csvs)
    options = {"video_dir": crops, "clip_boxes": clip_boxes, "skip_missing": (failed, False)}
    import torch  # here, because it takes a second

    device = 0 if torch.cuda.is_available() else "cpu"
    if args.split == "train":
        cli.print_next(
            *("data/extract_face_crops_time.py", "--split", "val"),
            csv=(annotations_of("val", args.csv, args.split), annotation_csvs["val"]),
            ava_video_dir=(args.ava_video_dir, data_inputs["ava_video_dir"]),
            output_dir=crops,
            clip_boxes=clip_boxes,
        )
    elif args.split == "val" and Path(args.output_dir, "train").is_dir():
        cli.print_next(
            *("STE_train.py", 11, device),
            csv_train_full=(annotations_of("train", args.csv, args.split), annotation_csvs["train"]),
            csv_val_full=(args.csv, annotation_csvs["val"]),
            **options,
        )
    else:  # with the published weights
        csv = (args.csv, annotation_csvs[args.split])
        cli.print_next("STE_forward.py", 11, device, "--split", args.split, csv=csv, **options)
    return status


if __name__ == "__main__":
    cli.launch(main, get_args_parser(), all_ranks=True)
