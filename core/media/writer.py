"""Encoding videos as H.264 and AAC, which browsers play."""

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.codec.context import Flags
from av.video.reformatter import ColorRange

from core.runtime.files import replacing

_BT601 = 6  # code of SMPTE 170M as primaries, transfer and matrix; OpenCV converts colours with this matrix


def encode_video(
    path: Path,
    images: Iterable[np.ndarray],
    size: tuple[int, int],
    fps: float,
    audio: Iterator[np.ndarray],
    sample_rate: int,
    layout: str = "mono",
    pixel_aspect: tuple[int, int] = (1, 1),
    bit_rate: int = 128_000,
    threads: int = 0,
) -> None:
    """Encode BGR images (H, W, 3) uint8 of size (W, H) and audio, at `bit_rate` bits per second, as an mp4.

    Audio is arrays (n,) int16, those of "stereo" with alternating channels; it ends with the last image. Odd sizes are
    made even by repeating the last row or column. With one thread, the same input gives the same bytes. The file
    appears at `path` when it is complete. Raises ValueError if encoding fails.
    """
    width, height = (side + side % 2 for side in size)
    padding = (0, height - size[1], 0, width - size[0])
    with replacing(Path(os.path.abspath(path))) as partial:
        try:
            with av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container:
                video = container.add_stream("libx264", rate=Fraction(f"{fps:.6g}").limit_denominator(100_000))
                video.width, video.height, video.pix_fmt = width, height, "yuv420p"
                video.options = {"preset": "veryfast", "crf": "20"}
                context = video.codec_context
                context.thread_count, context.sample_aspect_ratio = threads, Fraction(*pixel_aspect)
                context.color_primaries = context.color_trc = context.colorspace = _BT601
                context.color_range = ColorRange.MPEG
                audio_stream = container.add_stream("aac", rate=sample_rate, layout=layout)
                audio_stream.bit_rate = bit_rate
                audio_stream.codec_context.flags |= Flags.bitexact  # no version in the first frame, which costs bits
                samples = 0
                for index, image in enumerate(images):
                    image = cv2.copyMakeBorder(image, *padding, cv2.BORDER_REPLICATE)
                    frame = av.VideoFrame.from_ndarray(cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420), "yuv420p")
                    frame.pts, frame.time_base = index, 1 / context.framerate
                    container.mux(video.encode(frame))
                    while samples < (index + 1) / fps * sample_rate and (block := next(audio, None)) is not None:
                        frame = av.AudioFrame.from_ndarray(block[None], "s16", layout)
                        frame.pts, frame.sample_rate = samples, sample_rate
                        samples += frame.samples
                        container.mux(audio_stream.encode(frame))
                container.mux(video.encode())
                container.mux(audio_stream.encode())
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(path)) from None
            raise ValueError(error.strerror) from None
