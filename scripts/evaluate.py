"""Evaluate final predictions: official mAP, breakdowns, pictures; several files are compared in one table.

    python scripts/evaluate.py --predictions ava/results/ste_predictions_val.csv ava/results/asc_predictions_val.csv \\
        --ground-truth ava/csv/val --ava-video-dir ava/videos/trainval --plots ava/results --json ava/results/val.json
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from core.annotations import SPEAKING_AUDIBLE, FaceTable, read_annotations
from core.command_line import Parser, describe, require_different, require_directory, run
from core.config import postprocessing_params
from core.errors import InputError
from core.evaluation import FACES, WIDTHS, average_precision, breakdown, faces_group, join, roc_auc, width_group
from core.files import write_json
from core.io import read_scores
from core.video import Film, find_films


def get_args_parser() -> Parser:
    defaults = postprocessing_params
    parser = Parser(__doc__)
    parser.add_argument(
        "--predictions", nargs="+", default=[defaults["asc_predictions_csv"]], help="files of final predictions"
    )
    parser.add_argument("--ground-truth", default=defaults["ground_truth"], help="annotations of the same rows")
    parser.add_argument("--ava-video-dir", help="films, for the breakdown by face width in pixels")
    parser.add_argument("--plots", help="directory for pictures: precision and recall, breakdowns, scores over time")
    parser.add_argument("--json", help="file for all the numbers, mAP as a fraction in full precision")
    return parser


def film_widths(table: FaceTable, directory: str) -> np.ndarray:
    """(V,) width of each video's film in pixels. Raises InputError where a film is missing or broken."""
    films = find_films(require_directory(directory, "the films, <video_id>.<ext>"))
    widths = []
    for video_id in table.video_ids:
        if video_id not in films:
            raise InputError(f"{directory}: no film {video_id}")
        try:
            with Film(films[video_id]) as film:
                widths.append(film.size[0])
        except ValueError as error:
            raise InputError(f"{films[video_id]}: {error}") from None
    return np.array(widths)


def display_names(paths: list[str]) -> list[str]:
    """What each file is called in tables and pictures: its stem, or the path where stems repeat."""
    stems = [Path(path).stem for path in paths]
    return stems if len(set(stems)) == len(stems) else paths


def print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells))


def main(args: argparse.Namespace) -> None:
    describe(vars(args))
    table = read_annotations(args.ground_truth)
    positive = table.label == SPEAKING_AUDIBLE
    predictions = {f"--predictions (number {number})": path for number, path in enumerate(args.predictions, 1)}
    require_different({**predictions, "--json": args.json})
    require_different({"--ground-truth": args.ground_truth, "--json": args.json})
    names = display_names(args.predictions)
    scores = {
        name: join(read_scores(path), table, path)["score"].to_numpy()
        for name, path in zip(names, args.predictions, strict=True)
    }
    overall = {
        name: {"mAP": average_precision(values, positive), "auc": roc_auc(values, positive)}
        for name, values in scores.items()
    }
    groups = {"faces in the frame": (faces_group(table), FACES)}
    if args.ava_video_dir:
        groups["face width (pixels)"] = (width_group(table, film_widths(table, args.ava_video_dir)), WIDTHS)
    breakdowns = {
        title: {name: breakdown(values, table, *group) for name, values in scores.items()}
        for title, group in groups.items()
    }

    chance = positive.mean()
    print(f"{len(table)} rows of {len(table.video_ids)} videos, {positive.sum()} positive")
    lines = [[name, f"{100 * r['mAP']:.2f}", f"{100 * r['auc']:.2f}"] for name, r in overall.items()]
    print_table(
        [["official mAP (%)", "mAP", "AUC"], ["share of positive rows", f"{100 * chance:.2f}", "50.00"], *lines]
    )
    for title, results in breakdowns.items():
        group_names = groups[title][1]
        rows = [
            [name, *("none" if group["mAP"] is None else f"{100 * group['mAP']:.2f}" for group in result.values())]
            for name, result in results.items()
        ]
        print_table([[f"by {title}", *group_names], *rows])

    if args.json:
        each = {name: {**overall[name], **{title: r[name] for title, r in breakdowns.items()}} for name in names}
        counts = {"rows": len(table), "positives": int(positive.sum())}
        write_json(args.json, {**overall[names[0]], **counts, "predictions": each, "settings": vars(args)})
        print(f"numbers: {args.json}")
    if args.plots:
        from core import plots  # matplotlib takes a second, and only pictures need it

        directory = Path(args.plots)
        legend = {name: f"{name} {100 * overall[name]['mAP']:.1f}" for name in names}
        video = int(np.argmax(np.bincount(table.video[positive], minlength=len(table.video_ids))))
        made = [
            plots.plot_precision_recall(directory / "precision_recall.png", scores, table, legend),
            plots.plot_breakdown(directory / "breakdown.png", breakdowns),
            plots.plot_scores(directory / f"scores_{table.video_ids[video]}.png", video, scores, table),
        ]
        write_json(directory / "evaluate_cfg.json", vars(args))
        print("pictures:", ", ".join(map(str, made)))


if __name__ == "__main__":
    run(main, get_args_parser())
