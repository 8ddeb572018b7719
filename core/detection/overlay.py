"""Faces marked in the frames of a film: a box each, green to red by its score, and the score."""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from core.detection.segments import row_interval, short_name
from core.formats.annotations import FaceTable

SPEAKING, SILENT = np.array([115, 158, 0]), np.array([0, 60, 213])  # BGR; a green and a red that differ in lightness
_LONGEST_NAME = 4  # letters
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def colour(score: float) -> tuple[int, ...]:
    """BGR, from red for 0 to green for 1."""
    return tuple(np.rint(SILENT + score * (SPEAKING - SILENT)).astype(int).tolist())


def visible_rows(table: FaceTable, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are to be marked at the increasing times (T,): pairs (place among the times, row), sorted by time.

    A track is shown from half a row before its first to half a row after its last, by the nearest of its rows, and not
    in a pause.
    """
    places, shown = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for track in range(len(table.entity_ids)):
        rows = table.rows_of_track(track)
        if not len(rows):
            continue
        own = table.timestamp[rows]
        reach = max(row_interval(own), row_interval(times)) / 2 + 1e-6
        first, last = np.searchsorted(times, own[0] - reach), np.searchsorted(times, own[-1] + reach)
        here = np.arange(first, last)
        nearest = np.searchsorted((own[1:] + own[:-1]) / 2, times[here])
        near = np.abs(own[nearest] - times[here]) <= 2 * reach
        places.append(here[near])
        shown.append(rows[nearest[near]])
    places, shown = np.concatenate(places), np.concatenate(shown)
    order = np.argsort(places, kind="stable")
    return places[order], shown[order]


def marked_frames(
    images: Iterable[np.ndarray | None],
    size: tuple[int, int],
    times: np.ndarray,
    table: FaceTable,
    scores: np.ndarray,
) -> Iterator[np.ndarray]:
    """The images of a size (W, H) on show at the times (T,), with the faces of the table and their scores (N,).

    Where an image is broken (None), the one before stands for it.
    """
    places, rows = visible_rows(table, times)
    start = np.searchsorted(places, np.arange(len(times) + 1))
    names = [short_name(table, track) for track in range(len(table.entity_ids))]
    image = np.zeros((size[1], size[0], 3), np.uint8)
    for place, found in enumerate(images):
        image = image if found is None else found
        marked = image.copy()
        for row in rows[start[place] : start[place + 1]]:
            mark_face(marked, table.box[row], float(scores[row]), names[table.entity[row]])
        yield marked


def mark_face(image: np.ndarray, box: np.ndarray, score: float, name: str) -> None:
    """Draw a box (4,), in shares of the frame, its score and, if it is short, its name into a BGR image (H, W, 3)."""
    height, width = image.shape[:2]
    unit = max(1, round(min(height, width) / 240))  # pixels; lines and letters grow with the frame
    corners = np.rint(box * np.array([width, height, width, height])).astype(int)
    left, top, right, bottom = np.minimum(corners, [width - 1, height - 1] * 2).tolist()
    tint, text = colour(score), f"{name}: {score:.2f}" if len(name) <= _LONGEST_NAME else f"{score:.2f}"
    cv2.rectangle(image, (left, top), (right, bottom), tint, unit, cv2.LINE_AA)
    scale = 0.4 * unit
    (text_width, text_height), _ = cv2.getTextSize(text, _FONT, scale, unit)
    room = text_height + 2 * unit
    base = top if top >= room else min(bottom + room, height)  # above the box, or below where there is no room
    x = max(0, min(left, width - text_width - 2 * unit))
    cv2.rectangle(image, (x, base - room), (x + text_width + 2 * unit, base), tint, -1)
    cv2.putText(image, text, (x + unit, base - unit), _FONT, scale, (255, 255, 255), unit, cv2.LINE_AA)
