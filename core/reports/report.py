"""Evaluation report of final predictions: its numbers, printed, saved as json and plotted.

`scripts/evaluate.py` reports on one or several files of predictions, both post-processing stages on the predictions
they have just computed.
"""

import argparse
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from core.config import data_inputs
from core.formats.annotations import FaceTable, find_annotations
from core.media.container import list_videos
from core.media.reader import VideoReader
from core.metrics import average_precision, roc_auc, tied_range
from core.runtime.cli import add_clip_boxes_argument
from core.runtime.errors import InputError, one_line
from core.runtime.files import require_directory, require_distinct, write_json

BY_FACES, BY_WIDTH = "faces in the frame", "face width (pixels)"
FACES = ("1", "2", "3", "more")  # faces in the frame
WIDTHS = ("< 64", "64 to 128", "> 128")  # face width in pixels
WORST = 5  # worst videos listed per prediction


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --ava-video-dir, --plots, --only-predicted, --clip-boxes and --json."""
    parser.add_argument(
        "--ava-video-dir",
        help="directory of videos, <video_id>.<ext>, for the breakdown by face width in pixels (default: the "
        "configured directory if it holds all videos)",
    )
    parser.add_argument(
        "--plots",
        help="directory to write plots to: precision and recall, breakdowns, score histograms, and scores over time "
        "for the worst videos",
    )
    parser.add_argument(
        "--only-predicted", action="store_true", help="leave out rows of the ground truth that have no prediction"
    )
    add_clip_boxes_argument(parser)
    parser.add_argument("--json", help="file to write all numbers to, with mAP as a fraction in full precision")


def require_distinct_paths(
    args: argparse.Namespace, inputs: Iterable[str], outputs: dict[str, str | Path], settings_file: str
) -> None:
    """Raise InputError if the script would overwrite an input, or write two outputs to one file.

    `outputs` maps flags to paths. The annotations and videos named in `args` are inputs too; the files of --json and
    --plots, where the settings are saved as `settings_file`, are outputs too.
    """
    inputs = [*inputs, *find_annotations(args.ground_truth), *Path(video_directory(args.ava_video_dir)).glob("*")]
    settings = args.plots and Path(args.plots, settings_file)
    require_distinct(inputs, {**outputs, "--json": args.json, "the settings in --plots": settings})


def video_directory(ava_video_dir: str | None) -> str:
    return data_inputs["ava_video_dir"] if ava_video_dir is None else ava_video_dir


def display_names(paths: Sequence[str]) -> list[str]:
    """Return names of files for tables, plots and json: their stems, or if these repeat, their relative paths.

    Raises InputError if a path is given twice.
    """
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    absolute = [os.path.abspath(path) for path in paths]
    if len(set(absolute)) < len(absolute):
        raise InputError(f"{max(absolute, key=absolute.count)}: given twice")
    return [os.path.relpath(path, os.path.commonpath(absolute)) for path in absolute]


# Numbers


def compute(scores: dict[str, np.ndarray], table: FaceTable, ava_video_dir: str | None) -> dict:
    """Return all numbers of the report on one or several predictions.

    scores: name -> (N,) in the row order of the table. The result holds

    - "mAP" and "auc" of the first prediction, "rows", "positives" and "chance" (the fraction of positive rows),
    - "predictions": of each its mAP and AUC, the number of rows with tied scores and the range of mAP that follows,
      its breakdowns (title -> group -> rows, positives, mAP) and the ids of its "worst" videos,
    - "videos": rows, positives and AP of each,
    - "left out": breakdown -> reason why it is missing.

    AP is a fraction, or None without positive rows.

    Raises InputError if no row is positive, or if a video in `ava_video_dir` is missing or broken.
    """
    positive = table.is_speaking
    left_out = {}
    groups: dict[str, tuple[np.ndarray, Sequence[str]]] = {BY_FACES: (faces_group(table), FACES)}
    try:
        widths = video_widths(table, video_directory(ava_video_dir))
        groups[BY_WIDTH] = (width_group(table, widths), WIDTHS)
    except (InputError, OSError) as error:
        if ava_video_dir is not None:
            raise
        left_out[BY_WIDTH] = f"{error} (pass --ava-video-dir to use another directory)"
    by_video = {name: breakdown(values, table, table.video, table.video_ids) for name, values in scores.items()}
    predictions = {}
    for name, values in scores.items():
        auc = roc_auc(values, positive)
        predictions[name] = {
            "mAP": average_precision(values, positive),
            "tied rows": int(pd.Series(values).duplicated(keep=False).sum()),
            "mAP range of ties": tied_range(values, positive),
            "auc": None if math.isnan(auc) else auc,
            **{title: breakdown(values, table, *group) for title, group in groups.items()},
            "worst": _worst_videos(by_video[name]),
        }
    first = next(iter(scores))
    return {
        "mAP": predictions[first]["mAP"],
        "auc": predictions[first]["auc"],
        "rows": len(table),
        "positives": int(positive.sum()),
        "chance": float(positive.mean()),
        "predictions": predictions,
        "videos": {
            video: {
                "rows": by_video[first][video]["rows"],
                "positives": by_video[first][video]["positives"],
                "AP": {name: by_video[name][video]["mAP"] for name in scores},
            }
            for video in table.video_ids
            if by_video[first][video]["rows"]
        },
        "left out": left_out,
    }


def video_widths(table: FaceTable, directory: str) -> np.ndarray:
    """Return the frame width of each video (V,) in pixels. Raises InputError if a video is missing or broken."""
    paths = list_videos(require_directory(directory, "the videos, <video_id>.<ext>"))
    widths = []
    for video_id in table.video_ids:
        if video_id not in paths:
            raise InputError(f"{directory}: no video {video_id}")
        try:
            with VideoReader(paths[video_id]) as reader:
                widths.append(reader.size[0])
        except ValueError as error:
            raise InputError(f"{paths[video_id]}: {error}") from None
    return np.array(widths)


def _worst_videos(videos: dict[str, dict]) -> list[str]:
    """Return the ids of the videos with the lowest AP, in rising order."""
    ranked = sorted((video["mAP"], video_id) for video_id, video in videos.items() if video["mAP"] is not None)
    return [video_id for _, video_id in ranked[:WORST]]


def breakdown(scores: np.ndarray, table: FaceTable, group: np.ndarray, names: Sequence[str]) -> dict[str, dict]:
    """Return rows, positives and AP (None without positives) of each named group of rows.

    group (N,) holds indices into `names`.
    """
    result = {}
    for index, name in enumerate(names):
        rows = group == index
        positive = table.is_speaking[rows]
        value = average_precision(scores[rows], positive) if positive.any() else None
        result[name] = {"rows": len(positive), "positives": int(positive.sum()), "mAP": value}
    return result


def faces_group(table: FaceTable) -> np.ndarray:
    """Return the number of faces in each row's frame as an index into FACES, (N,)."""
    return np.minimum(np.bincount(table.frame_id)[table.frame_id], len(FACES)) - 1


def width_group(table: FaceTable, video_widths: np.ndarray) -> np.ndarray:
    """Return the face width of each row as an index into WIDTHS, (N,). video_widths (V,) in pixels."""
    pixels = ((table.box[:, 2] - table.box[:, 0]) * video_widths[table.video]).round(6)
    return np.where(pixels < 64, 0, np.where(pixels <= 128, 1, 2))


# Tables


def show(numbers: dict) -> None:
    """Print the numbers of `compute` as tables, in per cent. The worst videos are those of the last prediction."""
    predictions, videos = numbers["predictions"], numbers["videos"]
    print(f"{numbers['rows']} rows of {len(videos)} videos, {numbers['positives']} positive")
    overall = [[numbers["chance"], 0.5], *([own["mAP"], own["auc"]] for own in predictions.values())]
    _print_table("official mAP (%)", pd.DataFrame(overall, ["chance", *predictions], ["mAP", "AUC"]))
    for name, own in predictions.items():
        low, high = own["mAP range of ties"]
        if f"{100 * low:.2f}" != f"{100 * high:.2f}":
            result = f"the official tool gives {100 * low:.2f} to {100 * high:.2f} %, depending on their order"
            print(one_line(f"note: {name}: {own['tied rows']} rows share scores, so {result}"))
    if numbers["chance"] == 1:
        print("note: all rows are SPEAKING_AUDIBLE, so these numbers mean nothing")
    for title in (BY_FACES, BY_WIDTH):
        if title in numbers["left out"]:
            print(one_line(f"no breakdown by {title}: {numbers['left out'][title]}"))
            continue
        results = [own[title] for own in predictions.values()]
        values = [[groups[name]["mAP"] for groups in results] for name in results[0]]
        _print_groups(f"mAP (%) by {title}", results[0], values, predictions)
    without_positives = sum(not video["positives"] for video in videos.values())
    if without_positives:
        print(f"{without_positives} of {len(videos)} videos have no positive rows and hence no AP")
    worst = {video_id: videos[video_id] for video_id in list(predictions.values())[-1]["worst"]}
    _print_groups("AP (%) of the worst videos", worst, [video["AP"].values() for video in worst.values()], predictions)


def _print_groups(
    title: str, groups: dict[str, dict], values: Iterable[Iterable[float | None]], predictions: Iterable[str]
) -> None:
    """Print a line per group: its rows, the fraction of positive rows, and the AP of each prediction."""
    lines = [
        [group["rows"], group["positives"] / group["rows"] if group["rows"] else None, *own]
        for group, own in zip(groups.values(), values, strict=True)
    ]
    _print_table(title, pd.DataFrame(lines, list(groups), ["rows", "chance", *predictions]))


def _print_table(title: str, table: pd.DataFrame) -> None:
    table = table.rename(index=one_line, columns=one_line).rename_axis(columns=title)
    print(table.to_string(float_format=lambda value: f"{100 * value:.2f}", na_rep="none", col_space=10))


# Files


def save(
    numbers: dict, scores: dict[str, np.ndarray], table: FaceTable, args: argparse.Namespace, settings_file: str
) -> None:
    """Write the files of --json and --plots, both with the arguments, and print their paths."""
    if args.json is not None:
        write_json(args.json, {**numbers, "settings": vars(args)})
        print(f"numbers: {one_line(args.json)}")
    if args.plots is not None:
        paths = draw(Path(args.plots), numbers, scores, table)
        write_json(Path(args.plots, settings_file), vars(args))
        print(one_line(f"plots: {', '.join(map(str, paths))}"))


def draw(directory: Path, numbers: dict, scores: dict[str, np.ndarray], table: FaceTable) -> list[Path]:
    """Draw all plots of the report; scores over time are of the last prediction's worst videos. Returns the paths."""
    from core.reports import plots  # importing matplotlib takes a second

    predictions, videos = numbers["predictions"], numbers["videos"]
    drawn = [unit_scores(values) for values in scores.values()]
    names = [
        plots.short(name) + ("" if unit is values else " (percentiles)")
        for (name, values), unit in zip(scores.items(), drawn, strict=True)
    ]
    overall = [f"{name}, mAP {100 * own['mAP']:.2f} %" for name, own in zip(names, predictions.values(), strict=True)]
    titles = [title for title in (BY_FACES, BY_WIDTH) if title not in numbers["left out"]]
    breakdowns = {title: [own[title] for own in predictions.values()] for title in titles}
    paths = [
        plots.plot_precision_recall(directory / "precision_recall.png", drawn, table, overall),
        plots.plot_breakdown(directory / "breakdown.png", breakdowns, names),
        plots.plot_histograms(directory / "score_histograms.png", drawn, table, names),
    ]
    for video_id in list(predictions.values())[-1]["worst"]:
        values = videos[video_id]["AP"].values()
        legend = [f"{name}, AP {100 * value:.2f} %" for name, value in zip(names, values, strict=True)]
        path = directory / f"scores_{video_id}.png"
        paths.append(plots.plot_scores(path, table.video_ids.index(video_id), drawn, table, legend))
    return paths


def unit_scores(scores: np.ndarray) -> np.ndarray:
    """Return scores in [0, 1]; scores on another scale are replaced by their percentiles, which keeps AP the same."""
    if scores.min() >= 0 and scores.max() <= 1:
        return scores
    return pd.Series(scores).rank(pct=True).to_numpy()
