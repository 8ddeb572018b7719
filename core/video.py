"""ffmpeg, and films frame by frame. Used by the scripts in data/."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from core.config import SAMPLE_RATE
from core.errors import InputError

# What a film may be, and where it may be: one local file. A playlist posing as a film opens nothing else.
PROTOCOLS = "file"
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg"
# OpenCV reads these when it opens a film, so they are set before it does.
os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = f"protocol_whitelist;{PROTOCOLS}|format_whitelist;{CONTAINERS}"

import cv2  # noqa: E402

FILM_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv")

# Containers whose frames seeking finds: in the others it lands some frames off without a word.
SEEKABLE_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")


def ffmpeg_path() -> str:
    """The ffmpeg on PATH, else the binary the package imageio-ffmpeg carries. Raises InputError without either."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise InputError("no ffmpeg: put one on PATH, or pip install imageio-ffmpeg") from None


def run_ffmpeg(*arguments: str) -> None:
    """Run ffmpeg without a shell; raises ValueError with the last line it printed when it fails."""
    command = [ffmpeg_path(), "-hide_banner", "-nostdin", "-loglevel", "error", "-y", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(f"ffmpeg: {lines[-1] if lines else f'exit status {done.returncode}'}")


def extract_audio(film: Path, wav: Path) -> None:
    """Write the whole sound of a film as 16 kHz mono 16-bit wav, silence where it starts late or has gaps.

    Raises ValueError where there is no sound or no film.
    """
    source = ("-protocol_whitelist", PROTOCOLS, "-format_whitelist", CONTAINERS, "-i", f"file:{os.path.abspath(film)}")
    sound = ("-vn", "-ac", "1", "-acodec", "pcm_s16le", "-ar", str(SAMPLE_RATE), "-af", "aresample=async=1:first_pts=0")
    run_ffmpeg(*source, *sound, "-map_metadata", "-1", "-bitexact", "-f", "wav", f"file:{os.path.abspath(wav)}")


def find_films(directory: Path) -> dict[str, Path]:
    """video_id -> path of every film in the directory. Raises InputError where one id has two films."""
    films: dict[str, Path] = {}
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() not in FILM_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in films:
            raise InputError(f"{path}: there is also {films[path.stem].name}; keep one film per video id")
        films[path.stem] = path
    return films


class Film:
    """A film opened for reading frames forward. Use as a context manager.

    Frame n is the n-th that decodes, from 0; `frame_index` gives the one shown at a timestamp.
    Raises ValueError where the file is no film.
    """

    def __init__(self, path: Path):
        self.path = path
        self._seekable = path.suffix.lower() in SEEKABLE_SUFFIXES
        self._open()
        self.fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        if not self._capture.isOpened() or not 0 < self.fps < 1000:
            self._capture.release()
            raise ValueError("cannot be opened as a film")

    def _open(self) -> None:
        # An absolute path, so that no name can be taken for a protocol, an option or an image-sequence pattern.
        self._capture = cv2.VideoCapture(os.path.abspath(self.path), cv2.CAP_FFMPEG)
        self._next = 0  # the frame that is grabbed next

    def __enter__(self) -> "Film":
        return self

    def __exit__(self, *_) -> None:
        self._capture.release()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))

    def frame_index(self, timestamp: np.ndarray) -> np.ndarray:
        """Indices of the frames shown at these times in seconds: what the released code's seek picks."""
        return np.floor(np.asarray(timestamp) * self.fps + 0.5).astype(np.int64)

    def frames(self, indices: np.ndarray, seek_gap: float) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, BGR image (H, W, 3) uint8) for increasing frame indices, each decoded once.

        Stretches of more than `seek_gap` seconds are skipped by seeking. Ends early where the film does.
        """
        for index in indices:
            if self._seekable and index - self._next > seek_gap * self.fps:
                self._seek(int(index))
            while self._next <= index:
                if not self._capture.grab():
                    return
                self._next += 1
            try:
                decoded, image = self._capture.retrieve()
            except cv2.error as error:
                raise ValueError(f"frame {index}: {str(error).splitlines()[0]}") from None
            if not decoded:
                return
            yield int(index), image

    def _seek(self, index: int) -> None:
        """Grab the frame of this index; where seeking goes astray, begin the film again, to get there by counting."""
        self._capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        grabbed = self._capture.grab()
        # Seeking goes by time, which is not the same as counting where the frame rate varies.
        if grabbed and abs(self._capture.get(cv2.CAP_PROP_POS_MSEC) * self.fps / 1000 - index) < 0.5:
            self._next = index + 1
        else:
            self._seekable = False
            self._capture.release()
            self._open()
