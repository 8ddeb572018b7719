"""Shot boundaries of a video, and the timestamps of its rows."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from core.config import tracking_params
from core.media.ffmpeg import ffmpeg_process, input_arguments
from core.media.reader import VideoReader, has_frame_timestamps, is_constant_rate_time
from core.runtime.progress import progress

# Rows of AVA are 0.03 to 0.05 s apart. How the networks perform at other rates has not been measured.
MIN_ROWS_PER_SECOND, DEFAULT_ROWS_PER_SECOND, MAX_ROWS_PER_SECOND = 20.0, 25.0, 100 / 3

TIME_EPS = 1e-5  # seconds, tolerance for timestamps

_TICKS_PER_SECOND = 1_000_000
_SCENE_WIDTH = 320  # pixels; frames are compared at this width, which is fast and keeps cuts visible


def row_rate(fps: float) -> float:
    """Rows per second for a video of this frame rate, near the 25 that the networks were trained on.

    The frame rate itself, or that of every n-th frame of a faster video; 25 if neither is within the range of AVA.
    """
    rate = fps / max(1, round(fps / DEFAULT_ROWS_PER_SECOND))
    return rate if MIN_ROWS_PER_SECOND <= rate <= MAX_ROWS_PER_SECOND else DEFAULT_ROWS_PER_SECOND


@dataclass
class Shots:
    """Shots and rows of a video: `times` (R,) in seconds from the first frame, `shot` (R,) the shot of each row."""

    seconds: float  # length of the video
    last_decodable: float  # seconds; no frame can be read from here on
    fps: float  # mean frames per second
    cuts: list[float]  # seconds; timestamp of the first frame of each shot but the first
    shot_starts: list[float]  # seconds; the time from which that frame is the nearest, and therefore the one read
    declared_fps: float  # frames per second according to the container
    constant_rate: bool  # all timestamps agree with the declared rate
    rate: float = field(init=False)  # rows per second
    times: np.ndarray = field(init=False)
    shot: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.rate = row_rate(self.fps)
        times = np.round(np.arange(int(self.last_decodable * self.rate) + 2) / self.rate, 2)  # two decimals, as in AVA
        self.times = times[times < max(self.last_decodable - TIME_EPS, TIME_EPS)]
        # `VideoReader.frames` picks frames by index at a constant rate, else by timestamp: assign shots the same way.
        if self.constant_rate:
            frames = np.floor(self.times * self.declared_fps + 0.5)
            first = np.searchsorted(frames, np.rint(np.array(self.cuts) * self.declared_fps))
        else:
            first = np.searchsorted(self.times, self.shot_starts)
        self.shot = np.searchsorted(first, np.arange(len(self.times)), side="right")

    def to_dict(self) -> dict:
        """Arguments of the constructor, for JSON."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.init}


def detect_shots(path: Path) -> Shots:
    """Decode a video and find its length and its cuts. Raises ValueError if no frame can be read."""
    with VideoReader(path) as reader:
        declared_fps, frame_count = reader.fps, reader.frame_count
    half_frame = 0.5 / declared_fps  # frames are shown from this much before their timestamp: see `VideoReader.frames`
    cuts, shot_starts, count, last, last_score, constant_rate = [], [], 0, 0.0, 0.0, True
    with progress(total=frame_count, desc="shots", unit="frame") as bar:
        for time, score in scene_scores(path, declared_fps):
            # Camera motion scores high in every frame, a cut only in one. The second frame has no score to compare to.
            if count > 1 and score >= tracking_params["cut_score"] and score > 2 * last_score:
                cuts.append(time)
                shot_starts.append(time - min(half_frame, (time - last) / 2))
            constant_rate = constant_rate and is_constant_rate_time(time, count, declared_fps)
            count, last, last_score = count + 1, max(last, time), score
            bar.update()
    if not count:
        raise ValueError("no frame can be read")
    fps = (count - 1) / last if last > 0 else declared_fps
    if abs(fps / declared_fps - 1) < 1e-3:  # otherwise the declared rate is wrong or the frame rate varies
        fps = declared_fps
    return Shots(last + 1 / fps, last + half_frame, fps, cuts, shot_starts, declared_fps, constant_rate)


def scene_scores(path: Path, fps: float) -> Iterator[tuple[float, float]]:
    """Yield timestamp and scene score of each frame: its difference from the previous frame, 0 to 1, by ffmpeg.

    Timestamps are in seconds from the first frame, as in `VideoReader`; `fps` gives those of files without timestamps.
    Raises ValueError if the file is not a video or has no video stream.
    """
    # Timestamps are read as integer ticks, because ffmpeg prints rounded seconds.
    scale = f"scale={_SCENE_WIDTH}:-2:flags=fast_bilinear,settb=1/{_TICKS_PER_SECOND}"
    scores = f"{scale},select='gte(scene,0)',metadata=mode=print:file=-"
    with ffmpeg_process(*input_arguments(path), "-map", "0:V:0", "-vf", scores, "-f", "null", "-") as process:
        time, first, count = 0.0, None, 0
        for line in process.stdout:
            if match := re.search(rb"pts: *(-?\d+)", line):
                timestamp = int(match[1]) / _TICKS_PER_SECOND
                first = timestamp if first is None else first
                time = timestamp - first if has_frame_timestamps(path) else count / fps
            elif match := re.search(rb"scene_score=([\d.]+)", line):
                count += 1
                yield time, float(match[1])
