"""What the two post-processing stages share: from the logits of a directory to the final predictions."""

import argparse
from pathlib import Path

from core.config import postprocessing_params
from core.formats.annotations import read_annotations
from core.formats.predictions import join, read_logits, write_scores
from core.metrics import smooth_tracks, speaking_score
from core.reports import report
from core.runtime.cli import Parser, odd_window, print_settings
from core.runtime.files import require_different, write_json

SETTINGS_FILE = "postprocessing_cfg.json"  # in the directory of the pictures


def make_parser(description: str, flag: str, default: str, content: str, predictions_csv: str) -> Parser:
    """A parser whose `flag` names the directory of logits; the other flags are the same for both stages."""
    defaults = postprocessing_params
    parser = Parser(description)
    parser.add_argument(flag, default=default, help=content)
    parser.add_argument("--ground-truth", default=defaults["ground_truth"], help="annotations of the same split")
    parser.add_argument("--predictions-csv", default=predictions_csv, help="file to write")
    parser.add_argument("--ground-truth-csv", default=defaults["ground_truth_csv"], help="file to write")
    parser.add_argument("--smoothing", type=odd_window, default=0, help="rows of a median filter along tracks; 0: none")
    report.add_report_arguments(parser)
    return parser


def postprocess(args: argparse.Namespace, directory: str) -> None:
    """Join a directory's logits to the ground truth, smooth and score them, write both csv files, report on them."""
    print_settings(vars(args))
    settings = Path(args.predictions_csv).with_suffix(".json")
    written = {"--predictions-csv": args.predictions_csv, "--ground-truth-csv": args.ground_truth_csv}
    outputs = {**written, "the settings beside --predictions-csv": settings}
    report.require_distinct_paths(args, {}, outputs, SETTINGS_FILE)
    places = {
        f"the directory of {flag}": Path(path).parent for flag, path in {**written, "--json": args.json}.items() if path
    }
    for flag, path in {**places, "--plots": args.plots}.items():
        require_different({flag: path, "the directory of the logits": directory})
    table = read_annotations(args.ground_truth)
    logits = join(read_logits(directory), table, directory)[["logit_0", "logit_1"]].to_numpy()
    if args.smoothing > 1:
        logits = smooth_tracks(logits, table, args.smoothing)
    scores = {Path(args.predictions_csv).stem: speaking_score(logits)}
    numbers = report.compute(scores, table, args.ava_video_dir)
    write_scores(args.predictions_csv, args.ground_truth_csv, table, *scores.values())
    write_json(settings, {**vars(args), "mAP": numbers["mAP"]})
    print(f"{len(table)} rows: {args.predictions_csv}, ground truth beside it: {args.ground_truth_csv}")
    report.show(numbers)
    report.save(numbers, scores, table, args, SETTINGS_FILE)
    print(f"official mAP: {100 * numbers['mAP']:.2f} (chance {100 * numbers['chance']:.2f})")
    print(
        f"next: python scripts/evaluate.py --predictions {args.predictions_csv} --ground-truth {args.ground_truth_csv}"
    )
