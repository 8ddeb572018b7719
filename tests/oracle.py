"""What a reader should give, worked out a second time with no more than Python's csv, float() and loops.

Each function takes the files of a case, name -> bytes, and returns the rows they hold and the lines that are at fault.
"""

import csv
import io
import math
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

WIDTH = 1024  # of a feature
LABELS = ("NOT_SPEAKING", "SPEAKING_AUDIBLE", "SPEAKING_NOT_AUDIBLE")
BOX = ("entity_box_x1", "entity_box_y1", "entity_box_x2", "entity_box_y2")
OFFICIAL = ("video_id", "frame_timestamp", *BOX, "label", "entity_id")
STORED = ("video_id", "frame_timestamp", "entity_id", "label_id", "logit_0", "logit_1")
PREDICTED = ("entity_id", "frame_timestamp", "logit_0", "logit_1")


@dataclass
class Expected:
    """What a reader should give, and at which (file, line) it must or may refuse; line 0 where none can be told."""

    rows: list[tuple] = field(default_factory=list)
    faults: dict[tuple[str, int], str] = field(default_factory=dict)
    doubts: dict[tuple[str, int], str] = field(default_factory=dict)
    uncounted: set[str] = field(default_factory=set)  # files in which two ways to count lines differ


def number(text: str) -> float | None:
    """The finite number that a text spells in ASCII digits, blanks around it allowed; None where it spells none."""
    text = text.strip(" \t\v\f\r\n")
    try:
        return float(text) if set(text) <= set("0123456789+-.eE") and math.isfinite(float(text)) else None
    except ValueError:
        return None


def plain(name: str) -> str | None:
    """The name, if it can be that of a file."""
    bad = name in ("", ".", "..") or set("/\\") & set(name) or not name.isprintable() or len(name.encode()) > 240
    return None if bad else name


def label_id(text: str) -> int | None:
    return LABELS.index(text) if text in LABELS else None


def feature(text: str) -> bytes | None:
    """The float32 of a list of 1024 numbers, as Python spells one, as bytes."""
    text = text.strip(" \t\r\n")
    parts = text[1:-1].split(",") if text[:1] == "[" and text[-1:] == "]" else []
    spelling = re.compile(r"[ \t\r\n]*-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?[ \t\r\n]*")
    values = [number(part) if spelling.fullmatch(part) else None for part in parts]
    values = [0.0 if part.strip() == "-0" else value for part, value in zip(parts, values, strict=True)]
    try:
        return None if len(values) != WIDTH or None in values else struct.pack(f"<{WIDTH}f", *values)
    except OverflowError:
        return None


def split(name: str, data: bytes, expected: Expected) -> list[tuple[int, list[str]]]:
    """Rows of a csv as (line, fields), without blank lines; none where the file is at fault as a whole."""
    before = len(expected.faults)
    if b"\0" in data:
        expected.faults[name, data[: data.index(b"\0")].count(b"\n") + 1] = "NUL"
    if lone := re.search(rb"\r(?!\n)", data):
        expected.faults[name, data[: lone.start()].count(b"\n") + 1] = "a line end of old Macs"
    if not data.endswith(b"\n"):
        expected.faults[name, data.count(b"\n") + 1 if data else 0] = "no line end"
    for line, text in enumerate(data.split(b"\n") if len(data) > 1 << 20 else (), 1):
        if len(text) > 1 << 20:
            expected.doubts[name, line] = "long line"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeError:
        expected.faults[name, 0] = "not UTF-8"
        expected.uncounted.add(name)
    if len(expected.faults) > before:
        return []
    if text.startswith("\ufeff"):
        expected.doubts[name, 1] = "a second mark"
        text = text.removeprefix("\ufeff")
    limit = csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(text + "END\n", newline=""))
    lines = [(reader.line_num, fields) for fields in reader if fields]
    csv.field_size_limit(limit)  # the readers are to meet Python's own limit
    if any("\n" in part for _, fields in lines for part in fields):
        expected.uncounted.add(name)
    if lines.pop()[1] != ["END"]:
        expected.faults[name, 0] = "a quote is never closed"
        return []
    for line, fields in lines:
        if max(map(len, fields)) > 1 << 17:
            expected.doubts[name, line] = "long field"
        if len(fields) == 1 and not fields[0].strip(" \t"):
            expected.doubts[name, line] = "line of blanks"
    return [(line, fields) for line, fields in lines if len(fields) > 1 or fields[0].strip(" \t")]


def pick(name: str, lines: list, expected: Expected, wanted: dict[str, Callable], names: Iterable[str]) -> list[tuple]:
    """((file, line), values of the wanted columns) of the rows without fault."""
    first, head = lines[0] if lines else (0, [])
    header = next(iter(wanted)) in head
    if first > 1:
        expected.doubts[name, first] = "the first row is not in the first line"
    names = head if header else list(names)
    if len(set(names)) < len(names) or not set(wanted) <= set(names):
        expected.faults[name, first] = "a column is missing or stands twice"
        return []
    if len(lines) == header and (name, 0) not in expected.faults:
        expected.faults[name, 0] = "no rows"
    rows = []
    for line, fields in lines[header:]:
        texts = dict(zip(names, fields, strict=False))
        values = [kind(texts.get(column, "")) for column, kind in wanted.items()]
        if len(fields) != len(names) or None in values:
            expected.faults[name, line] = "columns" if len(fields) != len(names) else "value"
        rows.append(((name, line), *values))
    return [row for row in rows if row[0] not in expected.faults]


def check_order(rows: Iterable[tuple], expected: Expected) -> None:
    """Rows (place, track, video, time): a track stays in its video and goes forward."""
    last = {}
    for place, track, video, moment in rows if not expected.faults else ():
        film, before = last.get(track, (video, -math.inf))
        if film != video or moment <= before:
            expected.faults[place] = "order"
        last[track] = video, moment


def expected_annotations(files: dict[str, bytes]) -> Expected:
    """Rows (video, entity, time, label, box, somebody speaks, begin of the track)."""
    expected, rows = Expected(), []
    wanted = {**dict.fromkeys(OFFICIAL, number), "label": label_id, "video_id": plain, "entity_id": plain}
    for name in sorted(files):
        for row in pick(name, split(name, files[name], expected), expected, wanted, OFFICIAL):
            x1, y1, x2, y2 = row[3:7]
            if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
                expected.faults[row[0]] = "box"
            rows.append(row)
    check_order(((place, entity, video, moment) for place, video, moment, *_, entity in rows), expected)
    loud = {(row[1], row[2]) for row in rows if row[-2] == 1}
    begin = {}
    for _, video, moment, *box, label, entity in rows:
        begin.setdefault(entity, moment)
        expected.rows.append((video, entity, moment, label, box, (video, moment) in loud, begin[entity]))
    return expected


def expected_store(files: dict[str, bytes]) -> Expected:
    """Rows (video, entity, time, label, float32 of the feature as bytes)."""
    expected, placed = Expected(), []
    for name in sorted(file for file in files if file.endswith(".csv")):
        stem, lines = name[:-4], split(name, files[name], expected)
        array = files.get(f"{stem}.npy")
        wanted = {**dict.fromkeys(STORED, number), "video_id": plain, "entity_id": plain}
        if array is None and (not lines or "video_id" not in lines[0][1]):
            wanted["features"] = feature
        rows = pick(name, lines, expected, wanted, (*STORED, "features"))
        for place, video, _, _, label, *_ in rows:
            if label not in (0, 1) or video != stem:
                expected.faults[place] = "label or video"
        if "features" not in wanted:
            values = array_rows(f"{stem}.npy", array or b"", len(rows), expected)
            rows = [(*row, value) for row, value in zip(rows, values, strict=False)]
        placed += [(place, (video, entity), video, moment) for place, video, moment, entity, *_ in rows]
        expected.rows += [(row[1], row[3], row[2], int(row[4]), row[-1]) for row in rows]
    check_order(placed, expected)
    return expected


def array_header(rows: int) -> bytes:
    """How numpy begins a file of (rows, 1024) float32."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {WIDTH}), }}"
    return b"\x93NUMPY\1\0" + struct.pack("<H", 118) + text.ljust(117).encode() + b"\n"


def array_rows(name: str, data: bytes, rows: int, expected: Expected) -> list[bytes]:
    """The bytes of each row. Other headers before as many numbers may be right, and only the numbers are checked."""
    wide = data[6:7] != b"\1"  # later versions of the format have longer headers
    size = data[8 : 12 if wide else 10].ljust(4, b"\0")
    begin = (12 if wide else 10) + struct.unpack("<I", size)[0]
    if not data.startswith(array_header(rows)):
        expected.doubts[name, 0] = "another header"
    if len(data) - begin != rows * WIDTH * 4:
        expected.faults[name, 0] = "another length"
    return [data[start : start + WIDTH * 4] for start in range(begin, begin + rows * WIDTH * 4, WIDTH * 4)]


def expected_logits(files: dict[str, bytes]) -> Expected:
    """Rows (video, time, entity, logit_0, logit_1)."""
    expected = Expected()
    for name in sorted(files):
        lines = split(name, files[name], expected)
        short = bool(lines) and len(lines[0][1]) == len(PREDICTED)
        names = PREDICTED if short else STORED
        wanted = {**dict.fromkeys(names, number), "entity_id": plain, **({} if short else {"video_id": plain})}
        for _, *values in pick(name, lines, expected, wanted, names if short else (*STORED, "features")):
            row = dict(zip(names, values, strict=True))
            keys = (row.get("video_id", name[:-4]), row["frame_timestamp"], row["entity_id"])
            expected.rows.append((*keys, row["logit_0"], row["logit_1"]))
    return expected


def expected_scores(files: dict[str, bytes]) -> Expected:
    """Rows (video, time, entity, score) of one file."""
    expected, ((name, data),) = Expected(), files.items()
    wanted = {"video_id": plain, "frame_timestamp": number, "entity_id": plain, "score": number}
    rows = pick(name, split(name, data, expected), expected, wanted, (*OFFICIAL, "score"))
    expected.rows = [row[1:] for row in rows]
    return expected


def expected_join(rows: list[tuple], truth: list[tuple]) -> Expected:
    """The rows in the order of the truth's (video, time, entity)."""
    found = {row[:3]: row for row in rows}
    if len(found) < len(rows) or found.keys() != set(truth):
        return Expected(faults={("", 0): "rows are missing or stand twice"})
    return Expected([(*key, *found[key][3:]) for key in truth])
