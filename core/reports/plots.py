"""Plots of results, legible at half size, and helpers that all plots share. Colours are those of Okabe and Ito."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter
from PIL import Image

from core.contexts import row_interval, starts_after_gap
from core.formats.annotations import FaceTable
from core.metrics import precision_recall, ranking_errors
from core.runtime.errors import one_line
from core.runtime.files import replacing

plt.rcParams["text.parse_math"] = False  # names may contain dollar signs

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", ":")  # line styles, the next one for each round of colours
MAX_LANES = 12  # tracks in a plot of scores
_MAX_IDLE_SECONDS = 2.0  # a longer stretch of time without any track is left out
_MIN_AXIS_SECONDS = 2.0
_MAX_CURVE_POINTS = 2000  # points of a precision-recall curve


class Shade(NamedTuple):
    """Background of one state in a lane, such as speaking."""

    text: str  # in the legend
    colour: str
    alpha: float


LABEL_SHADES = (  # by label_id
    Shade("not speaking", "#999999", 0.16),
    Shade("speaking, audible", "#F0E442", 0.75),
    Shade("speaking, not audible", "#CC79A7", 0.4),
)
_LABEL_LINES = ("#0072B2", "#E69F00", "#CC79A7")  # colours by label_id


def save(figure: plt.Figure, path: Path) -> Path:
    """Write a figure atomically and close it. Returns the path."""
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # names may use scripts that the font lacks
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
    return path


def short(name: str, length: int = 44) -> str:
    """Return a name for a figure, on one line and with its middle cut out if it is longer than `length`."""
    name, half = one_line(name), length // 2 - 2
    return name if len(name) <= length else f"{name[:half]}...{name[-half:]}"


def _style(number: int) -> dict:
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number // len(COLOURS) % len(LINES)]}


def draw_legend(figure: plt.Figure, handles: Sequence, texts: Sequence[str]) -> None:
    """Draw the legend below the panels, in as many columns as fit."""
    texts = [f" {text}" if text.startswith("_") else text for text in texts]  # matplotlib hides leading underscores
    columns = int(figure.get_figwidth() / (0.5 + 0.075 * max(map(len, texts))))  # 0.075 inches per letter
    columns = max(1, min(columns, len(texts)))
    figure.legend(handles, texts, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


def label_outside(panels: np.ndarray, count: int, xlabel: str, ylabel: str) -> None:
    """Label the outer axes of a grid of panels and hide those after the first `count`."""
    for number, axes in enumerate(panels.flat):
        axes.set_visible(number < count)
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(xlabel if number + panels.shape[1] >= count else "")
    for axes in panels[:, 0]:
        axes.set_ylabel(ylabel)


# Predictions: `scores` holds one array (N,) per prediction, `legend` one text per prediction


def plot_precision_recall(path: Path, scores: Sequence[np.ndarray], table: FaceTable, legend: Sequence[str]) -> Path:
    """Plot a precision-recall curve per prediction. Returns the path."""
    positive = table.is_speaking
    figure, axes = plt.subplots(figsize=(6, 5 + 0.2 * len(scores)), layout="constrained")
    curves = []
    for number, values in enumerate(scores):
        recall, precision = precision_recall(values, positive)
        even = np.searchsorted(recall, np.linspace(0, 1, _MAX_CURVE_POINTS)).clip(max=len(recall) - 1)
        points = np.unique(np.concatenate([np.arange(min(_MAX_CURVE_POINTS, len(recall))), even]))
        curves += axes.plot(recall[points], precision[points], linewidth=2, **_style(number))
    chance = positive.mean()
    curves.append(axes.axhline(chance, color="black", linestyle=(0, (1, 2))))
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="Precision and recall")
    axes.grid(alpha=0.3)
    draw_legend(figure, curves, [*legend, f"chance: {100 * chance:.2f} % of rows are positive"])
    return save(figure, path)


def plot_breakdown(path: Path, breakdowns: dict[str, Sequence[dict[str, dict]]], legend: Sequence[str]) -> Path:
    """Plot bars of AP: a panel per breakdown, a bar per group and prediction. Returns the path.

    breakdowns: title -> for each prediction, group name -> rows, positives, mAP.
    """
    count = len(legend)
    size = ((5 + 0.5 * count) * len(breakdowns), 4.4 + 0.2 * count)
    figure, panels = plt.subplots(1, len(breakdowns), figsize=size, squeeze=False, layout="constrained")
    width = 0.8 / count
    for axes, (title, predictions) in zip(panels[0], breakdowns.items(), strict=True):
        handles = []
        for number, groups in enumerate(predictions):
            positions = np.arange(len(groups)) + (number - (count - 1) / 2) * width
            heights = [100 * (group["mAP"] or 0) for group in groups.values()]
            texts = ["none" if group["mAP"] is None else f"{100 * group['mAP']:.1f}" for group in groups.values()]
            colour, hatch = COLOURS[number % len(COLOURS)], ("", "//", "..")[number // len(COLOURS) % 3]
            handles.append(axes.bar(positions, heights, width, color=colour, hatch=hatch, edgecolor="white"))
            axes.bar_label(handles[-1], texts, fontsize=8, padding=2, rotation=90 if count > 2 else 0)
        groups = predictions[0]
        for index, group in enumerate(groups.values()):
            if group["rows"]:
                chance = 100 * group["positives"] / group["rows"]
                axes.hlines(chance, index - 0.45, index + 0.45, color="black", linestyle=(0, (1, 1)))
        ticks = [f"{name}\n{group['rows']} rows" for name, group in groups.items()]
        axes.set(xticks=range(len(ticks)), xticklabels=ticks, ylabel="mAP (%)", ylim=(0, 116), xlabel=title)
        axes.set_yticks(range(0, 101, 20))
    chance = Line2D([], [], color="black", linestyle=(0, (1, 1)))
    draw_legend(figure, [*handles, chance], [*legend, "chance: fraction of positive rows"])
    return save(figure, path)


def plot_histograms(path: Path, scores: Sequence[np.ndarray], table: FaceTable, legend: Sequence[str]) -> Path:
    """Plot the histogram of scores in [0, 1] for each label: a panel per prediction. Returns the path.

    Each label is normalised by its own rows and the axis is logarithmic, so rare labels are visible.
    """
    columns = min(3, len(scores))
    lines = -(-len(scores) // columns)
    size = (1.2 + 4 * columns, 0.9 + 3.2 * lines)
    figure, panels = plt.subplots(
        lines, columns, figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    edges = np.linspace(0, 1, 26)
    handles, texts, least = [], [], 100.0
    for label, colour in enumerate(_LABEL_LINES):
        rows = table.label == label
        total = int(rows.sum())
        style = {"color": colour, "linewidth": 2, "linestyle": LINES[label]}
        handles.append(Line2D([], [], **style))
        texts.append(f"{LABEL_SHADES[label].text} ({total or 'no'} rows)")
        for axes, values in zip(panels.flat, scores if total else (), strict=False):
            percent = 100 * np.histogram(values[rows], edges)[0] / total
            least = min(least, percent[percent > 0].min())
            axes.stairs(percent, edges, **style)
    for axes, text in zip(panels.flat, legend, strict=False):
        axes.set_title(short(text, 40), fontsize=9)
        axes.grid(alpha=0.3)
    panels[0, 0].set(xlim=(0, 1), yscale="log", ylim=(min(least / 2, 0.5), 150))
    panels[0, 0].yaxis.set_major_formatter("{x:g}")
    panels[0, 0].yaxis.set_minor_formatter(NullFormatter())
    label_outside(panels, len(scores), "score", "fraction of the label's rows (%)")
    draw_legend(figure, handles, texts)
    return save(figure, path)


def plot_scores(path: Path, video: int, scores: Sequence[np.ndarray], table: FaceTable, legend: Sequence[str]) -> Path:
    """Plot the scores in [0, 1] and the labels of a video's tracks over time, a lane per track. Returns the path.

    A video with more than MAX_LANES tracks is represented by those with the largest sum of `ranking_errors` under the
    last prediction. Stretches of time without any of these tracks are left out.
    """
    rows = table.rows_of_video(video)
    error = ranking_errors(scores[-1][rows], table.is_speaking[rows])
    tracks, track_of = np.unique(table.entity[rows], return_inverse=True)
    total = np.bincount(track_of, error)
    mean = dict(zip(tracks, total / np.bincount(track_of), strict=True))
    rows_of = {track: table.rows_of_track(track) for track in tracks[np.argsort(-total, kind="stable")[:MAX_LANES]]}
    times = {track: table.timestamp[own] for track, own in rows_of.items()}
    shown = sorted(times, key=lambda track: (times[track][0], track))
    lanes = []
    for track, limits in zip(shown, _time_limits([times[track] for track in shown]), strict=True):
        own = rows_of[track]
        span = f"{times[track][0]:.10g} to {times[track][-1]:.10g} s"
        name = f"{short(table.entity_ids[track], 60)}    {span}    error {100 * mean[track]:.0f} %"
        lanes.append(Lane(name, times[track], [values[own] for values in scores], table.label[own], limits))
    left_out = len(tracks) - len(lanes)
    subset = f"the {len(lanes)} tracks with the largest errors, {left_out} left out" if left_out else "all tracks"
    title = f"Scores over time, {short(table.video_ids[video])}: {subset}"
    title += "\nerror: fraction of wrongly ordered pairs of a positive and a negative row (thick curve)"
    return draw_lanes(path, title, lanes, legend, LABEL_SHADES)


def _time_limits(times: Sequence[np.ndarray]) -> list[tuple[float, float]]:
    """Return the limits of the time axis for each track; tracks without a long break between them share one.

    times: the timestamps (n,) of each track, in order of their first one.
    """
    spans: list[list[float]] = []  # one per track, the same list for those that share an axis
    for own in times:
        begin, end = float(own[0]), float(own[-1]) + row_interval(own)
        if spans and begin - spans[-1][1] <= _MAX_IDLE_SECONDS:
            spans[-1][1] = max(spans[-1][1], end)
            spans.append(spans[-1])
        else:
            spans.append([begin, max(end, begin + _MIN_AXIS_SECONDS)])
    return [(begin - 0.01 * (end - begin), end + 0.01 * (end - begin)) for begin, end in spans]


# Lanes


@dataclass(frozen=True)
class Lane:
    """A track of n rows, drawn over time."""

    title: str
    times: np.ndarray  # (n,) seconds
    scores: Sequence[np.ndarray]  # (n,) in [0, 1] for each curve
    states: np.ndarray  # (n,) indices into the shades of the figure
    limits: tuple[float, float]  # of the time axis, seconds
    thumbnail: Image.Image | None = None


def draw_lanes(
    path: Path,
    title: str,
    lanes: Sequence[Lane],
    curves: Sequence[str],
    shades: Sequence[Shade],
    threshold: float | None = None,
) -> Path:
    """Draw tracks over time, one below the other: curves of scores over shaded states. Returns the path.

    Curves and shades are interrupted where a track pauses. The last curve is drawn thicker. `curves` are their texts in
    the legend. Lanes below each other share the labels of the time axis if they have the same limits.
    """
    next_limits = [*(lane.limits for lane in lanes[1:]), None]
    with_ticks = [lane.limits != following for lane, following in zip(lanes, next_limits, strict=False)]
    columns = 2 if any(lane.thumbnail for lane in lanes) else 1
    figure, panels = plt.subplots(
        max(len(lanes), 1),
        columns,
        figsize=(11, 1.1 + 0.75 * max(len(lanes), 1) + 0.2 * (sum(with_ticks) + len(curves))),
        squeeze=False,
        layout="constrained",
        width_ratios=(1, 17)[-columns:],
    )
    figure.get_layout_engine().set(h_pad=0.03, hspace=0.02, w_pad=0.04)
    for lane, row, labelbottom in zip(lanes, panels, with_ticks, strict=False):
        if lane.thumbnail:
            row[0].imshow(lane.thumbnail)
            row[0].axis("off")
        axes = row[-1]
        _draw_lane(axes, lane, shades)
        if threshold is not None:
            axes.axhline(threshold, color="black", linewidth=0.7, linestyle=":")
        axes.set(xlim=lane.limits, ylim=(-0.04, 1.04), yticks=(0, 1))
        axes.set_title(lane.title, fontsize=9, loc="left", pad=3)
        axes.tick_params(labelsize=9, labelbottom=labelbottom)
        axes.ticklabel_format(axis="x", useOffset=False, style="plain")
        axes.grid(axis="x", alpha=0.3)
    if not lanes:
        panels[0, 0].set(xticks=(), yticks=())
        panels[0, 0].text(0.5, 0.5, "no tracks", transform=panels[0, 0].transAxes, ha="center", va="center")
    panels[-1, -1].set_xlabel("time (s)", fontsize=10)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    used = [shade for number, shade in enumerate(shades) if any((lane.states == number).any() for lane in lanes)]
    handles = [Patch(color=shade.colour, alpha=shade.alpha, linewidth=0) for shade in used]
    handles += [Line2D([], [], linewidth=1.8, **_style(number)) for number in range(len(curves))]
    texts = [*(shade.text for shade in used), *curves]
    if threshold is not None:
        handles.append(Line2D([], [], color="black", linewidth=0.7, linestyle=":"))
        texts.append(f"threshold {threshold:g}")
    draw_legend(figure, handles, texts)
    return save(figure, path)


def _draw_lane(axes: plt.Axes, lane: Lane, shades: Sequence[Shade]) -> None:
    """Draw the shades and curves of a lane. A row lasts until the next one, or for the usual interval before a gap."""
    gaps = np.flatnonzero(starts_after_gap(lane.times))[1:]
    for piece in np.split(np.arange(len(lane.times)), gaps):
        times, states = lane.times[piece], lane.states[piece]
        edges = np.append(times, times[-1] + row_interval(lane.times))
        starts = np.append(0, np.flatnonzero(np.diff(states)) + 1)
        for start, stop in zip(starts, np.append(starts[1:], len(piece)), strict=True):
            shade = shades[states[start]]
            axes.axvspan(edges[start], edges[stop], color=shade.colour, alpha=shade.alpha, linewidth=0)
        for number, values in enumerate(lane.scores):
            style = {**_style(number), "linewidth": 1.8 if number == len(lane.scores) - 1 else 1.2}
            axes.plot(times, values[piece], marker="." if len(piece) == 1 else None, **style)


# Ablation


def plot_ablation(path: Path, table: pd.DataFrame, lines: Sequence[str]) -> Path:
    """Plot the table of `core.ablation.tabulate`: a panel per axis with its runs and the mean over seeds.

    `lines`: settings without an axis, such as the encoder alone, to draw as horizontal lines. Returns the path.
    """
    axes_of = {axis: rows for axis, rows in table.groupby("axis", sort=False) if axis and len(rows) > 1}
    figure, panels = plt.subplots(
        1, len(axes_of), figsize=(2.9 * len(axes_of), 4.4), sharey=True, squeeze=False, layout="constrained"
    )
    handles, texts = [], []
    across = table[table["setting"].isin(lines) & (table["axis"] == "")]
    for axes, (axis, rows) in zip(panels[0], axes_of.items(), strict=True):
        positions = np.arange(len(rows))
        single = [(x, 100 * value) for x, values in zip(positions, rows["mAP"], strict=True) for value in values]
        style = {"linewidth": 1.5 if rows["setting"].str.isdigit().all() else 0}  # a line only if settings are ordered
        mean = axes.plot(positions, 100 * rows["mean"], color=COLOURS[1], marker="o", markersize=7, **style)[0]
        runs = axes.plot(*zip(*single, strict=True), "o", color="black", markersize=3.5, alpha=0.6)[0]
        drawn = [axes.axhline(100 * row.mean, **_style(3 * number)) for number, row in enumerate(across.itertuples())]
        handles, texts = [mean, runs, *drawn], ["mean over seeds", "single run", *across["setting"]]
        axes.set_xticks(positions, rows["setting"])
        axes.set(xlabel=axis, xlim=(-0.4, len(rows) - 0.6))
        axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("mAP (%)")
    draw_legend(figure, handles, texts)
    return save(figure, path)
