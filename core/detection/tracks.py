"""Face tracks of a film that has no annotations: detections, and what links them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from core.config import tracking_params
from core.detection.shots import Shots
from core.formats.annotations import NOT_SPEAKING, FaceTable
from core.media.reader import VideoReader
from core.runtime.device import sha256
from core.runtime.errors import InputError
from core.runtime.progress import progress

_MIN_BOX_PIXELS = 2  # of a side of a box: what is smaller can round to nothing


class FaceDetector:
    """YuNet (Wu et al., 2023) as OpenCV runs it, on frames scaled to a side that tells faces at a good pace.

    Raises InputError for a file that is no such network. `digest` is the SHA-256 of the file.
    """

    def __init__(self, weights: Path):
        self.sha256 = sha256(weights)
        self.size: tuple[int, int] | None = None
        low = tracking_params["min_detection_score"]
        try:
            self._network = cv2.FaceDetectorYN.create(str(weights), "", (320, 320), low, 0.3, 5000)
            self.detect(np.zeros((320, 320, 3), np.uint8))
        except cv2.error:
            raise InputError(f"{weights}: not a YuNet face detector that OpenCV can run") from None

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Faces in a BGR image (H, W, 3) uint8: (n, 5) float64, x1 y1 x2 y2 as shares of the frame, and a score."""
        height, width = image.shape[:2]
        scale = min(1.0, tracking_params["detector_max_side"] / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        if size != self.size:
            self._network.setInputSize(size)
            self.size = size
        _, found = self._network.detect(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        if found is None:
            return np.empty((0, 5))
        corner, sides, score = found[:, :2], found[:, 2:4], found[:, 14:15]
        boxes = np.concatenate((corner, corner + sides), axis=1) / np.tile(size, 2)
        faces = np.concatenate((boxes, score), axis=1).astype(np.float64)
        return faces[np.isfinite(faces).all(axis=1)]


@dataclass
class Track:
    """One face through a shot, as it was seen: a time in seconds, a box (4,) and a score each time."""

    times: list[float]
    boxes: list[np.ndarray]
    scores: list[float]

    def box_at(self, times: np.ndarray) -> np.ndarray:
        """(n, 4) boxes at times (n,) between those at which it was seen."""
        columns = np.array(self.boxes).T
        return np.stack([np.interp(times, self.times, column) for column in columns], axis=1)

    def expected(self, time: float) -> np.ndarray:
        """(4,) where the face would be next, if it went on as it went."""
        box = self.boxes[-1]
        if len(self.times) < 2:
            return box
        centre, before = ((b[:2] + b[2:]) / 2 for b in (box, self.boxes[-2]))
        shift = (centre - before) * (time - self.times[-1]) / (self.times[-1] - self.times[-2])
        limit = box[2:] - box[:2]  # a face that is out of sight does not fly off
        return box + np.tile(np.clip(shift, -limit, limit), 2)


def link_detections(sightings: list[tuple[float, np.ndarray]]) -> list[Track]:
    """Tracks of the faces of one shot, from times in seconds and what `FaceDetector.detect` found at each.

    Faces are given to the tracks whose expected boxes they overlap most, all at once; a face that is out of sight for
    a while goes on as the same track. Short tracks, and those never seen clearly, are dropped.
    """
    params = tracking_params
    tracks: list[Track] = []
    open_tracks: list[Track] = []
    for time, faces in sightings:
        open_tracks = [track for track in open_tracks if time - track.times[-1] <= params["max_gap"]]
        free = set(range(len(faces)))
        if open_tracks and len(faces):
            expected = np.stack([track.expected(time) for track in open_tracks])
            overlaps = overlap(expected, faces[:, :4])
            for row, column in zip(*linear_sum_assignment(-overlaps), strict=True):
                if overlaps[row, column] >= params["min_iou"]:
                    track = open_tracks[row]
                    track.times.append(time)
                    track.boxes.append(faces[column, :4])
                    track.scores.append(float(faces[column, 4]))
                    free.remove(column)
        new = [Track([time], [faces[column, :4]], [float(faces[column, 4])]) for column in sorted(free)]
        tracks += new
        open_tracks += new
    return [
        track
        for track in tracks
        if track.times[-1] - track.times[0] >= params["min_track_seconds"]
        and max(track.scores) >= params["min_track_score"]
    ]


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, m) intersection over union of boxes (n, 4) and (m, 4)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second)]
    return common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-12)


def detect_tracks(film: VideoReader, shots: Shots, detector: FaceDetector) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the tracks of a film, shot by shot: times (n,) in seconds, boxes (n, 4) as shares of the frame.

    Faces are looked for in every few rows, and in the first and last of a shot; between them boxes are interpolated. No
    more than a shot's detections are held.
    """
    rows = np.arange(len(shots.times))
    first = np.append(True, np.diff(shots.shot) != 0)
    begin = np.maximum.accumulate(np.where(first, rows, 0))
    looked = rows[((rows - begin) % tracking_params["detect_every"] == 0) | np.append(first[1:], True)]
    sightings: list[tuple[float, np.ndarray]] = []
    shot = shots.shot[0]
    images = film.frames(shots.times[looked], seek_gap=float("inf"))
    for row in progress(looked, desc="faces", unit="frame"):
        image = next(images, None)
        if shots.shot[row] != shot:
            yield from _interpolate(link_detections(sightings), shots, film.size)
            sightings, shot = [], shots.shot[row]
        if image is not None:
            sightings.append((shots.times[row], detector.detect(image)))
    yield from _interpolate(link_detections(sightings), shots, film.size)


def face_table(video_id: str, tracks: Iterable[tuple[np.ndarray, np.ndarray]]) -> FaceTable:
    """The rows of a film's tracks, times (n,) and boxes (n, 4) each, in their order; all labelled NOT_SPEAKING."""
    parts = list(tracks)
    lengths = [len(times) for times, _ in parts]
    entity = np.repeat(np.arange(len(parts), dtype=np.int32), lengths)
    times, boxes = (np.concatenate(columns) for columns in zip((np.empty(0), np.empty((0, 4))), *parts, strict=True))
    names = [f"{video_id}:{number}" for number in range(1, len(parts) + 1)]
    label = np.full(len(entity), NOT_SPEAKING, np.int8)
    return FaceTable([video_id], names, np.zeros(len(entity), np.int32), entity, times, label, boxes)


def _interpolate(tracks: list[Track], shots: Shots, size: tuple[int, int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A row at every time of the shots' from a track's first to its last, within the frame."""
    for track in tracks:
        start, end = np.searchsorted(shots.times, (track.times[0], track.times[-1]))
        times = shots.times[start : end + 1]
        boxes = track.box_at(times).clip(0, 1).round(6)
        inside = ((boxes[:, 2:] - boxes[:, :2]) * size >= _MIN_BOX_PIXELS).all(axis=1)  # not out of the frame
        if inside.any():
            yield times[inside], boxes[inside]
