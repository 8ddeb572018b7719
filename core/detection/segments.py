"""Who speaks when: from a score per row to segments, and the files that tell them to people and programs."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.formats.annotations import LABELS, NOT_SPEAKING, SPEAKING_AUDIBLE, FaceTable
from core.runtime.files import write_bytes, write_csv

_ROW_SECONDS = 0.04
SCHEMA_VERSION = 1  # of speakers.json: see docs/speakers.schema.json


@dataclass(frozen=True)
class Segment:
    """A face speaks from start to end, in seconds; the score is the mean of its rows."""

    start: float
    end: float
    score: float


def row_interval(times: np.ndarray) -> float:
    """Seconds from a row of a track to the next: the median of times (n,); AVA's for a single row."""
    return float(np.median(np.diff(times))) if len(times) > 1 else _ROW_SECONDS


def starts_after_gap(times: np.ndarray) -> np.ndarray:
    """(n,) whether a row of a track, times (n,), is the first or follows a pause: more than twice the usual step."""
    return np.append(True, np.diff(times) > 2 * row_interval(times))


def short_name(table: FaceTable, track: int) -> str:
    """A track's name without that of its film, which most begin with."""
    return table.entity_ids[track].removeprefix(table.video_ids[0]).lstrip("_:") or table.entity_ids[track]


def segments(times: np.ndarray, scores: np.ndarray, threshold: float) -> list[Segment]:
    """Stretches of a track, times and scores (n,), whose scores are at least the threshold.

    A row lasts until the next one, and no longer than the usual step; a pause of the track ends a segment.
    """
    apart = starts_after_gap(times)
    until = np.minimum(times + row_interval(times), np.append(times[1:], np.inf))
    speaks = scores >= threshold
    begins = np.flatnonzero(speaks & (apart | np.append(True, ~speaks[:-1])))
    ends = np.flatnonzero(speaks & (np.append(apart[1:], True) | np.append(~speaks[1:], True)))
    return [
        Segment(round(float(times[a]), 3), round(float(until[b]), 3), float(scores[a : b + 1].mean()))
        for a, b in zip(begins, ends, strict=True)
    ]


def describe_tracks(table: FaceTable, scores: np.ndarray, threshold: float, size: tuple[int, int]) -> list[dict]:
    """What `speakers.json` says of each track: span, boxes in pixels of a frame of a size (W, H), segments."""
    result = []
    for track, name in enumerate(table.entity_ids):
        rows = table.rows_of_track(track)
        if not len(rows):
            continue
        times, values = table.timestamp[rows], scores[rows]
        width, height = np.median((table.box[rows, 2:] - table.box[rows, :2]) * size, axis=0).round(1).tolist()
        spoken = [
            {"start": part.start, "end": part.end, "mean_score": round(part.score, 6)}
            for part in segments(times, values, threshold)
        ]
        result.append(
            {
                "id": name,
                "start": round(float(times[0]), 3),
                "end": round(float(times[-1]) + row_interval(times), 3),
                "rows": len(rows),
                "box_width": width,
                "box_height": height,
                "mean_score": round(float(values.mean()), 6),
                "speaking_seconds": round(sum(part["end"] - part["start"] for part in spoken), 3),
                "speaking": spoken,
            }
        )
    return result


def write_rttm(path: Path, video_id: str, tracks: list[dict]) -> None:
    """The segments of `describe_tracks` in NIST's Rich Transcription Time Marked format, in order of time.

    Fields are separated by spaces, so that those in names become underscores.
    """
    lines = sorted((part["start"], part["end"], track["id"]) for track in tracks for part in track["speaking"])
    film = _word(video_id)
    text = "".join(
        f"SPEAKER {film} 1 {start:.3f} {end - start:.3f} <NA> <NA> {_word(name)} <NA> <NA>\n"
        for start, end, name in lines
    )
    write_bytes(path, text.encode())


def _word(name: str) -> str:
    return re.sub(r"\s", "_", name)


def write_tracks(path: Path, table: FaceTable, scores: np.ndarray, threshold: float) -> None:
    """The official columns under a header, each row labelled by its score, which is the last column.

    Such a file can be read wherever annotations are, once somebody has corrected it.
    """
    speaks = np.where(scores >= threshold, SPEAKING_AUDIBLE, NOT_SPEAKING)
    frame = table.official_columns().assign(label=np.array(LABELS, object)[speaks], score=scores)
    write_csv(path, frame, header=True)
