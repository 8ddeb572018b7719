"""Plots of training: the metrics in the logs of one or several runs, by epoch."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from core.reports.plots import COLOURS, draw_legend, label_outside, save, short

_MAX_RATE_CHANGES = 8  # of a run; the learning-rate changes of runs with more are not marked
_RATE_LINES = 3  # lines of text above a panel for the values of learning rates
_METRICS = {
    "loss_av": "loss, audio-visual (av)",
    "loss_audio": "loss, audio only",
    "loss_video": "loss, video only",
    "auc": "AUC (fraction)",
    "ap": "AP (fraction)",
}


def plot_training(path: Path, runs: dict[str, pd.DataFrame]) -> Path:
    """Plot training curves: a panel per metric, a colour per run. Returns the path.

    runs: name -> log with columns epoch, learning_rate, train_<metric> and val_<metric>, NaN being left out. Stars mark
    the epoch with the best val AP, vertical lines the first epoch of a new learning rate.
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
    label_outside(panels, len(metrics), "epoch", "")
    panels[0, 0].set_xlim(*((0, 2) if last == 1 else (1 - 0.04 * last, 1.04 * last)))
    handles = [Patch(color=COLOURS[number % len(COLOURS)]) for number in range(len(runs))]
    texts = [f"{short(name)}: {best_text(log)}" for name, log in runs.items()]
    styles = {
        "val": Line2D([], [], color="black", linewidth=2),
        "train": Line2D([], [], color="black", linewidth=1.2, linestyle="--"),
        "best val AP": Line2D([], [], color="black", marker="*", linestyle="none", markersize=10),
        "new learning rate": Line2D([], [], color="black", linestyle=(0, (1, 2))),
    }
    if not changes:
        styles.popitem()
    draw_legend(figure, [*styles.values(), *handles], [*styles, *texts])
    return save(figure, path)


def is_curve(column: str) -> bool:
    """True if a column of a log holds a metric."""
    return column.startswith(("train_", "val_"))


def _best_row(log: pd.DataFrame) -> int | None:
    """Row of the log with the highest val AP, the first one in a tie; None without val AP."""
    values = log.get("val_ap")
    return None if values is None or values.isna().all() else int(np.nanargmax(values))


def best_text(log: pd.DataFrame) -> str:
    """Describe a log: its best val AP with the epoch, and its learning rates."""
    row = _best_row(log)
    best = "no val AP" if row is None else f"val AP {log['val_ap'][row]:.4f} in epoch {log['epoch'][row]}"
    rates = log["learning_rate"].to_numpy()
    changes = len(_changed_rows(rates))
    if changes > _MAX_RATE_CHANGES:
        return f"{best}, learning rate {rates[0]:g} to {rates[-1]:g} ({changes} changes)"
    return f"{best}, {'initial ' if changes else ''}learning rate {rates[0]:g}"


def _changed_rows(rates: np.ndarray) -> np.ndarray:
    """Rows of a log whose learning rate differs from that of the row before."""
    return np.flatnonzero(np.diff(rates)) + 1


def _rate_changes(runs: dict[str, pd.DataFrame], last: int) -> list[tuple[int, str, str, int]]:
    """Return (epoch, text, colour, line of text) for each change of a learning rate, in order of epochs.

    Changes that several runs share are black. The text is empty if no line has space for it.
    """
    found: dict[tuple[int, float], list[int]] = {}
    for number, log in enumerate(runs.values()):
        rates = log["learning_rate"].to_numpy()
        rows = _changed_rows(rates)
        for row in rows if len(rows) <= _MAX_RATE_CHANGES else ():
            found.setdefault((int(log["epoch"][row]), float(rates[row])), []).append(number)
    marks, ends = [], [-last] * _RATE_LINES  # epoch of the last text in each line
    for (epoch, rate), numbers in sorted(found.items()):
        free = [line for line in range(_RATE_LINES) if epoch - ends[line] > 0.08 * last]
        if free:
            ends[free[0]] = epoch
        colour = "black" if len(numbers) > 1 or len(runs) == 1 else COLOURS[numbers[0] % len(COLOURS)]
        marks.append((epoch, f"{rate:g}" if free else "", colour, free[0] if free else 0))
    return marks


def _draw_run(axes: plt.Axes, log: pd.DataFrame, metric: str, colour: str) -> bool:
    """Draw the train and val curves of a run. Returns False if it has no values of the metric."""
    drawn, best = False, _best_row(log)
    for split, style in (("train", {"linestyle": "--", "linewidth": 1.2}), ("val", {"linewidth": 2})):
        values = log.get(f"{split}_{metric}")
        if values is None or values.isna().all():
            continue
        known = np.pad(values.notna().to_numpy(), 1)
        alone = known[1:-1] & ~known[:-2] & ~known[2:]  # drawn as dots, since no line passes through them
        axes.plot(log["epoch"], values, color=colour, marker=".", markevery=alone.tolist(), **style)
        if split == "val" and best is not None:
            axes.plot(
                log["epoch"][best], values[best], color=colour, marker="*", markersize=11, markeredgecolor="white"
            )
        drawn = True
    return drawn
