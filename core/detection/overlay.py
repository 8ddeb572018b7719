"""Face boxes and scores drawn into video frames, coloured from red (silent) to green (speaking)."""

from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np

from core.contexts import row_interval
from core.detection.segments import short_name
from core.formats.annotations import FaceTable
from core.reports.fonts import cut, drawable, text_mask, text_width

SPEAKING, SILENT = np.array([115, 158, 0]), np.array([0, 60, 213])  # BGR; green and red of different lightness
_MIN_TEXT, _MAX_TEXT = 1 / 40, 1 / 24  # font size as fractions of the frame's shorter side
_MIN_TEXT_PIXELS = 9
_LABEL_WIDTH = 7  # em; room for a short name and a score, also where the face is narrower
_SCORE_WIDTH = 3.2  # em, with the colon and the padding of a label


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
    names = [drawable(short_name(table, track)) for track in range(len(table.entity_ids))]
    last = np.zeros((size[1], size[0], 3), np.uint8)
    for image, rows in zip(images, visible, strict=False):
        last = last if image is None else image
        marked = last.copy()
        mark_faces(marked, table.box[rows], scores[rows], [names[track] for track in table.entity[rows]], threshold)
        yield marked


def mark_faces(
    image: np.ndarray, boxes: np.ndarray, scores: np.ndarray, names: Sequence[str], threshold: float
) -> None:
    """Draw boxes (n, 4), in fractions of the frame, their names and scores (n,) into a BGR image (H, W, 3).

    Labels overlap each other and other faces as little as possible.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    corners = np.rint(boxes * np.array([width, height] * 2)).astype(int)
    faces = np.minimum(corners, [width - 1, height - 1] * 2)
    for (left, top, right, bottom), score in zip(faces.tolist(), scores.tolist(), strict=True):
        thickness = max(1, round(min(side / 240, (right - left) / 20))) * (1 + (score >= threshold))
        cv2.rectangle(image, (left, top), (right, bottom), score_colour(score), thickness, cv2.LINE_AA)
    labels = np.empty((0, 4), int)
    for face, score, name in zip(faces, scores.tolist(), names, strict=True):
        name, size = _fit(name, face[2] - face[0], side)
        mask = np.concatenate((text_mask(f"{name}:", size), text_mask(f"{score:.2f}", size)), axis=1)
        mask = mask[:height, :width, None] / 255
        left, top, right, bottom = label = _place_label(face, mask.shape, (height, width), faces, labels)
        labels = np.vstack((labels, label))
        image[top:bottom, left:right] = np.rint((1 - mask) * score_colour(score) + 255 * mask)


def _fit(name: str, width: int, side: int) -> tuple[str, int]:
    """Return a name, cut if necessary, and a font size for the label of a face of a width. `side`: of the frame.

    The label is as wide as the face where its text is not too small or too large for the frame.
    """
    smallest = max(_MIN_TEXT_PIXELS, int(side * _MIN_TEXT))
    largest = max(smallest, int(side * _MAX_TEXT))
    name = cut(name, max(width / smallest, _LABEL_WIDTH) - _SCORE_WIDTH)
    return name, int(np.clip(width / (text_width(name) + _SCORE_WIDTH), smallest, largest))


def _place_label(
    face: np.ndarray, label: tuple[int, ...], frame: tuple[int, int], faces: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Return the box (4,) of a label of a shape (h, w): of the places at its face, the one that covers least."""
    left, top, right, bottom = face
    height, width = label[:2]
    tops = (top - height, bottom, top, bottom - height)
    lefts = (left, right - width, (left + right - width) // 2)
    corners = np.array([(x, y) for y in tops for x in lefts]).clip(0, (frame[1] - width, frame[0] - height))
    places = np.hstack((corners, corners + np.array([width, height])))
    return places[np.argmin(_covered(places, faces) + 10 * _covered(places, labels))]  # text over text is unreadable


def _covered(places: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the area (n,), in pixels, that each of the places (n, 4) has in common with boxes (m, 4)."""
    sides = np.minimum(places[:, None, 2:], boxes[:, 2:]) - np.maximum(places[:, None, :2], boxes[:, :2])
    return sides.clip(0).prod(axis=2).sum(axis=1)
