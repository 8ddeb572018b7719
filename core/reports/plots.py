"""Pictures of results, for eyes at half their size, and what all pictures share. Colours are Okabe and Ito's."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from core.formats.annotations import NOT_SPEAKING, SPEAKING_AUDIBLE, SPEAKING_NOT_AUDIBLE, FaceTable
from core.metrics import precision_recall, ranking_errors
from core.runtime.files import replacing

plt.rcParams["text.parse_math"] = False  # names may have dollar signs

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # of files and runs
LINES = ("-", "--", ":")  # where there are more of them than colours
LABEL_COLOURS = {NOT_SPEAKING: "#999999", SPEAKING_AUDIBLE: "#F0E442", SPEAKING_NOT_AUDIBLE: "#CC79A7"}
LABEL_NAMES = {
    NOT_SPEAKING: "not speaking",
    SPEAKING_AUDIBLE: "speaking, audible",
    SPEAKING_NOT_AUDIBLE: "speaking, not audible",
}
MAX_LANES = 12
GAP_SECONDS = 0.5  # a track that pauses for longer is drawn in pieces
_PAUSE_SECONDS = 2.0  # time without any face of a picture that is longer is left out
_LEAST_SECONDS = 2.0  # that an axis of time shows
_ROW_SECONDS = 0.04  # how long a row lasts that has no neighbour
_CURVE_POINTS = 2000  # of a curve of precision and recall; more would not be seen


def save(figure: plt.Figure, path: Path) -> Path:
    """Write a figure, whole or not at all, and let go of it. Returns the path."""
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # of names in scripts that the font lacks
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
    return path


def short(name: str, length: int = 44) -> str:
    """A name that fits, without its middle if need be."""
    half = length // 2 - 2
    return name if len(name) <= length else f"{name[:half]}...{name[-half:]}"


def _style(number: int) -> dict:
    """Colour and kind of line of a file or a run."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number // len(COLOURS) % len(LINES)]}


def draw_legend(figure: plt.Figure, handles: Sequence, labels: Sequence[str]) -> None:
    """Below the figure, in as many columns as its width has room for."""
    labels = [f" {label}" if label.startswith("_") else label for label in labels]  # else it would be left out
    columns = int(figure.get_figwidth() / (0.5 + 0.075 * max(map(len, labels))))  # inches, and a letter's width
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=max(1, min(columns, len(labels))),
        fontsize=9,
        frameon=False,
    )


def label_outside(panels: np.ndarray, count: int, xlabel: str, ylabel: str) -> None:
    """Name the axes of a grid (lines, columns) of which `count` panels are used, and hide the others."""
    for number, axes in enumerate(panels.flat):
        axes.set_visible(number < count)
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(xlabel if number + panels.shape[1] >= count else "")
    for axes in panels[:, 0]:
        axes.set_ylabel(ylabel)


def plot_precision_recall(path: Path, scores: dict[str, np.ndarray], table: FaceTable, legend: dict[str, str]) -> Path:
    """One curve per prediction, name -> scores (N,); legend: name -> text. Returns the path."""
    positive = table.is_speaking
    figure, axes = plt.subplots(figsize=(6, 5 + 0.2 * len(scores)), layout="constrained")
    curves = []
    for number, values in enumerate(scores.values()):
        recall, precision = precision_recall(values, positive)
        even = np.searchsorted(recall, np.linspace(0, 1, _CURVE_POINTS)).clip(max=len(recall) - 1)
        points = np.unique(np.concatenate([np.arange(min(_CURVE_POINTS, len(recall))), even]))
        curves += axes.plot(recall[points], precision[points], linewidth=2, **_style(number))
    chance = positive.mean()
    curves.append(axes.axhline(chance, color="black", linestyle=(0, (1, 2))))
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="Precision and recall")
    axes.grid(alpha=0.3)
    draw_legend(figure, curves, [*(legend[name] for name in scores), f"chance: {100 * chance:.2f} % of rows speak"])
    return save(figure, path)


def plot_breakdown(path: Path, groups: dict[str, dict[str, dict[str, dict]]], legend: dict[str, str]) -> Path:
    """Bars of AP: title -> prediction name -> group name -> {rows, positives, mAP}; legend: name -> text.

    Returns the path.
    """
    count = len(next(iter(groups.values())))
    size = ((5 + 0.5 * count) * len(groups), 4.4 + 0.2 * count)
    figure, panels = plt.subplots(1, len(groups), figsize=size, squeeze=False, layout="constrained")
    handles = {}
    for axes, (title, predictions) in zip(panels[0], groups.items(), strict=True):
        width = 0.8 / count
        for number, (name, result) in enumerate(predictions.items()):
            place = np.arange(len(result)) + (number - (count - 1) / 2) * width
            heights = [100 * (group["mAP"] or 0) for group in result.values()]
            texts = ["none" if group["mAP"] is None else f"{100 * group['mAP']:.1f}" for group in result.values()]
            colour = COLOURS[number % len(COLOURS)]
            hatch = ("", "//", "..")[number // len(COLOURS) % 3]
            bars = axes.bar(place, heights, width, color=colour, hatch=hatch, edgecolor="white")
            handles[name] = bars[0]
            axes.bar_label(bars, texts, fontsize=8, padding=2, rotation=90 if count > 2 else 0)
        for index, group in enumerate(result.values()):
            if group["rows"]:
                chance = 100 * group["positives"] / group["rows"]
                axes.hlines(chance, index - 0.45, index + 0.45, color="black", linestyle=(0, (1, 1)))
        ticks = [f"{name}\n{group['rows']} rows" for name, group in result.items()]
        axes.set(xticks=range(len(ticks)), xticklabels=ticks, ylabel="mAP (%)", ylim=(0, 116), xlabel=title)
        axes.set_yticks(range(0, 101, 20))
    chance = Line2D([], [], color="black", linestyle=(0, (1, 1)))
    texts = [legend[name] for name in handles]
    draw_legend(figure, [*handles.values(), chance], [*texts, "chance: share of positive rows"])
    return save(figure, path)


def plot_histograms(path: Path, scores: dict[str, np.ndarray], table: FaceTable, legend: dict[str, str]) -> Path:
    """How each prediction, name -> scores (N,) in [0, 1], scores the rows of each label: a panel each.

    Each label is counted for itself and the axis is logarithmic, so that a rare one is seen. legend: name -> text.
    Returns the path.
    """
    columns = min(3, len(scores))
    lines = -(-len(scores) // columns)
    size = (1.2 + 4 * columns, 0.9 + 3.2 * lines)
    figure, panels = plt.subplots(
        lines, columns, figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    edges = np.linspace(0, 1, 26)
    handles, texts, least = [], [], 100.0
    for label, colour in {**LABEL_COLOURS, NOT_SPEAKING: "#0072B2", SPEAKING_AUDIBLE: "#E69F00"}.items():
        rows = table.label == label
        total = int(rows.sum())
        handles.append(Line2D([], [], color=colour, linewidth=2, linestyle=LINES[label]))
        texts.append(f"{LABEL_NAMES[label]} ({total} rows)" if total else f"{LABEL_NAMES[label]} (no rows)")
        for axes, values in zip(panels.flat, scores.values(), strict=False):
            if total:
                share = 100 * np.histogram(values[rows], edges)[0] / total
                least = min(least, share[share > 0].min())
                axes.stairs(share, edges, color=colour, linewidth=2, linestyle=LINES[label])
    for axes, name in zip(panels.flat, scores, strict=False):
        axes.set_title(short(legend[name], 40), fontsize=9)
        axes.grid(alpha=0.3)
    panels[0, 0].set(xlim=(0, 1), yscale="log", ylim=(min(least / 2, 0.5), 150))
    panels[0, 0].yaxis.set_major_formatter("{x:g}")
    panels[0, 0].yaxis.set_minor_formatter(NullFormatter())
    label_outside(panels, len(scores), "score", "share of the label's rows (%)")
    draw_legend(figure, handles, texts)
    return save(figure, path)


def plot_scores(
    path: Path, video: int, scores: dict[str, np.ndarray], table: FaceTable, legend: dict[str, str]
) -> Path:
    """Scores of a video's faces over time beside the truth, a lane each; name -> scores (N,) in [0, 1], name -> text.

    The faces are those that the last of the predictions ranks worst (by the sum of `ranking_errors` of their rows
    among those of the video), in the order of time. Lanes that follow each other closely have one axis of time; where
    nothing is to be seen for a while, the next begins. Returns the path.
    """
    rows = table.rows_of_video(video)
    values = list(scores.values())[-1]
    wrong = ranking_errors(values[rows], table.is_speaking[rows])
    tracks, track_of = np.unique(table.entity[rows], return_inverse=True)
    worst = np.argsort(-np.bincount(track_of, wrong), kind="stable")[:MAX_LANES]
    means = {tracks[index]: wrong[track_of == index].mean() for index in worst}
    begins = {track: table.timestamp[table.rows_of_track(track)[0]] for track in means}
    lanes = [_Lane(track, table, means[track]) for track in sorted(means, key=lambda track: (begins[track], track))]
    stretches = _stretches([(lane.pieces[0].edges[0], lane.pieces[-1].edges[-1]) for lane in lanes])

    size = (10, 1.3 + 0.95 * len(lanes) + 0.2 * (len(set(stretches)) + len(scores)))
    figure, panels = plt.subplots(len(lanes), 1, figsize=size, squeeze=False, layout="constrained")
    for place, (axes, lane, (begin, end)) in enumerate(zip(panels[:, 0], lanes, stretches, strict=True)):
        lane.draw(axes, scores)
        margin = 0.01 * (end - begin)
        axes.set(ylim=(-0.04, 1.04), yticks=(0, 1), xlim=(begin - margin, end + margin))
        axes.set_title(lane.title, fontsize=9, loc="left", pad=2)
        axes.tick_params(labelbottom=(begin, end) not in stretches[place + 1 :])
        axes.ticklabel_format(axis="x", useOffset=False, style="plain")
    panels[-1, 0].set_xlabel("time (s)", fontsize=10)
    left_out = len(tracks) - len(lanes)
    shown = f"the {len(lanes)} faces with the largest errors, {left_out} left out" if left_out else "all faces"
    figure.suptitle(
        f"Scores over time, {short(table.video_ids[video])}: {shown}\n"
        f"error: share of the rows of the other label on the wrong side of a row's score (thick line)",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    used = [label for label in LABEL_NAMES if (table.label[rows] == label).any()]
    shades = [Patch(color=LABEL_COLOURS[label], alpha=_SHADES[label], linewidth=0) for label in used]
    curves = [Line2D([], [], linewidth=1.8, **_style(number)) for number in range(len(scores))]
    draw_legend(
        figure, [*shades, *curves], [*(LABEL_NAMES[label] for label in used), *(legend[name] for name in scores)]
    )
    return save(figure, path)


_SHADES = {NOT_SPEAKING: 0.16, SPEAKING_AUDIBLE: 0.75, SPEAKING_NOT_AUDIBLE: 0.4}  # how dense they are


class _Lane:
    """A face, drawn in pieces where it pauses."""

    def __init__(self, track: int, table: FaceTable, error: float):
        rows = table.rows_of_track(track)
        time = table.timestamp[rows]
        parts = np.split(rows, np.flatnonzero(np.diff(time) > GAP_SECONDS) + 1)
        self.pieces = [_Piece(table.timestamp[part], table.label[part], part) for part in parts]
        span = f"{time[0]:.10g} to {time[-1]:.10g} s"
        self.title = f"{short(table.entity_ids[track], 60)}    {span}    error {100 * error:.0f} %"

    def draw(self, axes: plt.Axes, scores: dict[str, np.ndarray]) -> None:
        for piece in self.pieces:
            piece.draw(axes, scores)


class _Piece:
    """A stretch of a track without a pause: times (n,) and labels (n,) of its rows (n,)."""

    def __init__(self, time: np.ndarray, label: np.ndarray, rows: np.ndarray):
        self.time, self.label, self.rows = time, label, rows
        half = np.median(np.diff(time)) / 2 if len(time) > 1 else _ROW_SECONDS / 2
        self.edges = np.concatenate([[time[0] - half], (time[1:] + time[:-1]) / 2, [time[-1] + half]])  # of its rows

    def draw(self, axes: plt.Axes, scores: dict[str, np.ndarray]) -> None:
        """The truth as shades, each prediction as a line, the last on top, or as a dot where there is one row."""
        starts = np.append(0, np.flatnonzero(np.diff(self.label)) + 1)
        ends = np.append(starts[1:], len(self.label))
        for label, colour in LABEL_COLOURS.items():
            mine = self.label[starts] == label
            begin, end = self.edges[starts[mine]], self.edges[ends[mine]]
            axes.broken_barh(
                np.column_stack([begin, end - begin]), (0, 1), color=colour, alpha=_SHADES[label], linewidth=0
            )
        for number, values in enumerate(scores.values()):
            style = {**_style(number), "linewidth": 1.8 if number == len(scores) - 1 else 1.2}
            axes.plot(self.time, values[self.rows], marker="." if len(self.rows) == 1 else None, **style)


def _stretches(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """For each of the spans (begin, end) in seconds, in order of their begin, what is to be seen around it."""
    begin, end = np.array(spans).T
    reach = np.maximum.accumulate(end)
    group = np.cumsum(np.append(False, begin[1:] - reach[:-1] > _PAUSE_SECONDS))
    stretches = []
    for number in group:
        first, last = begin[group == number][0], reach[group == number][-1]
        stretches.append((float(first), float(max(last, first + _LEAST_SECONDS))))
    return stretches


def plot_ablation(path: Path, table: pd.DataFrame, lines: Sequence[str]) -> Path:
    """A panel per axis of `core.ablation.tabulate` with more than one setting: every run, and the mean of the seeds.

    `lines` are the settings without an axis that are drawn across, such as the encoder alone. Returns the path.
    """
    axes_of = {axis: rows for axis, rows in table.groupby("axis", sort=False) if axis and len(rows) > 1}
    figure, panels = plt.subplots(
        1, len(axes_of), figsize=(2.9 * len(axes_of), 4.4), sharey=True, squeeze=False, layout="constrained"
    )
    handles, texts = [], []
    across = table[table["setting"].isin(lines) & (table["axis"] == "")]
    for axes, (axis, rows) in zip(panels[0], axes_of.items(), strict=True):
        places = np.arange(len(rows))
        single = [(place, 100 * value) for place, values in zip(places, rows["mAP"], strict=True) for value in values]
        style = {"linewidth": 1.5 if rows["setting"].str.isdigit().all() else 0}  # no line where there is no order
        mean = axes.plot(places, 100 * rows["mean"], color=COLOURS[1], marker="o", markersize=7, **style)[0]
        runs = axes.plot(*zip(*single, strict=True), "o", color="black", markersize=3.5, alpha=0.6)[0]
        drawn = [axes.axhline(100 * row.mean, **_style(3 * number)) for number, row in enumerate(across.itertuples())]
        handles, texts = [mean, runs, *drawn], ["context, mean", "context, single run", *across["setting"]]
        axes.set_xticks(places, rows["setting"])
        axes.set(xlabel=axis, xlim=(-0.4, len(rows) - 0.6))
        axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("official mAP (%)")
    draw_legend(figure, handles, texts)
    return save(figure, path)
