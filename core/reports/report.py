"""The report on final predictions: its numbers, and how they are printed, saved and drawn.

`scripts/evaluate.py` makes it of files, one or several beside each other, both post-processing stages of what they
have just computed.
"""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from core.config import data_inputs
from core.formats.annotations import FaceTable, find_annotations
from core.media.ffmpeg import VIDEO_SUFFIXES, list_videos
from core.media.reader import VideoReader
from core.metrics import average_precision, roc_auc
from core.runtime.errors import InputError, one_line
from core.runtime.files import require_different, require_directory, write_json

BY_FACES, BY_WIDTH = "faces in the frame", "face width (pixels)"
FACES = ("1", "2", "3", "more")  # in the frame
WIDTHS = ("< 64", "64 to 128", "> 128")  # of the face, in pixels
WORST = 5  # videos of each file that are named
_NAMED = 5  # videos without positives that are named; the others are counted


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """--ava-video-dir, --plots and --json."""
    parser.add_argument(
        "--ava-video-dir",
        help="films, <video_id>.<ext>, for the breakdown by face width in pixels (default: the configured directory, "
        "where it holds all of them)",
    )
    parser.add_argument(
        "--plots",
        help="directory for pictures: precision and recall, breakdowns, scores by label and, of the worst videos, "
        "scores over time",
    )
    parser.add_argument("--json", help="file for all the numbers, mAP as a fraction in full precision")


def require_distinct_paths(
    args: argparse.Namespace, inputs: dict[str, str | Path], outputs: dict[str, str | Path], settings: str
) -> None:
    """Raise InputError where what a script writes is one of its inputs, or where two of its outputs are one file.

    Both are flag -> path. To the inputs come the annotations of --ground-truth and the films of --ava-video-dir, to
    the outputs --json and all that goes to --plots: pictures, and the file named `settings`.
    """
    if args.json is not None:
        outputs = {**outputs, "--json": args.json}
    if args.plots is not None:
        if Path(args.plots).exists() and not Path(args.plots).is_dir():
            raise InputError(f"{args.plots}: a file, expected a directory for the pictures of --plots")
        outputs = {**outputs, "the settings in --plots": Path(args.plots, settings)}
    annotations = {f"--ground-truth ({path.name})": path for path in find_annotations(args.ground_truth)}
    for group in (inputs, annotations):
        require_different({**group, **outputs})
    if args.plots is not None:
        _require_elsewhere({**inputs, **annotations, **outputs}, args.plots, (".png",), "the pictures of --plots")
    _require_elsewhere(outputs, _video_directory(args.ava_video_dir), VIDEO_SUFFIXES, "the films")


def _require_elsewhere(paths: dict[str, str | Path], directory: str, suffixes: tuple[str, ...], what: str) -> None:
    """Raise InputError where one of the paths, flag -> path, has a name in the directory that another file may have."""
    for flag, path in paths.items():
        real = Path(os.path.realpath(path))
        if real.suffix.lower() in suffixes and real.parent == Path(os.path.realpath(directory)):
            raise InputError(f"{path}: both {flag} and one of {what}; give them different paths")


def _video_directory(ava_video_dir: str | None) -> str:
    return data_inputs["ava_video_dir"] if ava_video_dir is None else ava_video_dir


# Numbers


def compute(scores: dict[str, np.ndarray], table: FaceTable, ava_video_dir: str | None) -> dict:
    """All the numbers of the report, of one or several predictions, name -> scores (N,) in the order of the table.

    "mAP" and "auc" are those of the first; "predictions" holds for each its own, its breakdowns (title -> group ->
    rows, positives, mAP) and "worst", the ids of its worst videos; "videos" rows, positives and the AP of each; "left
    out" what could not be told, with the reason. An average precision is a fraction, or None where nothing is positive.

    Raises InputError without positives, and where films are asked for that are missing or broken.
    """
    positive = table.is_speaking
    predictions = {
        name: {"mAP": average_precision(values, positive), "auc": _or_none(roc_auc(values, positive))}
        for name, values in scores.items()
    }
    left_out = {}
    groups: dict[str, tuple[np.ndarray, Sequence[str]]] = {BY_FACES: (faces_group(table), FACES)}
    try:
        films = video_widths(table, _video_directory(ava_video_dir))
        groups[BY_WIDTH] = (width_group(table, films), WIDTHS)
    except (InputError, OSError) as error:
        if ava_video_dir is not None:
            raise
        left_out[BY_WIDTH] = f"{error} (--ava-video-dir names another directory)"
    by_video = {name: breakdown(values, table, table.video, table.video_ids) for name, values in scores.items()}
    for name, values in scores.items():
        predictions[name] |= {title: breakdown(values, table, *group) for title, group in groups.items()}
        predictions[name]["worst"] = _worst(by_video[name])
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
    """(V,) width of each video's film in pixels. Raises InputError where a film is missing or broken."""
    films = list_videos(require_directory(directory, "the films, <video_id>.<ext>"))
    missing = [video_id for video_id in table.video_ids if video_id not in films]
    if missing:
        more = f", nor {len(missing) - 1} others of {len(table.video_ids)}" if len(missing) > 1 else ""
        raise InputError(f"{directory}: no film {missing[0]}{more}")
    widths = []
    for video_id in table.video_ids:
        try:
            with VideoReader(films[video_id]) as film:
                widths.append(film.size[0])
        except ValueError as error:
            raise InputError(f"{films[video_id]}: {error}") from None
    return np.array(widths)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _worst(videos: dict[str, dict]) -> list[str]:
    """Ids of the videos of the lowest AP, of those that have one, the lowest first."""
    ranked = sorted((video["mAP"], video_id) for video_id, video in videos.items() if video["mAP"] is not None)
    return [video_id for _, video_id in ranked[:WORST]]


def display_names(paths: list[str]) -> list[str]:
    """What each file is called in tables and pictures: its stem, or the path where stems repeat."""
    stems = [Path(path).stem for path in paths]
    return stems if len(set(stems)) == len(stems) else paths


def short_labels(names: Sequence[str]) -> dict[str, str]:
    """What names are called where they stand beside each other: paths without the directories that all have in common.

    name -> label, as different as the names are.
    """
    parts = [Path(name).parts for name in names]
    shared = 0
    while len(names) > 1 and all(len(own) > shared + 1 and own[shared] == parts[0][shared] for own in parts):
        shared += 1
    return {name: one_line(Path(*own[shared:]) if shared else name) for name, own in zip(names, parts, strict=True)}


def breakdown(scores: np.ndarray, table: FaceTable, group: np.ndarray, names: Sequence[str]) -> dict[str, dict]:
    """AP of the rows of each group, group (N,) an index into the names: name -> rows, positives, AP (or None).

    The rows are sorted by group once, so that many groups (videos) cost no more than few.
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
    """(N,) index into FACES: how many faces share the row's frame."""
    return np.minimum(np.bincount(table.frame_id)[table.frame_id], len(FACES)) - 1


def width_group(table: FaceTable, video_widths: np.ndarray) -> np.ndarray:
    """(N,) index into WIDTHS; video_widths (V,) in pixels."""
    pixels = ((table.box[:, 2] - table.box[:, 0]) * video_widths[table.video]).round(6)
    return np.where(pixels < 64, 0, np.where(pixels <= 128, 1, 2))


# Tables


def show(numbers: dict) -> None:
    """Print what `compute` found, fractions as percentages."""
    predictions, videos = numbers["predictions"], numbers["videos"]
    labels = short_labels(list(predictions))
    print(f"{numbers['rows']} rows of {len(videos)} videos, {numbers['positives']} positive")
    lines = [[labels[name], _percent(own["mAP"]), _percent(own["auc"])] for name, own in predictions.items()]
    chance = ["chance", _percent(numbers["chance"]), "50.00"]
    _print_table([["official mAP (%)", "mAP", "AUC"], chance, *lines])
    for title in (BY_FACES, BY_WIDTH):
        if title in numbers["left out"]:
            print(one_line(f"no breakdown by {title}: {numbers['left out'][title]}"))
        else:
            _print_table(_breakdown_lines(title, {labels[name]: own[title] for name, own in predictions.items()}))
    _show_videos(predictions, videos, labels)


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.2f}"


def _print_table(rows: list[list[str]]) -> None:
    """The first column to the left, the others to the right, as wide as they need to be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells))


def _breakdown_lines(title: str, results: dict[str, dict[str, dict]]) -> list[list[str]]:
    groups = next(iter(results.values()))
    shares = [group["positives"] / group["rows"] if group["rows"] else None for group in groups.values()]
    return [
        [f"mAP (%) by {title}", *groups],
        ["rows", *(str(group["rows"]) for group in groups.values())],
        ["share of positive rows", *map(_percent, shares)],
        *([name, *(_percent(group["mAP"]) for group in result.values())] for name, result in results.items()),
    ]


def _show_videos(predictions: dict[str, dict], videos: dict[str, dict], labels: dict[str, str]) -> None:
    """How AP differs from video to video, and the worst of each file, all in the order of the last file's AP."""
    silent = [video_id for video_id, video in videos.items() if not video["positives"]]
    rows = [[f"AP (%) by video, {len(videos) - len(silent)} videos", "lowest", "median", "highest"]]
    for name in predictions:
        values = [video["AP"][name] for video in videos.values() if video["AP"][name] is not None]
        rows.append([labels[name], *map(_percent, (min(values), float(np.median(values)), max(values)))])
    _print_table(rows)
    if silent:
        named = ", ".join(silent[:_NAMED]) + (", ..." if len(silent) > _NAMED else "")
        print(one_line(f"{len(silent)} of {len(videos)} videos have no positive rows and so no AP: {named}"))
    last = list(predictions)[-1]
    worst = {video_id for own in predictions.values() for video_id in own["worst"]}
    marked = len(predictions) > 1 and len(videos) - len(silent) > WORST
    rows = [["AP (%) of the worst videos", "rows", "positives", *(labels[name] for name in predictions)]]
    for video_id in sorted(worst, key=lambda video_id: (videos[video_id]["AP"][last], video_id)):
        video = videos[video_id]
        cells = [
            ("*" if marked and video_id in own["worst"] else "") + _percent(video["AP"][name])
            for name, own in predictions.items()
        ]
        rows.append([video_id, str(video["rows"]), str(video["positives"]), *cells])
    _print_table(rows)
    if marked:
        print(f"* among the {WORST} worst of this file")


# Files


def save(
    numbers: dict, scores: dict[str, np.ndarray], table: FaceTable, args: argparse.Namespace, settings: str
) -> None:
    """Write what --json and --plots ask for, and print where it lies; the arguments are kept in both."""
    if args.json is not None:
        write_json(args.json, {**numbers, "settings": vars(args)})
        print(f"numbers: {one_line(args.json)}")
    if args.plots is not None:
        made = draw(Path(args.plots), numbers, scores, table)
        write_json(Path(args.plots, settings), vars(args))
        print(one_line(f"pictures: {', '.join(map(str, made))}"))


def draw(directory: Path, numbers: dict, scores: dict[str, np.ndarray], table: FaceTable) -> list[Path]:
    """The pictures of the report; those of single videos are of the last file's worst. Returns their paths."""
    from core.reports import plots  # matplotlib takes a second, and only pictures need it

    predictions = numbers["predictions"]
    drawn = {name: _between_0_and_1(values) for name, values in scores.items()}
    texts = {
        name: plots.short(label) + ("" if drawn[name] is scores[name] else " (ranks)")
        for name, label in short_labels(list(predictions)).items()
    }
    overall = {name: f"{text}, mAP {_percent(predictions[name]['mAP'])} %" for name, text in texts.items()}
    titles = [title for title in (BY_FACES, BY_WIDTH) if title not in numbers["left out"]]
    groups = {title: {name: own[title] for name, own in predictions.items()} for title in titles}
    made = [
        plots.plot_precision_recall(directory / "precision_recall.png", drawn, table, overall),
        plots.plot_breakdown(directory / "breakdown.png", groups, texts),
        plots.plot_histograms(directory / "score_histograms.png", drawn, table, texts),
    ]
    number_of = {video_id: number for number, video_id in enumerate(table.video_ids)}
    for video_id in list(predictions.values())[-1]["worst"]:
        path, own = directory / f"scores_{video_id}.png", numbers["videos"][video_id]["AP"]
        legend = {name: f"{text}, AP {_percent(own[name])} %" for name, text in texts.items()}
        made.append(plots.plot_scores(path, number_of[video_id], drawn, table, legend))
    return made


def _between_0_and_1(scores: np.ndarray) -> np.ndarray:
    """Scores as pictures show them: those of another scale by their rank, which changes nothing of precision."""
    if scores.min() >= 0 and scores.max() <= 1:
        return scores
    return pd.Series(scores).rank(pct=True).to_numpy()
