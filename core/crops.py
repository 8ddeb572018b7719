"""Faces cut out of a film's frames."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from core.annotations import FaceTable
from core.config import JPEG_QUALITY, SEEK_GAP_SECONDS
from core.io import crop_name, crop_path, existing_files, timestamp_name, write_bytes
from core.jobs import Outcome
from core.video import Film


def rows_to_cut(table: FaceTable, rows: np.ndarray, output_dir: Path) -> np.ndarray:
    """Those of the rows (n,) whose crop is not in the output directory yet."""
    existing = {track: existing_files(output_dir / table.entity_ids[track]) for track in np.unique(table.entity[rows])}
    places = zip(table.timestamp[rows], table.entity[rows], strict=True)
    return rows[[crop_name(timestamp) not in existing[track] for timestamp, track in places]]


def crop_face(image: np.ndarray, box: np.ndarray) -> bytes:
    """JPEG of the face in an image (H, W, 3); box (4,) as shares of the frame. Raises ValueError if nothing is left."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = (int(share * size) for share, size in zip(box, (width, height) * 2, strict=True))
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"the box rounds to nothing in a frame of {width} x {height}")
    return cv2.imencode(".jpg", image[y1:y2, x1:x2], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def cut_film(
    table: FaceTable, rows: np.ndarray, film: Film, output_dir: Path, advance: Callable[[int], None]
) -> Outcome:
    """Cut the given rows of one film, decoding it once."""
    result = Outcome()

    def fail(row: int, reason: str) -> None:
        moment = timestamp_name(table.timestamp[row])
        result.failures.append(f"{film.path.name}: {table.entity_ids[table.entity[row]]} at {moment} s: {reason}")
        advance(1)

    frame_of_row = film.frame_index(table.timestamp[rows])
    order = np.argsort(frame_of_row, kind="stable")
    indices, starts = np.unique(frame_of_row[order], return_index=True)
    groups = dict(zip(indices.tolist(), np.split(rows[order], starts[1:]), strict=True))
    for index in indices[indices < 0].tolist():
        for row in groups.pop(index):
            fail(row, "before the film begins")
    for index, image in film.frames(np.array(sorted(groups), int), SEEK_GAP_SECONDS):
        for row in groups.pop(index):
            try:
                jpeg = crop_face(image, table.box[row])
            except ValueError as error:
                fail(row, str(error))
                continue
            write_bytes(crop_path(output_dir, table.entity_ids[table.entity[row]], table.timestamp[row]), jpeg)
            result.done += 1
            advance(1)
    for row in (row for group in groups.values() for row in group):
        fail(row, "past the last frame that could be read")
    return result
