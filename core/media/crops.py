"""Faces cut out of a film's frames."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from core.config import JPEG_QUALITY, SEEK_GAP_SECONDS
from core.formats.annotations import FaceTable
from core.formats.clips import crop_name, crop_path, timestamp_name
from core.media.reader import VideoReader
from core.runtime.files import list_files, write_bytes
from core.runtime.jobs import Outcome


def rows_without_crop(table: FaceTable, rows: np.ndarray, output_dir: Path) -> np.ndarray:
    """Those of the rows (n,) whose crop is not in the output directory yet."""
    existing = {track: list_files(output_dir / table.entity_ids[track]) for track in np.unique(table.entity[rows])}
    places = zip(table.timestamp[rows], table.entity[rows], strict=True)
    return rows[[crop_name(timestamp) not in existing[track] for timestamp, track in places]]


def crop_face(image: np.ndarray, box: np.ndarray) -> bytes:
    """JPEG of the face in an image (H, W, 3); box (4,) as shares of the frame. Raises ValueError if nothing is left."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = (int(share * size) for share, size in zip(box, (width, height) * 2, strict=True))
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"the box rounds to nothing in a frame of {width} x {height}")
    try:
        encoded, jpeg = cv2.imencode(".jpg", image[y1:y2, x1:x2], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    except cv2.error:
        encoded = False
    if not encoded:
        raise ValueError(f"{x2 - x1} x {y2 - y1} pixels are too many for a JPEG")
    return jpeg.tobytes()


def extract_crops(
    table: FaceTable,
    rows: np.ndarray,
    film: VideoReader,
    output_dir: Path,
    outcome: Outcome,
    advance: Callable[[int], None],
) -> None:
    """Cut the given rows of one film, decoding it once; what cannot be cut is a failure of that row alone."""

    def fail(row: int, reason: str) -> None:
        moment = timestamp_name(table.timestamp[row])
        outcome.failures.append(f"{film.path.name}: {table.entity_ids[table.entity[row]]} at {moment} s: {reason}")
        advance(1)

    moments, group = np.unique(table.timestamp[rows], return_inverse=True)
    groups = np.split(rows[np.argsort(group, kind="stable")], np.cumsum(np.bincount(group))[:-1])
    early = int(np.searchsorted(moments, -0.5 / film.fps))  # from then on the first frame is the nearest
    frames = film.frames(moments[early:], SEEK_GAP_SECONDS)
    for place, faces in enumerate(groups):
        image = next(frames, None) if place >= early else None
        for row in faces:
            if image is None:
                fail(row, "no frame can be read there" if place >= early else "before the film begins")
                continue
            try:
                jpeg = crop_face(image, table.box[row])
            except ValueError as error:
                fail(row, str(error))
                continue
            write_bytes(crop_path(output_dir, table.entity_ids[table.entity[row]], table.timestamp[row]), jpeg)
            outcome.done += 1
            advance(1)
