"""Plots of training: the logs of one or several runs, by epoch."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullFormatter

from core.reports.plots import COLOURS, draw_legend, label_outside, save, short

RATE = "learning_rate"
TITLES = {
    "loss_av": "loss, audio-visual (av)",
    "loss_audio": "loss, audio only",
    "loss_video": "loss, video only",
    "auc": "AUC (fraction)",
    "ap": "AP (fraction)",
    RATE: "learning rate",
}


def plot_training(path: Path, runs: dict[str, pd.DataFrame]) -> Path:
    """Plot training curves: a panel per metric and one for the learning rate, a colour per run. Returns the path.

    runs: name -> log with columns epoch, learning_rate, train_<metric> and val_<metric>. NaN is left out. A star marks
    the epoch with the best val AP.
    """
    names = (name.partition("_")[2] for log in runs.values() for name in log if is_curve(name))
    metrics = [*dict.fromkeys(names), RATE]
    columns = min(3, len(metrics))
    grid = (-(-len(metrics) // columns), columns)
    size = (1 + 4.2 * columns, 0.8 + 3.3 * grid[0] + 0.2 * len(runs))
    figure, panels = plt.subplots(*grid, figsize=size, squeeze=False, sharex=True, layout="constrained")
    for axes, metric in zip(panels.flat, metrics, strict=False):
        for number, log in enumerate(runs.values()):
            _draw_run(axes, log, metric, COLOURS[number % len(COLOURS)])
        if not axes.lines:
            axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color="grey")
        axes.set_title(TITLES.get(metric, metric), fontsize=10, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.grid(alpha=0.3)
    label_outside(panels, len(metrics), "epoch", "")
    styles = {
        "val": Line2D([], [], color="black", linewidth=2),
        "train": Line2D([], [], color="black", linewidth=1.2, linestyle="--"),
        "best val AP": Line2D([], [], color="black", marker="*", linestyle="none", markersize=10),
    }
    colours = [Patch(color=COLOURS[number % len(COLOURS)]) for number in range(len(runs))]
    texts = [f"{short(name)}: {best_text(log)}" for name, log in runs.items()]
    draw_legend(figure, [*styles.values(), *colours], [*styles, *texts])
    return save(figure, path)


def _draw_run(axes: plt.Axes, log: pd.DataFrame, metric: str, colour: str) -> None:
    """Draw the curves of one run. Single values are drawn as dots."""
    if metric == RATE:
        axes.plot(log["epoch"], log[RATE], color=colour, linewidth=2, drawstyle="steps-mid", marker=".")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    best = _best_row(log)
    for split, style in (("train", {"linestyle": "--", "linewidth": 1.2}), ("val", {"linewidth": 2})):
        values = log.get(f"{split}_{metric}")
        if values is None or values.isna().all():
            continue
        axes.plot(log["epoch"], values, color=colour, marker=".", markersize=4, **style)
        if split == "val" and best is not None:
            star = {"marker": "*", "markersize": 11, "markeredgecolor": "white"}
            axes.plot(log["epoch"][best], values[best], color=colour, **star)


def is_curve(column: str) -> bool:
    """Return True if a column of a log holds a metric."""
    return column.startswith(("train_", "val_"))


def _best_row(log: pd.DataFrame) -> int | None:
    """Return the row of the log with the highest val AP, the first one in a tie; None without val AP."""
    values = log.get("val_ap")
    return None if values is None or values.isna().all() else int(np.nanargmax(values))


def best_text(log: pd.DataFrame) -> str:
    """Describe a log: its best val AP with the epoch."""
    row = _best_row(log)
    return "no val AP" if row is None else f"best val AP {log['val_ap'][row]:.4f} in epoch {log['epoch'][row]}"
