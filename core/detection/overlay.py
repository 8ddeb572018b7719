"""Face boxes and scores drawn into video frames, coloured from red (silent) to green (speaking)."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import cv2
import numpy as np

from core.contexts import row_interval
from core.detection.segments import short_name
from core.formats.annotations import FaceTable
from core.reports.fonts import TEXT_SIZE, cut, drawable, text_mask, text_width

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
    faces = np.minimum(corners, [width - 1, height - 1] * 2).tolist()
    for (left, top, right, bottom), score in zip(faces, scores.tolist(), strict=True):
        thickness = max(1, round(min(side / 240, (right - left) / 20))) * (1 + (score >= threshold))
        cv2.rectangle(image, (left, top), (right, bottom), score_colour(score), thickness, cv2.LINE_AA)
    labels: list[list[int]] = []
    for face, score, name in zip(faces, scores.tolist(), names, strict=True):
        name, size = _fit(name, face[2] - face[0], side)
        mask = np.concatenate((_text(f"{name}:", size), _text(f"{score:.2f}", size)), axis=1)
        left, top, right, bottom = _place_label(face, mask.shape, image.shape, faces, labels)
        labels.append([left, top, right, bottom])
        image[top:bottom, left:right] = cv2.LUT(mask, _shades(round(score, 2)))[: bottom - top, : right - left]


@lru_cache(4096)
def _fit(name: str, width: int, side: int) -> tuple[str, int]:
    """Return a name, cut if necessary, and a font size for the label of a face of a width. `side`: of the frame.

    The label is as wide as the face where its text is not too small or too large for the frame.
    """
    smallest = max(_MIN_TEXT_PIXELS, int(side * _MIN_TEXT))
    largest = max(smallest, int(side * _MAX_TEXT))
    name = cut(name, max(width / smallest, _LABEL_WIDTH) - _SCORE_WIDTH)
    return name, int(np.clip(width / (text_width(name) + _SCORE_WIDTH), smallest, largest))


@lru_cache(1024)
def _text(text: str, size: int) -> np.ndarray:
    """Return a text, of a font size in pixels, as coverage of pixels (h, w, 3) uint8."""
    mask = text_mask(text)
    shape = round(mask.shape[1] * size / TEXT_SIZE), round(len(mask) * size / TEXT_SIZE)
    return cv2.merge([cv2.resize(mask, shape, interpolation=cv2.INTER_AREA)] * 3)


@lru_cache(101)
def _shades(score: float) -> np.ndarray:
    """Return BGR colours (1, 256, 3) uint8 from the colour of a score to white, by coverage."""
    coverage = np.arange(256)[:, None] / 255
    return np.rint((1 - coverage) * score_colour(score) + 255 * coverage).astype(np.uint8)[None]


def _place_label(
    face: list[int], label: tuple[int, ...], frame: tuple[int, ...], faces: list[list[int]], labels: list[list[int]]
) -> tuple[int, int, int, int]:
    """Return the box of a label of a shape (h, w): of the places at its face, the one that covers least."""
    left, top, right, bottom = face
    height, width = min(label[0], frame[0]), min(label[1], frame[1])
    best, lowest_cost = None, float("inf")
    for y in (top - height, bottom, top, bottom - height):
        for x in (left, right - width, (left + right - width) // 2):
            x1, y1 = min(max(0, x), frame[1] - width), min(max(0, y), frame[0] - height)
            place = x1, y1, x1 + width, y1 + height
            # Text over text cannot be read.
            cost = sum(_overlap(place, box) for box in faces) + 10 * sum(_overlap(place, box) for box in labels)
            if cost < lowest_cost:
                best, lowest_cost = place, cost
            if not cost:
                return best
    return best


def _overlap(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the area, in pixels, that two boxes have in common."""
    if first[0] >= second[2] or second[0] >= first[2] or first[1] >= second[3] or second[1] >= first[3]:
        return 0
    width = min(first[2], second[2]) - max(first[0], second[0])
    return width * (min(first[3], second[3]) - max(first[1], second[1]))
