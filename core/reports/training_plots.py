"""Plots of training: the logs of one or several runs, by epoch."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from core.reports.plots import COLOURS, draw_legend, panel_grid, save, short

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

    runs: name -> log with columns epoch, learning_rate, train_<metric> and val_<metric>. NaN is left out.
    """
    names = (name.partition("_")[2] for log in runs.values() for name in log.columns.drop(["epoch", RATE]))
    metrics = [*dict.fromkeys(names), RATE]
    figure, panels = panel_grid(len(metrics))
    for axes, metric in zip(panels, metrics, strict=True):
        for number, log in enumerate(runs.values()):
            _draw_run(axes, log, metric, COLOURS[number % len(COLOURS)])
        axes.set(title=TITLES.get(metric, metric), xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    styles = {
        "val": Line2D([], [], color="black", linewidth=2),
        "train": Line2D([], [], color="black", linewidth=1.2, linestyle="--"),
    }
    colours = [Patch(color=COLOURS[number % len(COLOURS)]) for number in range(len(runs))]
    texts = [f"{short(name)}: {best_text(log)}" for name, log in runs.items()]
    draw_legend(figure, [*styles.values(), *colours], [*styles, *texts])
    return save(figure, path)


def _draw_run(axes: plt.Axes, log: pd.DataFrame, metric: str, colour: str) -> None:
    """Draw the curves of one run in a panel."""
    if metric == RATE:
        axes.plot(log["epoch"], log[RATE], color=colour, linewidth=2, drawstyle="steps-mid", marker=".")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        return
    for split, style in (("train", {"linestyle": "--", "linewidth": 1.2}), ("val", {"linewidth": 2})):
        if f"{split}_{metric}" in log:
            axes.plot(log["epoch"], log[f"{split}_{metric}"], color=colour, marker=".", markersize=4, **style)


def best_text(log: pd.DataFrame) -> str:
    """Describe a log: its best val AP with the epoch, the first one in a tie."""
    values = log.get("val_ap")
    if values is None or values.isna().all():
        return "no val AP"
    row = int(np.nanargmax(values))
    return f"best val AP {values[row]:.4f} in epoch {log['epoch'][row]}"
