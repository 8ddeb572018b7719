"""Reference readers of every csv format: plain Python, written independently of core/formats.

Each `expected_*` function takes files (name -> bytes) and returns the rows that a reader must return and the lines
that it must refuse. This is the readable specification of the formats.
"""

import csv
import io
import math
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

WIDTH = 1024  # features per row
ANY_LINE = -1  # as the line of an error
LABELS = ("NOT_SPEAKING", "SPEAKING_AUDIBLE", "SPEAKING_NOT_AUDIBLE")
BOX = ("entity_box_x1", "entity_box_y1", "entity_box_x2", "entity_box_y2")
OFFICIAL = ("video_id", "frame_timestamp", *BOX, "label", "entity_id")
STORED = ("video_id", "frame_timestamp", "entity_id", "label_id", "logit_0", "logit_1")
PREDICTED = ("entity_id", "frame_timestamp", "logit_0", "logit_1")


@dataclass
class Expected:
    """Expected result of a reader.

    rows    rows that it must return if it accepts the files
    errors  (file, line) -> reason: it must refuse the files at one of these lines; line 0 is the file as a whole
    doubts  (file, line) -> reason: it may refuse the files at these lines
    """

    rows: list[tuple] = field(default_factory=list)
    errors: dict[tuple[str, int], str] = field(default_factory=dict)
    doubts: dict[tuple[str, int], str] = field(default_factory=dict)


def number(text: str) -> float | None:
    """Return the finite number of a text: ASCII, with whitespace around it. None if it is not one."""
    text = text.strip(" \t\v\f\r\n")
    try:
        return float(text) if set(text) <= set("0123456789+-.eE") and math.isfinite(float(text)) else None
    except ValueError:
        return None


def plain(name: str) -> str | None:
    """Return the name if it is a plain file name, else None."""
    bad = (
        name in ("", ".", "..", "#NAME?", "#REF!", "#VALUE!", "#N/A")
        or set("/\\") & set(name)
        or not name.isprintable()
        or len(name.encode()) > 240
    )
    return None if bad else name


def label_id(text: str) -> int | None:
    """Return the number of a label, -1 for an empty one. None if it is not a label."""
    text = text.strip(" \t").upper()
    names = {**{name: index for index, name in enumerate(LABELS)}, "SPEAKING_AND_AUDIBLE": 1}
    return {"": -1, "0": 0, "1": 1, "2": 2, "SPEAKING_BUT_NOT_AUDIBLE": 2, **names}.get(text)


def column(text: str) -> str:
    """Return the name of a column, given one of its usual spellings."""
    text = text.strip().lower()
    spellings = {
        "video_id": ("video", "videoid", "video_name"),
        "frame_timestamp": ("timestamp", "frame_time", "time", "seconds"),
        "entity_id": ("entity", "entityid", "track", "track_id"),
        **{name: (name[-2:],) for name in BOX},
    }
    return next((name for name, others in spellings.items() if text in others), text)


def last_line_is_complete(data: bytes) -> bool:
    """A last line without a line end counts if it ends with the id of an earlier line."""
    lines = data.replace(b"\r\n", b"\n").split(b"\n")
    ends = [line.rpartition(b",")[2] for line in lines if b"," in line]
    is_name = bool(ends) and re.search(rb"[^0-9.eE+-]", ends[-1])
    return b"," in lines[-1] and bool(is_name) and ends[-1] in ends[:-1]


def feature(text: str) -> bytes | None:
    """Return the bytes of a list of numbers as float32. The text is a JSON list. None if it is not."""
    text = text.strip(" \t\r\n")
    parts = text[1:-1].split(",") if text[:1] == "[" and text[-1:] == "]" else []
    spelling = re.compile(r"[ \t\r\n]*-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?[ \t\r\n]*")
    values = [number(part) if spelling.fullmatch(part) else None for part in parts]
    values = [0.0 if part.strip() == "-0" else value for part, value in zip(parts, values, strict=True)]
    try:
        return None if not values or None in values else struct.pack(f"<{len(values)}f", *values)
    except OverflowError:
        return None


def split(name: str, data: bytes, expected: Expected) -> list[tuple[int, list[str]]]:
    """Return the rows of a csv as (line, fields), without blank lines. Empty if the file as a whole is invalid."""
    before = len(expected.errors)
    if b"\0" in data:
        expected.errors[name, data[: data.index(b"\0")].count(b"\n") + 1] = "NUL"
    if lone := re.search(rb"\r(?!\n)", data):
        expected.errors[name, data[: lone.start()].count(b"\n") + 1] = "carriage return"
    if not data.endswith(b"\n") and not last_line_is_complete(data):
        expected.errors[name, data.count(b"\n") + 1 if data else 0] = "no line end"
    field = rb'("([^"]|"")*"|[^",]*)'
    if not re.fullmatch(field + rb"(," + field + rb")*\r?", data.split(b"\n")[0]):
        expected.doubts[name, 1] = "quotes in the first row"
    for line, text in enumerate(data.split(b"\n") if len(data) > 1 << 20 else (), 1):
        if len(text) > 1 << 20:
            expected.doubts[name, line] = "long line"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeError:
        expected.errors[name, ANY_LINE] = "not UTF-8"
    if len(expected.errors) > before:
        return []
    if text.startswith("\ufeff"):
        expected.doubts[name, 1] = "second byte order mark"
        text = text.removeprefix("\ufeff")
    limit = csv.field_size_limit(1 << 30)
    text += "" if text.endswith("\n") else "\n"
    reader = csv.reader(io.StringIO(text + "END\n", newline=""))
    lines = [(reader.line_num, fields) for fields in reader if fields]
    csv.field_size_limit(limit)  # readers run with the default limit
    if "\n" in "".join(lines[0][1]):
        expected.doubts[name, 1] = "line end in the first row"
    if lines.pop()[1] != ["END"]:
        expected.errors[name, ANY_LINE] = "unclosed quote"
        return []
    for line, fields in lines:
        if max(map(len, fields)) > 1 << 17:
            expected.doubts[name, line] = "long field"
        if len(fields) == 1 and not fields[0].strip(" \t"):
            expected.doubts[name, line] = "line of blanks"
    return [(line, fields) for line, fields in lines if len(fields) > 1 or fields[0].strip(" \t")]


def pick(
    name: str,
    lines: list,
    expected: Expected,
    wanted: dict[str, Callable],
    names: Iterable[str],
    optional: tuple[str, ...] = (),
) -> list[tuple]:
    """Return ((file, line), values of the wanted columns) of the valid rows. Missing optional columns are empty."""
    first, head = lines[0] if lines else (0, [])
    spelled = [column(text) if column(text) in wanted else text for text in head]
    header = next(iter(wanted)) in head or set(wanted) <= {*spelled, *optional}
    head = spelled if header else head
    needed = set(wanted) - (set(optional) if header else set())
    if first > 1:
        expected.doubts[name, first] = "first row not in the first line"
    names = head if header else list(names)
    if len(set(names)) < len(names) or not needed <= set(names):
        expected.errors[name, first] = "missing or duplicate column"
        return []
    if len(lines) == header and (name, 0) not in expected.errors:
        expected.errors[name, 0] = "no rows"
    rows = []
    for line, fields in lines[header:]:
        texts = dict(zip(names, fields, strict=False))
        values = []
        for column_name, kind in wanted.items():
            value = kind(texts.get(column_name, ""))
            absent = header and column_name in optional and column_name not in names
            values.append("" if absent and value is None else value)
        if len(fields) != len(names) or None in values:
            expected.errors[name, line] = "columns" if len(fields) != len(names) else "value"
        rows.append(((name, line), *values))
    return [row for row in rows if row[0] not in expected.errors]


def check_order(rows: Iterable[tuple], expected: Expected) -> None:
    """Check rows (place, track, video, time): a track is part of one video, and its timestamps increase."""
    last = {}
    for place, track, video, time in rows if not expected.errors else ():
        last_video, last_time = last.get(track, (video, -math.inf))
        if last_video != video or time <= last_time:
            expected.errors[place] = "order"
        last[track] = video, time


def expected_annotations(files: dict[str, bytes]) -> Expected:
    """Rows (video, entity, time, label, box, a face of the frame is speaking, start of the track)."""
    expected, rows = Expected(), []
    wanted = {**dict.fromkeys(OFFICIAL, number), "label": label_id, "video_id": plain, "entity_id": plain}
    for name in sorted(files):
        for row in pick(name, split(name, files[name], expected), expected, wanted, OFFICIAL, ("label",)):
            x1, y1, x2, y2 = row[3:7]
            if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
                expected.errors[row[0]] = "box"
            rows.append(row)
    check_order(((place, entity, video, time) for place, video, time, *_, entity in rows), expected)
    speaking = {(row[1], row[2]) for row in rows if row[-2] == 1}
    start = {}
    for _, video, time, *box, label, entity in rows:
        start.setdefault(entity, time)
        expected.rows.append((video, entity, time, label, box, (video, time) in speaking, start[entity]))
    return expected


def expected_store(files: dict[str, bytes]) -> Expected:
    """Rows (video, entity, time, label, features as float32 bytes)."""
    expected, placed = Expected(), []
    for name in sorted(file for file in files if file.endswith(".csv")):
        stem, lines = name[:-4], split(name, files[name], expected)
        array = files.get(f"{stem}.npy")
        wanted = {**dict.fromkeys(STORED, number), "video_id": plain, "entity_id": plain}
        if array is None and (not lines or "video_id" not in lines[0][1]):
            wanted["features"] = feature
        rows = pick(name, lines, expected, wanted, (*STORED, "features"))
        for place, video, _, _, label, *_ in rows:
            if label not in (0, 1, -1) or video != stem:
                expected.errors[place] = "label or video"
        if "features" not in wanted:
            values = array_rows(f"{stem}.npy", array or b"", len(rows), expected)
            rows = [(*row, value) for row, value in zip(rows, values, strict=False)]
        placed += [(place, (video, entity), video, time) for place, video, time, entity, *_ in rows]
        expected.rows += [(row[1], row[3], row[2], int(row[4]), row[-1]) for row in rows]
    if len({len(row[-1]) for row in expected.rows}) > 1:  # any of the rows may be named
        different = [place for place, *_ in placed] + [(name, 0) for name in files]
        expected.errors |= {place: "different width" for place in different if place not in expected.errors}
    check_order(placed, expected)
    return expected


def array_header(rows: int) -> bytes:
    """Return numpy's header of (rows, 1024) float32."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {WIDTH}), }}"
    return b"\x93NUMPY\1\0" + struct.pack("<H", 118) + text.ljust(117).encode() + b"\n"


def array_rows(name: str, data: bytes, rows: int, expected: Expected) -> list[bytes]:
    """Return the bytes of each row. A header that differs from numpy's may be valid."""
    wide = data[6:7] != b"\1"  # later versions of the format have a longer length field
    size = data[8 : 12 if wide else 10].ljust(4, b"\0")
    offset = (12 if wide else 10) + struct.unpack("<I", size)[0]
    if not data.startswith(array_header(rows)):
        expected.doubts[name, 0] = "different header"
    if len(data) - offset != rows * WIDTH * 4:
        expected.errors[name, 0] = "different length"
    return [data[start : start + WIDTH * 4] for start in range(offset, offset + rows * WIDTH * 4, WIDTH * 4)]


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
    """Rows (video, time, entity, score) of a file."""
    expected, ((name, data),) = Expected(), files.items()
    wanted = {"video_id": plain, "frame_timestamp": number, "entity_id": plain, "score": number}
    optional = {**dict.fromkeys(BOX, number), "label": lambda text: text.strip(" \t")}
    lines = split(name, data, expected)
    rows = pick(name, lines, expected, {**wanted, **optional}, (*OFFICIAL, "score"), tuple(optional))
    lowest = min((row[4] for row in rows if label_id(row[-1]) == 1), default=math.inf)
    for place, *_, score, _, _, _, _, label in rows:
        if label_id(label) not in (1, -1) and score > lowest:
            expected.errors[place] = "score of another label"
    expected.rows = [row[1:5] for row in rows]
    return expected


def nearest(rows: list[tuple], others: list[tuple]) -> list[int]:
    """Index of the other row of the same face that is nearest in time to each row, -1 if none is within 1 ms."""
    times: dict[tuple, list[tuple[float, int]]] = {}
    for index, (video, time, entity, *_) in enumerate(others):
        times.setdefault((video, entity), []).append((time, index))
    found = []
    for video, time, entity, *_ in rows:
        differences = [(abs(other - time), index) for other, index in times.get((video, entity), ())]
        difference, index = min(differences, default=(math.inf, -1))
        found.append(index if difference <= 0.001 else -1)
    return found


def expected_join(rows: list[tuple], truth: list[tuple]) -> Expected:
    """Rows in the order of the (video, time, entity) of the ground truth."""
    own, order = nearest(rows, truth), nearest(truth, rows)
    if sorted(own) != list(range(len(truth))) or [own[index] for index in order] != sorted(own):
        return Expected(errors={("", 0): "missing, unknown or duplicate rows"})
    return Expected([(*row, *rows[index][3:]) for row, index in zip(truth, order, strict=True)])
