"""Logits and final scores: reading, writing, and the join to the ground truth."""

from pathlib import Path

import numpy as np
import pandas as pd

from core.formats.annotations import (
    BOX_COLUMNS,
    LABELS,
    NO_LABEL,
    SPEAKING_AUDIBLE,
    FaceTable,
    check_tracks,
    label_code,
)
from core.formats.csv_table import first_fields, read_table, write_csv
from core.formats.features import FEATURE_COLUMNS, TEXT_COLUMNS, list_csv_files
from core.runtime.errors import InputError, one_line
from core.runtime.progress import progress

_NAMES = ["video_id", "entity_id"]
LOGIT_COLUMNS = ["logit_0", "logit_1"]
_MAX_TIME_DIFFERENCE = 0.001  # seconds; timestamps may have passed through float32 or been rounded
_MAX_BOX_DIFFERENCE = 0.001  # predictions may round the boxes of the ground truth
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
        if len(first_fields(file)) == len(_PREDICTION_COLUMNS):
            frame = read_table(file, _PREDICTION_COLUMNS).assign(video_id=file.stem)
        else:
            frame = read_table(file, FEATURE_COLUMNS, TEXT_COLUMNS)
        frame = frame.astype({"video_id": object, "entity_id": object})
        parts.append(frame[["video_id", "frame_timestamp", "entity_id", *LOGIT_COLUMNS]])
    return pd.concat(parts, ignore_index=True)


def holds_rows(path: Path, table: FaceTable, usable: FaceTable, video: int) -> bool:
    """Return True if a file of features has all usable rows of a video with their labels.

    It may have other rows of the table too. Raises InputError if the file is invalid.
    """

    def rows_of(frame: pd.DataFrame) -> set[tuple]:
        columns = frame[["video_id", "frame_timestamp", "entity_id", "label_id"]]
        return set(columns.itertuples(index=False, name=None))

    def rows_in(table: FaceTable) -> set[tuple]:
        rows = table.rows_of_video(video)
        return rows_of(table.keys(rows).assign(label_id=table.target[rows].astype(float)))

    found = rows_of(read_table(path, FEATURE_COLUMNS, TEXT_COLUMNS))
    return rows_in(usable) <= found <= rows_in(table)


def write_scores(path: str | Path, ground_truth: str | Path, table: FaceTable, scores: np.ndarray) -> None:
    """Write final predictions with scores (N,), and the ground truth in the same order, in the official format."""
    frame = table.official_columns()
    for name in BOX_COLUMNS:
        frame[name] = list(map(str, frame[name].tolist()))  # formatted once for both files
    write_csv(path, frame.assign(label=LABELS[SPEAKING_AUDIBLE], score=scores), header=False)
    write_csv(ground_truth, frame, header=False)


def read_scores(path: str | Path) -> pd.DataFrame:
    """Read final predictions: the columns video_id, frame_timestamp, entity_id, score and the box.

    Labels may be decisions, but scores must be those of SPEAKING_AUDIBLE in all rows, not the confidence in the
    decision. With a header, the label and the box may be missing; boxes are NaN then. Raises InputError.
    """
    kinds = {"video_id": "id", "frame_timestamp": "number", "entity_id": "id", "score": "number"}
    columns = {**kinds, **dict.fromkeys(BOX_COLUMNS, "number"), "label": "category"}
    names = ["video_id", "frame_timestamp", *BOX_COLUMNS, "label", "entity_id", "score"]
    frame = read_table(Path(path), columns, names, optional=(*BOX_COLUMNS, "label"))
    label = frame["label"].map(label_code).astype(int)
    speaking = label == SPEAKING_AUDIBLE
    above = ~speaking & (label != NO_LABEL) & (frame["score"] > frame.loc[speaking, "score"].min())
    if above.any():
        line = frame.loc[above, "score"].idxmax()
        row = f"label {one_line(frame['label'][line])} with a score of {frame['score'][line]:g}, above rows that speak"
        raise InputError(f"{path}, line {line}: {row}; scores must be those of {LABELS[SPEAKING_AUDIBLE]} in every row")
    if (label != NO_LABEL).all() and not speaking.any():
        print(f"note: {path}: no row is labelled {LABELS[SPEAKING_AUDIBLE]}; scores must be those of this label")
    return frame.drop(columns="label").astype({"video_id": object, "entity_id": object})


def predicted_table(predictions: pd.DataFrame, source: str | Path) -> FaceTable:
    """Return the rows of `read_scores` as annotations without labels. Raises InputError if they have no boxes."""
    box = predictions[BOX_COLUMNS].to_numpy()
    if np.isnan(box).any():
        raise InputError(f"{source}: no boxes; pass the annotations to --csv")
    video, video_ids = pd.factorize(predictions["video_id"])
    entity, entity_ids = pd.factorize(predictions["entity_id"])
    label = np.full(len(box), NO_LABEL, np.int8)
    times = predictions["frame_timestamp"].to_numpy()
    columns = (video.astype(np.int32), entity.astype(np.int32), times, label, box)
    table = FaceTable(list(video_ids), list(entity_ids), *columns)
    check_tracks(table, lambda row: f"{source}, row {row + 1}")
    return table


def join_logits(directory: str | Path, table: FaceTable) -> np.ndarray:
    """Read the logits of a directory in the order of a table, (N, 2) float64. Raises InputError as `join` does."""
    return join(read_logits(directory), table, directory)[LOGIT_COLUMNS].to_numpy()


def join(predictions: pd.DataFrame, table: FaceTable, source: str | Path, allow_more: bool = False) -> pd.DataFrame:
    """Return predictions in the order of the ground truth, matched by video_id, entity_id and time (within 1 ms).

    Raises InputError with counts and examples if a row is missing, occurs twice or has another box, and without
    `allow_more` if there are predictions of other rows.
    """
    truth = table.keys()
    nearest, own = _nearest_rows(truth, predictions)
    duplicates = predictions[(own >= 0) & pd.Series(own).duplicated().to_numpy()]
    if len(duplicates):
        advice = "; were timestamps rounded?"
        raise InputError(f"{source}: {len(duplicates)} rows are duplicates, such as {_row_names(duplicates)}{advice}")
    found = (nearest >= 0) & (own[nearest] == np.arange(len(truth)))
    joined = truth.join(predictions.drop(columns=[*_NAMES, "frame_timestamp"]).iloc[nearest].reset_index(drop=True))
    extra = predictions[own < 0]
    if not found.all():
        example = table.row_name(int(np.argmin(found)))
        advice = "finish the stage, or pass --only-predicted to leave them out"
        if len(extra):
            advice = f"{len(extra)} predictions are of other rows, such as {_row_names(extra.head(1))}"
        problem = f"{int((~found).sum())} rows of the ground truth have no prediction, such as {example}"
        raise InputError(f"{source}: {problem}; {advice}")
    if len(extra) and not allow_more:
        raise InputError(f"{source}: {len(extra)} predictions have no row in the ground truth: {_row_names(extra)}")
    if BOX_COLUMNS[0] in joined and table.box is not None:
        other = np.abs(joined[BOX_COLUMNS].to_numpy() - table.box).max(axis=1) > _MAX_BOX_DIFFERENCE
        if other.any():
            example = table.row_name(int(other.argmax()))
            raise InputError(f"{source}: {int(other.sum())} boxes differ from the ground truth, such as {example}")
    return joined


def keep_predicted(table: FaceTable, predictions: pd.DataFrame) -> FaceTable:
    """Return the rows of the ground truth that have a prediction, and print how many these are."""
    predicted = _nearest_rows(table.keys(), predictions)[0] >= 0
    if not predicted.any():
        rows = f"{table.row_name(0)}, and of the predictions {_row_names(predictions.head(1))}"
        raise InputError(f"no row of the ground truth has a prediction: its first row is {rows}")
    if not predicted.all():
        print(f"note: {int(predicted.sum())} of {len(table)} rows have a prediction; the others do not count")
    return table.keep(predicted)


def _nearest_rows(first: pd.DataFrame, second: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Match the rows of two tables by face and time.

    Returns for each row of the first table the index of the nearest row in time of the same face in the second table,
    and the same for each row of the second; -1 if there is none within a millisecond.
    """
    faces = pd.concat([first[_NAMES], second[_NAMES]]).groupby(_NAMES, sort=False).ngroup().to_numpy()
    one, two = (
        pd.DataFrame({"face": face, "time": frame["frame_timestamp"].to_numpy(), "row": np.arange(len(frame))})
        for frame, face in zip((first, second), np.split(faces, [len(first)]), strict=True)
    )

    def nearest(rows: pd.DataFrame, others: pd.DataFrame) -> np.ndarray:
        rows, others = rows.sort_values("time"), others.sort_values("time").rename(columns={"row": "other"})
        options = {"by": "face", "tolerance": _MAX_TIME_DIFFERENCE, "direction": "nearest"}
        found = pd.merge_asof(rows, others, on="time", **options).sort_values("row")
        return found["other"].fillna(-1).to_numpy(int)

    return nearest(one, two), nearest(two, one)


def _row_names(rows: pd.DataFrame) -> str:
    """Return the names of up to three rows, as `FaceTable.row_name` spells them."""
    rows = rows.head(3)[["video_id", "frame_timestamp", "entity_id"]].itertuples(index=False, name=None)
    return "; ".join(f"{entity} at {timestamp} s of {video}" for video, timestamp, entity in rows)
