"""Feature store: features and logits of the short-term encoder, one row per face and timestamp."""

import contextlib
import hashlib
import json
import os
import re
import threading
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from core.config import STE_FEATURES
from core.formats.annotations import NO_LABEL, FaceTable, check_tracks
from core.formats.csv_table import first_fields, read_table, write_csv
from core.runtime.device import fits_on
from core.runtime.errors import InputError, first_line
from core.runtime.files import list_files, read_setting, replacing
from core.runtime.progress import progress
from core.runtime.weights import training_settings

FEATURE_COLUMNS = {
    "video_id": "id",
    "frame_timestamp": "number",
    "entity_id": "id",
    "label_id": "number",
    "logit_0": "number",
    "logit_1": "number",
}
TEXT_COLUMNS = [*FEATURE_COLUMNS, "features"]  # of the released format, which has no header
_ROWS_AT_ONCE = 1 << 14  # rows whose features are checked or copied in one step
_FLOATS = (np.float16, np.float32, np.float64)
_WARNINGS = threading.Lock()  # threads share the settings of warnings
_NUMPY_SCALAR = re.compile(r"np\.float\d+\(([^()]*)\)")  # how numpy 2 writes a number in a list
STE_FORWARD_SETTINGS = "STE_forward_cfg.json"  # written by STE_forward.py, read by later stages


def encoder_of(directory: str | Path) -> dict[str, str | None]:
    """Return the encoder that features were computed with: its name, width, and SHA-256 and path of its weights.

    Values that are not recorded are None.
    """
    keys = {name: name for name in ("encoder", "feature_size")}
    keys |= {"encoder_sha256": "weights_sha256", "encoder_weights": "weights"}
    return {name: read_setting(directory, STE_FORWARD_SETTINGS, key) for name, key in keys.items()}


def require_same_encoder(records: dict[str | Path, dict], allow: bool) -> None:
    """Raise InputError if two records of `encoder_of`, by source, differ; print a note if one is empty."""
    uses = {}
    for source, record in records.items():
        sha256 = record.get("encoder_sha256")
        if not sha256:
            print(f"note: {source}: no record of the encoder of the features; it must be the same in all stages")
            return
        name, weights = record.get("encoder") or "encoder", record.get("encoder_weights")
        uses.setdefault(sha256, f"{name} with {weights} ({sha256[:8]}) for {source}")
    if len(uses) > 1 and not allow:
        raise InputError(f"two encoders: {', but '.join(uses.values())}; use the same one, or pass --allow-mismatch")


def require_trained_on(weights: str | Path, encoder: dict, context_stride: int, allow: bool) -> None:
    """Raise InputError if a context network was trained on features of another encoder, or at another stride.

    The settings of its training are those next to its weights. Without them, print a note.
    """
    trained = training_settings(weights)
    require_same_encoder({"the features": encoder, weights: trained}, allow)
    stride = trained.get("skip_frames", trained.get("context_stride", context_stride))
    if stride != context_stride and not allow:
        advice = f"pass {stride}, or --allow-mismatch"
        raise InputError(f"{weights}: trained with stride {stride}, not {context_stride}; {advice}")


@contextlib.contextmanager
def feature_writer(
    directory: Path, table: FaceTable, rows: np.ndarray, text: bool = False, feature_size: int = STE_FEATURES
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield arrays to fill for the rows (n,) of one video: logits (n, 2) and features (n, feature_size), float32.

    If the block succeeds, `<video_id>.npy` and then `<video_id>.csv` are written: a video with a csv is complete. With
    `text` the csv has the released format, which includes the features. Raises InputError if a logit is not finite.
    """
    video_id = table.video_ids[table.video[rows[0]]]
    csv_path, npy_path = Path(directory, f"{video_id}.csv"), Path(directory, f"{video_id}.npy")
    csv_path.unlink(missing_ok=True)
    logits = np.full((len(rows), 2), np.nan, np.float32)
    with replacing(npy_path) as temporary:
        features = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(rows), feature_size))
        with open(temporary, "r+b") as file:  # an error if the disk is full; writing to mapped memory would crash
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))
        yield logits, features
        require_finite(table, rows, logits, directory)
        features.flush()
    frame = table.keys(rows)
    frame["label_id"] = table.target[rows].astype(float if text else int)
    frame["logit_0"], frame["logit_1"] = logits.T
    if not text:
        write_csv(csv_path, frame, header=True)
        return
    with replacing(csv_path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        for start in range(0, len(rows), 1024):  # limits memory: one row is 20 kB of text
            part = frame[start : start + 1024].copy()
            part["features"] = [str(row.tolist()) for row in features[start : start + 1024]]
            part.to_csv(file, header=False, index=False, lineterminator="\n")


def require_finite(table: FaceTable, rows: np.ndarray, logits: np.ndarray, source: str | Path) -> None:
    """Raise InputError with the source and the first of the rows (n,) whose logits (n, 2) are not finite."""
    bad = ~np.isfinite(logits).all(axis=1)
    if bad.any():
        name = table.row_name(rows[bad.argmax()])
        raise InputError(f"{source}, {name}: prediction is not finite; check the weights and their input")


class FeatureStore:
    """Features of a directory, in either format: a `FaceTable` of N rows, and (N, D) float32 read on demand.

    D, `feature_size`, depends on the encoder: 1024 for the paper's.
    `digests` has a hash of the rows, labels and logits of each video. The features would take minutes to hash; other
    features mean other logits, so the hash covers them as well.

    Raises InputError if a file is missing or invalid, if an array has a different length than its csv, or if the arrays
    have different widths.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        files = list_csv_files(directory, "the output of STE_forward.py: <video_id>.csv and .npy")
        videos = read_setting(directory, STE_FORWARD_SETTINGS, "videos")
        if isinstance(videos, int) and len(files) < videos:
            raise InputError(f"{directory}: {len(files)} of {videos} videos; finish STE_forward.py first")
        if isinstance(videos, int) and len(files) > videos:
            last = f"{len(files)} videos, but STE_forward.py last ran for {videos}"
            raise InputError(f"{directory}: {last}; run it for all of them, or for fewer in another directory")
        _map_array.cache_clear()  # files may have been replaced since an earlier store
        self.files = [npy if (npy := file.with_suffix(".npy")).exists() else file for file in files]  # V
        self.digests: list[str] = []  # V
        self._text_features: dict[int, np.ndarray] = {}
        entity_codes: dict[tuple[int, str], int] = {}
        parts, lines, dtypes, widths = [], [], set(), {}
        for video, file in enumerate(progress(files, desc="opening features", unit="video", leave=False)):
            frame, features = _read_features(file)
            self.digests.append(_digest(frame))
            if features is not None:
                self._text_features[video] = features
            array = _map_array(self.files[video], len(frame)) if features is None else features
            dtypes.add(str(array.dtype))
            widths.setdefault(array.shape[1], self.files[video])
            local, names = pd.factorize(frame["entity_id"])
            codes = np.array([entity_codes.setdefault((video, name), len(entity_codes)) for name in names], np.int32)
            label = frame["label_id"].to_numpy().astype(np.int8)
            timestamp = frame["frame_timestamp"].to_numpy()
            parts.append((np.full(len(frame), video, np.int32), codes[local], timestamp, label))
            lines.append(frame.index)
        if len(widths) > 1:
            found = ", but ".join(f"{width} in {file}" for width, file in widths.items())
            raise InputError(f"{directory}: features of different encoders: {found} features per row")
        self.feature_size = next(iter(widths))
        if other := sorted(dtypes - {"float32"}):
            print(f"note: {directory}: arrays of {', '.join(other)}, read as float32")
        self._first = np.cumsum([0, *map(len, lines)])  # (V + 1,) first row of each video
        columns = (np.concatenate(column) for column in zip(*parts, strict=True))
        self.table = FaceTable([file.stem for file in files], [name for _, name in entity_codes], *columns)

        def line_of(row: int) -> str:
            video = self.table.video[row]
            return f"{files[video]}, line {lines[video][row - self._first[video]]}"

        check_tracks(self.table, line_of)
        self._cached_rows, self._cache = np.empty(0, np.int64), None

    def _features(self, video: int) -> np.ndarray:
        """Return the features of one video, (n, D) float32."""
        if video in self._text_features:
            return self._text_features[video]
        return _map_array(self.files[video], int(self._first[video + 1] - self._first[video]))

    def require_finite(self, video: int) -> None:
        """Read all features of a video. Raises InputError with file and row if one is not finite."""
        features = self._features(video)
        for start in range(0, len(features), _ROWS_AT_ONCE):
            bad = ~np.isfinite(features[start : start + _ROWS_AT_ONCE]).all(axis=1)
            if bad.any():
                raise InputError(f"{self.files[video]}: feature {start + int(bad.argmax()) + 1} is not finite")

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return the features of rows of any shape (...), (..., D) float32."""
        flat = rows.reshape(-1)
        out = np.empty((len(flat), self.feature_size), np.float32)
        video = self.table.video[flat]
        ends = np.append(np.flatnonzero(np.diff(video)) + 1, len(flat)) if len(flat) else []
        for start, end in zip([0, *ends[:-1]], ends, strict=True):  # consecutive rows of one video
            local = flat[start:end] - self._first[video[start]]
            features = self._features(video[start])
            if features.dtype == np.float32:
                # All indices are valid; "clip" lets numpy write to `out` without a buffer.
                np.take(features, local, axis=0, out=out[start:end], mode="clip")
            else:
                out[start:end] = features[local]
        return out.reshape(*rows.shape, self.feature_size)

    def cache_on(self, device: torch.device, rows: np.ndarray) -> None:
        """Copy the features of rows (n,), in increasing order, to a CUDA device, if they fit into its free memory.

        They replace those of an earlier call. `tensor` takes features from there, for these rows only.
        """
        if self._cache is not None and np.array_equal(rows, self._cached_rows):
            return
        self._cached_rows, self._cache = rows, None  # frees the memory of the earlier ones
        if not fits_on(device, 4 * self.feature_size * len(rows)):
            return
        cache = torch.empty(len(rows), self.feature_size, device=device)
        starts = range(0, len(rows), _ROWS_AT_ONCE)
        for start in progress(starts, desc=f"features to {device}", unit="", leave=False):
            part = rows[start : start + _ROWS_AT_ONCE]
            cache[start : start + len(part)] = torch.from_numpy(self.gather(part))
        self._cache = cache

    def tensor(self, rows: np.ndarray) -> torch.Tensor:
        """Return the features of rows of any shape (...), (..., D) float32, on the device of the cache, if any."""
        if self._cache is None:
            return torch.from_numpy(self.gather(rows))
        index = torch.from_numpy(np.searchsorted(self._cached_rows, rows))
        return self._cache[index.to(self._cache.device, non_blocking=True)]


def store_digests(stores: dict[str, FeatureStore]) -> dict[str, str]:
    """Return digests of the rows and of the features of each split, for the settings of a training run."""
    digests = {}
    for split, store in stores.items():
        digests[f"{split}_rows"] = store.table.digest()
        features = hashlib.blake2b("".join(store.digests).encode(), digest_size=16)
        digests[f"{split}_features"] = features.hexdigest()
    return digests


def _digest(frame: pd.DataFrame) -> str:
    digest = hashlib.blake2b("\n".join(frame["entity_id"]).encode(), digest_size=16)
    digest.update(frame[["frame_timestamp", "label_id", "logit_0", "logit_1"]].to_numpy(np.float64).tobytes())
    return digest.hexdigest()


def _read_features(path: Path) -> tuple[pd.DataFrame, np.ndarray | None]:
    """Read the csv of a video and check its features. Returns them if they are part of the csv."""
    array_path, features = path.with_suffix(".npy"), None
    if array_path.exists() or "video_id" in first_fields(path):
        frame = read_table(path, FEATURE_COLUMNS, TEXT_COLUMNS)
        _map_array(array_path, len(frame))
    else:
        frame = read_table(path, {**FEATURE_COLUMNS, "features": "text"})
        for row, (line, text) in enumerate(frame["features"].items()):
            try:
                values = json.loads(_NUMPY_SCALAR.sub(r"\1", text))
                if features is None:
                    features = np.empty((len(frame), len(values)), np.float32)
                if not len(values) == features.shape[1] > 0 or not set(map(type, values)) <= {int, float}:
                    raise ValueError
                with np.errstate(over="ignore"):
                    features[row] = values
                if not np.isfinite(features[row]).all():
                    raise ValueError
            except (ValueError, TypeError, OverflowError, RecursionError):
                expected = "" if features is None or row == 0 else f"{features.shape[1]} "
                raise InputError(f"{path}, line {line}: features are not a list of {expected}numbers") from None
    invalid = ~frame["label_id"].isin((0, 1, NO_LABEL))
    if invalid.any():
        line = invalid.idxmax()
        raise InputError(f"{path}, line {line}: label_id is {frame['label_id'][line]}, expected 0, 1, or -1 for none")
    foreign = frame["video_id"] != path.stem
    if foreign.any():
        line = foreign.idxmax()
        raise InputError(f"{path}, line {line}: row of video {frame['video_id'][line]} in the file of {path.stem}")
    return frame, features


@lru_cache(maxsize=128)  # a mapped file remains open, and the limit may be 256 files; AVA has 120 training videos
def _map_array(path: Path, rows: int) -> np.ndarray:
    """Map an array (rows, D) of floats into memory. Raises InputError if the file is anything else."""
    try:
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("error")
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy evaluates the header, which may contain anything
        raise InputError(f"{path}: cannot be read as an array: {first_line(error)}") from None
    expected = f"expected float32 ({rows}, features) in row order, one row for each of {path.stem}.csv"
    if not isinstance(array, np.memmap):
        raise InputError(f"{path}: not a single array; {expected}")
    is_matrix = array.ndim == 2 and len(array) == rows and array.shape[1] > 0 and array.flags.c_contiguous
    if array.dtype not in _FLOATS or not is_matrix:
        raise InputError(f"{path}: {array.dtype} {array.shape}; {expected}")
    if os.path.getsize(path) != array.offset + array.nbytes:
        raise InputError(f"{path}: larger than the {rows} rows of its header")
    return array


def list_csv_files(directory: str | Path, content: str) -> list[Path]:
    """Return the csv files of a directory, sorted. Raises InputError with the expected content if there are none."""
    directory = Path(directory)
    files = [directory / name for name in sorted(list_files(directory)) if name.endswith(".csv")]
    if not files:
        raise InputError(f"{directory}: no csv files; expected {content}")
    return files
