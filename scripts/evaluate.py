"""Evaluate final predictions: official mAP, AUC, breakdowns by number and width of faces, worst videos, plots.

    python scripts/evaluate.py --predictions ava/results/ste_predictions_val.csv ava/results/asc_predictions_val.csv \\
        --ground-truth ava/csv/val --ava-video-dir ava/videos/trainval --plots ava/results --json ava/results/val.json

Several files of predictions for the same rows are compared in the same tables and plots. Scores over time are plotted
for the worst videos of the last file.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from core.config import own_video_params, postprocessing_params
from core.detection.review import write_video_page
from core.formats.annotations import FaceTable, read_annotations
from core.formats.predictions import join, keep_predicted, read_scores
from core.media.container import list_videos
from core.reports import report
from core.runtime import cli
from core.runtime.errors import InputError, one_line

SETTINGS_FILE = "evaluate_cfg.json"  # in the directory of --plots


def get_args_parser() -> cli.Parser:
    defaults = postprocessing_params
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--predictions",
        nargs="+",
        default=[defaults["asc_predictions_csv"]],
        help="csv files of final predictions: the eight official columns and a score",
    )
    parser.add_argument("--ground-truth", default=defaults["ground_truth"], help="annotations of the same rows")
    report.add_report_arguments(parser)
    return parser


def write_pages(args: argparse.Namespace, numbers: dict, scores: np.ndarray, table: FaceTable) -> None:
    """Write review pages of the last prediction's worst videos, as far as the videos are available."""
    directory = Path(report.video_directory(args.ava_video_dir))
    worst = list(numbers["predictions"].values())[-1]["worst"]
    try:
        videos = list_videos(directory) if directory.is_dir() else {}
        available = [video_id for video_id in worst if video_id in videos]
        pages = [
            write_video_page(Path(args.plots), table, scores, videos[video_id], video_id, own_video_params["threshold"])
            for video_id in available
        ]
    except InputError as error:
        print(one_line(f"note: no review pages: {error}"))
        return
    if pages:
        print(one_line(f"pages to watch the worst videos: {', '.join(map(str, pages))}"))


def main(args: argparse.Namespace) -> None:
    cli.print_settings(vars(args))
    report.require_distinct_paths(args, args.predictions, {}, SETTINGS_FILE)
    table = read_annotations(args.ground_truth, args.clip_boxes)
    table.require_labels(args.ground_truth)
    predictions = [read_scores(path) for path in args.predictions]
    for prediction in predictions if args.only_predicted else []:
        table = keep_predicted(table, prediction)
    names = report.display_names(args.predictions)
    scores = {
        name: join(prediction, table, path, args.only_predicted)["score"].to_numpy()
        for name, path, prediction in zip(names, args.predictions, predictions, strict=True)
    }
    numbers = report.compute(scores, table, args.ava_video_dir)
    report.show(numbers)
    report.save(numbers, scores, table, args, SETTINGS_FILE)
    if args.plots is not None:
        write_pages(args, numbers, list(scores.values())[-1], table)


if __name__ == "__main__":
    cli.launch(main, get_args_parser())
