"""Shot boundaries of a video, and the timestamps of its rows."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from core.config import tracking_params
from core.media.container import FilterChain
from core.media.reader import WHOLE, VideoReader
from core.runtime.progress import progress

# Rows of AVA are 0.03 to 0.05 s apart. How the networks perform at other rates has not been measured.
MIN_ROWS_PER_SECOND, DEFAULT_ROWS_PER_SECOND, MAX_ROWS_PER_SECOND = 20.0, 25.0, 100 / 3

TIME_EPS = 1e-5  # seconds, tolerance for timestamps

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


def detect_shots(path: Path, stream: int | None = None, part: tuple[float, float] = WHOLE) -> Shots:
    """Decode a video, or a part given by start and end in seconds, and find its length and its cuts.

    `stream` is the number of the video stream. Raises ValueError if no frame can be read.
    """
    start, stop = part
    cuts, shot_starts, count, first, last, last_score = [], [], 0, 0.0, 0.0, 0.0
    with (
        VideoReader(path, stream, True, part) as reader,
        progress(total=reader.frame_count if part == WHOLE else None, desc="shots", unit="frame") as bar,
    ):
        declared_fps = reader.fps
        for shown, time, score in scene_scores(reader):
            # Camera motion scores high in every frame, a cut only in one. The second frame has no score to compare to.
            if count > 1 and score >= tracking_params["cut_score"] and score > 2 * last_score:
                cuts.append(time)
                shot_starts.append(shown)
            first = time if count == 0 else first
            count, last, last_score = count + 1, time, score
            bar.update()
    fps = (count - 1) / (last - first) if last > first else declared_fps
    if abs(fps / declared_fps - 1) < 1e-3:  # otherwise the declared rate is wrong or the frame rate varies
        fps = declared_fps
    seconds, last_decodable = min(stop, last + 1 / fps), min(stop, last + 0.5 / declared_fps)
    shots = Shots(seconds, last_decodable, fps, cuts, shot_starts, declared_fps, start)
    if not len(shots.times):
        raise ValueError(f"no frame from {start:g} s" + (f" to {stop:g} s" if stop < math.inf else " on"))
    return shots


def scene_scores(reader: VideoReader) -> Iterator[tuple[float, float, float]]:
    """Yield for each frame the timestamp from which it is shown, its own, and its scene score.

    The score is the difference from the previous frame, 0 to 1.
    """
    scale = ("scale", f"{_SCENE_WIDTH}:-2:flags=fast_bilinear")
    chain = FilterChain(lambda: [scale, ("select", "gte(scene,0)")])
    for start, time, frame in reader.timeline():
        for scored in chain.run(frame):
            yield start, time, float(scored.metadata["lavfi.scene_score"])
