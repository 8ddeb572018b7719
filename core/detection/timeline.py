"""Timeline of a video's speakers: a lane per track with its face, its scores and when it speaks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from core.contexts import row_interval
from core.detection.segments import short_name
from core.formats.annotations import FaceTable
from core.reports.plots import Lane, draw_lanes, short

LANES = 16  # per page
THUMBNAIL_SIZE = (96, 96)  # pixels, at most
SHADES = {"not speaking": "#EEEEEE", "speaking": "#A6DECC"}


def plot_timeline(
    path: Path,
    table: FaceTable,
    scores: np.ndarray,
    threshold: float,
    span: tuple[float, float],
    thumbnail: Callable[[int], Image.Image],
) -> list[Path]:
    """Plot each track in order of time: its face, its scores (N,), and its rows that reach the threshold.

    With more than LANES tracks there are several pages, each with its own span of time: `path`, and next to it files
    with a number. A single page has the given `span`, in seconds. `thumbnail` returns the face of a track. Returns the
    paths.
    """
    times = [table.timestamp[table.rows_of_track(track)] for track in range(len(table.entity_ids))]
    tracks = sorted((track for track, own in enumerate(times) if len(own)), key=lambda track: times[track][0])
    pages = [tracks[start : start + LANES] for start in range(0, len(tracks), LANES)] or [[]]
    paths = [path, *(path.with_stem(f"{path.stem}_{number}") for number in range(2, len(pages) + 1))]
    for number, (page, target) in enumerate(zip(pages, paths, strict=True), 1):
        title, limits = f"Speakers of {short(table.video_ids[0], 80)}: {len(tracks)} tracks", span
        if len(pages) > 1:
            title += f" (page {number} of {len(pages)})"
            limits = times[page[0]][0], max(times[track][-1] + row_interval(times[track]) for track in page)
        lanes = []
        for track in page:
            values = scores[table.rows_of_track(track)]
            curves = [values, np.full(len(values), threshold)]
            face = ImageOps.contain(thumbnail(track), THUMBNAIL_SIZE)
            speaking = (values >= threshold).astype(int)
            name = f"track {short(short_name(table, track), 60)}"
            lanes.append(Lane(name, times[track], curves, speaking, limits, face))
        draw_lanes(target, title, lanes, ["score", f"threshold {threshold:g}"], SHADES)
    return paths
