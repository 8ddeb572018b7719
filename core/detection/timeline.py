"""The picture of who speaks when: a lane per track."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageOps

from core.detection.segments import row_interval, segments, short_name, starts_after_gap
from core.formats.annotations import FaceTable
from core.reports.plots import COLOURS, save, short

LANES = 16  # on a page
FACE = (96, 96)  # pixels that a face fits into


def plot_timeline(
    path: Path,
    table: FaceTable,
    scores: np.ndarray,
    threshold: float,
    seconds: float,
    thumbnail: Callable[[int], Image.Image],
) -> list[Path]:
    """A lane per track in order of time: its face, its scores (N,), and where these reach the threshold.

    A film of many tracks has several pages, each of its own stretch of time: `path` and, with a number, others beside
    it. `thumbnail` gives the face of a track. Returns the paths.
    """
    tracks = [track for track in range(len(table.entity_ids)) if len(table.rows_of_track(track))]
    tracks.sort(key=lambda track: (table.timestamp[table.rows_of_track(track)[0]], track))
    pages = [tracks[start : start + LANES] for start in range(0, len(tracks), LANES)] or [[]]
    paths = [path, *(path.with_stem(f"{path.stem}_{number}") for number in range(2, len(pages) + 1))]
    for number, (page, target) in enumerate(zip(pages, paths, strict=True), 1):
        title = f"Who speaks when: {short(table.video_ids[0])}"
        title += f" (page {number} of {len(pages)})" if len(pages) > 1 else ""
        _plot_page(target, title, page, table, scores, threshold, seconds if len(pages) == 1 else None, thumbnail)
    return paths


def _plot_page(
    path: Path,
    title: str,
    tracks: list[int],
    table: FaceTable,
    scores: np.ndarray,
    threshold: float,
    seconds: float | None,
    thumbnail: Callable[[int], Image.Image],
) -> None:
    """A page of some of the tracks: of so many seconds from the film's first frame, or (None) of their own time."""
    height = 0.9 + 0.72 * max(len(tracks), 1)
    figure, lanes = plt.subplots(
        max(len(tracks), 1), 2, figsize=(11, height), squeeze=False, layout="constrained", width_ratios=(1, 17)
    )
    figure.get_layout_engine().set(h_pad=0.02, hspace=0.02, w_pad=0.02)
    times = [table.timestamp[table.rows_of_track(track)] for track in tracks]
    begin = 0.0 if seconds else min(own[0] for own in times)
    end = seconds or max(own[-1] + row_interval(own) for own in times)
    for number, (face, lane) in enumerate(lanes):
        face.axis("off")
        lane.set(xlim=(begin, end), ylim=(-0.05, 1.05), yticks=(0, 1))
        lane.tick_params(axis="both", labelsize=8, labelbottom=number == len(lanes) - 1)
        lane.grid(axis="x", alpha=0.3)
        if not tracks:
            lane.text(0.5, 0.5, "no faces were found", transform=lane.transAxes, ha="center", va="center")
            continue
        track, own = tracks[number], times[number]
        values = scores[table.rows_of_track(track)]
        face.imshow(ImageOps.contain(thumbnail(track), FACE))
        breaks = np.flatnonzero(starts_after_gap(own))[1:]
        for piece in np.split(own, breaks):
            seen = (piece[0], piece[-1] + row_interval(own))
            lane.axvspan(*seen, color="grey", alpha=0.12, linewidth=0, label="in the picture")
        for part in segments(own, values, threshold):
            lane.axvspan(part.start, part.end, color=COLOURS[2], alpha=0.35, linewidth=0, label="speaks")
        lane.plot(
            np.insert(own, breaks, np.nan),
            np.insert(values, breaks, np.nan),
            color=COLOURS[0],
            linewidth=1.3,
            label="score",
        )
        lane.axhline(threshold, color="black", linewidth=0.7, linestyle=":", label=f"threshold {threshold:g}")
        lane.set_title(f"track {short_name(table, track)}", fontsize=8, pad=1, loc="left")
    named = {}
    for lane in lanes[:, 1]:
        handles, labels = lane.get_legend_handles_labels()
        named |= {label: handle for handle, label in zip(handles, labels, strict=True) if label not in named}
    if named:
        figure.legend(named.values(), named.keys(), loc="outside upper right", ncols=4, fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    lanes[-1, 1].set_xlabel("time (s)", fontsize=9)
    save(figure, path)
