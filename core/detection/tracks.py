"""Face tracks of a video without annotations: face detection, and linking of detections into tracks."""

import os
import threading
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
from core.runtime.errors import InputError
from core.runtime.progress import progress
from core.runtime.threads import map_in_threads
from core.runtime.weights import sha256

_THREADS = min(4, len(os.sched_getaffinity(0)))  # that detect faces; two frames for each are in memory
_MIN_BOX_PIXELS = 2  # width and height of a box; smaller ones can round to an empty crop


class FaceDetector:
    """YuNet (Wu et al., 2023) run by OpenCV, on frames downscaled to `detector_max_side` (speed/recall trade-off).

    Threads may share a detector. `sha256` is the hash of the weights file. Raises InputError if OpenCV cannot load the
    file as YuNet.
    """

    def __init__(self, weights: Path):
        self.sha256, self._weights = sha256(weights), weights
        self._networks = threading.local()  # OpenCV's networks are not thread-safe
        try:
            self.detect(np.zeros((320, 320, 3), np.uint8))
        except cv2.error:
            raise InputError(f"{weights}: not a YuNet face detector that OpenCV can run") from None

    def _network(self) -> cv2.FaceDetectorYN:
        """Return the network of the current thread."""
        if not hasattr(self._networks, "yunet"):
            min_score = tracking_params["min_detection_score"]
            self._networks.yunet = cv2.FaceDetectorYN.create(str(self._weights), "", (320, 320), min_score, 0.3, 5000)
        return self._networks.yunet

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Return faces in a BGR image (H, W, 3) uint8: (n, 5) float64, x1 y1 x2 y2 as fractions of the frame, score."""
        height, width = image.shape[:2]
        scale = min(1.0, tracking_params["detector_max_side"] / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        network = self._network()
        network.setInputSize(size)
        _, output = network.detect(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        if output is None:
            return np.empty((0, 5))
        corner, sides, score = output[:, :2], output[:, 2:4], output[:, 14:15]
        boxes = np.concatenate((corner, corner + sides), axis=1) / np.tile(size, 2)
        faces = np.concatenate((boxes, score), axis=1).astype(np.float64)
        return faces[np.isfinite(faces).all(axis=1)]


@dataclass
class Track:
    """Linked detections of one face within a shot: for each its timestamp in seconds, box (4,) and detection score."""

    times: list[float]
    boxes: list[np.ndarray]
    scores: list[float]

    def boxes_at(self, times: np.ndarray) -> np.ndarray:
        """Boxes (n, 4) at timestamps (n,), interpolated between detections."""
        columns = np.array(self.boxes).T
        return np.stack([np.interp(times, self.times, column) for column in columns], axis=1)

    def predict_box(self, time: float) -> np.ndarray:
        """Box (4,) at a later timestamp, assuming constant size and velocity."""
        box = self.boxes[-1]
        if len(self.times) < 2:
            return box
        centre, previous = ((b[:2] + b[2:]) / 2 for b in (box, self.boxes[-2]))
        shift = (centre - previous) * (time - self.times[-1]) / (self.times[-1] - self.times[-2])
        limit = box[2:] - box[:2]  # at most one box size, however long the gap
        return box + np.tile(np.clip(shift, -limit, limit), 2)


def link_detections(detections: list[tuple[float, np.ndarray]]) -> list[Track]:
    """Link the detections of one shot into tracks. `detections` are timestamps in seconds and faces (n, 5).

    At each timestamp, faces are assigned to tracks by the greatest total overlap with the tracks' predicted boxes. A
    track continues after a gap of up to `max_gap` seconds. Tracks that never reach `min_track_score` are dropped.
    """
    params = tracking_params
    tracks: list[Track] = []
    active: list[Track] = []
    for time, faces in detections:
        active = [track for track in active if time - track.times[-1] <= params["max_gap"]]
        unassigned = set(range(len(faces)))
        if active and len(faces):
            overlaps = box_iou(np.stack([track.predict_box(time) for track in active]), faces[:, :4])
            for row, column in zip(*linear_sum_assignment(-overlaps), strict=True):
                if overlaps[row, column] >= params["min_iou"]:
                    track = active[row]
                    track.times.append(time)
                    track.boxes.append(faces[column, :4])
                    track.scores.append(float(faces[column, 4]))
                    unassigned.remove(column)
        new = [Track([time], [faces[column, :4]], [float(faces[column, 4])]) for column in sorted(unassigned)]
        tracks += new
        active += new
    return [track for track in tracks if max(track.scores) >= params["min_track_score"]]


def reading_order(tracks: list[Track]) -> list[Track]:
    """Return tracks from left to right, line by line. A line has the faces that begin above the end of its top one."""
    boxes = np.array([np.mean(track.boxes, axis=0) for track in tracks]).reshape(-1, 4)
    bottom, line, lines = -np.inf, 0, np.zeros(len(tracks))
    for index in np.argsort(boxes[:, 1]):
        if boxes[index, 1] >= bottom:
            bottom, line = boxes[index, 3], line + 1
        lines[index] = line
    return [tracks[index] for index in np.lexsort((boxes[:, 0], lines))]


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union (n, m) of boxes (n, 4) and (m, 4)."""
    sides = np.minimum(first[:, None, 2:], second[:, 2:]) - np.maximum(first[:, None, :2], second[:, :2])
    overlap = sides.clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return overlap / (areas[0][:, None] + areas[1] - overlap)


def match_ava_shape(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Give boxes (n, 4), as fractions of a frame of this size (2,), the aspect ratio of AVA's boxes.

    Centre and area stay the same. Boxes that would reach beyond the frame are shifted into it.
    """
    centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * size
    aspect = tracking_params["box_aspect"]
    area = sides.prod(axis=1, keepdims=True)
    half = np.minimum(np.sqrt(area * (aspect, 1 / aspect)) / size, 1) / 2
    centre = centre.clip(half, 1 - half)
    return np.hstack((centre - half, centre + half))


def detect_tracks(
    reader: VideoReader,
    shots: Shots,
    detector: FaceDetector,
    min_track: float | None = None,
    min_face: float | None = None,
    notes: list[str] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the tracks of a video, shot by shot: timestamps (n,) in seconds, boxes (n, 4) as fractions of the frame.

    Faces are detected in every `detect_every`-th row of a shot and in its last row; boxes in between are interpolated.
    Boxes have the shape of AVA's.

    Tracks of less than `min_track` seconds are dropped, as are those whose boxes have a shorter side of less than
    `min_face` pixels (median). Defaults are in `core.config`. `notes` get the number of dropped tracks. Only the
    detections of one shot are kept in memory.
    """
    min_track = tracking_params["min_track"] if min_track is None else min_track
    min_face = tracking_params["min_face"] if min_face is None else min_face
    short = small = 0
    pixels, displayed = np.array(reader.size), np.array(reader.size) * reader.pixel_aspect
    shot_rows = np.split(np.arange(len(shots.times)), np.flatnonzero(np.diff(shots.shot)) + 1)
    shot_rows = [np.union1d(rows[:: tracking_params["detect_every"]], rows[-1:]) for rows in shot_rows]
    detected_rows = np.concatenate(shot_rows)
    images = reader.frames(shots.times[detected_rows], seek_gap=float("inf"))
    images = progress(images, total=len(detected_rows), desc="faces", unit="frame")
    detected = map_in_threads(lambda image: None if image is None else detector.detect(image), images, _THREADS)
    for rows in shot_rows:
        # After the last frame of a truncated video, `detected` is exhausted.
        pairs = zip(shots.times[rows], detected, strict=False)
        detections = [(time, faces) for time, faces in pairs if faces is not None]
        for track in reading_order(link_detections(detections)):
            if track.times[-1] - track.times[0] < min_track:
                short += 1
                continue
            start, end = np.searchsorted(shots.times, (track.times[0], track.times[-1]))
            times = shots.times[start : end + 1]
            boxes = track.boxes_at(times)
            visible = boxes.clip(0, 1)
            inside = ((visible[:, 2:] - visible[:, :2]) * pixels >= _MIN_BOX_PIXELS).all(axis=1)  # else it left
            if not inside.any():
                continue
            boxes = match_ava_shape(boxes[inside], displayed).round(6)
            if np.median(((boxes[:, 2:] - boxes[:, :2]) * pixels).min(axis=1)) < min_face:
                small += 1
                continue
            yield times[inside], boxes
    if notes is not None and short:
        notes.append(f"{short} tracks shorter than {min_track:g} s were dropped (--min-track)")
    if notes is not None and small:
        notes.append(f"{small} tracks of faces below {min_face:g} pixels were dropped (--min-face)")


def face_table(video_id: str, tracks: Iterable[tuple[np.ndarray, np.ndarray]]) -> FaceTable:
    """Table of a video's tracks, in their order; each has timestamps (n,) and boxes (n, 4). Labels: NOT_SPEAKING."""
    parts = list(tracks)
    lengths = [len(times) for times, _ in parts]
    entity = np.repeat(np.arange(len(parts), dtype=np.int32), lengths)
    times, boxes = (np.concatenate(columns) for columns in zip((np.empty(0), np.empty((0, 4))), *parts, strict=True))
    names = [f"{video_id}:{number}" for number in range(1, len(parts) + 1)]
    label = np.full(len(entity), NOT_SPEAKING, np.int8)
    return FaceTable([video_id], names, np.zeros(len(entity), np.int32), entity, times, label, boxes)
