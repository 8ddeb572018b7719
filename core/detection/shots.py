"""Shot boundaries of a video, and the timestamps of its rows."""

import itertools
import math
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import cv2
import numpy as np
from av.video.reformatter import ColorRange

from core.config import tracking_params
from core.media.container import filter_frames
from core.media.reader import WHOLE, VideoReader
from core.runtime.progress import progress

# Rows of AVA are 0.03 to 0.05 s apart. How the networks perform at other rates has not been measured.
MIN_ROWS_PER_SECOND, DEFAULT_ROWS_PER_SECOND, MAX_ROWS_PER_SECOND = 20.0, 25.0, 100 / 3

TIME_EPS = 1e-5  # seconds, tolerance for timestamps

_SCENE_WIDTH = 320  # pixels; frames are compared at this width, which is fast and keeps cuts visible
_THUMBNAIL = (32, 18)  # pixels; small enough to ignore small movements
_FLASH_SECONDS = 0.2  # a change that is undone within this time is no cut
_DISSOLVE_SECONDS = (0.4, 0.7, 1.2, 2.1)  # lengths of the windows that may contain a dissolve
_DISSOLVE_STEP = 0.06  # seconds; minimum between two frames of these windows
_MAX_SIMILARITY = 0.5  # correlation of the frames before and after a dissolve
_MAX_RESIDUAL = 0.1  # share of their difference that a frame in between may have beyond a mixture of both
_MAX_SUM = 1.03  # of the weights of this mixture; camera motion keeps more contrast
_MIN_CONTRAST = 4.0  # standard deviation in grey levels of a frame that is not the end of a fade


def row_rate(fps: float) -> float:
    """Rows per second for a video of this frame rate, near the 25 that the networks were trained on.

    The frame rate itself, or that of every n-th frame of a faster video; 25 if neither is within the range of AVA.
    """
    rate = fps / max(1, round(fps / DEFAULT_ROWS_PER_SECOND))
    return rate if MIN_ROWS_PER_SECOND <= rate <= MAX_ROWS_PER_SECOND else DEFAULT_ROWS_PER_SECOND


@dataclass
class Shots:
    """Shots and rows of a video: `times` (R,) in seconds from the first frame, `shot` (R,) the shot of each row."""

    seconds: float  # length of the video, or the end of the analysed part
    last_decodable: float  # seconds; no frame can be read from here on
    fps: float  # mean frames per second
    cuts: list[float]  # seconds; timestamp of the first frame of each shot but the first
    shot_starts: list[float]  # seconds; the time from which that frame is the nearest, and therefore the one read
    declared_fps: float  # frames per second according to the container
    start: float = 0.0  # seconds; start of the analysed part
    rate: float = field(init=False)  # rows per second
    times: np.ndarray = field(init=False)
    shot: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.rate = row_rate(self.fps)
        times = np.round(np.arange(int(self.last_decodable * self.rate) + 2) / self.rate, 2)  # two decimals, as in AVA
        stop = max(self.last_decodable - TIME_EPS, TIME_EPS)
        self.times = times[(times > self.start - TIME_EPS) & (times < stop)]
        # `VideoReader.frames` compares positions, in frames at the declared rate. At a constant rate these are whole.
        starts = np.round(np.array(self.shot_starts) * self.declared_fps + 0.5, 6)
        first = np.searchsorted(self.times * self.declared_fps + 0.5, starts)
        self.shot = np.searchsorted(first, np.arange(len(self.times)), side="right")

    def to_dict(self) -> dict:
        """Arguments of the constructor, for JSON."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.init}


@dataclass(eq=False)
class Frame:
    """A frame of the search for cuts: timestamp from which it is shown, its own, brightness (576,) of a thumbnail."""

    start: float
    time: float
    pixels: np.ndarray

    @property
    def detail(self) -> np.ndarray:
        """Difference (576,) of `pixels` from their mean."""
        return self.pixels - self.pixels.mean()

    def similarity(self, other: "Frame") -> float:
        """Correlation with another frame, -1 to 1; 0 if one of them is uniform."""
        covariance = float(self.detail @ other.detail) / len(self.pixels)
        return covariance / max(float(self.pixels.std() * other.pixels.std()), 1e-3)


class CutDetector:
    """Search for abrupt cuts and for dissolves of up to 2 s, in one pass over the frames."""

    def __init__(self) -> None:
        self._cuts: list[tuple[float, float]] = []
        self._previous: tuple[Frame, float] | None = None
        self._changes: list[tuple[Frame, Frame]] = []  # frames before and after each change that may be a flash
        self._recent: list[Frame] = []  # frames of this shot, for as long as a dissolve may take
        self._dissolve: tuple[float, Frame] | None = None  # contrast and middle of the clearest recent dissolve

    def add(self, frame: Frame, score: float) -> None:
        """Add the next frame and its scene score."""
        # Camera motion scores high in every frame, a cut only in one.
        if self._previous and score >= tracking_params["cut_score"] and score > 2 * self._previous[1]:
            self._changes.append((self._previous[0], frame))
        self._previous = frame, score
        while self._changes and frame.time - self._changes[0][1].time > _FLASH_SECONDS:
            _, cut = self._changes.pop(0)
            self._add_dissolve()
            self._cuts.append((cut.time, cut.start))
            self._recent = [each for each in self._recent if each.time >= cut.time]
        for number, change in enumerate(self._changes):
            if is_undone(*change, frame):
                del self._changes[number:]
                self._recent = []
                break
        if self._dissolve and frame.time - self._dissolve[1].time > _DISSOLVE_SECONDS[-1]:
            self._add_dissolve()
        if not self._recent or frame.time - self._recent[-1].time >= _DISSOLVE_STEP:
            self._recent.append(frame)
            if frame.time - self._recent[0].time > _DISSOLVE_SECONDS[-1] + 2 * _DISSOLVE_STEP:
                del self._recent[0]
            self._find_dissolve()

    def finish(self) -> list[tuple[float, float]]:
        """Return, for the first frame of each shot but the first, its timestamp and that from which it is shown."""
        self._add_dissolve()
        return sorted(self._cuts + [(cut.time, cut.start) for _, cut in self._changes])

    def _add_dissolve(self) -> None:
        if self._dissolve:
            self._cuts.append((self._dissolve[1].time, self._dissolve[1].start))
        self._dissolve = None

    def _find_dissolve(self) -> None:
        """Test windows that end with the last frame: is their middle that of a dissolve?"""
        frames, after = self._recent, self._recent[-1]
        for seconds in _DISSOLVE_SECONDS:
            first = bisect(frames, after.time - seconds, key=lambda frame: frame.time) - 1
            count = len(frames) - first
            if first < 0:
                return
            before = frames[first]
            if count < 5 or before.similarity(after) > _MAX_SIMILARITY:
                continue
            if min(before.pixels.std(), after.pixels.std()) < _MIN_CONTRAST:
                continue
            middle = first + count // 2
            inner = [frames[index] for index in (first + count // 4, middle - 1, middle, first + 3 * count // 4)]
            weights, residuals = fit_mixture(before, after, inner)
            if max(residuals) > _MAX_RESIDUAL or weights[1, 2] > 0.8 or weights.sum(axis=0)[1:3].max() > _MAX_SUM:
                continue
            if (weights[1] >= weights[0]).tolist() == [False, False, True, True]:
                contrast = float(np.linalg.norm(after.detail - before.detail))
                self._dissolve = max(self._dissolve or (0.0, before), (contrast, frames[middle]), key=lambda x: x[0])


def is_undone(before: Frame, after: Frame, frame: Frame) -> bool:
    """Return True if the change between two frames has disappeared in a later frame, as after a flash."""
    remaining, change = (np.abs(each.pixels - before.pixels).sum() for each in (frame, after))
    return remaining < 0.5 * change and frame.similarity(before) > 0.7


def fit_mixture(before: Frame, after: Frame, frames: list[Frame]) -> tuple[np.ndarray, np.ndarray]:
    """Fit frames as weighted sums of two others: weights (2, n), and squared residuals (n,) relative to the others."""
    basis = np.stack([before.detail, after.detail])
    details = np.stack([frame.detail for frame in frames])
    weights = np.linalg.lstsq(basis @ basis.T, basis @ details.T, rcond=None)[0]
    residual = details - weights.T @ basis
    difference = before.detail - after.detail
    return weights, (residual**2).sum(axis=1) / (difference @ difference)


def detect_shots(path: Path, stream: int | None = None, part: tuple[float, float] = WHOLE) -> Shots:
    """Decode a video, or a part given by start and end in seconds, and find its length and its cuts.

    `stream` is the number of the video stream. Raises ValueError if no frame can be read.
    """
    start, stop = part
    cuts, count, first, last = CutDetector(), 0, 0.0, 0.0
    with (
        VideoReader(path, stream, True, part) as reader,
        progress(total=reader.frame_count if part == WHOLE else None, desc="shots", unit="frame") as bar,
    ):
        declared_fps = reader.fps
        for frame, score in scene_scores(reader):
            # The second frame has no score to compare to.
            cuts.add(frame, score if count > 1 else 0.0)
            first = frame.time if count == 0 else first
            count, last = count + 1, frame.time
            bar.update()
    fps = (count - 1) / (last - first) if last > first else declared_fps
    if abs(fps / declared_fps - 1) < 1e-3:  # otherwise the declared rate is wrong or the frame rate varies
        fps = declared_fps
    times, starts = ([cut[column] for cut in cuts.finish()] for column in (0, 1))
    seconds, last_decodable = min(stop, last + 1 / fps), min(stop, last + 0.5 / declared_fps)
    shots = Shots(seconds, last_decodable, fps, times, starts, declared_fps, start)
    if not len(shots.times):
        raise ValueError(f"no frame from {start:g} s" + (f" to {stop:g} s" if stop < math.inf else " on"))
    return shots


def scene_scores(reader: VideoReader) -> Iterator[tuple[Frame, float]]:
    """Yield each frame and its scene score, the difference from the previous frame: 0 to 1."""
    scale = ("scale", f"{_SCENE_WIDTH}:-2:flags=fast_bilinear")
    timeline, images = itertools.tee(reader.timeline())
    filters = [scale, ("format", "gray"), ("select", "gte(scene,0)")]
    scored_frames = filter_frames((frame for _, _, frame in images), lambda: filters)
    for (start, time, frame), scored in zip(timeline, scored_frames, strict=True):
        # Grey levels are 0 to 255 whatever the range of the video, but scores refer to its own range.
        factor = 1.0 if frame.color_range == ColorRange.JPEG else 219 / 255
        thumbnail = cv2.resize(scored.to_ndarray(), _THUMBNAIL, interpolation=cv2.INTER_AREA)
        score = factor * float(scored.metadata["lavfi.scene_score"])
        yield Frame(start, time, thumbnail.ravel().astype(np.float32)), score
