"""Videos whose frames show their number."""

import subprocess
from pathlib import Path

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe

WIDTH, HEIGHT = 128, 96
H264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "28", "-x264-params", "bframes=3:b-adapt=0:keyint=50")
MPEG4 = ("-c:v", "mpeg4", "-q:v", "4", "-bf", "2", "-g", "50")
CODECS = {"mp4": H264, "mkv": H264, "avi": MPEG4}


def numbered_frames(count: int) -> np.ndarray:
    """(count, 96, 128) grey frames; 4 x 4 black or white blocks are the bits of the frame number."""
    bits = np.arange(count)[:, None] >> np.arange(16) & 1
    return (16 + 219 * bits).astype(np.uint8).reshape(count, 4, 4).repeat(HEIGHT // 4, 1).repeat(WIDTH // 4, 2)


def frame_number(image: np.ndarray) -> int:
    """The number shown in a frame (96, 128) or (96, 128, 3)."""
    grey = image if image.ndim == 2 else image.mean(axis=2)
    blocks = grey.reshape(4, HEIGHT // 4, 4, WIDTH // 4)[:, 4:-4, :, 4:-4].mean(axis=(1, 3))
    assert (np.abs(blocks - 128) > 60).all(), "some blocks are neither black nor white"
    return int((blocks > 128).ravel() @ (1 << np.arange(16)))


def ffmpeg(*arguments: object, data: bytes | None = None) -> None:
    """Run ffmpeg with `data` as its stdin; raises if it fails."""
    command = [get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
    subprocess.run(command, input=data, check=True)


def make_video(path: Path, fps: str = "25", seconds: float = 5, codec: tuple[str, ...] | None = None) -> Path:
    """Encode numbered frames at a rate such as "30000/1001"; without a codec, the usual one of the container."""
    size, count = f"{WIDTH}x{HEIGHT}", round(seconds * rate(fps))
    frames = ("-f", "rawvideo", "-pix_fmt", "gray", "-video_size", size, "-framerate", fps, "-i", "-")
    options = (*(codec or CODECS[path.suffix[1:]]), "-pix_fmt", "yuv420p")
    ffmpeg(*frames, *options, path, data=numbered_frames(count).tobytes())
    return path


def rate(fps: str) -> float:
    """Frames per second of a fraction such as "30000/1001"."""
    numerator, _, denominator = fps.partition("/")
    return int(numerator) / int(denominator or 1)
