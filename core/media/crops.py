"""Face crops, cut from the frames of a video."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from core.config import JPEG_QUALITY, SEEK_GAP_SECONDS
from core.formats.annotations import FaceTable
from core.formats.clips import crop_names, crop_path
from core.media.reader import VideoReader
from core.runtime.files import list_files, write_bytes
from core.runtime.jobs import Outcome


def rows_without_crop(table: FaceTable, rows: np.ndarray, output_dir: Path) -> np.ndarray:
    """Return those of the rows (n,) whose crop does not exist in the output directory."""
    tracks = table.entity[rows]
    existing = {track: list_files(output_dir / table.entity_ids[track]) for track in np.unique(tracks)}
    names = map(crop_names, table.timestamp[rows])
    return rows[[existing[track].isdisjoint(some) for some, track in zip(names, tracks, strict=True)]]


def crop_face(image: np.ndarray, box: np.ndarray) -> bytes:
    """Return a face as JPEG: the box (4,), in fractions of the frame, of an image (H, W, 3).

    Raises ValueError if the crop is empty or too large for a JPEG.
    """
    height, width = image.shape[:2]
    x1, y1, x2, y2 = (int(fraction * side) for fraction, side in zip(box, (width, height) * 2, strict=True))
    try:
        encoded, jpeg = cv2.imencode(".jpg", image[y1:y2, x1:x2], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    except cv2.error:
        encoded = False
    if not encoded:
        raise ValueError(f"a box of {x2 - x1} x {y2 - y1} pixels cannot be a JPEG")
    return jpeg.tobytes()


def extract_crops(
    table: FaceTable,
    rows: np.ndarray,
    reader: VideoReader,
    output_dir: Path,
    outcome: Outcome,
    advance: Callable[[int], None],
) -> None:
    """Write the crops of the given rows of one video, decoding it once. Rows without a crop are listed as failures."""
    outcome.notes += [f"{reader.path.name}: {note}" for note in reader.notes]
    rows = rows[np.argsort(table.timestamp[rows], kind="stable")]
    frames = reader.frames(table.timestamp[rows], SEEK_GAP_SECONDS)
    for row in rows:
        image = next(frames, None)
        try:
            if image is None:
                raise ValueError("no frame can be read")
            jpeg = crop_face(image, table.box[row])
        except ValueError as error:
            outcome.failures.append(f"{table.row_name(row)}: {error}")
        else:
            write_bytes(crop_path(output_dir, table.entity_ids[table.entity[row]], table.timestamp[row]), jpeg)
            outcome.done += 1
        advance(1)
