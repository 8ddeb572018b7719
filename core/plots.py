"""Pictures of results: precision and recall, breakdowns, scores over time. Colours are Okabe and Ito's."""

from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from core.annotations import SPEAKING_AUDIBLE, FaceTable
from core.evaluation import precision_recall
from core.files import replacing

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TRUTH = "#F0E442"
MAX_LANES = 12


def _save(figure: plt.Figure, path: Path) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
    return path


def plot_precision_recall(path: Path, scores: dict[str, np.ndarray], table: FaceTable, legend: dict[str, str]) -> Path:
    """One curve per prediction, name -> scores (N,); legend: name -> text. Returns the path."""
    positive = table.label == SPEAKING_AUDIBLE
    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    for colour, (name, values) in zip(cycle(COLOURS), scores.items(), strict=False):
        recall, precision = precision_recall(values, positive)
        axes.plot(recall, precision, color=colour, linewidth=2, label=legend[name])
    axes.axhline(positive.mean(), color="grey", linestyle=":", label=f"chance {100 * positive.mean():.1f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="Precision and recall")
    axes.grid(alpha=0.3)
    axes.legend()
    return _save(figure, path)


def plot_breakdown(path: Path, groups: dict[str, dict[str, dict[str, dict]]]) -> Path:
    """Bars of AP: title -> prediction name -> group name -> {rows, mAP}. Returns the path."""
    figure, panels = plt.subplots(1, len(groups), figsize=(5 * len(groups), 4.2), squeeze=False, layout="constrained")
    for axes, (title, predictions) in zip(panels[0], groups.items(), strict=True):
        width = 0.8 / len(predictions)
        for number, (name, result) in enumerate(predictions.items()):
            place = np.arange(len(result)) + (number - (len(predictions) - 1) / 2) * width
            heights = [100 * (group["mAP"] or 0) for group in result.values()]
            bars = axes.bar(place, heights, width, color=COLOURS[number % len(COLOURS)], label=name)
            axes.bar_label(bars, [f"{height:.0f}" if height else "none" for height in heights], fontsize=8)
        ticks = [f"{name}\n{group['rows']} rows" for name, group in result.items()]
        axes.set(xticks=range(len(ticks)), xticklabels=ticks, ylabel="mAP (%)", ylim=(0, 108), xlabel=title)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=9, frameon=False)
    return _save(figure, path)


def plot_scores(path: Path, video: int, scores: dict[str, np.ndarray], table: FaceTable) -> Path:
    """Scores of a video's faces over time, a lane each (the longest tracks, in order of time), truth shaded.

    Returns the path.
    """
    tracks = np.unique(table.entity[table.video == video])
    tracks = sorted(tracks, key=lambda track: -len(table.rows_of_track(track)))[:MAX_LANES]
    tracks.sort(key=lambda track: table.timestamp[table.rows_of_track(track)[0]])
    size = (10, 1.0 + 0.95 * len(tracks))
    figure, lanes = plt.subplots(len(tracks), 1, figsize=size, sharex=True, squeeze=False, layout="constrained")
    for axes, track in zip(lanes[:, 0], tracks, strict=True):
        rows = table.rows_of_track(track)
        time, speaks = table.timestamp[rows], table.label[rows] == SPEAKING_AUDIBLE
        axes.fill_between(time, 0, 1, where=speaks, step="mid", color=TRUTH, alpha=0.6, linewidth=0, label="speaks")
        axes.axvspan(time[0], time[-1], color="grey", alpha=0.08, linewidth=0, label="in the picture")
        for colour, (name, values) in zip(cycle(COLOURS), scores.items(), strict=False):
            axes.plot(time, values[rows], color=colour, linewidth=1.5, label=name)
        axes.set(ylim=(-0.03, 1.03), yticks=(0, 1))
        axes.set_title(table.entity_ids[track], fontsize=8, loc="left", pad=2)
    handles, labels = lanes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), fontsize=9, frameon=False)
    figure.suptitle(f"Speaking score by face, {table.video_ids[video]}", fontsize=11, x=0.01, ha="left")
    figure.supxlabel("time (s)", fontsize=10)
    return _save(figure, path)
