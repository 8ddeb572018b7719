"""Face crops, cut from the frames of a video."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from core.config import JPEG_QUALITY, SEEK_GAP_SECONDS, TRACK_FRAME_SIZE
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


# Box (4,) in fractions of a frame, its width and height -> left, upper, right and lower edge in pixels
Region = Callable[[np.ndarray, int, int], tuple[int, int, int, int]]
_GREY = (110, 110, 110)


def crop_region(image: np.ndarray, box: np.ndarray, region: Region) -> bytes:
    """Return the region of a box in an image (H, W, 3) as LR-ASD's input: grey, 112 x 112, grey beyond the image.

    PNG, because the network notices the losses of JPEG.
    """
    height, width = image.shape[:2]
    x1, y1, x2, y2 = region(box, width, height)
    margins = [max(margin, 0) for margin in (-y1, y2 - height, -x1, x2 - width)]
    crop = image[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)]
    try:
        crop = cv2.copyMakeBorder(crop, *margins, cv2.BORDER_CONSTANT, value=_GREY)
        crop = cv2.resize(cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY), (TRACK_FRAME_SIZE, TRACK_FRAME_SIZE))
    except cv2.error:
        raise ValueError(f"an empty region of {x2 - x1} x {y2 - y1} pixels") from None
    return cv2.imencode(".png", crop)[1].tobytes()


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
    region: Region | None = None,
    region_dir: Path | None = None,
) -> None:
    """Write the crops of the given rows of one video, decoding it once. Rows without a crop are listed as failures.

    With a `region`, that region of each box is written to `region_dir` too.
    """
    outcome.notes += [f"{reader.path.name}: {note}" for note in reader.notes]
    rows = rows[np.argsort(table.timestamp[rows], kind="stable")]
    frames = reader.frames(table.timestamp[rows], SEEK_GAP_SECONDS)
    for row in rows:
        image = next(frames, None)
        try:
            if image is None:
                raise ValueError("no frame can be read")
            jpeg = crop_face(image, table.box[row])
            png = crop_region(image, table.box[row], region) if region else None
        except ValueError as error:
            outcome.failures.append(f"{table.row_name(row)}: {error}")
        else:
            entity_id, timestamp = table.entity_ids[table.entity[row]], table.timestamp[row]
            if region:  # before the crop of the box, whose existence means that the row is done
                write_bytes(crop_path(region_dir, entity_id, timestamp).with_suffix(".png"), png)
            write_bytes(crop_path(output_dir, entity_id, timestamp), jpeg)
            outcome.done += 1
        advance(1)
