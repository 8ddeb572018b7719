"""Films of bright squares before a dim ground, and a detector that takes the squares for faces."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numbered_videos import ffmpeg, rate

SIZE = (160, 120)  # pixels, width and height
BRIGHT, DIM = 235, 150  # grey levels of squares, and the most that the ground has
QUICK = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-pix_fmt", "yuv420p", "-c:a", "aac")
NOISE = "anoisesrc=sample_rate=16000:amplitude=0.3:seed=1"


@dataclass(frozen=True)
class Square:
    """A square that moves evenly: its left upper corner at time 0, its side and its speed, in pixels and seconds."""

    x: float
    y: float
    side: float = 40
    speed: tuple[float, float] = (0, 0)
    begin: float = 0  # seconds
    end: float = 1e9

    def corners(self, time: float) -> np.ndarray:
        """(4,) x1 y1 x2 y2 in whole pixels."""
        x, y = round(self.x + time * self.speed[0]), round(self.y + time * self.speed[1])
        return np.array([x, y, x + round(self.side), y + round(self.side)])

    def box(self, time: float, size: tuple[int, int] = SIZE) -> np.ndarray:
        """(4,) as shares of the frame."""
        return self.corners(time) / np.tile(size, 2)


def ground(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) uint8 of blocks of 10 pixels, as different for two seeds as two shots are."""
    width, height = size
    blocks = np.random.default_rng(seed).integers(0, DIM, (-(-height // 10), -(-width // 10))).astype(np.uint8)
    return blocks.repeat(10, 0).repeat(10, 1)[:height, :width]


def draw(
    squares: Sequence[Square], times: np.ndarray, cuts: Sequence[float] = (), size: tuple[int, int] = SIZE
) -> Iterator[np.ndarray]:
    """A grey frame (H, W) at each of the times; the ground is another one from each cut on."""
    for time in times.tolist():
        image = ground(sum(time > cut - 1e-6 for cut in cuts), size)
        for square in squares:
            if square.begin - 1e-6 < time < square.end - 1e-6:
                x1, y1, x2, y2 = square.corners(time).clip(0)
                image[y1:y2, x1:x2] = BRIGHT
        yield image


def encode(
    path: Path,
    images: Iterator[np.ndarray],
    fps: str = "25",
    size: tuple[int, int] = SIZE,
    sound: str | None = NOISE,
    options: Sequence[object] = QUICK,
) -> Path:
    """A film of grey frames and of a sound in lavfi's language; without an end of its own it ends with the picture."""
    frames = ("-f", "rawvideo", "-pix_fmt", "gray", "-video_size", f"{size[0]}x{size[1]}", "-framerate", fps, "-i", "-")
    data = b"".join(image.tobytes() for image in images)
    seconds = len(data) / (size[0] * size[1]) / rate(fps)
    source = () if sound is None else ("-f", "lavfi", "-i", sound if ":d=" in sound else f"{sound}:d={seconds:.6f}")
    ffmpeg(*frames, *source, *options, f"file:{path}", data=data)
    return path


def make_video(
    path: Path,
    squares: Sequence[Square],
    seconds: float,
    fps: str = "25",
    cuts: Sequence[float] = (),
    size: tuple[int, int] = SIZE,
    sound: str | None = NOISE,
    options: Sequence[object] = QUICK,
) -> Path:
    times = np.arange(round(seconds * rate(fps))) / rate(fps)
    return encode(path, draw(squares, times, cuts, size), fps, size, sound, options)


class SquareDetector:
    """Stands in for `core.detection.tracks.FaceDetector`, and finds every bright square whole, wherever it lies."""

    digest = "5" * 64

    def __init__(self, weights: Path | None = None):
        self.seen = 0

    def detect(self, image: np.ndarray) -> np.ndarray:
        self.seen += 1
        height, width = image.shape[:2]
        bright = (image.mean(axis=2) > (BRIGHT + DIM) / 2).astype(np.uint8)
        _, _, found, _ = cv2.connectedComponentsWithStats(bright)
        boxes = [(x, y, x + w, y + h) for x, y, w, h, area in found[1:] if area > 30]
        shares = np.array(boxes, float).reshape(-1, 4) / (width, height, width, height)
        return np.hstack((shares, np.full((len(shares), 1), 0.9)))
