"""Face boxes and scores drawn into video frames, coloured from red (silent) to green (speaking)."""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from core.contexts import row_interval
from core.detection.segments import short_name
from core.formats.annotations import FaceTable

SPEAKING, SILENT = np.array([115, 158, 0]), np.array([0, 60, 213])  # BGR; green and red of different lightness
_MAX_NAME_LENGTH = 4  # characters
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def score_colour(score: float) -> tuple[int, ...]:
    """Return a BGR colour, from red for 0 to green for 1."""
    return tuple(np.rint(SILENT + score * (SPEAKING - SILENT)).astype(int).tolist())


def visible_rows(table: FaceTable, times: np.ndarray) -> list[list[int]]:
    """Return the rows to draw into each frame at increasing timestamps (T,).

    A track is visible from half a row before its first row to half a row after its last, except in gaps. Its nearest
    row is drawn.
    """
    visible: list[list[int]] = [[] for _ in times]
    for track in range(len(table.entity_ids)):
        rows = table.rows_of_track(track)
        if not len(rows):
            continue
        row_times = table.timestamp[rows]
        reach = max(row_interval(row_times), row_interval(times)) / 2 + 1e-6
        nearest = np.searchsorted((row_times[1:] + row_times[:-1]) / 2, times)
        shown = (times >= row_times[0] - reach) & (times <= row_times[-1] + reach)
        for frame in np.flatnonzero(shown & (np.abs(row_times[nearest] - times) <= 2 * reach)):
            visible[frame].append(int(rows[nearest[frame]]))
    return visible


def marked_frames(
    images: Iterable[np.ndarray | None],
    size: tuple[int, int],
    times: np.ndarray,
    table: FaceTable,
    scores: np.ndarray,
    threshold: float,
) -> Iterator[np.ndarray]:
    """Yield copies of the images, of a size (W, H) and at timestamps (T,), with boxes and scores (N,) of the table.

    Boxes of scores that reach the threshold are thicker. A broken image (None) is replaced by the previous one.
    """
    visible = visible_rows(table, times)
    last = np.zeros((size[1], size[0], 3), np.uint8)
    for image, rows in zip(images, visible, strict=False):
        last = last if image is None else image
        marked = last.copy()
        for row in rows:
            mark_face(marked, table.box[row], float(scores[row]), short_name(table, table.entity[row]), threshold)
        yield marked


def mark_face(image: np.ndarray, box: np.ndarray, score: float, name: str, threshold: float) -> None:
    """Draw a box (4,), in fractions of the frame, its score and, if short, its name into a BGR image (H, W, 3)."""
    height, width = image.shape[:2]
    thickness = max(1, round(min(height, width) / 240))  # pixels, in proportion to the frame
    corners = np.rint(box * np.array([width, height, width, height])).astype(int)
    left, top, right, bottom = np.minimum(corners, [width - 1, height - 1] * 2).tolist()
    colour, text = score_colour(score), f"{score:.2f}"
    if len(name) <= _MAX_NAME_LENGTH:
        text = f"{name}: {text}"
    cv2.rectangle(image, (left, top), (right, bottom), colour, thickness * (1 + (score >= threshold)), cv2.LINE_AA)
    scale = 0.4 * thickness
    (text_width, text_height), _ = cv2.getTextSize(text, _FONT, scale, thickness)
    label_width, label_height = text_width + 2 * thickness, text_height + 2 * thickness
    label_bottom = top if top >= label_height else min(bottom + label_height, height)  # above the box if it fits
    x = max(0, min(left, width - label_width))
    cv2.rectangle(image, (x, label_bottom - label_height), (x + label_width, label_bottom), colour, -1)
    origin = (x + thickness, label_bottom - thickness)
    cv2.putText(image, text, origin, _FONT, scale, (255, 255, 255), thickness, cv2.LINE_AA)
