"""Crops and wavs of face tracks: paths, reading, writing, and which of them are missing."""

import contextlib
import os
import stat
import warnings
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from core.config import SAMPLE_RATE
from core.formats.annotations import FaceTable
from core.runtime import distributed
from core.runtime.errors import InputError
from core.runtime.files import list_files, replacing
from core.runtime.progress import progress

MAX_CROP_BYTES = 100_000_000
Image.MAX_IMAGE_PIXELS = 100_000_000  # Pillow warns of larger images, which `read_crop` turns into an error
_UNKNOWN_LENGTH = 2**30 - 1024  # frames; ffmpeg writes 2^32 - 1 bytes into the header of a wav sent to a pipe
_SHORTEST_HEADER = 44  # bytes of a wav


def crop_names(timestamp: float) -> list[str]:
    """Return the file names that a crop may have: "0.2.jpg", "0.2.png", and "0.20.jpg" as in other projects."""
    shortest, padded = float(timestamp), f"{timestamp:.2f}"
    return [f"{shortest}.jpg", f"{shortest}.png", *([f"{padded}.jpg"] if float(padded) == timestamp else [])]


def crop_path(directory: str | Path, entity_id: str, timestamp: float) -> Path:
    """Return the path of a crop: of the existing file under any of its names, else of the file to write."""
    paths = [Path(directory, entity_id, name) for name in crop_names(timestamp)]
    return next((path for path in paths if path.exists()), paths[0])


def wav_path(directory: str | Path, name: str) -> Path:
    return Path(directory, f"{name}.wav")


def read_crop(path: Path) -> Image.Image:
    """Read an RGB image. Raises InputError if the file is missing, invalid or too large."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("not a regular file")
        if found.st_size > MAX_CROP_BYTES:
            raise ValueError(f"{found.st_size} bytes")
        data = BytesIO(path.read_bytes())  # one read instead of Pillow's many
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(data, formats=("JPEG", "PNG")) as image:  # some other formats start programs
                return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, FileNotFoundError) else f"cannot be read as an image: {error}"
        if isinstance(error, UnidentifiedImageError):  # its message does not name the file
            reason = "cannot be read as an image: damaged, or neither JPEG nor PNG"
        raise InputError(f"{path}: {reason}") from None


def slice_bounds(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the end sample of audio between two times in seconds, arrays of any common shape."""
    return (np.asarray(first) * SAMPLE_RATE).astype(np.int64), (np.asarray(last) * SAMPLE_RATE).astype(np.int64)


@contextlib.contextmanager
def _open_wav(path: Path) -> Iterator[wave.Wave_read]:
    """Open a wav and check its header. Raises InputError."""
    expected = f"expected {SAMPLE_RATE} Hz, 16 bit, 1 channel"
    try:
        with wave.open(str(path), "rb") as file:
            found = (file.getframerate(), 8 * file.getsampwidth(), file.getnchannels())
            if found != (SAMPLE_RATE, 16, 1):
                raise InputError(f"{path}: {found[0]} Hz, {found[1]} bit, {found[2]} channels; {expected}")
            if file.getnframes() >= _UNKNOWN_LENGTH:
                raise InputError(f"{path}: no length in its header (written to a pipe?); write it to a file")
            if os.path.getsize(path) < _SHORTEST_HEADER + 2 * file.getnframes():
                raise InputError(f"{path}: truncated")
            yield file
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (wave.Error, EOFError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a wav: {error or 'invalid'}; {expected}") from None


def wav_length(path: Path) -> int:
    """Return the number of samples of a 16 kHz mono 16-bit wav. Raises InputError for any other kind of file."""
    with _open_wav(path) as file:
        return file.getnframes()


def read_wav(path: Path, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Read only samples start:stop of a 16 kHz mono 16-bit wav, (n,) int16. Raises InputError."""
    with _open_wav(path) as file:
        length = file.getnframes()
        start, stop = min(start, length), length if stop is None else min(stop, length)
        file.setpos(start)
        samples = np.frombuffer(file.readframes(max(stop - start, 0)), "<i2")
    if len(samples) < stop - start:
        raise InputError(f"{path}: truncated")
    return samples


def write_wav(path: Path, blocks: Iterable[np.ndarray]) -> None:
    """Write blocks of samples (n,) int16 as a 16 kHz mono 16-bit wav."""
    with replacing(path) as temporary, wave.open(str(temporary), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        for samples in blocks:
            file.writeframesraw(samples.astype("<i2", copy=False).tobytes())


@dataclass
class Missing:
    """Rows of a table (N,) without crop or wav, the number of missing files of each kind, and examples."""

    rows: np.ndarray
    crops: int = 0
    wavs: int = 0
    examples: list[Path] = field(default_factory=list)


def find_missing(table: FaceTable, audio_dir: Path, video_dir: Path) -> Missing:
    """Check that the crop of every row and the wav of every track exist."""
    missing = Missing(np.zeros(len(table), bool))
    wavs = list_files(audio_dir)
    for entity in progress(range(len(table.entity_ids)), desc="checking crops", unit="track", leave=False):
        rows, name = table.rows_of_track(entity), table.entity_ids[entity]
        if len(rows) and f"{name}.wav" not in wavs:
            missing.rows[rows] = True
            missing.wavs += 1
            if missing.wavs <= 2:
                missing.examples.append(wav_path(audio_dir, name))
        crops = list_files(video_dir / name)
        for row in rows[[crops.isdisjoint(crop_names(timestamp)) for timestamp in table.timestamp[rows]]]:
            missing.rows[row] = True
            missing.crops += 1
            if missing.crops <= 2:
                missing.examples.append(crop_path(video_dir, name, table.timestamp[row]))
    return missing


def drop_missing(
    table: FaceTable,
    audio_dir: Path,
    video_dir: Path,
    skip_missing: bool,
    clip_length: int,
    may_be_empty: bool = False,
) -> FaceTable:
    """Return the rows of a table whose crop and wav exist.

    With `skip_missing` the other rows are dropped, and the number of clips with holes is printed. Without it they are
    an InputError, and so is a result without rows unless it `may_be_empty`.
    """
    distributed.require_same("annotations", table.digest)
    missing = distributed.on_main(find_missing)(table, audio_dir, video_dir)
    if not missing.rows.any():
        return table
    examples = ", ".join(map(str, missing.examples))
    counts = f"{missing.crops} of {len(table)} crops and {missing.wavs} wavs are missing, such as {examples}"
    if not skip_missing:
        raise InputError(f"{counts}; create them with the scripts in data/, or skip these rows with --skip-missing")
    kept = table.keep(~missing.rows)
    holes = count_clips_with_holes(table, kept, ~missing.rows, clip_length)
    print(f"{counts}: {int(missing.rows.sum())} rows skipped; {holes} clips of the other {len(kept)} rows have holes")
    if not len(kept) and not may_be_empty:
        raise InputError(f"{video_dir}: no row has both a crop and a wav")
    return kept


def count_clips_with_holes(table: FaceTable, kept: FaceTable, mask: np.ndarray, clip_length: int) -> int:
    """Count the rows of a table kept[mask] whose clips contain rows that are not neighbours in the full table."""
    if not len(kept):
        return 0
    before, after = table.position[mask], kept.position
    length = np.diff(kept.track_offsets)[kept.entity]
    first = np.maximum(after - clip_length // 2, 0) - after
    last = np.minimum(after + clip_length // 2, length - 1) - after
    order = kept.track_rows
    place = np.empty(len(kept), np.int64)
    place[order] = np.arange(len(kept))
    span = before[order[place + last]] - before[order[place + first]]
    return int((span != last - first).sum())
