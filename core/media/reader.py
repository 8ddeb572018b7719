"""Films frame by frame: the frame on show at a time."""

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from core.media.ffmpeg import CONTAINERS, PROTOCOLS, _require_file

# OpenCV reads these when it opens a film, so they are set before it does.
os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = f"protocol_whitelist;{PROTOCOLS}|format_whitelist;{CONTAINERS}"
# Containers where seeking finds a frame: in the others it lands some frames off.
SEEKABLE_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
# And those that tell when each frame is shown:
TIMESTAMPED_SUFFIXES = (*SEEKABLE_SUFFIXES, ".ts", ".mts", ".m2ts", ".flv", ".3gp", ".3g2")
MAX_FRAME_RATE = 1000  # what some recorders that know no rate write, and keep a clock in milliseconds
MAX_FRAME_PIXELS = 100_000_000  # 8K has a third of it
_CLOCK_STEP = 0.002  # seconds; matroska rounds times to 0.001: what is further off than that shows another frame rate
_LONGEST_FRAME = 60.0  # seconds; frames that are over by then are not looked at


def has_frame_timestamps(film: Path) -> bool:
    """Whether the film's container tells when each frame is shown; in the others frames are counted."""
    return film.suffix.lower() in TIMESTAMPED_SUFFIXES


def is_constant_rate_time(time: float, index: int, fps: float) -> bool:
    """Whether a frame's time, in seconds from the first frame, is what its number (from 0) at this rate makes it."""
    return abs(time - index / fps) <= max(0.1 / fps, _CLOCK_STEP)


class VideoReader:
    """A film opened for reading frames forward. Use as a context manager.

    Time is counted from its first frame. Raises ValueError where the file is no film.
    """

    def __init__(self, path: Path):
        _require_file(path)
        self.path = path
        self._timed, self._seekable = has_frame_timestamps(path), path.suffix.lower() in SEEKABLE_SUFFIXES
        self._open()
        self.fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        width, height = self.size
        problem = None
        if not self._capture.isOpened() or not 0 < self.fps <= MAX_FRAME_RATE:
            problem = "cannot be opened as a film"
        elif width * height > MAX_FRAME_PIXELS:
            problem = f"frames of {width} x {height} pixels"
        if problem:
            self._capture.release()
            raise ValueError(problem)

    def _open(self) -> None:
        # An absolute path, so that no name can be taken for a protocol, an option or an image-sequence pattern.
        self._capture = cv2.VideoCapture(os.path.abspath(self.path), cv2.CAP_FFMPEG)
        self._next = 0  # the frame that is grabbed next
        self._zero = 0.0  # where the film's clock stands at its first frame, in milliseconds

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_) -> None:
        self._capture.release()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as the film is shown: a rotation it asks for is done."""
        return int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))

    @property
    def pixel_aspect(self) -> tuple[int, int]:
        """Width and height of a pixel as it is to be shown."""
        wide, high = (int(self._capture.get(key)) for key in (cv2.CAP_PROP_SAR_NUM, cv2.CAP_PROP_SAR_DEN))
        return (wide, high) if wide > 0 and high > 0 else (1, 1)

    @property
    def frame_count(self) -> int | None:
        """How many frames the film says it has, None where it does not say."""
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        return count if count > 0 else None

    def frames(self, moments: np.ndarray, seek_gap: float) -> Iterator[np.ndarray | None]:
        """Yield the BGR image (H, W, 3) uint8 on show at each of the increasing times (n,) in seconds.

        At a constant frame rate this is frame `floor(t * fps + 0.5)`, which the released code's seek picks. Each frame
        is decoded once, and stretches of more than `seek_gap` seconds are skipped by seeking. None stands for a frame
        that is broken; ends early where the film does.
        """
        if self._next == 0 and not self._grab():
            return
        for place, moment in enumerate(moments):
            index = int(np.floor(moment * self.fps + 0.5))
            if self._seekable and index - self._next > seek_gap * self.fps:
                self._seek(index)
            while self._next <= index:
                if not self._grab():
                    return
            if self._timed and not is_constant_rate_time(self._time(), index, self.fps):
                yield from self._frames_by_time(moments[place:])
                return
            yield self._image()

    def _grab(self) -> bool:
        """Decode the next frame; False at the end."""
        if not self._capture.grab():
            return False
        if self._next == 0:
            self._zero = self._capture.get(cv2.CAP_PROP_POS_MSEC)
        self._next += 1
        return True

    def _frames_by_time(self, moments: np.ndarray) -> Iterator[np.ndarray | None]:
        """`frames` by the clock, from the beginning, of a film whose frame rate varies.

        A frame counts as on show from the middle between the one before and itself, or from half a frame of the mean
        rate before its time, whichever is later.
        """
        self._capture.release()
        self._open()
        half = 0.5 / self.fps
        shown, image, end = -np.inf, None, not self._grab()
        for moment in moments:
            while not end:
                coming = self._time()
                if moment < coming - min(half, (coming - shown) / 2):
                    break
                shown, image = coming, self._image() if coming > moment - _LONGEST_FRAME else None
                end = not self._grab()
            if end and moment >= shown + half:
                return
            yield image

    def _time(self) -> float:
        """Seconds from the first frame to the one that was grabbed last."""
        return (self._capture.get(cv2.CAP_PROP_POS_MSEC) - self._zero) / 1000

    def _image(self) -> np.ndarray | None:
        """The frame that was grabbed last, None where it is broken."""
        try:
            decoded, image = self._capture.retrieve()
        except cv2.error:
            return None
        return image if decoded else None

    def _seek(self, index: int) -> None:
        """Grab the frame of this index; where seeking goes astray, begin the film again, to get there by counting."""
        self._capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        # Seeking goes by time, which is not the same as counting where the frame rate varies.
        if self._capture.grab() and abs(self._time() * self.fps - index) < 0.5:
            self._next = index + 1
        else:
            self._seekable = False
            self._capture.release()
            self._open()
