"""Videos of bright squares on a dim background, and a detector that takes the squares for faces."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numbered_videos import ffmpeg, rate

SIZE = (160, 120)  # pixels, width and height
BRIGHT, DIM = 235, 150  # grey levels of squares, and the maximum of the background
H264_AAC = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-pix_fmt", "yuv420p", "-c:a", "aac")
NOISE = "anoisesrc=sample_rate=16000:amplitude=0.3:seed=1"


def ava_shaped(boxes: np.ndarray, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Boxes (n, 4) of AVA's shape with the same centres and areas, without regard to the frame."""
    centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * size
    height = np.sqrt(sides.prod(axis=1) / 0.86)
    half = np.stack([0.86 * height / size[0], height / size[1]], axis=1) / 2
    return np.hstack((centre - half, centre + half))


@dataclass(frozen=True)
class Square:
    """A square in uniform motion: top left corner at time 0, side length and velocity, in pixels and seconds."""

    x: float
    y: float
    side: float = 40
    velocity: tuple[float, float] = (0, 0)
    start: float = 0  # seconds
    end: float = 1e9

    def corners(self, time: float) -> np.ndarray:
        """(4,) x1 y1 x2 y2 in whole pixels."""
        x, y = round(self.x + time * self.velocity[0]), round(self.y + time * self.velocity[1])
        return np.array([x, y, x + round(self.side), y + round(self.side)])

    def box(self, time: float, size: tuple[int, int] = SIZE) -> np.ndarray:
        """(4,) x1 y1 x2 y2 as fractions of the frame, with the shape that detection gives."""
        return ava_shaped(self.corners(time)[None] / np.tile(size, 2), size)[0]


def background(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) uint8 of random blocks of 10 x 10 pixels. Two seeds differ as much as two shots."""
    width, height = size
    blocks = np.random.default_rng(seed).integers(0, DIM, (-(-height // 10), -(-width // 10))).astype(np.uint8)
    return blocks.repeat(10, 0).repeat(10, 1)[:height, :width]


def draw(
    squares: Sequence[Square], times: np.ndarray, cuts: Sequence[float] = (), size: tuple[int, int] = SIZE
) -> Iterator[np.ndarray]:
    """Yield a grey frame (H, W) for each timestamp; the background changes at each cut."""
    for time in times.tolist():
        image = background(sum(time > cut - 1e-6 for cut in cuts), size)
        for square in squares:
            if square.start - 1e-6 < time < square.end - 1e-6:
                x1, y1, x2, y2 = square.corners(time).clip(0)
                image[y1:y2, x1:x2] = BRIGHT
        yield image


def encode(
    path: Path,
    images: Iterator[np.ndarray],
    fps: str = "25",
    size: tuple[int, int] = SIZE,
    audio: str | None = NOISE,
    options: Sequence[object] = H264_AAC,
) -> Path:
    """Write a video of grey frames and audio, an ffmpeg lavfi source, which is as long as the frames by default."""
    frames = ("-f", "rawvideo", "-pix_fmt", "gray", "-video_size", f"{size[0]}x{size[1]}", "-framerate", fps, "-i", "-")
    data = b"".join(image.tobytes() for image in images)
    seconds = len(data) / (size[0] * size[1]) / rate(fps)
    source = () if audio is None else ("-f", "lavfi", "-i", audio if ":d=" in audio else f"{audio}:d={seconds:.6f}")
    ffmpeg(*frames, *source, *options, f"file:{path}", data=data)
    return path


def make_video(
    path: Path,
    squares: Sequence[Square],
    seconds: float,
    fps: str = "25",
    cuts: Sequence[float] = (),
    size: tuple[int, int] = SIZE,
    audio: str | None = NOISE,
    options: Sequence[object] = H264_AAC,
) -> Path:
    times = np.arange(round(seconds * rate(fps))) / rate(fps)
    return encode(path, draw(squares, times, cuts, size), fps, size, audio, options)


class SquareDetector:
    """Replacement for `core.detection.tracks.FaceDetector` that finds every bright square."""

    sha256 = "5" * 64

    def __init__(self, weights: Path | None = None):
        self.calls = 0

    def detect(self, image: np.ndarray) -> np.ndarray:
        self.calls += 1
        height, width = image.shape[:2]
        bright = (image.mean(axis=2) > (BRIGHT + DIM) / 2).astype(np.uint8)
        _, _, components, _ = cv2.connectedComponentsWithStats(bright)
        boxes = [(x, y, x + w, y + h) for x, y, w, h, area in components[1:] if area > 30]
        fractions = np.array(boxes, float).reshape(-1, 4) / (width, height, width, height)
        return np.hstack((fractions, np.full((len(fractions), 1), 0.9)))
