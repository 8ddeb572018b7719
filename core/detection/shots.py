"""When a film is looked at: its cuts, and the times of its rows."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from core.config import tracking_params
from core.media.ffmpeg import _ffmpeg, _source
from core.media.reader import VideoReader, has_frame_timestamps, is_constant_rate_time
from core.runtime.progress import progress

# The steps between rows of AVA are 0.03 to 0.05 s; what the networks make of others, nobody has measured.
MIN_ROWS_PER_SECOND, DEFAULT_ROWS_PER_SECOND, MAX_ROWS_PER_SECOND = 20.0, 25.0, 100 / 3  # a second

TIME_EPS = 1e-5  # seconds, by which clocks differ that mean the same

_TICKS = 1_000_000  # a second
_SCENE_WIDTH = 320  # pixels of a frame in which a cut is looked for: fine enough to see it, and fast


def row_rate(fps: float) -> float:
    """Rows a second for a film of so many frames a second, near the 25 that the networks were trained on.

    The film's own rate, or every n-th frame of a faster film; 25 where neither is within what AVA has.
    """
    rate = fps / max(1, round(fps / DEFAULT_ROWS_PER_SECOND))
    return rate if MIN_ROWS_PER_SECOND <= rate <= MAX_ROWS_PER_SECOND else DEFAULT_ROWS_PER_SECOND


@dataclass
class Shots:
    """A film's shots and the times of its rows: `times` (R,) in seconds from its first frame, `shot` (R,) of each."""

    seconds: float  # length of the film
    until: float  # seconds; from then on no frame is found
    fps: float  # frames a second, on the average
    cuts: list[float]  # seconds: when the first frame of each shot but the first is shown
    begins: list[float]  # seconds: from when on it is the nearest, so that it is read
    nominal: float  # frames a second, as the film says
    steady: bool  # frames come at that rate
    rate: float = field(init=False)  # rows a second
    times: np.ndarray = field(init=False)
    shot: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.rate = row_rate(self.fps)
        times = np.round(np.arange(int(self.until * self.rate) + 2) / self.rate, 2)  # two decimals, as AVA has them
        self.times = times[times < max(self.until - TIME_EPS, TIME_EPS)]
        # By the rule of `VideoReader.frames`, to the last bit: frames are counted where they come evenly, else by their times.
        if self.steady:
            frames = np.floor(self.times * self.nominal + 0.5)
            first = np.searchsorted(frames, np.rint(np.array(self.cuts) * self.nominal))
        else:
            first = np.searchsorted(self.times, self.begins)
        self.shot = np.searchsorted(first, np.arange(len(self.times)), side="right")

    def to_dict(self) -> dict:
        """What it is made from."""
        return {
            name: getattr(self, name) for name in ("seconds", "until", "fps", "cuts", "begins", "nominal", "steady")
        }


def detect_shots(film: Path) -> Shots:
    """Look through a film for its length and its cuts. Raises ValueError where it has no picture."""
    with VideoReader(film) as opened:
        nominal, frames = opened.fps, opened.frame_count
    half = 0.5 / nominal  # of a frame, as long before its time it counts as on show: see `VideoReader.frames`
    cuts, begins, count, last, before, steady = [], [], 0, 0.0, 0.0, True
    with progress(total=frames, desc="shots", unit="frame") as bar:
        for time, score in scene_scores(film):
            # A picture in motion is no cut; what moved before the second frame, nobody knows.
            if count > 1 and score >= tracking_params["cut_score"] and score > 2 * before:
                cuts.append(time)
                begins.append(time - min(half, (time - last) / 2))
            steady = steady and is_constant_rate_time(time, count, nominal)
            count, last, before = count + 1, max(last, time), score
            bar.update()
    if not count:
        raise ValueError("no frame can be read")
    fps = (count - 1) / last if last > 0 else nominal
    if abs(fps / nominal - 1) < 1e-3:  # else the film says something else than its clock: its rate varies, or it lies
        fps = nominal
    return Shots(last + 1 / fps, last + half, fps, cuts, begins, nominal, steady)


def scene_scores(film: Path) -> Iterator[tuple[float, float]]:
    """How much each frame differs from the one before it: ffmpeg's scene score, 0 to 1, and the frame's time.

    Times are in seconds from the first frame, as those of `VideoReader`. Raises ValueError where there is no picture or no
    film.
    """
    with VideoReader(film) as opened:
        fps = opened.fps
    scale = f"scale={_SCENE_WIDTH}:-2:flags=fast_bilinear,settb=1/{_TICKS}"  # whole ticks, as seconds may be rounded
    scores = f"{scale},select='gte(scene,0)',metadata=mode=print:file=-"
    with _ffmpeg(*_source(film), "-map", "0:V:0", "-vf", scores, "-f", "null", "-") as process:
        time, zero, count = 0.0, None, 0
        for line in process.stdout:
            if found := re.search(rb"pts: *(-?\d+)", line):
                moment = int(found[1]) / _TICKS
                zero = moment if zero is None else zero
                time = moment - zero if has_frame_timestamps(film) else count / fps
            elif found := re.search(rb"scene_score=([\d.]+)", line):
                count += 1
                yield time, float(found[1])
