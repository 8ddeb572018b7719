"""Logits and final scores on disk, and their join to the ground truth."""

from pathlib import Path

import numpy as np
import pandas as pd

from core.formats.annotations import BOX_COLUMNS, LABELS, SPEAKING_AUDIBLE, FaceTable
from core.formats.csv_table import first_fields, read_table
from core.formats.features import _FEATURE_COLUMNS, _TEXT_COLUMNS, _csv_files
from core.runtime.errors import InputError
from core.runtime.files import write_csv
from core.runtime.progress import progress

_PREDICTION_COLUMNS = {"entity_id": "id", "frame_timestamp": "number", "logit_0": "number", "logit_1": "number"}


def write_predictions(directory: Path, table: FaceTable, rows: np.ndarray, logits: np.ndarray) -> None:
    """Write `<video_id>.csv` of the context network: rows (n,) of one video, logits (n, 2) float32."""
    frame = table.keys(rows)[["entity_id", "frame_timestamp"]]
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
    found, wanted = _read_rows(path), table.keys(rows)
    wanted["label_id"] = table.is_speaking[rows].astype(float)
    columns = [name for name in wanted if name in found]
    have, want = (set(frame[columns].itertuples(index=False, name=None)) for frame in (found, wanted))
    return have == want or (some and have < want)


def write_scores(path: str | Path, ground_truth: str | Path, table: FaceTable, scores: np.ndarray) -> None:
    """The official form without header: final predictions with scores (N,), and the ground truth in the same order."""
    frame = table.official_columns()
    for name in BOX_COLUMNS:
        frame[name] = list(map(str, frame[name].tolist()))  # spelt once for both files
    write_csv(path, frame.assign(label=LABELS[SPEAKING_AUDIBLE], score=scores), header=False)
    write_csv(ground_truth, frame, header=False)


def read_scores(path: str | Path) -> pd.DataFrame:
    """video_id, frame_timestamp, entity_id and score of a file of final predictions. Raises InputError."""
    columns = {"video_id": "id", "frame_timestamp": "number", "entity_id": "id", "score": "number"}
    names = ["video_id", "frame_timestamp", *BOX_COLUMNS, "label", "entity_id", "score"]
    return read_table(Path(path), columns, names).astype({"video_id": object, "entity_id": object})


def join(predictions: pd.DataFrame, table: FaceTable, source: str) -> pd.DataFrame:
    """The predictions in the order of the ground truth, matched by (video_id, timestamp as number, entity_id).

    Raises InputError, with counts and examples, where a row is missing on either side or stands twice.
    """
    key = ["video_id", "frame_timestamp", "entity_id"]
    double = predictions.duplicated(key)
    if double.any():
        raise InputError(
            f"{source}: {int(double.sum())} rows stand twice, such as {_name(predictions[double].iloc[0])}"
        )
    truth = table.keys()
    joined = truth.merge(predictions, on=key, how="left", sort=False, indicator=True, validate="one_to_one")
    found = joined.pop("_merge") == "both"
    if found.all() and len(predictions) == len(truth):
        return joined
    problem = "rows of the ground truth have no prediction (unfinished, or made with --skip-missing?)"
    lost = truth[~found]
    if found.all():
        both = predictions.merge(truth, on=key, how="left", sort=False, indicator=True)
        lost, problem = both[both["_merge"] == "left_only"], "predictions are for no row of the ground truth"
    examples = "; ".join(_name(row) for _, row in lost.head(3).iterrows())
    raise InputError(f"{source}: {len(lost)} {problem}: {examples}")


def _name(row: pd.Series) -> str:
    return f"{row['entity_id']} of {row['video_id']} at {row['frame_timestamp']} s"
