"""Crops and wavs of face tracks: their paths, reading, writing, and what is missing."""

import contextlib
import os
import stat
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from core.config import SAMPLE_RATE
from core.formats.annotations import FaceTable
from core.runtime import distributed
from core.runtime.errors import InputError
from core.runtime.files import list_files, replacing
from core.runtime.progress import progress

MAX_IMAGE_PIXELS = 100_000_000  # a crop larger than this is no face of a film
Image.MAX_IMAGE_PIXELS = None  # it is looked at here, where Pillow would only warn
_UNKNOWN_LENGTH = 2**30 - 1024  # frames; ffmpeg puts 2^32 - 1 bytes in the header of a wav it writes to a pipe


def timestamp_name(timestamp: float) -> str:
    """How a timestamp in seconds is spelt in paths and files: 1080 -> "1080.0"."""
    return str(float(timestamp))


def crop_name(timestamp: float) -> str:
    return f"{timestamp_name(timestamp)}.jpg"


def crop_path(directory: str | Path, entity_id: str, timestamp: float) -> Path:
    return Path(directory, entity_id, crop_name(timestamp))


def wav_path(directory: str | Path, name: str) -> Path:
    return Path(directory, f"{name}.wav")


def read_crop(path: Path) -> Image.Image:
    """An RGB image. Raises InputError naming the file if it is missing, broken or too large."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_IMAGE_PIXELS:
            raise ValueError(f"{found.st_size} bytes" if found.st_size else "not a file")
        data = BytesIO(path.read_bytes())  # Pillow reads a file in many small pieces
        with Image.open(data, formats=("JPEG", "PNG")) as image:  # some of the others start programs
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        reason = error.strerror if isinstance(error, FileNotFoundError) else f"cannot be read as an image: {error}"
        raise InputError(f"{path}: {reason}") from None


def slice_bounds(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First sample and the one after the last of the sound between two times in seconds, any common shape."""
    return (np.asarray(first) * SAMPLE_RATE).astype(np.int64), (np.asarray(last) * SAMPLE_RATE).astype(np.int64)


@contextlib.contextmanager
def _open_wav(path: Path) -> Iterator[wave.Wave_read]:
    try:
        with wave.open(str(path), "rb") as file:
            found = (file.getframerate(), 8 * file.getsampwidth(), file.getnchannels())
            if found != (SAMPLE_RATE, 16, 1):
                text = f"{found[0]} Hz, {found[1]} bit, {found[2]} channels"
                raise InputError(f"{path}: {text}; expected {SAMPLE_RATE} Hz, 16 bit, 1 channel")
            if file.getnframes() >= _UNKNOWN_LENGTH:
                raise InputError(f"{path}: its header tells no length, as it was written to a pipe; write it to a file")
            if os.path.getsize(path) < 44 + 2 * file.getnframes():  # 44 bytes: the shortest header
                raise InputError(f"{path}: cut off in the middle")
            yield file
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (wave.Error, EOFError, RuntimeError, ValueError) as error:
        reason = f"{error or 'broken'}; expected {SAMPLE_RATE} Hz, 16 bit, 1 channel"
        raise InputError(f"{path}: cannot be read as a wav: {reason}") from None


def wav_length(path: Path) -> int:
    """Samples in a 16 kHz mono 16-bit wav. Raises InputError for any other kind of file."""
    with _open_wav(path) as file:
        return file.getnframes()


def read_wav(path: Path, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Samples start:stop of a 16 kHz mono 16-bit wav, (n,) int16; only these are read. Raises InputError."""
    with _open_wav(path) as file:
        length = file.getnframes()
        start, stop = min(start, length), length if stop is None else min(stop, length)
        file.setpos(start)
        samples = np.frombuffer(file.readframes(max(stop - start, 0)), "<i2")
    if len(samples) < stop - start:
        raise InputError(f"{path}: cut off in the middle")
    return samples


def write_wav(path: Path, pieces: Iterable[np.ndarray]) -> None:
    """Write sound that comes in pieces (n,) int16 as 16 kHz mono 16-bit wav."""
    with replacing(path) as temporary, wave.open(str(temporary), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        for samples in pieces:
            file.writeframesraw(samples.astype("<i2", copy=False).tobytes())


@dataclass
class Missing:
    """What a table lacks on disk: which rows (N,), how many files of each kind, and the first few of them."""

    rows: np.ndarray
    crops: int = 0
    wavs: int = 0
    examples: list[Path] = field(default_factory=list)


def find_missing(table: FaceTable, audio_dir: Path, video_dir: Path) -> Missing:
    """Look for the crop of every row and the wav of every track."""
    missing = Missing(np.zeros(len(table), bool))
    wavs = list_files(audio_dir)
    for entity in progress(range(len(table.entity_ids)), desc="looking for crops", unit="track", leave=False):
        rows, name = table.rows_of_track(entity), table.entity_ids[entity]
        if len(rows) and f"{name}.wav" not in wavs:
            missing.rows[rows] = True
            missing.wavs += 1
            if missing.wavs <= 2:
                missing.examples.append(wav_path(audio_dir, name))
        crops = list_files(video_dir / name)
        for row in rows[[crop_name(timestamp) not in crops for timestamp in table.timestamp[rows]]]:
            missing.rows[row] = True
            missing.crops += 1
            if missing.crops <= 2:
                missing.examples.append(crop_path(video_dir, name, table.timestamp[row]))
    return missing


def drop_missing(table: FaceTable, audio_dir: Path, video_dir: Path, skip_missing: bool) -> FaceTable:
    """The rows of a table whose crop and wav are there.

    Missing ones are dropped and counted with `skip_missing`; without it they are an InputError.
    """
    distributed.require_same("annotations", table.digest)
    missing = distributed.on_main(find_missing)(table, audio_dir, video_dir)
    if not missing.rows.any():
        return table
    examples = ", ".join(map(str, missing.examples))
    counts = f"{missing.crops} of {len(table)} crops and {missing.wavs} wavs are missing, such as {examples}"
    if not skip_missing:
        raise InputError(f"{counts}; make them with the scripts in data/, or leave these rows out with --skip-missing")
    print(f"{counts}: {int(missing.rows.sum())} rows left out")
    if missing.rows.all():
        raise InputError(f"{video_dir}: every row lacks its crop or its wav")
    return table.keep(~missing.rows)
