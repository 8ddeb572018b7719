"""Pictures of results and of training, for eyes at half their size. Colours are Okabe and Ito's."""

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
from matplotlib.ticker import MaxNLocator, NullFormatter

from core.annotations import NOT_SPEAKING, SPEAKING_AUDIBLE, SPEAKING_NOT_AUDIBLE, FaceTable
from core.evaluation import precision_recall, ranking_errors
from core.files import replacing

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
_MOST_RATES = 8  # changes of the learning rate of a run that are marked
_RATE_LINES = 3  # of text above a panel, for their values


def _save(figure: plt.Figure, path: Path) -> Path:
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


def _legend(figure: plt.Figure, handles: Sequence, labels: Sequence[str]) -> None:
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


def _label_outside(panels: np.ndarray, count: int, xlabel: str, ylabel: str) -> None:
    """Name the axes of a grid (lines, columns) of which `count` panels are used, and hide the others."""
    for number, axes in enumerate(panels.flat):
        axes.set_visible(number < count)
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(xlabel if number + panels.shape[1] >= count else "")
    for axes in panels[:, 0]:
        axes.set_ylabel(ylabel)


def plot_precision_recall(path: Path, scores: dict[str, np.ndarray], table: FaceTable, legend: dict[str, str]) -> Path:
    """One curve per prediction, name -> scores (N,); legend: name -> text. Returns the path."""
    positive = table.label == SPEAKING_AUDIBLE
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
    _legend(figure, curves, [*(legend[name] for name in scores), f"chance: {100 * chance:.2f} % of rows speak"])
    return _save(figure, path)


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
    _legend(figure, [*handles.values(), chance], [*texts, "chance: share of positive rows"])
    return _save(figure, path)


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
    _label_outside(panels, len(scores), "score", "share of the label's rows (%)")
    _legend(figure, handles, texts)
    return _save(figure, path)


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
    wrong = ranking_errors(values[rows], table.label[rows] == SPEAKING_AUDIBLE)
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
    _legend(figure, [*shades, *curves], [*(LABEL_NAMES[label] for label in used), *(legend[name] for name in scores)])
    return _save(figure, path)


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


def plot_training(path: Path, runs: dict[str, pd.DataFrame]) -> Path:
    """Curves of training: name -> log with columns epoch, learning_rate, train_<metric> and val_<metric>.

    A panel for each metric that any run has; NaN is left out. Stars are at the epoch of the best val AP, vertical
    lines where the learning rate changed. Returns the path.
    """
    metrics = list(dict.fromkeys(name.partition("_")[2] for log in runs.values() for name in log if is_curve(name)))
    columns = min(3, len(metrics))
    grid = (-(-len(metrics) // columns), columns)
    size = (1 + 4.2 * columns, 0.8 + 3.3 * grid[0] + 0.2 * len(runs))
    figure, panels = plt.subplots(*grid, figsize=size, squeeze=False, sharex=True, layout="constrained")
    last = max(log["epoch"].iloc[-1] for log in runs.values())
    changes = _rate_changes(runs, last)
    text_lines = max((line + 1 for *_, line in changes), default=0)
    for axes, metric in zip(panels.flat, metrics, strict=False):
        for epoch, rate, colour, line in changes:
            axes.axvline(epoch, color=colour, linestyle=(0, (1, 2)), linewidth=1.2)
            above = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "xytext": (0, 2 + 9 * line)}
            axes.annotate(rate, (epoch, 1), **above, ha="center", va="bottom", fontsize=7, color=colour)
        drawn = [_draw_run(axes, log, metric, COLOURS[n % len(COLOURS)]) for n, log in enumerate(runs.values())]
        if not any(drawn):
            axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color="grey")
            axes.set_yticks([])
        axes.set_title(_METRICS.get(metric, metric), fontsize=10, loc="left", pad=5 + 9 * text_lines)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.grid(alpha=0.3)
    _label_outside(panels, len(metrics), "epoch", "")
    panels[0, 0].set_xlim(*((0, 2) if last == 1 else (1 - 0.04 * last, 1.04 * last)))
    handles = [Patch(color=COLOURS[number % len(COLOURS)]) for number in range(len(runs))]
    texts = [f"{short(name)}: {best_text(log)}" for name, log in runs.items()]
    styles = {
        "val": Line2D([], [], color="black", linewidth=2),
        "train": Line2D([], [], color="black", linewidth=1.2, linestyle="--"),
        "best val AP": Line2D([], [], color="black", marker="*", linestyle="none", markersize=10),
        "learning rate from here on": Line2D([], [], color="black", linestyle=(0, (1, 2))),
    }
    if not changes:
        styles.popitem()
    _legend(figure, [*styles.values(), *handles], [*styles, *texts])
    return _save(figure, path)


_METRICS = {
    "loss_av": "loss, audio-visual (av)",
    "loss_audio": "loss, audio alone",
    "loss_video": "loss, video alone",
    "auc": "AUC (fraction)",
    "ap": "AP (fraction)",
}


def is_curve(column: str) -> bool:
    """Whether a column of a log is a metric of an epoch."""
    return column.startswith(("train_", "val_"))


def _best_epoch(log: pd.DataFrame) -> int | None:
    """Place in the log of the epoch with the highest val AP, the first of several; None where there is none."""
    values = log.get("val_ap")
    return None if values is None or values.isna().all() else int(np.nanargmax(values))


def best_text(log: pd.DataFrame) -> str:
    """The best val AP of a log with its epoch, and the learning rate it began with."""
    place = _best_epoch(log)
    best = "no val AP" if place is None else f"val AP {log['val_ap'][place]:.4f} in epoch {log['epoch'][place]}"
    rates = log["learning_rate"].to_numpy()
    changes = len(_changes(rates))
    end = f" to {rates[-1]:g} ({changes} changes)" if changes > _MOST_RATES else " at first" if changes else ""
    return f"{best}, learning rate {rates[0]:g}{end}"


def _changes(rates: np.ndarray) -> np.ndarray:
    """Places in a log where the learning rate is another than before."""
    return np.flatnonzero(np.diff(rates)) + 1


def _rate_changes(runs: dict[str, pd.DataFrame], last: int) -> list[tuple[int, str, str, int]]:
    """Epoch, new learning rate, colour (black for what several runs share) and line of text of each change.

    A run with more changes than can be told apart has none here.
    """
    found: dict[tuple[int, float], list[int]] = {}
    for number, log in enumerate(runs.values()):
        rates = log["learning_rate"].to_numpy()
        places = _changes(rates)
        for place in places if len(places) <= _MOST_RATES else ():
            found.setdefault((int(log["epoch"][place]), float(rates[place])), []).append(number)
    marks, ends = [], [-last] * _RATE_LINES  # the epoch of the last text in each line
    for (epoch, rate), who in sorted(found.items()):
        free = [line for line in range(_RATE_LINES) if epoch - ends[line] > 0.08 * last]
        if free:
            ends[free[0]] = epoch
        colour = "black" if len(who) > 1 or len(runs) == 1 else COLOURS[who[0] % len(COLOURS)]
        marks.append((epoch, f"{rate:g}" if free else "", colour, free[0] if free else 0))
    return marks


def _draw_run(axes: plt.Axes, log: pd.DataFrame, metric: str, colour: str) -> bool:
    """Curves of a metric of one run; False where it has no values."""
    drawn, best = False, _best_epoch(log)
    for split, style in (("train", {"linestyle": "--", "linewidth": 1.2}), ("val", {"linewidth": 2})):
        values = log.get(f"{split}_{metric}")
        if values is None or values.isna().all():
            continue
        known = np.pad(values.notna().to_numpy(), 1)
        alone = known[1:-1] & ~known[:-2] & ~known[2:]  # a line has no room for these
        axes.plot(log["epoch"], values, color=colour, marker=".", markevery=alone.tolist(), **style)
        if split == "val" and best is not None:
            axes.plot(
                log["epoch"][best], values[best], color=colour, marker="*", markersize=11, markeredgecolor="white"
            )
        drawn = True
    return drawn
