"""Videos that show the true time: a strip of bits in every frame and a beep at every whole second.

Frames and audio are right if the frame at timestamp t shows t, and if beeps start at whole seconds.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe
from numbered_videos import ffmpeg

from core.config import SAMPLE_RATE

WIDTH, HEIGHT, STRIP = 320, 180, 30  # pixels; height of the strip
BITS = 16  # the time in milliseconds
AUDIO_RATE = 48_000
H264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", 18, "-pix_fmt", "yuv420p")
AAC = ("-c:a", "aac")


def timed_frames(times: np.ndarray) -> Iterator[np.ndarray]:
    """Yield a grey frame (180, 320) for each time in seconds: a gradient in motion, with the strip at the bottom."""
    gradient = np.linspace(60, 200, WIDTH).astype(np.uint8)
    for time in times:
        milliseconds = round(time * 1000)
        bits = (milliseconds >> np.arange(BITS)) & 1
        strip = (16 + 219 * bits).astype(np.uint8).repeat(WIDTH // BITS)
        top = np.roll(gradient, milliseconds // 20)
        yield np.vstack([np.tile(top, (HEIGHT - STRIP, 1)), np.tile(strip, (STRIP, 1))])


def shown_time(image: np.ndarray) -> float:
    """The time in seconds that a frame of any size shows."""
    grey = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(float)
    grey = grey if grey.ndim == 2 else grey.mean(axis=2)
    cells = grey[HEIGHT - STRIP + 8 : HEIGHT - 8].reshape(-1, BITS, WIDTH // BITS)[:, :, 6:-6].mean(axis=(0, 2))
    assert (np.abs(cells - 126) > 35).all(), "the strip is not readable"
    return int((cells > 126) @ (1 << np.arange(BITS))) / 1000


def beeps(seconds: float, rate: int = AUDIO_RATE) -> np.ndarray:
    """(n,) int16: beeps of 0.03 s at 1, 2, ... s, and faint noise."""
    t = np.arange(round(seconds * rate)) / rate
    tone = 0.6 * np.sin(2 * np.pi * 3000 * t) * (t % 1 < 0.03) * (t > 0.5)
    noise = 0.003 * np.random.default_rng(0).standard_normal(len(t))
    return ((tone + noise) * 32767).astype("<i2")


def beep_times(samples: np.ndarray, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Starts of the beeps in seconds."""
    loud = np.flatnonzero(np.abs(samples.astype(float)) > 4000)
    return loud[np.append(True, np.diff(loud) > rate / 2)] / rate if len(loud) else np.empty(0)


def make_timed_video(
    path: Path,
    seconds: float = 4,
    fps: int = 25,
    options: tuple = (*H264, *AAC),
    audio: np.ndarray | None = None,
    audio_rate: int = AUDIO_RATE,
    channels: int = 1,
    filters: str = "null",
) -> Path:
    """Encode with ffmpeg: frames of each 1/fps s, and audio (n, channels) int16, by default the beeps."""
    raw = path.with_name(f"{path.name}.raw")
    raw.write_bytes((beeps(seconds, audio_rate) if audio is None else audio).tobytes())
    video = ("-f", "rawvideo", "-pix_fmt", "gray", "-video_size", f"{WIDTH}x{HEIGHT}", "-framerate", fps, "-i", "-")
    audio_input = ("-f", "s16le", "-ar", audio_rate, "-ac", channels, "-i", raw)
    data = b"".join(image.tobytes() for image in timed_frames(np.arange(round(seconds * fps)) / fps))
    ffmpeg(*video, *audio_input, "-vf", filters, *options, f"file:{path}", data=data)
    raw.unlink()
    return path


def can_encode(name: str) -> bool:
    """Return True if ffmpeg has this encoder."""
    command = [get_ffmpeg_exe(), "-hide_banner", "-h", f"encoder={name}"]
    return f"Encoder {name}" in subprocess.run(command, capture_output=True, text=True, check=False).stdout
