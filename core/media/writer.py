"""Encoding videos as H.264 and AAC, which browsers play."""

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.container.core import Flags as ContainerFlags

from core.runtime.files import replacing

_BITEXACT = 1 << 23  # a flag of codecs: no version strings
_BT601 = 6  # code of SMPTE 170M as primaries, transfer and matrix; OpenCV converts colours with this matrix


def encode_video(
    path: Path,
    images: Iterable[np.ndarray],
    size: tuple[int, int],
    fps: float,
    audio: Iterable[av.AudioFrame],
    audio_rate: int,
    layout: str = "stereo",
    audio_bit_rate: int = 128_000,
    pixel_aspect: tuple[int, int] | None = None,
    threads: int = 0,
) -> None:
    """Encode BGR images (H, W, 3) uint8 of size (W, H) and audio frames of this rate and layout as an mp4.

    Odd sizes are made even by repeating the last row or column. With `pixel_aspect`, the file has it and the colour
    matrix of OpenCV as tags, and its index first, so that playback starts before the file is complete. With one thread,
    the same input gives the same bytes. The file appears at `path` when it is complete. Raises ValueError if encoding
    fails.
    """
    width, height = (side + side % 2 for side in size)
    options = {"movie_timescale": str(audio_rate)}
    if pixel_aspect:
        options["movflags"] = "+faststart"
    with replacing(Path(os.path.abspath(path))) as partial:
        try:
            with av.open(str(partial), "w", format="mp4", options=options) as container:
                container.flags |= ContainerFlags.bitexact.value
                video = container.add_stream("libx264", rate=Fraction(f"{fps:.6g}").limit_denominator(100_000))
                video.width, video.height, video.pix_fmt = width, height, "yuv420p"
                video.options = {"preset": "veryfast", "crf": "20"}
                video.thread_count = threads
                video.metadata["encoder"] = "Lavc libx264"
                context = video.codec_context
                if pixel_aspect:
                    context.color_primaries = context.color_trc = context.colorspace = _BT601
                    context.color_range = 1
                    context.sample_aspect_ratio = Fraction(*pixel_aspect)
                sound = container.add_stream("aac", rate=audio_rate, layout=layout)
                sound.bit_rate = audio_bit_rate
                for stream in (video, sound):
                    stream.codec_context.flags |= _BITEXACT
                audio, heard = iter(audio), 0.0
                for index, image in enumerate(images):
                    if (width, height) != tuple(size):
                        padding = (0, height - size[1], 0, width - size[0])
                        image = cv2.copyMakeBorder(image, *padding, cv2.BORDER_REPLICATE)
                    frame = av.VideoFrame.from_ndarray(cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420), "yuv420p")
                    frame.pts, frame.time_base = index, 1 / video.codec_context.framerate
                    container.mux(video.encode(frame))
                    while heard <= index / fps and (block := next(audio, None)) is not None:
                        container.mux(sound.encode(block))
                        heard += block.samples / audio_rate
                container.mux(video.encode(None))
                for block in audio:
                    container.mux(sound.encode(block))
                container.mux(sound.encode(None))
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(path)) from None
            raise ValueError(error.strerror) from None
