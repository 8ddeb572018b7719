"""Make a page per annotated video to watch and correct its labels in a browser, with scores if there are any.

    python scripts/review.py --csv mine/csv/val --ava-video-dir mine/videos/trainval --output-dir mine/review
    python scripts/review.py --csv ava/csv/val --predictions ava/results/asc_predictions_val.csv --videos 1j20qq1JyX4
    python scripts/review.py --predictions theirs.csv --ava-video-dir videos

Writes <output-dir>/review_<video_id>.html, which plays the video by its relative path, so move both together. The page
exports corrected annotations, names of persons and speech segments. For videos without annotations, use
scripts/detect_speakers.py, which makes this page too.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.config import data_inputs, own_video_params
from core.detection.review import write_video_page
from core.formats.annotations import read_annotations
from core.formats.predictions import join, keep_predicted, predicted_table, read_scores
from core.media.container import list_videos
from core.runtime import cli
from core.runtime.errors import InputError, one_line
from core.runtime.files import require_directory


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    csv_help = "annotations: augmented file, official file, or directory of official files"
    parser.add_argument("--csv", help=f"{csv_help} (default: the rows of --predictions, without labels)")
    parser.add_argument("--predictions", help="csv file of final predictions, to draw scores; its rows are shown only")
    video_help = "directory of videos, <video_id>.<ext>"
    parser.add_argument("--ava-video-dir", default=data_inputs["ava_video_dir"], help=video_help)
    parser.add_argument("--output-dir", default="review", help="directory of the pages")
    parser.add_argument("--videos", nargs="+", help="ids of the videos (default: all that have rows and a file)")
    threshold_help = "initial threshold of the page: the minimum score of a speaking face"
    threshold = own_video_params["threshold"]
    parser.add_argument("--threshold", type=cli.fraction, default=threshold, help=threshold_help)
    cli.add_clip_boxes_argument(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    cli.print_settings(vars(args))
    if args.csv is None and args.predictions is None:
        raise InputError("pass --csv, --predictions or both")
    predictions = None if args.predictions is None else read_scores(args.predictions)
    if args.csv is None:
        table = predicted_table(predictions, args.predictions)
    else:
        table = read_annotations(args.csv, args.clip_boxes)
    scores = None
    if predictions is not None:
        table = keep_predicted(table, predictions)
        scores = join(predictions, table, args.predictions, allow_more=True)["score"].to_numpy()
    videos = list_videos(require_directory(args.ava_video_dir, "the videos, <video_id>.<ext>"))
    annotated = [table.video_ids[index] for index in sorted(set(table.video.tolist()))]
    for video_id in args.videos or []:
        if video_id not in annotated or video_id not in videos:
            missing = "no rows of" if video_id not in annotated else f"{args.ava_video_dir} has no video"
            raise InputError(f"--videos: {missing} {video_id}")
    chosen = args.videos or [video_id for video_id in annotated if video_id in videos]
    if not chosen:
        raise InputError(f"{args.ava_video_dir}: no video {annotated[0]}")
    if skipped := len(annotated) - len(chosen):
        print(f"note: {skipped} of {len(annotated)} videos are left out")
    directory = Path(args.output_dir)
    for video_id in chosen:
        page = write_video_page(directory, table, scores, videos[video_id], video_id, args.threshold, thumbnails=True)
        print(one_line(f"page: {page}"))


if __name__ == "__main__":
    cli.launch(main, get_args_parser())
