"""Encoding videos as H.264 and AAC, which browsers play."""

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from core.runtime.files import replacing

_BITEXACT = 1 << 23  # a flag of codecs: no version strings
_BT601 = 6  # code of SMPTE 170M as primaries, transfer and matrix; OpenCV converts colours with this matrix


def encode_video(
    path: Path,
    images: Iterable[np.ndarray],
    size: tuple[int, int],
    fps: float,
    audio: Iterator[av.AudioFrame],
    pixel_aspect: tuple[int, int] | None = None,
    bit_rate: int = 128_000,
    threads: int = 0,
) -> None:
    """Encode BGR images (H, W, 3) uint8 of size (W, H) and audio, at `bit_rate` bits per second, as an mp4.

    Odd sizes are made even by repeating the last row or column. With `pixel_aspect`, the file has it and the colour
    matrix of OpenCV as tags, and its index first, so that playback starts before the file is complete. With one thread,
    the same input gives the same bytes. The file appears at `path` when it is complete. Raises ValueError if encoding
    fails.
    """
    width, height = (side + side % 2 for side in size)
    padding = (0, height - size[1], 0, width - size[0])
    block = next(audio, None)
    if block is None:
        raise ValueError("no audio")
    options = {"movie_timescale": str(block.sample_rate)}
    if pixel_aspect:
        options["movflags"] = "+faststart"
    with replacing(Path(os.path.abspath(path))) as partial:
        try:
            with av.open(str(partial), "w", format="mp4", options=options) as container:
                container.flags |= av.container.Flags.bitexact.value
                video = container.add_stream("libx264", rate=Fraction(f"{fps:.6g}").limit_denominator(100_000))
                video.width, video.height, video.pix_fmt = width, height, "yuv420p"
                video.options = {"preset": "veryfast", "crf": "20"}
                video.thread_count = threads
                video.metadata["encoder"] = "Lavc libx264"
                if pixel_aspect:
                    context = video.codec_context
                    context.color_primaries = context.color_trc = context.colorspace = _BT601
                    context.color_range = av.video.reformatter.ColorRange.MPEG
                    context.sample_aspect_ratio = Fraction(*pixel_aspect)
                audio_stream = container.add_stream("aac", rate=block.sample_rate, layout=block.layout.name)
                audio_stream.bit_rate = bit_rate
                for stream in (video, audio_stream):
                    stream.codec_context.flags |= _BITEXACT
                seconds = 0.0  # of audio
                for index, image in enumerate(images):
                    image = cv2.copyMakeBorder(image, *padding, cv2.BORDER_REPLICATE)
                    frame = av.VideoFrame.from_ndarray(cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420), "yuv420p")
                    frame.pts, frame.time_base = index, 1 / video.codec_context.framerate
                    container.mux(video.encode(frame))
                    while block is not None and seconds <= index / fps:
                        seconds += block.samples / block.sample_rate
                        container.mux(audio_stream.encode(block))
                        block = next(audio, None)
                container.mux(video.encode(None))
                while block is not None:
                    container.mux(audio_stream.encode(block))
                    block = next(audio, None)
                container.mux(audio_stream.encode(None))
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(path)) from None
            raise ValueError(error.strerror) from None
