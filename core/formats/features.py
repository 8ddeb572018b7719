"""The feature store: what the short-term encoder writes for every row."""

import contextlib
import json
import os
import resource
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from core.config import STE_FEATURES
from core.formats.annotations import SPEAKING_AUDIBLE, FaceTable, check_tracks
from core.formats.csv_table import first_fields, read_table
from core.runtime.errors import InputError
from core.runtime.files import list_files, read_setting, replacing, write_csv
from core.runtime.progress import progress

_FEATURE_COLUMNS = {
    "video_id": "id",
    "frame_timestamp": "number",
    "entity_id": "id",
    "label_id": "number",
    "logit_0": "number",
    "logit_1": "number",
}
_STORE_COLUMNS = {**_FEATURE_COLUMNS, "logit_0": "approx", "logit_1": "approx"}  # it only checks them
STE_FORWARD_SETTINGS = "STE_forward_cfg.json"  # written by STE_forward.py, read by the stages after it
_TEXT_COLUMNS = [*_FEATURE_COLUMNS, "features"]  # the released implementation's files have no header


def encoder_sha256(directory: str | Path) -> str | None:
    """SHA-256 of the encoder weights that made the features in a directory; None if it is not recorded."""
    return read_setting(directory, STE_FORWARD_SETTINGS, "weights_sha256")


@contextlib.contextmanager
def feature_writer(
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
    frame = table.keys(rows)
    frame["label_id"] = table.is_speaking[rows].astype(float if text else int)
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
        videos = read_setting(directory, STE_FORWARD_SETTINGS, "videos")
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


def _csv_files(directory: str | Path, what: str) -> list[Path]:
    directory = Path(directory)
    files = sorted(
        directory / name for name in list_files(directory) if name.endswith(".csv") and not name.startswith(".partial-")
    )
    if not files:
        raise InputError(f"{directory}: no csv files here; it should hold {what}")
    return files
