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
from core.metrics import average_precision, roc_auc
from core.runtime.errors import InputError, one_line
from core.runtime.files import require_directory, require_distinct, write_json

BY_FACES, BY_WIDTH = "faces in the frame", "face width (pixels)"
FACES = ("1", "2", "3", "more")  # faces in the frame
WIDTHS = ("< 64", "64 to 128", "> 128")  # face width in pixels
WORST = 5  # worst videos listed per prediction
_LISTED = 5  # videos without positive rows that are listed


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --ava-video-dir, --plots and --json."""
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
    parser.add_argument("--json", help="file to write all numbers to, with mAP as a fraction in full precision")


def require_distinct_paths(
    args: argparse.Namespace, inputs: Iterable[str], outputs: dict[str, str | Path], settings_file: str
) -> None:
    """Raise InputError if the script would overwrite an input, or write two outputs to one file.

    `outputs` maps flags to paths. The annotations and videos named in `args` are inputs too; the files of --json and
    --plots, where the settings are saved as `settings_file`, are outputs too.
    """
    if args.plots is not None and Path(args.plots).is_file():
        raise InputError(f"{args.plots}: a file; --plots expects a directory")
    inputs = [*inputs, *find_annotations(args.ground_truth), *Path(_video_directory(args.ava_video_dir)).glob("*")]
    settings = args.plots and Path(args.plots, settings_file)
    require_distinct(inputs, {**outputs, "--json": args.json, "the settings in --plots": settings})


def _video_directory(ava_video_dir: str | None) -> str:
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
    - "predictions": of each its mAP and AUC, its breakdowns (title -> group -> rows, positives, mAP) and the ids of
      its "worst" videos,
    - "videos": rows, positives and AP of each,
    - "left out": breakdown -> reason why it is missing.

    AP is a fraction, or None without positive rows.

    Raises InputError if no row is positive, or if a video in `ava_video_dir` is missing or broken.
    """
    positive = table.is_speaking
    predictions = {}
    for name, values in scores.items():
        auc = roc_auc(values, positive)
        predictions[name] = {"mAP": average_precision(values, positive), "auc": None if math.isnan(auc) else auc}
    left_out = {}
    groups: dict[str, tuple[np.ndarray, Sequence[str]]] = {BY_FACES: (faces_group(table), FACES)}
    try:
        widths = video_widths(table, _video_directory(ava_video_dir))
        groups[BY_WIDTH] = (width_group(table, widths), WIDTHS)
    except (InputError, OSError) as error:
        if ava_video_dir is not None:
            raise
        left_out[BY_WIDTH] = f"{error} (pass --ava-video-dir to use another directory)"
    by_video = {name: breakdown(values, table, table.video, table.video_ids) for name, values in scores.items()}
    for name, values in scores.items():
        predictions[name] |= {title: breakdown(values, table, *group) for title, group in groups.items()}
        predictions[name]["worst"] = _worst_videos(by_video[name])
    first = next(iter(scores))
    return {
        **{key: predictions[first][key] for key in ("mAP", "auc")},
        "rows": len(table),
        "positives": int(positive.sum()),
        "chance": float(positive.mean()),
        "predictions": predictions,
        "videos": {
            video: {
                **{key: by_video[first][video][key] for key in ("rows", "positives")},
                "AP": {name: by_video[name][video]["mAP"] for name in scores},
            }
            for video in table.video_ids
        },
        "left out": left_out,
    }


def video_widths(table: FaceTable, directory: str) -> np.ndarray:
    """Return the frame width of each video (V,) in pixels. Raises InputError if a video is missing or broken."""
    paths = list_videos(require_directory(directory, "the videos, <video_id>.<ext>"))
    missing = [video_id for video_id in table.video_ids if video_id not in paths]
    if missing:
        raise InputError(f"{directory}: no video {missing[0]} ({len(missing)} of {len(table.video_ids)} are missing)")
    widths = []
    for video_id in table.video_ids:
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
    positive = table.is_speaking
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(names) + 1))
    result = {}
    for name, start, stop in zip(names, starts[:-1], starts[1:], strict=True):
        rows = order[start:stop]
        value = average_precision(scores[rows], positive[rows]) if positive[rows].any() else None
        result[name] = {"rows": len(rows), "positives": int(positive[rows].sum()), "mAP": value}
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
    """Print the numbers of `compute` as tables, fractions in per cent."""
    predictions, videos = numbers["predictions"], numbers["videos"]
    print(f"{numbers['rows']} rows of {len(videos)} videos, {numbers['positives']} positive")
    overall = [[numbers["chance"], 0.5], *([own["mAP"], own["auc"]] for own in predictions.values())]
    _print_table("official mAP (%)", _percent(overall, ["chance", *predictions], ["mAP", "AUC"]))
    for title in (BY_FACES, BY_WIDTH):
        if title in numbers["left out"]:
            print(one_line(f"no breakdown by {title}: {numbers['left out'][title]}"))
            continue
        results = [own[title].values() for own in predictions.values()]
        names = list(next(iter(predictions.values()))[title])
        fractions = [group["positives"] / group["rows"] if group["rows"] else None for group in results[0]]
        lines = [fractions, *([group["mAP"] for group in groups] for groups in results)]
        rows = pd.DataFrame([[group["rows"] for group in results[0]]], ["rows"], names, dtype=object)
        percent = _percent(lines, ["fraction of positive rows", *predictions], names)
        _print_table(f"mAP (%) by {title}", pd.concat([rows, percent]))
    _show_videos(predictions, videos)


def _show_videos(predictions: dict[str, dict], videos: dict[str, dict]) -> None:
    """Print the spread of AP over videos, and the worst videos of any prediction by the last prediction's AP."""
    precision = _percent([video["AP"].values() for video in videos.values()], list(videos), list(predictions))
    silent = [video_id for video_id, video in videos.items() if not video["positives"]]
    spread = precision.astype(float).agg(["min", "median", "max"]).T.set_axis(["lowest", "median", "highest"], axis=1)
    _print_table("AP (%) by video", spread)
    if silent:
        listed = ", ".join(silent[:_LISTED]) + (", ..." if len(silent) > _LISTED else "")
        print(one_line(f"{len(silent)} of {len(videos)} videos have no positive rows and hence no AP: {listed}"))
    last = list(predictions)[-1]
    worst = {video_id for own in predictions.values() for video_id in own["worst"]}
    worst = sorted(worst, key=lambda video_id: (videos[video_id]["AP"][last], video_id))
    counts = pd.DataFrame([[videos[video_id][key] for key in ("rows", "positives")] for video_id in worst], worst)
    table = pd.concat([counts.set_axis(["rows", "positives"], axis=1), precision.loc[worst]], axis=1)
    _print_table("AP (%) of the worst videos", table)


def _percent(rows: Iterable[Iterable[float | None]], index: list[str], columns: list[str]) -> pd.DataFrame:
    return (100 * pd.DataFrame([list(row) for row in rows], index, columns, dtype=float)).astype(object)


def _print_table(title: str, table: pd.DataFrame) -> None:
    table = table.rename(index=one_line, columns=one_line).rename_axis(columns=title)
    print(table.to_string(float_format="{:.2f}".format, na_rep="none", col_space=10))


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
    drawn = [_unit_scores(values) for values in scores.values()]
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


def _unit_scores(scores: np.ndarray) -> np.ndarray:
    """Return scores in [0, 1]; scores on another scale are replaced by their percentiles, which keeps AP the same."""
    if scores.min() >= 0 and scores.max() <= 1:
        return scores
    return pd.Series(scores).rank(pct=True).to_numpy()
