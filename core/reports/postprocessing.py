"""Both post-processing stages: from a directory of logits to final predictions and the report on them."""

import argparse
import os
from pathlib import Path

from core.config import ASC_inputs, postprocessing_params
from core.formats.annotations import NO_LABEL, read_annotations
from core.formats.features import STE_FORWARD_SETTINGS
from core.formats.predictions import LOGIT_COLUMNS, join, keep_predicted, read_logits, write_scores
from core.metrics import smooth_tracks, speaking_score
from core.reports import report
from core.runtime.cli import Parser, odd_window, print_next, print_settings
from core.runtime.errors import InputError
from core.runtime.files import read_setting, write_json

SETTINGS_FILE = "postprocessing_cfg.json"  # in the directory of --plots


def make_parser(description: str, flag: str, default: str, content: str, predictions_csv: str) -> Parser:
    """Return the parser of a stage, whose `flag` names its directory of logits."""
    defaults = postprocessing_params
    parser = Parser(description)
    parser.add_argument(flag, default=default, help=content)
    parser.add_argument("--ground-truth", default=defaults["ground_truth"], help="annotations of the same split")
    parser.add_argument("--predictions-csv", default=predictions_csv, help="file to write the final predictions to")
    parser.add_argument(
        "--ground-truth-csv",
        default=defaults["ground_truth_csv"],
        help="file to write the annotations to, in the row order of the predictions",
    )
    parser.add_argument(
        "--smoothing", type=odd_window, default=0, help="width in rows of a median filter along tracks; 0: no filter"
    )
    report.add_report_arguments(parser)
    return parser


def postprocess(args: argparse.Namespace, directory: str) -> None:
    """Join a directory's logits to the ground truth, smooth and score them, write both csv files and the report."""
    print_settings(vars(args))
    settings_file = Path(args.predictions_csv).with_suffix(".json")
    outputs = {
        "--predictions-csv": args.predictions_csv,
        "--ground-truth-csv": args.ground_truth_csv,
        "the settings of --predictions-csv": settings_file,
    }
    report.require_distinct_paths(args, [], outputs, SETTINGS_FILE)
    for path in (*outputs.values(), args.json, args.plots and Path(args.plots, SETTINGS_FILE)):
        if path is not None and os.path.realpath(Path(path).parent) == os.path.realpath(directory):
            raise InputError(f"{path}: the directory holds the logits; choose another one")
    table, logits = read_annotations(args.ground_truth, args.clip_boxes), read_logits(directory)
    if args.only_predicted:
        table = keep_predicted(table, logits)
    logits = join(logits, table, directory, args.only_predicted)[LOGIT_COLUMNS].to_numpy()
    if args.smoothing > 1:
        logits = smooth_tracks(logits, table, args.smoothing)
    scores = {Path(args.predictions_csv).stem: speaking_score(logits)}
    numbers = None
    if table.is_speaking.any() and not (table.label == NO_LABEL).any():
        numbers = report.compute(scores, table, args.ava_video_dir)
    write_scores(args.predictions_csv, args.ground_truth_csv, table, *scores.values())
    write_json(settings_file, {**vars(args), "mAP": numbers and numbers["mAP"]})
    print(f"{len(table)} rows: {args.predictions_csv}, ground truth in the same order: {args.ground_truth_csv}")
    if numbers is None:
        unlabelled = int((table.label == NO_LABEL).sum())
        reason = f"{unlabelled} rows have no label" if unlabelled else "no row is labelled SPEAKING_AUDIBLE"
        print(f"no evaluation: {reason}")
        return
    report.show(numbers)
    report.save(numbers, scores, table, args, SETTINGS_FILE)
    print(f"official mAP: {100 * numbers['mAP']:.2f} (chance {100 * numbers['chance']:.2f})")
    train = str(Path(directory).with_name("train"))
    device = read_setting(train, STE_FORWARD_SETTINGS, "cuda_device")
    if device is None or read_setting(directory, STE_FORWARD_SETTINGS, "split") != "val":
        files = ("--predictions", args.predictions_csv, "--ground-truth", args.ground_truth_csv)
        print_next("scripts/evaluate.py", *files)
    else:  # features of the training videos: stage 7 is next
        print_next(
            *("ASC_train.py", 11, 4, 3, device),
            features_train_full=(train, ASC_inputs["features_train_full"]),
            features_val_full=(directory, ASC_inputs["features_val_full"]),
        )
