"""The formats between the stages: crops, wavs, the feature store, predictions."""

import contextlib
import json
import os
import resource
import stat
import warnings
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from core.config import SAMPLE_RATE, STE_FEATURES
from core.formats.annotations import BOX_COLUMNS, LABELS, SPEAKING_AUDIBLE, FaceTable, check_tracks
from core.formats.csv_table import first_fields, read_table
from core.runtime.errors import InputError
from core.runtime.files import existing_files, replacing, setting_behind, write_csv
from core.runtime.progress import progress

MAX_IMAGE_PIXELS = 100_000_000  # a crop larger than this is no face of a film
Image.MAX_IMAGE_PIXELS = None  # it is looked at here, where Pillow would only warn
_UNKNOWN_LENGTH = 2**30 - 1024  # frames; ffmpeg puts 2^32 - 1 bytes in the header of a wav it writes to a pipe


# Crops and wavs


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
    wavs = existing_files(audio_dir)
    for entity in progress(range(len(table.entity_ids)), desc="looking for crops", unit="track", leave=False):
        rows, name = table.rows_of_track(entity), table.entity_ids[entity]
        if len(rows) and f"{name}.wav" not in wavs:
            missing.rows[rows] = True
            missing.wavs += 1
            if missing.wavs <= 2:
                missing.examples.append(wav_path(audio_dir, name))
        crops = existing_files(video_dir / name)
        for row in rows[[crop_name(timestamp) not in crops for timestamp in table.timestamp[rows]]]:
            missing.rows[row] = True
            missing.crops += 1
            if missing.crops <= 2:
                missing.examples.append(crop_path(video_dir, name, table.timestamp[row]))
    return missing


# Features of the short-term encoder

_FEATURE_COLUMNS = {
    "video_id": "id",
    "frame_timestamp": "number",
    "entity_id": "id",
    "label_id": "number",
    "logit_0": "number",
    "logit_1": "number",
}


_STORE_COLUMNS = {**_FEATURE_COLUMNS, "logit_0": "rough number", "logit_1": "rough number"}  # it only checks them
_TEXT_COLUMNS = [*_FEATURE_COLUMNS, "features"]  # the released implementation's files have no header


@contextlib.contextmanager
def writing_features(
    directory: Path, table: FaceTable, rows: np.ndarray, text: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield arrays to fill, logits (n, 2) and features (n, 1024) float32, for the rows (n,) of one video.

    When the block ends well, `<video_id>.npy` and then `<video_id>.csv` appear in the directory; a video counts as
    done once its csv is there. With `text` the csv is in the released implementation's format, features and all.
    """
    video_id = table.video_ids[table.video[rows[0]]]
    csv_path, npy_path = Path(directory, f"{video_id}.csv"), Path(directory, f"{video_id}.npy")
    csv_path.unlink(missing_ok=True)
    logits = np.full((len(rows), 2), np.nan, np.float32)
    with replacing(npy_path) as temporary:
        features = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(rows), STE_FEATURES))
        if hasattr(os, "posix_fallocate"):  # a full disk shows here, as an error, and not in the mapped memory
            with open(temporary, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))
        yield logits, features
        require_finite(table, rows, logits, directory)
        features.flush()
    frame = join_keys(table, rows)
    frame["label_id"] = (table.label[rows] == SPEAKING_AUDIBLE).astype(float if text else int)
    frame["logit_0"], frame["logit_1"] = logits.T
    if not text:
        write_csv(csv_path, frame, header=True)
        return
    with replacing(csv_path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        for start in range(0, len(rows), 1024):  # a row is 20 kB of text
            part = frame[start : start + 1024].copy()
            part["features"] = [str(row.tolist()) for row in features[start : start + 1024]]
            part.to_csv(file, header=False, index=False, lineterminator="\n")


def require_finite(table: FaceTable, rows: np.ndarray, logits: np.ndarray, source: str | Path) -> None:
    """Raise InputError naming the source and the first of the rows (n,) whose logits (n, 2) are not finite."""
    bad = ~np.isfinite(logits).all(axis=1)
    if bad.any():
        row = rows[bad.argmax()]
        place = (
            f"{table.video_ids[table.video[row]]}, {table.entity_ids[table.entity[row]]} at {table.timestamp[row]} s"
        )
        raise InputError(
            f"{source}, {place}: the prediction is not finite; look at the weights and at what they are given"
        )


class FeatureStore:
    """The features in a directory, of either format: a `FaceTable` and (N, 1024) float32 rows read on demand.

    Raises InputError where a file is missing, broken, or of another length than its csv.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        files = _csv_files(directory, "what STE_forward.py writes, <video_id>.csv and .npy")
        videos = setting_behind(directory, "STE_forward_cfg.json", "videos")
        if isinstance(videos, int) and videos != len(files):
            raise InputError(f"{directory}: {len(files)} of {videos} films; finish STE_forward.py first")
        _allow_open_files(len(files))
        self._arrays: list[np.ndarray] = []
        self.files = [npy if (npy := file.with_suffix(".npy")).exists() else file for file in files]  # V
        entity_codes: dict[tuple[int, str], int] = {}
        parts, lines = [], []
        for video, file in enumerate(progress(files, desc="opening features", unit="video", leave=False)):
            frame, array = _read_features(file)
            local, names = pd.factorize(frame["entity_id"])
            codes = np.array([entity_codes.setdefault((video, name), len(entity_codes)) for name in names], np.int32)
            label = (frame["label_id"].to_numpy() == SPEAKING_AUDIBLE).astype(np.int8)
            timestamp = frame["frame_timestamp"].to_numpy()
            parts.append((np.full(len(frame), video, np.int32), codes[local], timestamp, label))
            lines.append(frame.index)
            self._arrays.append(array)
        self._first = np.cumsum([0, *map(len, self._arrays)])
        columns = (np.concatenate(column) for column in zip(*parts, strict=True))
        self.table = FaceTable([file.stem for file in files], [name for _, name in entity_codes], *columns)

        def place(row: int) -> str:
            video = self.table.video[row]
            return f"{files[video]}, line {lines[video][row - self._first[video]]}"

        check_tracks(self.table, place)

    def require_finite(self, video: int) -> None:
        """Raise InputError naming file and row where a feature of this video is NaN or infinite; reads all of them."""
        array = self._arrays[video]
        for start in range(0, len(array), 1 << 14):
            bad = ~np.isfinite(array[start : start + (1 << 14)]).all(axis=1)
            if bad.any():
                raise InputError(f"{self.files[video]}: feature {start + int(bad.argmax()) + 1} is not finite")

    def __getstate__(self) -> dict:
        """Mapped files are opened again in the process that is given the store, not copied to it."""
        arrays = [Path(a.filename) if isinstance(a, np.memmap) else a for a in self._arrays]
        return {**self.__dict__, "_arrays": arrays}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._arrays = [_open_array(a) if isinstance(a, Path) else a for a in self._arrays]

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Features of the given rows, of any shape (...): (..., 1024) float32."""
        flat = rows.reshape(-1)
        out = np.empty((len(flat), STE_FEATURES), np.float32)
        video = self.table.video[flat]
        ends = np.append(np.flatnonzero(np.diff(video)) + 1, len(flat)) if len(flat) else []
        for start, end in zip([0, *ends[:-1]], ends, strict=True):  # stretches of one film
            local = flat[start:end] - self._first[video[start]]
            # "clip" has numpy write straight into `out`; every index is in range.
            np.take(self._arrays[video[start]], local, axis=0, out=out[start:end], mode="clip")
        return out.reshape(*rows.shape, STE_FEATURES)


def _allow_open_files(count: int) -> None:
    """A mapped file stays open: let this process have so many and some more, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _read_features(path: Path) -> tuple[pd.DataFrame, np.ndarray]:
    array_path = path.with_suffix(".npy")
    if array_path.exists() or "video_id" in first_fields(path):
        frame = read_table(path, _STORE_COLUMNS, _TEXT_COLUMNS)
        array = _open_array(array_path)
        if len(array) != len(frame):
            raise InputError(f"{array_path}: {len(array)} rows, but {path.name} has {len(frame)}")
    else:
        frame = read_table(path, {**_STORE_COLUMNS, "features": "text"})
        array = np.empty((len(frame), STE_FEATURES), np.float32)
        for row, (line, text) in enumerate(frame["features"].items()):
            try:
                values = json.loads(text)
                if len(values) != STE_FEATURES or not set(map(type, values)) <= {int, float}:
                    raise ValueError
                with np.errstate(over="ignore"):
                    array[row] = values
                if not np.isfinite(array[row]).all():
                    raise ValueError
            except (ValueError, TypeError, OverflowError, RecursionError):
                raise InputError(f"{path}, line {line}: features are not a list of {STE_FEATURES} numbers") from None
    odd = ~frame["label_id"].isin((0, 1))
    if odd.any():
        raise InputError(f"{path}, line {odd.idxmax()}: label_id is {frame['label_id'][odd.idxmax()]}, expected 0 or 1")
    strangers = frame["video_id"] != path.stem
    if strangers.any():
        line = strangers.idxmax()
        raise InputError(f"{path}, line {line}: row of video {frame['video_id'][line]} in the file of {path.stem}")
    return frame, array


def _open_array(path: Path) -> np.ndarray:
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # numpy parses a header that may hold anything
        reason = str(error).strip().splitlines()
        raise InputError(f"{path}: not an array ({reason[0] if reason else type(error).__name__})") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: an archive; expected one array")
    if array.dtype != np.float32 or array.ndim != 2 or array.shape[1] != STE_FEATURES or not array.flags.c_contiguous:
        order = "" if array.flags.c_contiguous else " by columns"
        raise InputError(f"{path}: {array.dtype} {array.shape}{order}; expected float32 (rows, {STE_FEATURES})")
    if os.path.getsize(path) != array.offset + array.nbytes:
        raise InputError(f"{path}: longer than the {len(array)} rows its header tells")
    return array


# Predictions

_PREDICTION_COLUMNS = {"entity_id": "id", "frame_timestamp": "number", "logit_0": "number", "logit_1": "number"}


def write_predictions(directory: Path, table: FaceTable, rows: np.ndarray, logits: np.ndarray) -> None:
    """Write `<video_id>.csv` of the context network: rows (n,) of one video, logits (n, 2) float32."""
    frame = join_keys(table, rows)[["entity_id", "frame_timestamp"]]
    frame["logit_0"], frame["logit_1"] = logits[:, 0], logits[:, 1]
    write_csv(Path(directory, f"{table.video_ids[table.video[rows[0]]]}.csv"), frame, header=False)


def read_logits(directory: str | Path) -> pd.DataFrame:
    """Logits of every row in a directory that `STE_forward.py` or `ASC_forward.py` filled.

    Columns video_id, frame_timestamp, entity_id, logit_0, logit_1, in the files' order. Raises InputError.
    """
    files = _csv_files(directory, "one <video_id>.csv per video")
    names = ["video_id", "frame_timestamp", "entity_id", "logit_0", "logit_1"]
    frames = []
    for file in progress(files, desc="reading predictions", unit="video", leave=False):
        frames.append(_read_rows(file)[names])
    return pd.concat(frames, ignore_index=True)


def _read_rows(path: Path) -> pd.DataFrame:
    """The rows of one film: `_FEATURE_COLUMNS`, or those but the label where the file has none."""
    if len(first_fields(path)) == len(_PREDICTION_COLUMNS):
        frame = read_table(path, _PREDICTION_COLUMNS)
        frame.insert(0, "video_id", path.stem)
    else:
        frame = read_table(path, _FEATURE_COLUMNS, _TEXT_COLUMNS)
    return frame.astype({"video_id": object, "entity_id": object})


def holds_rows(path: Path, table: FaceTable, rows: np.ndarray, some: bool = False) -> bool:
    """Whether a file of features or predictions is of these rows (n,) with these labels, or only of `some` of them.

    Raises InputError for a broken file.
    """
    found, wanted = _read_rows(path), join_keys(table, rows)
    wanted["label_id"] = (table.label[rows] == SPEAKING_AUDIBLE).astype(float)
    columns = [name for name in wanted if name in found]
    have, want = (set(frame[columns].itertuples(index=False, name=None)) for frame in (found, wanted))
    return have == want or (some and have < want)


def _csv_files(directory: str | Path, what: str) -> list[Path]:
    directory = Path(directory)
    files = sorted(
        directory / name
        for name in existing_files(directory)
        if name.endswith(".csv") and not name.startswith(".partial-")
    )
    if not files:
        raise InputError(f"{directory}: no csv files here; it should hold {what}")
    return files


def join_keys(table: FaceTable, rows: np.ndarray | slice = slice(None)) -> pd.DataFrame:
    """video_id, frame_timestamp and entity_id of some rows: what a row is joined by."""
    return pd.DataFrame(
        {
            "video_id": np.array(table.video_ids, object)[table.video[rows]],
            "frame_timestamp": table.timestamp[rows],
            "entity_id": np.array(table.entity_ids, object)[table.entity[rows]],
        }
    )


def official_frame(table: FaceTable, rows: np.ndarray | slice = slice(None)) -> pd.DataFrame:
    """Some rows in the official form's eight columns."""
    frame = join_keys(table, rows)
    for column, name in enumerate(BOX_COLUMNS):
        frame.insert(2 + column, name, table.box[rows, column])
    frame.insert(6, "label", np.array(LABELS, object)[table.label[rows]])
    return frame


def write_scores(path: str | Path, ground_truth: str | Path, table: FaceTable, scores: np.ndarray) -> None:
    """The official form without header: final predictions with scores (N,), and the ground truth in the same order."""
    frame = official_frame(table)
    for name in BOX_COLUMNS:
        frame[name] = list(map(str, frame[name].tolist()))  # spelt once for both files
    write_csv(path, frame.assign(label=LABELS[SPEAKING_AUDIBLE], score=scores), header=False)
    write_csv(ground_truth, frame, header=False)


def read_scores(path: str | Path) -> pd.DataFrame:
    """video_id, frame_timestamp, entity_id and score of a file of final predictions. Raises InputError."""
    columns = {"video_id": "id", "frame_timestamp": "number", "entity_id": "id", "score": "number"}
    names = ["video_id", "frame_timestamp", *BOX_COLUMNS, "label", "entity_id", "score"]
    return read_table(Path(path), columns, names).astype({"video_id": object, "entity_id": object})
