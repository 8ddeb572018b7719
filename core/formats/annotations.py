"""Annotations: official and augmented csv files, read into one validated table of arrays."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from core.config import annotation_csvs
from core.formats.csv_table import read_table
from core.runtime.errors import InputError

NOT_SPEAKING, SPEAKING_AUDIBLE, SPEAKING_NOT_AUDIBLE = 0, 1, 2  # label_id in the augmented files
NO_LABEL, UNKNOWN_LABEL = -1, -2
LABELS = ("NOT_SPEAKING", "SPEAKING_AUDIBLE", "SPEAKING_NOT_AUDIBLE")
OFFICIAL_SUFFIX = "-activespeaker.csv"
BOX_COLUMNS = ["entity_box_x1", "entity_box_y1", "entity_box_x2", "entity_box_y2"]
_LABEL_CODES = {
    **{name: code for code, name in enumerate(LABELS)},
    **{"SPEAKING_AND_AUDIBLE": 1, "SPEAKING_BUT_NOT_AUDIBLE": 2},  # the names on AVA's web site
    **{"0": 0, "1": 1, "2": 2, "": NO_LABEL},
}
_COLUMNS = {
    "video_id": "id",
    "frame_timestamp": "number",
    **dict.fromkeys(BOX_COLUMNS, "number"),
    "label": "category",
    "entity_id": "id",
}


@dataclass(eq=False)
class FaceTable:
    """Annotations as arrays, one row per face and timestamp: N rows, E tracks, V videos.

    Rows keep the order of the file. Tracks and videos are numbered by first appearance. A track is part of one video,
    and its timestamps increase.
    """

    video_ids: list[str]  # V
    entity_ids: list[str]  # E
    video: np.ndarray  # (N,) int32, index into video_ids
    entity: np.ndarray  # (N,) int32, index into entity_ids
    timestamp: np.ndarray  # (N,) float64, seconds
    label: np.ndarray  # (N,) int8, label_id or NO_LABEL
    box: np.ndarray | None = None  # (N, 4) float64, x1 y1 x2 y2 in [0, 1] of the frame; None for features
    audio_start: np.ndarray | None = None  # (E,) float64, seconds: start of the track's wav
    anyone_speaking: np.ndarray | None = None  # (N,) bool: a face of the same frame is SPEAKING_AUDIBLE

    def __len__(self) -> int:
        return len(self.video)

    @cached_property
    def track_rows(self) -> np.ndarray:
        """(N,) rows sorted by track, then by timestamp."""
        return np.argsort(self.entity, kind="stable").astype(np.int32)

    @cached_property
    def track_offsets(self) -> np.ndarray:
        """(E + 1,) offset of each track in `track_rows`."""
        return np.searchsorted(self.entity[self.track_rows], np.arange(len(self.entity_ids) + 1)).astype(np.int64)

    @cached_property
    def _video_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) rows sorted by video, and (V + 1,) offset of each video in them."""
        rows = np.argsort(self.video, kind="stable").astype(np.int32)
        return rows, np.searchsorted(self.video[rows], np.arange(len(self.video_ids) + 1))

    @cached_property
    def position(self) -> np.ndarray:
        """(N,) index of each row in its track."""
        position = np.empty(len(self), np.int32)
        position[self.track_rows] = np.arange(len(self)) - self.track_offsets[self.entity[self.track_rows]]
        return position

    @cached_property
    def frame_id(self) -> np.ndarray:
        """(N,) int32, equal for rows with the same video and timestamp."""
        order = np.lexsort((self.timestamp, self.video))
        video, timestamp = self.video[order], self.timestamp[order]
        is_new = np.append(True, (video[1:] != video[:-1]) | (timestamp[1:] != timestamp[:-1]))
        frame_id = np.empty(len(self), np.int32)
        frame_id[order] = np.cumsum(is_new) - 1
        return frame_id

    def rows_of_track(self, entity: int) -> np.ndarray:
        """Return the rows of a track, in the order of their timestamps."""
        return self.track_rows[self.track_offsets[entity] : self.track_offsets[entity + 1]]

    def rows_of_video(self, video: int) -> np.ndarray:
        """Return the rows of a video, in the order of the file."""
        rows, offsets = self._video_rows
        return rows[offsets[video] : offsets[video + 1]]

    def track_video(self) -> np.ndarray:
        """Return the video of each track, (E,) int32; -1 for tracks without rows."""
        video = np.full(len(self.entity_ids), -1, np.int32)
        video[self.entity] = self.video
        return video

    def digest(self) -> str:
        """Return a hash of the content of all rows, in hex."""
        digest = hashlib.blake2b("\n".join([*self.video_ids, "", *self.entity_ids]).encode(), digest_size=16)
        for column in (self.video, self.entity, self.timestamp, self.label, self.box):
            digest.update(b"" if column is None else np.ascontiguousarray(column))
        return digest.hexdigest()

    @cached_property
    def is_speaking(self) -> np.ndarray:
        """(N,) bool: the label is SPEAKING_AUDIBLE, the class that the networks predict."""
        return self.label == SPEAKING_AUDIBLE

    @cached_property
    def target(self) -> np.ndarray:
        """(N,) int8: 1 for SPEAKING_AUDIBLE, 0 for the other labels, NO_LABEL without one."""
        return np.where(self.label == NO_LABEL, NO_LABEL, self.is_speaking).astype(np.int8)

    def require_labels(self, source: str | Path) -> None:
        """Raise InputError if a row has no label."""
        if count := int((self.label == NO_LABEL).sum()):
            example = self.row_name(int((self.label == NO_LABEL).argmax()))
            raise InputError(f"{source}: {count} of {len(self)} rows have no label, such as {example}")

    def keys(self, rows: np.ndarray | slice = slice(None)) -> pd.DataFrame:
        """Return the columns that identify a row in every file: video_id, frame_timestamp, entity_id."""
        return pd.DataFrame(
            {
                "video_id": np.array(self.video_ids, object)[self.video[rows]],
                "frame_timestamp": self.timestamp[rows],
                "entity_id": np.array(self.entity_ids, object)[self.entity[rows]],
            }
        )

    def row_name(self, row: int) -> str:
        """Return the name of a row in messages: entity, timestamp and video."""
        entity, video = self.entity_ids[self.entity[row]], self.video_ids[self.video[row]]
        return f"{entity} at {self.timestamp[row]} s of {video}"

    def official_columns(self) -> pd.DataFrame:
        """Return the eight columns of the official csv files."""
        frame = self.keys()
        for column, name in enumerate(BOX_COLUMNS):
            frame.insert(2 + column, name, self.box[:, column])
        frame.insert(6, "label", np.array([*LABELS, ""], object)[self.label])  # the last one for NO_LABEL
        return frame

    def keep(self, rows: np.ndarray) -> "FaceTable":
        """Return a table of selected rows (a mask or ascending indices).

        Tracks and videos keep their numbers. `audio_start` and `anyone_speaking` are those of the full table.
        """
        return replace(
            self,
            video=self.video[rows],
            entity=self.entity[rows],
            timestamp=self.timestamp[rows],
            label=self.label[rows],
            box=None if self.box is None else self.box[rows],
            anyone_speaking=None if self.anyone_speaking is None else self.anyone_speaking[rows],
        )


def find_annotations(source: str | Path) -> list[Path]:
    """Return the csv files of a path: the file itself, or the official files in a directory.

    If `ava_activespeaker_<split>_augmented.csv` does not exist, the directory `<split>` next to it is used instead.
    Raises InputError.
    """
    path = Path(source)
    augmented = re.fullmatch(r"ava_activespeaker_(.+)_augmented\.csv", path.name)
    directory = path.with_name(augmented[1]) if augmented and not path.exists() else path
    if directory.is_dir():
        files = sorted(directory.glob(f"*{OFFICIAL_SUFFIX}"))
        if not files:
            raise InputError(f"{directory}: no files named <video_id>{OFFICIAL_SUFFIX} in this directory")
        return files
    if not path.exists():
        raise InputError(f"{path}: no such file; expected an annotation csv or a directory of official ones")
    return [path]


def annotations_of(other: str, csv: str, split: str) -> str:
    """Return the likely annotations of another split, given those of one: the same path with the other name at its end.

    A path without the name of the split has no such counterpart; the result is then a placeholder.
    """
    if csv == annotation_csvs[split]:
        return annotation_csvs[other]
    path = Path(csv)
    if other != split and split not in path.name:
        return f"<annotations of {other}>"
    return str(path.with_name(path.name.replace(split, other)))


def read_annotations(source: str | Path, clip_boxes: bool = False) -> FaceTable:
    """Read an augmented file, an official file or a directory of official files.

    Labels are names in any case or label_ids; an empty label or a header without label means NO_LABEL. With
    `clip_boxes` the parts of boxes outside the frame are cut off. Raises InputError with file and line for anything
    that the formats do not allow: invalid text or numbers (see `core.formats.csv_table.read_table`), boxes, labels,
    duplicates and decreasing timestamps.
    """
    files = find_annotations(source)
    video_codes: dict[str, int] = {}
    entity_codes: dict[str, int] = {}
    parts, lines = [], []
    for file in files:
        table = read_table(file, _COLUMNS, optional=("label",))
        line = table.index.to_numpy()
        box = _check_boxes(table[BOX_COLUMNS].to_numpy(), clip_boxes, file, line)
        code = _label_codes(table["label"], file, line)
        video = _recode(table["video_id"], video_codes)
        entity = _recode(table["entity_id"], entity_codes)
        parts.append((video, entity, table["frame_timestamp"].to_numpy(), code, box))
        lines.append(line)
    video, entity, timestamp, label, box = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    table = FaceTable(list(video_codes), list(entity_codes), video, entity, timestamp, label, box)
    starts = np.cumsum([0, *map(len, lines)])

    def line_of(row: int) -> str:
        file = int(np.searchsorted(starts, row, side="right")) - 1
        return f"{files[file]}, line {lines[file][row - starts[file]]}"

    check_tracks(table, line_of)
    table.audio_start = timestamp[table.track_rows[table.track_offsets[:-1]]]
    has_speech = np.zeros(table.frame_id.max() + 1, bool)
    has_speech[table.frame_id[table.is_speaking]] = True
    table.anyone_speaking = has_speech[table.frame_id]
    return table


def label_code(text: str) -> int:
    """Return the label_id of a label in any of its spellings, NO_LABEL or UNKNOWN_LABEL."""
    return _LABEL_CODES.get(text.upper(), UNKNOWN_LABEL)


def unusual_rows(table: FaceTable) -> str:
    """Describe tracks whose rows are far from 25 per second, as the networks expect; empty if there are none."""
    before, after = table.track_rows[:-1], table.track_rows[1:]
    steps = (table.timestamp[after] - table.timestamp[before])[table.entity[before] == table.entity[after]]
    if len(steps) < len(table) / 2:
        return "most tracks have a single row; a face must keep its entity_id from frame to frame"
    interval = np.median(steps)
    return "" if 0.025 < interval < 0.055 else f"rows are {interval:.2g} s apart, but the networks expect 0.04 s"


def _label_codes(labels: pd.Series, file: Path, line: np.ndarray) -> np.ndarray:
    """Return the label of each row (n,) int8. Raises InputError with the first unknown one."""
    result = np.array(list(map(label_code, labels.cat.categories)), np.int8)[labels.cat.codes]
    expected = f"expected one of {', '.join(LABELS)}, or 0, 1, 2 in this order"
    _refuse(result == UNKNOWN_LABEL, file, line, lambda row: f"label is {labels.iloc[row]!r}, {expected}")
    return result


def _check_boxes(box: np.ndarray, clip: bool, file: Path, line: np.ndarray) -> np.ndarray:
    """Return boxes (n, 4), cut off at the frame if `clip` is true. Raises InputError with the first bad one."""
    is_pixels = (np.abs(box - 0.5) > 1.5).any(axis=1)
    if clip:
        box = np.where(is_pixels[:, None], box, box.clip(0, 1))

    def cause(row: int) -> str:
        if is_pixels[row]:
            return "are these pixels? divide them by the width and height of the frame"
        return "to cut it off at the edge of the frame, pass --clip-boxes"

    outside = ((box < 0) | (box > 1)).any(axis=1)
    _refuse(outside, file, line, lambda row: f"box {_format(box[row])} outside [0, 1]: {cause(row)}")
    empty = (box[:, 0] >= box[:, 2]) | (box[:, 1] >= box[:, 3])
    problem = "without x1 < x2 and y1 < y2; is it x, y, width, height?"
    _refuse(empty, file, line, lambda row: f"box {_format(box[row])} {problem}")
    return box


def _format(box: np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in box)


def _recode(column: pd.Series, codes: dict[str, int]) -> np.ndarray:
    """Return the categories of a column as numbers (N,) int32. Adds new names to `codes` in order of appearance."""
    local, names = pd.factorize(column)
    return np.array([codes.setdefault(name, len(codes)) for name in names], np.int32)[local]


def _refuse(bad: np.ndarray, file: Path, line: np.ndarray, problem: Callable[[int], str]) -> None:
    """Raise InputError with the first bad line and its problem, if there is one."""
    if bad.any():
        count = f" ({int(bad.sum())} such lines)" if bad.sum() > 1 else ""
        raise InputError(f"{file}, line {line[bad.argmax()]}: {problem(int(bad.argmax()))}{count}")


def check_tracks(table: FaceTable, line_of: Callable[[int], str]) -> None:
    """Raise InputError if a track is in two videos, has a timestamp twice, or if its timestamps decrease.

    `line_of` returns the file and line of a row.
    """
    rows = table.track_rows
    before, after = rows[:-1], rows[1:]
    same_track = table.entity[before] == table.entity[after]
    earlier, later = table.timestamp[before], table.timestamp[after]
    for bad, problem in (
        (same_track & (table.video[before] != table.video[after]), "is also in video {video}"),
        (same_track & (earlier == later), "has two rows at {time}; each face needs its own entity_id"),
        (same_track & (earlier > later), "goes back in time at {time}; sort its rows by time"),
    ):
        if bad.any():
            row, first = after[bad.argmax()], before[bad.argmax()]
            text = problem.format(video=table.video_ids[table.video[first]], time=table.timestamp[row])
            raise InputError(f"{line_of(row)}: entity {table.entity_ids[table.entity[row]]} {text}")
