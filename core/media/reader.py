"""Frame-accurate reading of videos."""

import contextlib
import itertools
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import ColorTrc, VideoReformatter

from core.config import SEEK_GAP_SECONDS
from core.media.container import MAX_FRAME_PIXELS, SEEKABLE, choose_stream, decode, filter_frames, open_container
from core.media.tone_mapping import tone_map

MAX_FRAME_RATE = 1000  # frames per second; written by recorders with a millisecond clock and an unknown rate
WHOLE = (0.0, math.inf)  # the part of a video that is all of it
_TIME_TOLERANCE = 0.002  # seconds; Matroska rounds timestamps to 0.001 s
_MAX_FRAME_SECONDS = 60.0  # seconds; a frame is shown for at most this long
_THREADS = min(8, os.cpu_count() or 1)  # of a decoder
_HDR = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}


class VideoReader:
    """A video opened for reading frames in order; a context manager. Timestamps count from the first frame.

    `stream` is the number of the video stream, by default the one that players choose. With `enhance`, interlaced
    frames are deinterlaced and those of high dynamic range (HLG, PQ) are tone-mapped. `part` is the start and the end
    in seconds of the part to read.

    `size` is width and height as displayed, `start_offset` the seconds from the start of the container, where audio
    begins, to the first frame. `frame_count` is None if unknown. `notes` are remarks on the video.

    Raises ValueError if the file is not a video.
    """

    def __init__(self, path: Path, stream: int | None = None, enhance: bool = False, part: tuple[float, float] = WHOLE):
        self.path, self._number, self._enhance, self._part = path, stream, enhance, part
        self._files = contextlib.ExitStack()
        self._open()
        if self._seekable and part[0] > SEEK_GAP_SECONDS:
            self._seek(part[0] * self.fps)

    def _open(self) -> None:
        """Open the file and decode the first frame."""
        self._files.close()
        self.notes: list[str] = []
        self._container = container = self._files.enter_context(open_container(self.path))
        self._stream = stream = choose_stream(container, "video", self._number, self.notes)
        rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
        self.fps = float(next((rate for rate in rates if rate and 0 < rate <= MAX_FRAME_RATE), 0))
        if not self.fps:
            raise ValueError("cannot be opened as a video (no frame rate)")
        self.frame_count = stream.frames or round((container.duration or 0) / av.time_base * self.fps) or None
        stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
        stream.thread_type, stream.thread_count = "AUTO", _THREADS
        self._seekable, self._constant = container.format.name in SEEKABLE, True
        self._reformatter = VideoReformatter()
        self._start = None  # time of the first frame in the container, in seconds
        self._timeline = self._read()
        self._next = next(self._timeline)
        self.start_offset = self._start - (container.start_time or 0) / av.time_base
        frame = self._next[2]
        matrix = frame.side_data.get("DISPLAYMATRIX")
        a, b, _, c, d = np.frombuffer(bytes(matrix), "<i4")[:5] if matrix else (1, 0, 0, 0, 1)
        self._transposed = abs(b) + abs(c) > abs(a) + abs(d)
        self._flips = (c < 0, b < 0) if self._transposed else (a < 0, d < 0)  # horizontal, vertical
        step = -1 if self._transposed else 1
        self.size = (frame.width, frame.height)[::step]
        self.pixel_aspect = (stream.sample_aspect_ratio or Fraction(1)).as_integer_ratio()[::step]
        self._transfer = _HDR.get(frame.color_trc)
        if not self._enhance and self._transfer:
            self.notes.append(f"high dynamic range ({self._transfer}): crops are grey")
        if not self._enhance and frame.interlaced_frame:
            self.notes.append("interlaced: moving faces have combed edges")

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_) -> None:
        self._timeline.close()
        self._files.close()

    def frames(self, timestamps: np.ndarray, seek_gap: float) -> Iterator[np.ndarray | None]:
        """Yield the BGR frame (H, W, 3) uint8 shown at each of the increasing timestamps (n,) in seconds.

        - At a constant rate this is frame `floor(t * fps + 0.5)`, as in the released code.
        - Otherwise a frame is shown from the middle between its time in the container and the previous one's, but at
          most half a frame (of the mean rate) before its time.
        - Gaps of more than `seek_gap` seconds are skipped by seeking if the container allows it. After a seek to the
          wrong frame, the video is read from the beginning, without seeking.
        - Frames that are broken are None. Iteration ends where the video ends.
        """
        shown, image, converted = None, None, False
        for position in np.asarray(timestamps) * self.fps + 0.5:
            if self._seekable and self._next and position - self._next[0] > seek_gap * self.fps:
                self._seek(position)
            while self._next and position >= self._next[0]:
                shown, converted = self._next, False
                self._next = next(self._timeline, None)
            if self._next is None and (shown is None or position >= shown[1] + 1):
                return
            if shown is None or position - shown[1] > _MAX_FRAME_SECONDS * self.fps:
                yield None
                continue
            if not converted:
                image, converted = self._convert(shown[2]), True
            yield image

    def timeline(self) -> Iterator[tuple[float, float, av.VideoFrame]]:
        """Yield all frames, each with the timestamp from which it is shown and its own, in seconds."""
        start, stop = self._part
        while self._next is not None:
            position, own_position, frame = self._next
            shown, time = (position - 0.5) / self.fps, own_position / self.fps
            if shown >= stop:
                return
            if time > start - 0.5 / self.fps:
                yield shown, time, frame
            self._next = next(self._timeline, None)

    def _seek(self, position: float) -> None:
        """Continue with a frame shortly before this position, or if the seek fails, with the first one."""
        time = self._start + position / self.fps - 1
        self._timeline.close()
        try:
            self._container.seek(int(time / self._stream.time_base), stream=self._stream)
            self._timeline = self._read()
            self._next = next(self._timeline)
        except (av.FFmpegError, OSError, ValueError):
            self._next = None
        if self._next is None or self._next[0] > position:
            self._open()
            self._seekable = False

    def _read(self) -> Iterator[tuple[float, float, av.VideoFrame]]:
        """Yield frames with the position from which each is shown and its own, in frames at the declared rate.

        As long as the rate is constant, positions are whole numbers: frames are counted.
        """
        tolerance = max(0.1, _TIME_TOLERANCE * self.fps)
        previous = None
        frames = decode(self._container, self._stream, lambda _: 1 / self.fps, self.notes)
        if self._enhance:
            times, images = itertools.tee(frames)
            filtered = filter_frames(
                (frame for _, frame in images), lambda: [("bwdif", "mode=send_frame:deint=interlaced")]
            )
            frames = zip((time for time, _ in times), filtered, strict=False)
        for time, frame in frames:
            if self._start is None:
                self._start = time or 0.0
            position = (0.0 if previous is None else previous + 1) if time is None else (time - self._start) * self.fps
            index = round(position)
            if previous is not None and index != previous + 1:
                self._constant = False
            if self._constant and abs(position - index) <= tolerance:
                position = float(index)
            else:
                self._constant = False
            position = position if previous is None else max(position, previous)
            half = 0.5 if previous is None else min(0.5, (position - previous) / 2)
            yield position + 0.5 - half, position, frame
            previous = position

    def _convert(self, frame: av.VideoFrame) -> np.ndarray | None:
        """Return a frame as displayed, in BGR; None if it is broken."""
        transfer = self._transfer if self._enhance else None
        try:
            if frame.interlaced_frame:  # else chroma is converted by fields, which the released code does not do
                (frame,) = filter_frames([frame], lambda: [("setfield", "mode=prog")])
            # Bicubic, as in OpenCV: it only matters for chroma of more than 8 bits.
            pixels = "rgb48le" if transfer else "bgr24"
            image = self._reformatter.reformat(frame, format=pixels, interpolation="BICUBIC", threads=1).to_ndarray()
        except av.FFmpegError:
            return None
        if transfer:
            image = tone_map(image, transfer)
        if self._transposed:
            image = cv2.transpose(image)
        if any(self._flips):
            image = cv2.flip(image, -1 if all(self._flips) else 1 if self._flips[0] else 0)
        return image
