"""Speech segments from the scores of rows, and the files that describe them."""

import html
import re
from pathlib import Path

import numpy as np
import pandas as pd

from core.contexts import row_interval, starts_after_gap
from core.formats.annotations import LABELS, NOT_SPEAKING, SPEAKING_AUDIBLE, FaceTable
from core.formats.csv_table import read_table, write_csv
from core.runtime.errors import InputError
from core.runtime.files import write_bytes

SCHEMA_VERSION = 1  # of speakers.json: see docs/speakers.schema.json


def short_name(table: FaceTable, track: int) -> str:
    """Return the entity id of a track, without the video id that most of them begin with."""
    return table.entity_ids[track].removeprefix(table.video_ids[0]).lstrip("_:") or table.entity_ids[track]


def segments(times: np.ndarray, scores: np.ndarray, threshold: float) -> list[dict[str, float]]:
    """Return the segments of a track, timestamps and scores (n,), in which scores reach the threshold.

    Each has a start and an end in seconds and the mean score of its rows, rounded for speakers.json. A row lasts until
    the next one, but no longer than the row interval. A gap in the track ends a segment.
    """
    after_gap = starts_after_gap(times)
    row_ends = np.minimum(times + row_interval(times), np.append(times[1:], np.inf))
    speaking = scores >= threshold
    first = np.flatnonzero(speaking & (after_gap | np.append(True, ~speaking[:-1])))
    last = np.flatnonzero(speaking & (np.append(after_gap[1:], True) | np.append(~speaking[1:], True)))
    return [
        {
            "start": round(float(times[a]), 3),
            "end": round(float(row_ends[b]), 3),
            "mean_score": round(float(scores[a : b + 1].mean()), 6),
        }
        for a, b in zip(first, last, strict=True)
    ]


def read_persons(path: str | Path) -> dict[str, str]:
    """Read a csv with a header, track and person, as the review page exports it. Returns entity id -> name.

    Raises InputError, also for a track with two names.
    """
    frame = read_table(Path(path), {"track": "id", "person": "text"})
    persons: dict[str, str] = {}
    for line, track, person in zip(frame.index, frame["track"], frame["person"], strict=True):
        if persons.setdefault(track, person) != person:
            raise InputError(f"{path}, line {line}: track {track} has two names, {persons[track]} and {person}")
    return {track: person for track, person in persons.items() if person}


def describe_tracks(
    table: FaceTable,
    scores: np.ndarray,
    threshold: float,
    size: tuple[int, int],
    persons: dict[str, str] | None = None,
) -> list[dict]:
    """Return the `tracks` of speakers.json: span, segments and, in pixels of a frame of a size (W, H), box size.

    `persons` maps entity ids to names of persons.
    """
    result = []
    for track, name in enumerate(table.entity_ids):
        rows = table.rows_of_track(track)
        if not len(rows):
            continue
        times, track_scores = table.timestamp[rows], scores[rows]
        width, height = np.median((table.box[rows, 2:] - table.box[rows, :2]) * size, axis=0).round(1).tolist()
        speaking = segments(times, track_scores, threshold)
        result.append(
            {
                "id": name,
                "person": (persons or {}).get(name),
                "start": round(float(times[0]), 3),
                "end": round(float(times[-1]) + row_interval(times), 3),
                "rows": len(rows),
                "box_width": width,
                "box_height": height,
                "mean_score": round(float(track_scores.mean()), 6),
                "speaking_seconds": round(sum(segment["end"] - segment["start"] for segment in speaking), 3),
                "speaking": speaking,
            }
        )
    return result


def named_segments(tracks: list[dict]) -> list[tuple[float, float, str]]:
    """Return start, end and name of all segments of `describe_tracks` by time. The name is the person, else the id."""
    return sorted(
        (part["start"], part["end"], track["person"] or track["id"]) for track in tracks for part in track["speaking"]
    )


def write_rttm(path: Path, video_id: str, tracks: list[dict]) -> None:
    """Write the segments of `describe_tracks` as NIST Rich Transcription Time Marked lines, sorted by time.

    Spaces separate the fields, so they become underscores within names.
    """
    lines = []
    for start, end, name in named_segments(tracks):
        video, name = (re.sub(r"\s", "_", text) for text in (video_id, name))
        lines.append(f"SPEAKER {video} 1 {start:.3f} {end - start:.3f} <NA> <NA> {name} <NA> <NA>\n")
    write_bytes(path, "".join(lines).encode())


def write_vtt(path: Path, tracks: list[dict]) -> None:
    """Write the segments of `describe_tracks` as WebVTT subtitles: the name of who speaks, sorted by time."""

    def clock(seconds: float) -> str:
        milliseconds = round(seconds * 1000)
        minutes, rest = divmod(milliseconds, 60_000)
        return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"

    cues = ["WEBVTT\n"]
    for start, end, name in named_segments(tracks):
        text = re.sub(r"\s", " ", html.escape(name, quote=False))
        cues.append(f"\n{clock(start)} --> {clock(end)}\n<v {text}>{text}\n")
    write_bytes(path, "".join(cues).encode())


def write_segments(path: Path, tracks: list[dict]) -> None:
    """Write the segments of `describe_tracks` as a csv sorted by time: track, person, start, end, mean_score."""
    rows = [
        {"track": track["id"], "person": track["person"], **segment}
        for track in tracks
        for segment in track["speaking"]
    ]
    frame = pd.DataFrame(rows, columns=["track", "person", "start", "end", "mean_score"])
    write_csv(path, frame.sort_values(["start", "end", "track"]), header=True)


def write_tracks(path: Path, table: FaceTable, scores: np.ndarray, threshold: float) -> None:
    """Write the official columns with a header, labels set by the threshold, and the scores (N,) as the last column.

    Every stage reads such a file as annotations, for example after manual correction.
    """
    label = np.where(scores >= threshold, SPEAKING_AUDIBLE, NOT_SPEAKING)
    frame = table.official_columns().assign(label=np.array(LABELS, object)[label], score=scores)
    write_csv(path, frame, header=True)
