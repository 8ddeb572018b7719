"""Logits and final scores: reading, writing, and the join to the ground truth."""

from pathlib import Path

import numpy as np
import pandas as pd

from core.formats.annotations import BOX_COLUMNS, LABELS, SPEAKING_AUDIBLE, FaceTable
from core.formats.csv_table import first_fields, read_table, write_csv
from core.formats.features import FEATURE_COLUMNS, TEXT_COLUMNS, list_csv_files
from core.runtime.errors import InputError
from core.runtime.progress import progress

_KEY = ["video_id", "frame_timestamp", "entity_id"]
_LOGITS = ["logit_0", "logit_1"]
_PREDICTION_COLUMNS = {"entity_id": "id", "frame_timestamp": "number", "logit_0": "number", "logit_1": "number"}


def write_predictions(directory: Path, table: FaceTable, rows: np.ndarray, logits: np.ndarray) -> None:
    """Write `<video_id>.csv` of the context network: logits (n, 2) float32 of the rows (n,) of one video."""
    frame = table.keys(rows)[["entity_id", "frame_timestamp"]]
    frame["logit_0"], frame["logit_1"] = logits[:, 0], logits[:, 1]
    write_csv(Path(directory, f"{table.video_ids[table.video[rows[0]]]}.csv"), frame, header=False)


def read_logits(directory: str | Path) -> pd.DataFrame:
    """Read the logits that `STE_forward.py` or `ASC_forward.py` wrote to a directory.

    Columns video_id, frame_timestamp, entity_id, logit_0, logit_1, in the order of the files. Raises InputError.
    """
    files = list_csv_files(directory, "one <video_id>.csv per video")
    parts = []
    for file in progress(files, desc="reading predictions", unit="video", leave=False):
        parts.append(_read_rows(file)[[*_KEY, *_LOGITS]])
    return pd.concat(parts, ignore_index=True)


def _read_rows(path: Path) -> pd.DataFrame:
    """Read the rows of a video: the columns `FEATURE_COLUMNS`, without label_id if the file has none."""
    if len(first_fields(path)) == len(_PREDICTION_COLUMNS):
        frame = read_table(path, _PREDICTION_COLUMNS)
        frame.insert(0, "video_id", path.stem)
    else:
        frame = read_table(path, FEATURE_COLUMNS, TEXT_COLUMNS)
    return frame.astype({"video_id": object, "entity_id": object})


def holds_rows(path: Path, table: FaceTable, rows: np.ndarray, some: bool = False) -> bool:
    """Return True if a file of features or predictions has these rows (n,) and labels, or with `some` a part of them.

    Raises InputError if the file is invalid.
    """
    found, wanted = _read_rows(path), table.keys(rows)
    wanted["label_id"] = table.is_speaking[rows].astype(float)
    columns = [name for name in wanted if name in found]
    have, want = (set(frame[columns].itertuples(index=False, name=None)) for frame in (found, wanted))
    return have == want or (some and have < want)


def write_scores(path: str | Path, ground_truth: str | Path, table: FaceTable, scores: np.ndarray) -> None:
    """Write final predictions with scores (N,), and the ground truth in the same order, in the official format."""
    frame = table.official_columns()
    for name in BOX_COLUMNS:
        frame[name] = list(map(str, frame[name].tolist()))  # formatted once for both files
    write_csv(path, frame.assign(label=LABELS[SPEAKING_AUDIBLE], score=scores), header=False)
    write_csv(ground_truth, frame, header=False)


def read_scores(path: str | Path) -> pd.DataFrame:
    """Read video_id, frame_timestamp, entity_id and score of a file of final predictions. Raises InputError."""
    columns = {"video_id": "id", "frame_timestamp": "number", "entity_id": "id", "score": "number"}
    names = ["video_id", "frame_timestamp", *BOX_COLUMNS, "label", "entity_id", "score"]
    return read_table(Path(path), columns, names).astype({"video_id": object, "entity_id": object})


def join_logits(directory: str | Path, table: FaceTable) -> np.ndarray:
    """Read the logits of a directory in the order of a table, (N, 2) float64. Raises InputError as `join` does."""
    return join(read_logits(directory), table, str(directory))[_LOGITS].to_numpy()


def join(predictions: pd.DataFrame, table: FaceTable, source: str) -> pd.DataFrame:
    """Return predictions in the order of the ground truth, matched by video_id, frame_timestamp (a number), entity_id.

    Raises InputError with counts and examples if a row is missing on either side or occurs twice.
    """
    duplicates = predictions[predictions.duplicated(_KEY)]
    if len(duplicates):
        raise InputError(f"{source}: {len(duplicates)} rows are duplicates, such as {_row_names(duplicates)}")
    truth = table.keys()
    joined = truth.merge(predictions, on=_KEY, how="left", sort=False, indicator=True, validate="one_to_one")
    found = joined.pop("_merge") == "both"
    if not found.all():
        examples = "; ".join(map(table.row_name, np.flatnonzero(~found)[:3]))
        problem = "rows of the ground truth have no prediction (unfinished, or --skip-missing?)"
        raise InputError(f"{source}: {int((~found).sum())} {problem}: {examples}")
    if len(predictions) > len(truth):
        both = predictions.merge(truth, on=_KEY, how="left", sort=False, indicator=True)
        extra = both[both["_merge"] == "left_only"]
        raise InputError(f"{source}: {len(extra)} predictions have no row in the ground truth: {_row_names(extra)}")
    return joined


def _row_names(rows: pd.DataFrame) -> str:
    """Return the names of up to three rows, as `FaceTable.row_name` spells them."""
    rows = rows.head(3)[_KEY].itertuples(index=False, name=None)
    return "; ".join(f"{entity} at {timestamp} s of {video}" for video, timestamp, entity in rows)
