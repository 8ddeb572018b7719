"""Frame-accurate reading of videos with OpenCV."""

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from core.media.ffmpeg import CONTAINERS, PROTOCOLS, require_regular_file

# OpenCV reads this variable when it opens a video.
os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = f"protocol_whitelist;{PROTOCOLS}|format_whitelist;{CONTAINERS}"
# Containers with exact seeking. In the others, a seek can land some frames off.
SEEKABLE_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
# Containers that store the timestamp of each frame.
TIMESTAMPED_SUFFIXES = (*SEEKABLE_SUFFIXES, ".ts", ".mts", ".m2ts", ".flv", ".3gp", ".3g2")
MAX_FRAME_RATE = 1000  # frames per second; written by recorders with a millisecond clock and an unknown rate
MAX_FRAME_PIXELS = 100_000_000  # three times 8K
_TIME_TOLERANCE = 0.002  # seconds; Matroska rounds timestamps to 0.001 s
_MAX_FRAME_SECONDS = 60.0  # seconds; a frame is shown for at most this long


def has_frame_timestamps(video: Path) -> bool:
    """Return True if the video's container stores frame timestamps. In the others, frames are counted."""
    return video.suffix.lower() in TIMESTAMPED_SUFFIXES


def is_constant_rate_time(time: float, index: int, fps: float) -> bool:
    """Return True if `time`, in seconds from the first frame, is that of frame `index` at a constant rate."""
    return abs(time - index / fps) <= max(0.1 / fps, _TIME_TOLERANCE)


class VideoReader:
    """A video opened for reading frames in order; a context manager. Timestamps count from the first frame.

    Raises ValueError if the file is not a video.
    """

    def __init__(self, path: Path):
        require_regular_file(path)
        self.path = path
        self._has_timestamps = has_frame_timestamps(path)
        self._seekable = path.suffix.lower() in SEEKABLE_SUFFIXES
        self._open()
        self.fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        width, height = self.size
        problem = None
        if not self._capture.isOpened() or not 0 < self.fps <= MAX_FRAME_RATE:
            problem = "cannot be opened as a video"
        elif width * height > MAX_FRAME_PIXELS:
            problem = f"frames of {width} x {height} pixels are too large"
        if problem:
            self._capture.release()
            raise ValueError(problem)

    def _open(self) -> None:
        # The path is absolute: OpenCV would read some names as a protocol, an option or an image sequence.
        self._capture = cv2.VideoCapture(os.path.abspath(self.path), cv2.CAP_FFMPEG)
        self._next = 0  # index of the next frame
        self._first_msec = 0.0  # timestamp of the first frame in the container, in milliseconds

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_) -> None:
        self._capture.release()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, after the rotation given in the metadata."""
        return int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))

    @property
    def pixel_aspect(self) -> tuple[int, int]:
        """Sample aspect ratio: width and height of a displayed pixel."""
        width, height = (int(self._capture.get(key)) for key in (cv2.CAP_PROP_SAR_NUM, cv2.CAP_PROP_SAR_DEN))
        return (width, height) if width > 0 and height > 0 else (1, 1)

    @property
    def frame_count(self) -> int | None:
        """Number of frames according to the container, None if unknown."""
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        return count if count > 0 else None

    def frames(self, timestamps: np.ndarray, seek_gap: float) -> Iterator[np.ndarray | None]:
        """Yield the BGR frame (H, W, 3) uint8 shown at each of the increasing timestamps (n,) in seconds.

        - At a constant rate this is frame `floor(t * fps + 0.5)`, as in the released code, found by counting.
        - Gaps of more than `seek_gap` seconds are skipped by seeking if the container allows it. After a seek to the
          wrong frame, the video is counted from the beginning, without seeking.
        - If a frame's timestamp is not that of a constant rate, the video is read again from the beginning, by
          timestamps.
        - Frames that are broken are None. Iteration ends where the video ends.
        """
        if self._next == 0 and not self._grab():
            return
        for position, timestamp in enumerate(timestamps):
            index = int(np.floor(timestamp * self.fps + 0.5))
            if self._seekable and index - self._next > seek_gap * self.fps:
                self._seek(index)
            while self._next <= index:
                if not self._grab():
                    return
            if self._has_timestamps and not is_constant_rate_time(self._time(), index, self.fps):
                yield from self._frames_by_time(timestamps[position:])
                return
            yield self._retrieve()

    def _seek(self, index: int) -> None:
        """Grab this frame by seeking. If the seek fails, reopen the video and disable seeking."""
        self._capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        # OpenCV seeks by time, which is wrong at a variable frame rate.
        if self._capture.grab() and abs(self._time() * self.fps - index) < 0.5:
            self._next = index + 1
        else:
            self._seekable = False
            self._capture.release()
            self._open()

    def _frames_by_time(self, timestamps: np.ndarray) -> Iterator[np.ndarray | None]:
        """`frames` of a video with a variable frame rate.

        A frame is shown from the middle between its timestamp and the previous one, but at most half a frame (of the
        mean rate) before its timestamp.
        """
        self._capture.release()
        self._open()
        half = 0.5 / self.fps
        shown_time, image, ended = -np.inf, None, not self._grab()
        for timestamp in timestamps:
            while not ended:
                next_time = self._time()
                if timestamp < next_time - min(half, (next_time - shown_time) / 2):
                    break
                shown_time = next_time
                image = self._retrieve() if shown_time > timestamp - _MAX_FRAME_SECONDS else None
                ended = not self._grab()
            if ended and timestamp >= shown_time + half:
                return
            yield image

    def _grab(self) -> bool:
        """Decode the next frame. Returns False at the end of the video."""
        if not self._capture.grab():
            return False
        if self._next == 0:
            self._first_msec = self._capture.get(cv2.CAP_PROP_POS_MSEC)
        self._next += 1
        return True

    def _time(self) -> float:
        """Timestamp of the last grabbed frame, in seconds from the first frame."""
        return (self._capture.get(cv2.CAP_PROP_POS_MSEC) - self._first_msec) / 1000

    def _retrieve(self) -> np.ndarray | None:
        """Return the last grabbed frame as BGR, None if it is broken."""
        try:
            decoded, image = self._capture.retrieve()
        except cv2.error:
            return None
        return image if decoded else None
