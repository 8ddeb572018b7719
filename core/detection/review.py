"""The review page: one html file to watch a video with its tracks, correct them and export the result.

`page/` holds its parts. The page loads nothing but the video, by a relative path, and runs no script but its own.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageOps

from core.config import SEEK_GAP_SECONDS
from core.formats.annotations import NO_LABEL, FaceTable
from core.media.crops import crop_face
from core.media.reader import VideoReader
from core.reports.report import unit_scores
from core.runtime.errors import InputError
from core.runtime.files import write_bytes
from core.runtime.progress import progress

_PAGE = Path(__file__).with_name("page")
_SCRIPTS = ("scores.js", "review.js", "exports.js", "player.js", "timeline.js", "page.js")
_THUMBNAIL_SIZE = (80, 80)  # pixels, at most


def write_page(
    path: Path,
    video: dict,
    table: FaceTable,
    columns: Sequence[np.ndarray],
    threshold: float,
    smoothing: int,
    persons: dict[str, str] | None = None,
    thumbnail: Callable[[int], Image.Image] | None = None,
    labelled: bool = False,
    document: dict | None = None,
) -> None:
    """Write the review page of one video.

    Args:
        video: result of `describe_video`
        table: rows of the video
        columns: two arrays of logits (N,), one of scores (N,), or none
        threshold, smoothing: initial values of the sliders
        persons: track -> name of its person
        thumbnail: returns the face of a track
        labelled: labels are those of the table; otherwise scores that reach the threshold are SPEAKING_AUDIBLE
        document: speakers.json without its tracks; without it, the page does not export this file
    """
    order = table.track_rows
    names = table.entity_ids
    tracks = [
        {
            "id": names[track],
            "rows": len(table.rows_of_track(track)),
            "person": (persons or {}).get(names[track], ""),
            "thumbnail": thumbnail and _data_url(thumbnail(track)),
        }
        for track in np.unique(table.entity).tolist()
    ]
    rows = {
        "times": table.timestamp[order].tolist(),
        "boxes": table.box[order].ravel().tolist(),
        "labels": table.label[order].tolist() if labelled else None,
        "columns": [column[order].tolist() for column in columns],
    }
    digest = hashlib.blake2b(json.dumps([rows, names]).encode(), digest_size=16).hexdigest()  # of a draft's rows
    settings = {"threshold": threshold, "smoothing": smoothing, "document": document, "digest": digest}
    content = json.dumps({"video": video, "tracks": tracks, **rows, **settings}, separators=(",", ":"))
    style = (_PAGE / "page.css").read_text()
    script = "\n".join((_PAGE / name).read_text() for name in _SCRIPTS)
    parts = {
        "style": style,
        "style_hash": _source_hash(style),
        "script": script,
        "script_hash": _source_hash(script),
        "data": content.replace("<", "\\u003c"),  # the data cannot end its element
    }
    page = re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], (_PAGE / "page.html").read_text())
    write_bytes(path, page.encode())


def describe_video(
    page: Path,
    file: Path,
    reader: VideoReader,
    span: tuple[float, float],
    played: tuple[Path, float] | None = None,
) -> dict:
    """Return the `video` of a page's data.

    `span` is the start and the end of the part with rows, in seconds. `played` is the file to play instead of the video
    itself, and the timestamp in the video at which it begins.
    """
    source, offset = (file, reader.start_offset) if played is None else (played[0], -played[1])
    return {
        "id": file.stem,
        "file": _relative_url(file, page),
        "source": _relative_url(source, page),
        "offset": offset,  # the player's time at timestamp 0
        "start": span[0],
        "seconds": span[1],
        "frame_rate": reader.fps,
        "width": reader.size[0],
        "height": reader.size[1],
    }


def write_video_page(
    directory: Path,
    table: FaceTable,
    scores: np.ndarray | None,
    file: Path,
    video_id: str,
    threshold: float,
    thumbnails: bool = False,
) -> Path:
    """Write `review_<video_id>.html` for a video of a table, with scores (N,) if there are any. Returns the path.

    Thumbnails take time, since the video is decoded. Raises InputError if the video is broken.
    """
    columns = [] if scores is None else [unit_scores(scores)]
    rows = table.rows_of_video(table.video_ids.index(video_id))
    own, path = table.keep(rows), directory / f"review_{video_id}.html"
    try:
        with VideoReader(file, enhance=True) as reader:
            seconds = max((reader.frame_count or 0) / reader.fps, float(own.timestamp.max()))
            video = describe_video(path, file, reader, (0.0, seconds))
            faces = read_thumbnails(reader, own) if thumbnails else {}
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None
    options = {"thumbnail": faces.get if faces else None, "labelled": bool((own.label != NO_LABEL).any())}
    write_page(path, video, own, [column[rows] for column in columns], threshold, 0, **options)
    return path


def read_thumbnails(reader: VideoReader, table: FaceTable) -> dict[int, Image.Image]:
    """Return track -> its largest face, for tracks whose face can be decoded."""
    area = (table.box[:, 2:] - table.box[:, :2]).prod(axis=1)
    rows = [own[area[own].argmax()] for own in map(table.rows_of_track, np.unique(table.entity))]
    rows.sort(key=lambda row: table.timestamp[row])
    images = reader.frames(table.timestamp[rows], SEEK_GAP_SECONDS)
    images = progress(images, total=len(rows), desc="thumbnails", unit="face", leave=False)
    faces = {}
    for row, image in zip(rows, images, strict=False):
        if image is not None:
            faces[int(table.entity[row])] = Image.open(BytesIO(crop_face(image, table.box[row])))
    return faces


def _data_url(image: Image.Image | None) -> str | None:
    if image is None:
        return None
    buffer = BytesIO()
    ImageOps.contain(image, _THUMBNAIL_SIZE).save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _source_hash(text: str) -> str:
    """Hash of a script or style in the Content-Security-Policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _relative_url(file: Path, page: Path) -> str:
    return quote(os.fsencode(os.path.relpath(file, page.parent)))
