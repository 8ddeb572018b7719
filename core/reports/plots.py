"""Plots of results, legible at half size, and helpers that all plots share. Colours are those of Okabe and Ito."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MultipleLocator
from PIL import Image

from core.contexts import row_interval, starts_after_gap
from core.formats.annotations import FaceTable
from core.metrics import precision_recall
from core.reports.fonts import FAMILIES, cut, drawable, text_width
from core.runtime.errors import one_line
from core.runtime.files import replacing

plt.rcParams.update(
    {
        "text.parse_math": False,  # names may contain dollar signs
        "agg.path.chunksize": 10_000,  # otherwise curves of many points can exceed a limit of the renderer
        "font.family": FAMILIES,
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.grid": True,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
        "savefig.dpi": 110,
    }
)

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", ":")  # line styles, the next one for each round of colours
MAX_LANES = 12  # tracks in a plot of scores
MAX_POINTS = 1000  # of a curve; of more rows, the means of neighbouring ones are drawn
CLOCK_SECONDS = 2000  # axes that end later are labelled h:mm:ss; AVA's timestamps, which end before, stay seconds
CLOCK_STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)  # seconds between labels
MAX_IDLE_SECONDS = 2.0  # a longer stretch of time without any track is left out
LABEL_SHADES = {  # background of lanes, by label_id
    "not speaking": "#EEEEEE",
    "speaking, audible": "#F4EC71",
    "speaking, not audible": "#EBC9DC",
}


def save(figure: plt.Figure, path: Path) -> Path:
    """Write a figure atomically and close it. Returns the path."""
    with replacing(path) as temporary:
        figure.savefig(temporary)
    plt.close(figure)
    return path


def short(name: str, length: int = 44) -> str:
    """Return a name for a figure, on one line and with its middle cut out if it is wider than `length` letters."""
    return cut(drawable(one_line(name)), 0.6 * length)


def draw_legend(figure: plt.Figure, handles: Sequence, texts: Sequence[str]) -> None:
    """Draw the legend below the panels, in as many columns as fit, and make room for it."""
    texts = [f" {text}" if text.startswith("_") else text for text in texts]  # matplotlib hides leading underscores
    em = plt.rcParams["font.size"] / 72  # inches
    columns = max(1, int(figure.get_figwidth() / (0.5 + em * max(map(text_width, texts)))))
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(texts) // columns))
    figure.legend(handles, texts, loc="outside lower center", ncols=min(columns, len(texts)))


def panel_grid(count: int) -> tuple[plt.Figure, list[plt.Axes]]:
    """Return a figure of `count` panels, at most three in a row."""
    columns = min(3, count)
    lines = -(-count // columns)
    figure = plt.figure(figsize=(1 + 4.2 * columns, 0.8 + 3.2 * lines))
    return figure, [figure.add_subplot(lines, columns, number + 1) for number in range(count)]


def _style(number: int) -> dict:
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number // len(COLOURS) % len(LINES)]}


# Predictions: `scores` holds one array (N,) per prediction, `legend` one text per prediction


def plot_precision_recall(path: Path, scores: Sequence[np.ndarray], table: FaceTable, legend: Sequence[str]) -> Path:
    """Plot a precision-recall curve per prediction. Returns the path."""
    chance = table.is_speaking.mean()
    figure, axes = plt.subplots(figsize=(6, 5))
    for number, values in enumerate(scores):
        axes.plot(*precision_recall(values, table.is_speaking), linewidth=2, **_style(number))
    axes.axhline(chance, color="black", linestyle=":")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="Precision and recall")
    draw_legend(figure, axes.lines, [*legend, f"chance: {100 * chance:.2f} % of rows are positive"])
    return save(figure, path)


def plot_breakdown(path: Path, breakdowns: dict[str, Sequence[dict[str, dict]]], legend: Sequence[str]) -> Path:
    """Plot bars of AP: a panel per breakdown, a bar per group and prediction. Returns the path.

    breakdowns: title -> for each prediction, group name -> rows, positives, mAP.
    """
    size = ((5 + 0.5 * len(legend)) * len(breakdowns), 4.4)
    figure, panels = plt.subplots(1, len(breakdowns), figsize=size, squeeze=False)
    for axes, (title, predictions) in zip(panels[0], breakdowns.items(), strict=True):
        ticks = [f"{name}\n{group['rows']} rows" for name, group in predictions[0].items()]
        values = [[group["mAP"] for group in groups.values()] for groups in predictions]
        percent = 100 * pd.DataFrame(values, columns=ticks, dtype=float).T
        percent.plot.bar(ax=axes, width=0.8, color=COLOURS, edgecolor="white", legend=False, rot=0)
        bars = list(axes.containers)
        for own in bars:
            axes.bar_label(own, fmt="%.1f", padding=2, rotation=90 if len(legend) > 2 else 0)
        for index, group in enumerate(predictions[0].values()):
            chance = 100 * group["positives"] / max(group["rows"], 1)
            axes.hlines(chance, index - 0.45, index + 0.45, color="black", linestyle=":")
        axes.set(xlabel=title, ylabel="mAP (%)", ylim=(0, 116), yticks=range(0, 101, 20), axisbelow=True)
    handles = [*bars, Line2D([], [], color="black", linestyle=":")]
    draw_legend(figure, handles, [*legend, "chance: fraction of positive rows"])
    return save(figure, path)


def plot_histograms(path: Path, scores: Sequence[np.ndarray], table: FaceTable, legend: Sequence[str]) -> Path:
    """Plot the histogram of scores in [0, 1] for each label: a panel per prediction. Returns the path.

    Each label is normalised by its own rows and the axis is logarithmic, so rare labels are visible.
    """
    figure, panels = panel_grid(len(scores))
    edges = np.linspace(0, 1, 26)
    counts = np.bincount(table.label, minlength=len(LABEL_SHADES))
    for axes, values, title in zip(panels, scores, legend, strict=True):
        for label, count in enumerate(counts):
            percent = 100 * np.histogram(values[table.label == label], edges)[0] / max(count, 1)
            axes.stairs(percent, edges, color=COLOURS[label], linewidth=2)
        axes.set(xlim=(0, 1), ylim=(0.01, 150), yscale="log", title=short(title, 40))
        axes.set(xlabel="score", ylabel="fraction of the label's rows (%)")
        axes.yaxis.set_major_formatter("{x:g}")
    texts = [f"{text} ({count} rows)" for text, count in zip(LABEL_SHADES, counts, strict=True)]
    draw_legend(figure, panels[0].patches, texts)
    return save(figure, path)


def plot_scores(path: Path, video: int, scores: Sequence[np.ndarray], table: FaceTable, legend: Sequence[str]) -> Path:
    """Plot the scores in [0, 1] and the labels of a video's tracks over time, a lane per track. Returns the path.

    The error of a row is the distance of the last prediction's score from the target, 0 or 1. A video with more than
    MAX_LANES tracks is represented by those with the largest sums of errors. Stretches of time without any of these
    tracks are left out.
    """
    rows = table.rows_of_video(video)
    error = np.abs(scores[-1] - table.is_speaking)
    tracks = {track: table.rows_of_track(track) for track in np.unique(table.entity[rows])}
    shown = sorted(tracks, key=lambda track: -error[tracks[track]].sum())[:MAX_LANES]
    shown.sort(key=lambda track: table.timestamp[tracks[track][0]])
    times = [table.timestamp[tracks[track]] for track in shown]
    begin = np.array([own[0] for own in times])
    end = np.maximum.accumulate([own[-1] + row_interval(own) for own in times])
    axis = np.cumsum(np.append(0, begin[1:] - end[:-1] > MAX_IDLE_SECONDS))  # lanes of one number share a time axis
    lanes = []
    for lane, track in enumerate(shown):
        own = tracks[track]
        name = f"{short(table.entity_ids[track], 60)}    mean error {error[own].mean():.2f}"
        limits = begin[axis == axis[lane]].min(), end[axis == axis[lane]].max()
        lanes.append(Lane(name, times[lane], [values[own] for values in scores], table.label[own], limits))
    title = f"Scores over time, {short(table.video_ids[video])}: {len(shown)} of {len(tracks)} tracks, chosen by error"
    title += "\nerror: distance of the last prediction's score from 1 if the face is audibly speaking, else from 0"
    return draw_lanes(path, title, lanes, legend, LABEL_SHADES)


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


def draw_lanes(path: Path, title: str, lanes: Sequence[Lane], curves: Sequence[str], shades: dict[str, str]) -> Path:
    """Draw tracks over time, one below the other: curves of scores over shaded states. Returns the path.

    Curves and shades are interrupted where a track pauses. `curves` are their texts in the legend, `shades` maps the
    text of each state to its colour.
    """
    clock = max((lane.limits[1] for lane in lanes), default=0.0) > CLOCK_SECONDS
    count, columns = max(len(lanes), 1), 2 if any(lane.thumbnail for lane in lanes) else 1
    figure, panels = plt.subplots(
        count, columns, figsize=(11, 0.9 + 0.95 * count), squeeze=False, width_ratios=(1, 17)[-columns:]
    )
    for number, (lane, row) in enumerate(zip(lanes, panels, strict=False)):
        if lane.thumbnail:
            row[0].imshow(lane.thumbnail)
            row[0].axis("off")
        _draw_lane(row[-1], lane, list(shades.values()))
        row[-1].set(xlim=lane.limits, ylim=(-0.04, 1.04), yticks=(0, 1), title=lane.title)
        if clock:
            _label_clock(row[-1].xaxis, lane.limits)
        else:
            row[-1].ticklabel_format(axis="x", useOffset=False, style="plain")
        # Lanes below each other share the labels of the time axis if they have the same limits.
        row[-1].tick_params(labelbottom=[lane.limits] != [below.limits for below in lanes[number + 1 : number + 2]])
    panels[-1, -1].set_xlabel("time (h:mm:ss)" if clock else "time (s)")
    if not lanes:
        panels[0, 0].axis("off")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    handles = [Patch(color=colour) for colour in shades.values()]
    handles += [Line2D([], [], **_style(number)) for number in range(len(curves))]
    draw_legend(figure, handles, [*shades, *curves])
    return save(figure, path)


def _label_clock(axis: Axis, limits: tuple[float, float]) -> None:
    """Label a time axis, in seconds, with h:mm:ss."""

    def text(value: float, _: int) -> str:
        seconds = round(value)
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    shortest = (limits[1] - limits[0]) / 12
    step = next((step for step in CLOCK_STEPS if step >= shortest), 3600 * math.ceil(shortest / 3600))
    axis.set_major_locator(MultipleLocator(step))
    axis.set_major_formatter(text)


def _draw_lane(axes: plt.Axes, lane: Lane, colours: Sequence[str]) -> None:
    """Draw the shades and curves of a lane. A row lasts until the next one, or for the usual interval before a gap."""
    gaps = np.flatnonzero(starts_after_gap(lane.times))[1:]
    for piece in np.split(np.arange(len(lane.times)), gaps):
        times, states = lane.times[piece], lane.states[piece]
        first = np.flatnonzero(np.diff(states, prepend=-1))  # of each state
        edges = np.append(times[first], times[-1] + row_interval(lane.times))
        axes.pcolormesh(edges, (0, 1), states[first][None], cmap=ListedColormap(colours), vmin=0, vmax=len(colours) - 1)
        first = np.arange(0, len(piece), 1 + len(piece) // MAX_POINTS)  # of each mean
        for number, values in enumerate(lane.scores):
            means = np.add.reduceat(values[piece], first) / np.diff(first, append=len(piece))
            axes.plot(times[first], means, marker="." if len(piece) == 1 else None, **_style(number))


# Ablation


def plot_ablation(path: Path, table: pd.DataFrame, encoder: str) -> Path:
    """Plot the table of `core.ablation.tabulate`: a panel per axis with its runs and the mean over seeds.

    The result of the setting `encoder`, the encoder alone, is a horizontal line. Returns the path.
    """
    groups = {axis: rows for axis, rows in table.groupby("axis", sort=False) if axis and len(rows) > 1}
    encoder_map = 100 * table.set_index("setting")["mean"][encoder]
    figure, panels = plt.subplots(1, len(groups), figsize=(2.9 * len(groups), 4.2), sharey=True, squeeze=False)
    for axes, (axis, rows) in zip(panels[0], groups.items(), strict=True):
        ordered = rows["setting"].str.isdigit().all()  # else a line between settings would mean nothing
        axes.plot(rows["setting"], 100 * rows["mean"], "o-" if ordered else "o", color=COLOURS[1], markersize=7)
        runs = rows.explode("mAP")
        axes.plot(runs["setting"], 100 * runs["mAP"].astype(float), "o", color="black", markersize=3.5, alpha=0.6)
        axes.axhline(encoder_map, **_style(0))
        axes.set(xlabel=axis, xmargin=0.2)
    panels[0, 0].set_ylabel("mAP (%)")
    draw_legend(figure, panels[0, 0].lines, ["mean over seeds", "single run", encoder])
    return save(figure, path)
