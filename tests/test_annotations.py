"""Annotations: three forms, one table; everything else is refused with its file and line."""

import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import BOX, ROOT, assert_refused, row, run_script, write_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.formats.annotations import FaceTable, check_tracks, find_annotations, read_annotations
from core.runtime.errors import InputError

HEADER = (
    "video_id,frame_timestamp,entity_box_x1,entity_box_y1,entity_box_x2,entity_box_y2,label,entity_id,label_id,"
    "instance_id"
)
LABEL_IDS = {"NOT_SPEAKING": 0, "SPEAKING_AUDIBLE": 1, "SPEAKING_NOT_AUDIBLE": 2}
SILENT, AUDIBLE, UNHEARD = LABEL_IDS


def augment(official: list[str]) -> list[str]:
    """The lines of the augmented file of official lines: float timestamps, label_id, and runs of one label counted."""
    lines, runs = [HEADER], {}
    for line in official:
        fields = line.split(",")
        fields[1] = str(float(fields[1]))
        label, entity = fields[6], fields[7]
        last, count = runs.get(entity, (label, 0))
        runs[entity] = (label, count + (label != last))
        lines.append(",".join([*fields, str(LABEL_IDS[label]), f"{entity}:{runs[entity][1]}"]))
    return lines


TWO_FILMS = {
    "alpha": [
        row("alpha:1", "1299", AUDIBLE, "alpha"),
        row("alpha:1", "1299.04", AUDIBLE, "alpha", ("0", "0", "1", "1")),
        row("alpha:2", "1299.04", UNHEARD, "alpha", ("0.123456", "0.5", "0.654321", "0.999")),
        row("alpha:1", "1299.1", SILENT, "alpha"),
        row("alpha:2", "1299.1", SILENT, "alpha"),
        row("alpha:2", "1300", UNHEARD, "alpha"),
    ],
    "beta": [row("beta:1", "1299", UNHEARD, "beta"), row("beta:1", "1299.04", SILENT, "beta")],
}
ALL_LINES = [line for lines in TWO_FILMS.values() for line in lines]


def assert_same(one: FaceTable, two: FaceTable) -> None:
    assert (one.video_ids, one.entity_ids) == (two.video_ids, two.entity_ids)
    for name in ("video", "entity", "timestamp", "label", "box", "audio_start", "speech", "moment", "position"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


def names(table: FaceTable) -> list[tuple[str, str, float, int]]:
    """What each row says of itself."""
    return [
        (table.video_ids[video], table.entity_ids[entity], timestamp, label)
        for video, entity, timestamp, label in zip(
            table.video.tolist(), table.entity.tolist(), table.timestamp.tolist(), table.label.tolist(), strict=True
        )
    ]


def read(tmp_path: Path, lines: list[str], end: str = "\n") -> FaceTable:
    return read_annotations(write_lines(tmp_path / "faces.csv", lines, end))


# The forms annotations come in


@pytest.fixture
def laid_out(tmp_path) -> Path:
    """csv/val/<video>-activespeaker.csv of two films, and the augmented file of both beside the folder."""
    folder = tmp_path / "csv"
    for video, lines in TWO_FILMS.items():
        write_lines(folder / "val" / f"{video}-activespeaker.csv", lines)
    write_lines(folder / "ava_activespeaker_val_augmented.csv", augment(ALL_LINES))
    return folder


def test_table_of_an_official_file(laid_out):
    table = read_annotations(laid_out / "val" / "alpha-activespeaker.csv")
    assert len(table) == 6
    assert names(table) == [
        ("alpha", "alpha:1", 1299.0, 1),
        ("alpha", "alpha:1", 1299.04, 1),
        ("alpha", "alpha:2", 1299.04, 2),
        ("alpha", "alpha:1", 1299.1, 0),
        ("alpha", "alpha:2", 1299.1, 0),
        ("alpha", "alpha:2", 1300.0, 2),
    ]
    assert table.box[:3].tolist() == [[0.1, 0.2, 0.3, 0.6], [0, 0, 1, 1], [0.123456, 0.5, 0.654321, 0.999]]
    assert table.position.tolist() == [0, 1, 0, 2, 1, 2]
    assert table.rows_of_track(1).tolist() == [2, 4, 5]
    assert table.audio_start.tolist() == [1299.0, 1299.04]
    assert [times.tolist() for times in table.track_spans()] == [[1299.0, 1299.04], [1299.1, 1300.0]]
    assert table.track_video().tolist() == [0, 0]
    assert table.anyone_speaking.tolist() == [True, True, True, False, False, False]


def test_all_forms_give_equal_tables(laid_out):
    augmented = read_annotations(laid_out / "ava_activespeaker_val_augmented.csv")
    directory = read_annotations(laid_out / "val")
    official = read_annotations(write_lines(laid_out / "all-activespeaker.csv", ALL_LINES))
    assert len(augmented) == 8
    assert_same(augmented, directory)
    assert_same(official, directory)


def test_a_missing_augmented_file_stands_for_the_directory_beside_it(laid_out):
    path = laid_out / "ava_activespeaker_val_augmented.csv"
    with_file = read_annotations(path)
    path.unlink()
    assert find_annotations(path) == [laid_out / "val" / f"{x}-activespeaker.csv" for x in ("alpha", "beta")]
    assert_same(read_annotations(path), with_file)


@pytest.mark.parametrize("name", ["ava_activespeaker_train_augmented.csv", "val_augmented.csv", "nothing"])
def test_missing_sources_are_named(laid_out, name):
    with pytest.raises(InputError) as error:
        read_annotations(laid_out / name)
    assert str(laid_out / name) in str(error.value)


def test_a_directory_without_official_files(tmp_path):
    write_lines(tmp_path / "faces.csv", ALL_LINES)
    with pytest.raises(InputError, match="-activespeaker"):
        read_annotations(tmp_path)


def test_other_files_of_a_directory_are_left_alone(laid_out):
    before = read_annotations(laid_out / "val")
    write_lines(laid_out / "val" / "notes.txt", ["nothing"])
    write_lines(laid_out / "val" / "other.csv", ["nothing"])
    assert_same(read_annotations(laid_out / "val"), before)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1299", 1299.0), ("1299.1", 1299.1), ("1080.0", 1080.0), ("902.04", 902.04), ("0", 0.0), ("0.08", 0.08)],
)
def test_timestamps(tmp_path, text, seconds):
    assert read(tmp_path, [row("a", text)]).timestamp.tolist() == [seconds]


def test_numbers_are_read_exactly(tmp_path):
    """As Python reads them, also those with more digits than a fast parser gets right."""
    texts = ["0.1", "0.30000000000000004", "0.7000000000000001", "0.9999999999999999"]
    table = read(tmp_path, [row("a", "1.0000000000000002", box=texts), row("a", 1796.35, box=BOX)])
    assert table.box[0].tolist() == [float(text) for text in texts]
    assert table.timestamp.tolist() == [1.0000000000000002, 1796.35]


def test_rows_stay_in_the_order_they_were_read(tmp_path):
    lines = [
        row("z", 5, video="two"),
        row("a", 1, video="one"),
        row("y", 5, video="two"),
        row("a", 2, video="one"),
        row("z", 6, video="two"),
        row("y", 6, video="two"),
        row("b", 1, video="one"),
    ]
    table = read(tmp_path, lines)
    assert [(v, e, t) for v, e, t, _ in names(table)] == [
        ("two", "z", 5), ("one", "a", 1), ("two", "y", 5), ("one", "a", 2), ("two", "z", 6), ("two", "y", 6),
        ("one", "b", 1),
    ]  # fmt: skip
    assert (table.video_ids, table.entity_ids) == (["two", "one"], ["z", "a", "y", "b"])
    assert table.position.tolist() == [0, 0, 0, 1, 1, 1, 0]
    assert [table.rows_of_track(entity).tolist() for entity in range(4)] == [[0, 4], [1, 3], [2, 5], [6]]


def test_columns_are_read_by_name(tmp_path, laid_out):
    order = [9, 7, 1, 6, 0, 5, 4, 3, 2, 8]
    lines = [",".join(line.split(",")[i] for i in order) for line in augment(ALL_LINES)]
    assert_same(read(tmp_path, lines), read_annotations(laid_out / "val"))


def test_further_columns_do_no_harm(tmp_path, laid_out):
    head, *lines = augment(ALL_LINES)
    lines = [f"{head},comment", *(f"{line},some words" for line in lines)]
    assert_same(read(tmp_path, lines), read_annotations(laid_out / "val"))


def test_a_header_alone_makes_no_augmented_file(tmp_path, laid_out):
    """The eight official columns under a header: no label_id, no instance_id."""
    head = ",".join(HEADER.split(",")[:8])
    assert_same(read(tmp_path, [head, *ALL_LINES]), read_annotations(laid_out / "val"))


@pytest.mark.parametrize("form", ["official", "augmented"])
def test_line_ends_byte_order_mark_quotes_and_blank_lines(tmp_path, laid_out, form):
    lines = ALL_LINES if form == "official" else augment(ALL_LINES)
    expected = read_annotations(laid_out / "val")
    quoted = [",".join(f'"{field}"' for field in line.split(",")) for line in lines]
    assert_same(read(tmp_path, lines, "\r\n"), expected)
    assert_same(read(tmp_path, ["\ufeff" + lines[0], *lines[1:]]), expected)
    assert_same(read(tmp_path, ["\ufeff" + lines[0], *lines[1:]], "\r\n"), expected)
    assert_same(read(tmp_path, quoted), expected)
    assert_same(read(tmp_path, [*lines[:3], "", *lines[3:6], "", "", *lines[6:]]), expected)
    assert_same(read(tmp_path, [*lines, ""]), expected)
    assert_same(read(tmp_path, [*lines[:3], "", *lines[3:]], "\r\n"), expected)


@pytest.mark.parametrize(
    "name",
    ["-5KQ66BBWC4_0900_0960:1", "_a", "a b", "\u00e4\u5b57", "a.b.c", "...a", "a'b", "nan", "True", "7", "007", "1e5"],
)
def test_unusual_ids_stay_what_they_are(tmp_path, name):
    table = read(tmp_path, [row(name, 1, video=name), row(name, 2, video=name)])
    assert table.video_ids == [name]
    assert table.entity_ids == [name]


def test_ids_that_are_equal_as_numbers_are_different_ids(tmp_path):
    table = read(tmp_path, [row(name, 1, video="2020") for name in ("7", "07", "7.0", "7e0")])
    assert table.entity_ids == ["7", "07", "7.0", "7e0"]
    assert len(np.unique(table.entity)) == 4


def test_a_comma_in_a_quoted_id(tmp_path):
    table = read(tmp_path, [row('"a,b"', 1), row("c", 2)])
    assert table.entity_ids == ["a,b", "c"]


def test_entities_of_two_films_of_a_directory_are_told_apart_by_name(tmp_path):
    """Tracks are named by their entity alone in every path, so one name cannot stand in two films."""
    write_lines(tmp_path / "a-activespeaker.csv", [row("x", 1, video="a")])
    second = write_lines(tmp_path / "b-activespeaker.csv", [row("y", 1, video="b"), row("x", 2, video="b")])
    with pytest.raises(InputError) as error:
        read_annotations(tmp_path)
    assert f"{second}, line 2" in str(error.value)
    assert "x" in str(error.value)


# What is derived from rows


def test_moments(tmp_path):
    lines = [
        row("a", 1, video="one"),
        row("b", "1.0", video="one"),
        row("c", 1, video="two"),
        row("a", 1.04, video="one"),
        row("c", 1.04, video="two"),
        row("d", 1.04, video="one"),
    ]
    moment = read(tmp_path, lines).frame_id
    same = moment[:, None] == moment
    np.testing.assert_array_equal(
        same,
        [[film_and_time(x) == film_and_time(y) for y in lines] for x in lines],
    )
    assert sorted(set(moment.tolist())) == [0, 1, 2, 3]


def test_films_of_one_and_the_same_moment(tmp_path):
    """Every film begins at 900 s, and these end there too; and one begins where another ends."""
    lines = [row(video, 900, AUDIBLE if video == "b" else SILENT, video) for video in "abc"]
    table = read(tmp_path, [*lines, row("a", 901, video="a"), row("d", 901, video="d")])
    assert len(set(table.frame_id.tolist())) == 5
    assert table.anyone_speaking.tolist() == [False, True, False, False, False]


def film_and_time(line: str) -> tuple[str, float]:
    video, timestamp = line.split(",")[:2]
    return video, float(timestamp)


def test_speech_is_somebody_audible_in_this_film_at_this_moment(tmp_path):
    lines = [
        row("a", 1, SILENT, "one"),
        row("b", 1, AUDIBLE, "one"),
        row("c", 1, UNHEARD, "two"),  # the same second of another film
        row("a", 2, UNHEARD, "one"),
        row("b", 2, SILENT, "one"),
        row("c", 2, AUDIBLE, "two"),
    ]
    assert read(tmp_path, lines).anyone_speaking.tolist() == [True, True, False, False, False, True]


def test_what_was_annotated_survives_keeping_some_rows(tmp_path):
    lines = [
        row("a", 1, SILENT),
        row("b", 1, AUDIBLE),
        row("a", 2, SILENT),
        row("b", 2, SILENT),
        row("a", 3, SILENT),
        row("c", 3, AUDIBLE),
    ]
    table = read(tmp_path, lines)
    for rows in (np.array([0, 2, 4]), np.array([True, False, True, False, True, False])):
        kept = table.keep(rows)
        assert names(kept) == [("film", "a", t, 0) for t in (1.0, 2.0, 3.0)]
        assert kept.anyone_speaking.tolist() == [True, False, True]  # though who spoke is gone
    late = table.keep(np.array([2, 3, 4]))
    assert names(late) == [("film", "a", 2.0, 0), ("film", "b", 2.0, 0), ("film", "a", 3.0, 0)]
    assert late.audio_start.tolist() == [1.0, 1.0, 3.0]  # where the wavs of a, b and c begin
    assert late.position.tolist() == [0, 0, 1]
    assert late.rows_of_track(0).tolist() == [0, 2]
    assert late.rows_of_track(2).tolist() == []
    assert late.track_video().tolist() == [0, 0, -1]
    assert late.box.shape == (3, 4)
    assert len(table) == 6 and table.position.tolist() == [0, 0, 1, 1, 2, 0]  # the first table is as it was


def test_28_faces_at_a_moment(tmp_path):
    lines = [row(f"film:{n}", t, AUDIBLE if (n, t) == (27, 2) else SILENT) for t in (1, 2) for n in range(28)]
    table = read(tmp_path, lines)
    assert np.bincount(table.frame_id).tolist() == [28, 28]
    assert table.anyone_speaking.tolist() == [False] * 28 + [True] * 28
    assert len(table.entity_ids) == 28


# What is refused

GOOD = [row("a", 1), row("b", 1), row("a", 2), row("b", 2)]


def refusal(path: Path, line: int | None = None) -> str:
    """The message a file is refused with; it names the file, and the line if one is given."""
    with pytest.raises(InputError) as error:
        read_annotations(path)
    message = str(error.value)
    assert re.match(re.escape(str(path)) + ("" if line is None else rf", line {line}\b"), message), message
    assert "\n" not in message
    return message


def with_line(line: str) -> list[str]:
    """The good lines, with this one put in as the third."""
    return [*GOOD[:2], line, *GOOD[2:]]


BROKEN_LINES = {
    "seven columns": ",".join(row("c", 1).split(",")[:7]),
    "nine columns": row("c", 1) + ",1",
    "one column": "c",
    "empty column at the end": row("c", 1) + ",",
    "box below 0": row("c", 1, box=("-0.1", "0.2", "0.3", "0.6")),
    "box above 1": row("c", 1, box=("0.1", "0.2", "1.01", "0.6")),
    "box in pixels": row("c", 1, box=("10", "20", "30", "60")),
    "x1 = x2": row("c", 1, box=("0.3", "0.2", "0.3", "0.6")),
    "x1 > x2": row("c", 1, box=("0.4", "0.2", "0.3", "0.6")),
    "y1 = y2": row("c", 1, box=("0.1", "0.6", "0.3", "0.6")),
    "y1 > y2": row("c", 1, box=("0.1", "0.7", "0.3", "0.6")),
    "NaN in the box": row("c", 1, box=("nan", "0.2", "0.3", "0.6")),
    "NaN at its end": row("c", 1, box=("0.1", "0.2", "0.3", "NaN")),
    "infinity in the box": row("c", 1, box=("0.1", "0.2", "inf", "0.6")),
    "minus infinity": row("c", 1, box=("-inf", "0.2", "0.3", "0.6")),
    "word in the box": row("c", 1, box=("0.1", "left", "0.3", "0.6")),
    "nothing in the box": row("c", 1, box=("0.1", "", "0.3", "0.6")),
    "NaN as timestamp": row("c", "nan"),
    "infinity as timestamp": row("c", "inf"),
    "overflow as timestamp": row("c", "1e999"),
    "nothing as timestamp": row("c", ""),
    "word as timestamp": row("c", "00:12"),
    "decimal comma": row("c", '"1,5"'),
    "unknown label": row("c", 1, "SPEAKING"),
    "label in small letters": row("c", 1, "not_speaking"),
    "label with a space": row("c", 1, " NOT_SPEAKING"),
    "no label": row("c", 1, ""),
    "label as a number": row("c", 1, "1"),
    "same moment again": row("a", 1),
    "same moment spelt otherwise": row("b", "1.00"),
    "back in time": row("a", 0.96),
    "track in another film": row("a", 1.5, video="other"),
    "entity with a slash": row("a/b", 1),
    "entity with a backslash": row("a\\b", 1),
    "absolute entity": row("/etc/passwd", 1),
    "entity ..": row("..", 1),
    "entity .": row(".", 1),
    "entity ../x": row("../x", 1),
    "no entity": row("", 1),
    "quoted nothing as entity": row('""', 1),
    "entity with NUL": row("a\0b", 1),
    "entity of 300 characters": row("x" * 300, 1),
    "entity of 120 letters of 3 bytes": row("\u5b57" * 120, 1),
    "no video": row("c", 1, video=""),
    "video ..": row("c", 1, video=".."),
    "video with a slash": row("c", 1, video="a/b"),
    "video with NUL": row("c", 1, video="\0"),
    "video of 300 characters": row("c", 1, video="v" * 300),
    "control character": row("a\x1b[2J", 1),
}


@pytest.mark.parametrize("line", BROKEN_LINES.values(), ids=BROKEN_LINES)
@pytest.mark.parametrize("form", ["official", "augmented"])
def test_broken_lines_are_refused_with_their_number(tmp_path, line, form):
    path = tmp_path / "faces.csv"
    if form == "official":
        write_lines(path, with_line(line))
        refusal(path, line=3)
    else:
        write_lines(path, [HEADER, *(f"{x},0,i:0" for x in with_line(line))])
        refusal(path, line=4)


def test_lines_are_counted_past_blank_ones(tmp_path):
    path = write_lines(tmp_path / "faces.csv", [*GOOD, "", "", row("c", 1, "SPEAKING")])
    refusal(path, line=7)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bad", [row("c", 1, "SPEAKING"), row("a", 1), row("c", "x"), row("c", 1) + ",1"])
def test_lines_are_counted_in_windows_files_and_under_a_mark(tmp_path, end, bad):
    path = write_lines(tmp_path / "faces.csv", ["\ufeff" + GOOD[0], *GOOD[1:], "", bad], end)
    refusal(path, line=6)


def test_an_id_with_a_line_break(tmp_path):
    path = write_lines(tmp_path / "faces.csv", with_line(row('"a\nb"', 1)))
    assert ", line " in refusal(path)


def test_the_broken_file_of_a_directory_is_named(tmp_path):
    for video in ("a", "b", "c"):
        lines = [row(f"{video}:1", 1, video=video), row(f"{video}:1", 2, video=video)]
        write_lines(tmp_path / f"{video}-activespeaker.csv", lines)
    bad = write_lines(tmp_path / "b-activespeaker.csv", [row("b:1", 2, video="b"), row("b:1", 1, video="b")])
    with pytest.raises(InputError) as error:
        read_annotations(tmp_path)
    assert f"{bad}, line 2:" in str(error.value)


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_last_line_cut_off(tmp_path, cut):
    path = write_lines(tmp_path / "faces.csv", GOOD)
    path.write_bytes(path.read_bytes()[:-cut])
    refusal(path, line=4)


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n\n", b"\xef\xbb\xbf", HEADER.encode() + b"\n"])
def test_files_without_rows(tmp_path, content):
    path = tmp_path / "faces.csv"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        bytes(5000),
        bytes(range(256)) * 20,
        b"PK\x03\x04 zipped\n",
        row("\u00e4", 1).encode("latin-1") + b"\n",
        row("a", 1).encode("utf-16") + b"\n",
        b'"never closed,1,0.1,0.2,0.3,0.6,NOT_SPEAKING,a\n' * 3,
        b"x" * 3_000_000 + b"\n",
    ],
    ids=["zeros", "bytes", "zip", "latin-1", "utf-16", "open quote", "one long line"],
)
def test_files_that_are_no_table(tmp_path, content):
    path = tmp_path / "faces.csv"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("column", HEADER.split(",")[:8])
def test_a_column_that_is_missing_is_named(tmp_path, column):
    lines = [HEADER.replace(column, f"my_{column}" if column != "video_id" else "film"), *augment(GOOD)[1:]]
    message = refusal(write_lines(tmp_path / "faces.csv", lines), line=1)
    if column != "video_id":  # without it the line is not known for a header
        assert column in message


def test_a_column_that_stands_twice(tmp_path):
    lines = [HEADER.replace("label_id", "label"), *augment(GOOD)[1:]]
    refusal(write_lines(tmp_path / "faces.csv", lines), line=1)


def test_an_unreadable_source_is_no_traceback(tmp_path):
    """Through a script: status 2 and one line that names file and row."""
    path = write_lines(tmp_path / "faces.csv", with_line(row("c", 1, "SPEAKING")))
    (tmp_path / "films").mkdir()
    result = run_script(
        ROOT / "data" / "extract_face_crops_time.py",
        *("--csv", path, "--ava-video-dir", tmp_path / "films", "--output-dir", tmp_path / "crops"),
    )
    assert_refused(result, path, "line 3")
    assert not (tmp_path / "crops").exists()


def test_tracks_are_checked_wherever_tables_come_from():
    def table(entity, timestamp, video=(0, 0, 0)):
        return FaceTable(
            ["v", "w"], ["a", "b"], *(np.array(x) for x in (video, entity, timestamp)), np.zeros(3, np.int8)
        )

    check_tracks(table((0, 1, 0), (1.0, 1.0, 2.0)), str)
    for bad in (
        table((0, 1, 0), (1.0, 1.0, 1.0)),
        table((0, 1, 0), (2.0, 1.0, 1.0)),
        table((0, 1, 0), (1.0, 1.0, 2.0), (0, 0, 1)),
    ):
        with pytest.raises(InputError, match=r"row 2\b.*\ba\b"):
            check_tracks(bad, lambda row: f"row {row}")


# Any valid table

plain_names = st.text(
    st.characters(codec="utf-8", categories=("L", "N", "P", "S"), exclude_characters='/\\",'), min_size=1, max_size=12
).filter(lambda name: name not in (".", ".."))
hundredths = st.integers(0, 200_000)


@st.composite
def tables(draw) -> list[tuple[str, str, str, tuple[str, ...], str]]:
    """Rows (video, entity, timestamp, box, label) of some tracks, mixed so that each track's own order is kept."""
    entities = draw(st.lists(plain_names, min_size=1, max_size=5, unique=True))
    videos = draw(st.lists(plain_names, min_size=1, max_size=2, unique=True))
    tracks = []
    for entity in entities:
        video = draw(st.sampled_from(videos))
        times = sorted(draw(st.sets(hundredths, min_size=1, max_size=5)))
        corners = st.lists(st.integers(0, 10_000), min_size=2, max_size=2, unique=True).map(sorted)
        rows = []
        for time in times:
            text = draw(st.sampled_from([f"{time / 100:.2f}", str(time / 100), f"{time / 100:g}"[:9]]))
            text = text if float(text) == time / 100 else str(time / 100)
            (x1, x2), (y1, y2) = draw(corners), draw(corners)
            box = tuple(str(value / 10_000) for value in (x1, y1, x2, y2))
            rows.append((video, entity, text, box, draw(st.sampled_from(sorted(LABEL_IDS)))))
        tracks.append(rows)
    mixed = []
    while any(tracks):
        mixed.append(draw(st.sampled_from([rows for rows in tracks if rows])).pop(0))
    return mixed


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables())
def test_any_valid_table_is_read_as_it_is(tmp_path, rows):
    lines = [row(entity, time, label, video, box) for video, entity, time, box, label in rows]
    table = read(tmp_path, lines)
    assert names(table) == [(video, entity, float(time), LABEL_IDS[label]) for video, entity, time, box, label in rows]
    assert table.box.tolist() == [[float(x) for x in box] for *_, box, _ in rows]
    loud = {(video, float(time)) for video, _, time, _, label in rows if label == AUDIBLE}
    assert table.anyone_speaking.tolist() == [(video, float(time)) in loud for video, _, time, _, _ in rows]
    for entity, name in enumerate(table.entity_ids):
        mine = [i for i, fields in enumerate(rows) if fields[1] == name]
        assert table.rows_of_track(entity).tolist() == mine
        assert table.position[mine].tolist() == list(range(len(mine)))
        assert table.audio_start[entity] == float(rows[mine[0]][2])
    assert_same(read(tmp_path, augment(lines)), table)


# The real annotations


def test_a_file_of_ava_that_is_cut_off(test_data):
    path = test_data / "ava_csv" / "val" / "8nO5FFbIAog-activespeaker.csv"
    lines = path.read_bytes().count(b"\n")
    assert "cut off" in refusal(path, line=lines + 1)


@pytest.mark.parametrize("video", ["g1wyIcLPbq0", "rJKeqfTlAeY"])
def test_whole_files_of_ava(test_data, video):
    path = test_data / "ava_csv" / "val" / f"{video}-activespeaker.csv"
    table = read_annotations(path)
    lines = path.read_text().splitlines()
    assert len(table) == len(lines)
    assert [(v, e, t) for v, e, t, _ in names(table)] == [
        (fields[0], fields[7], float(fields[1])) for fields in (line.split(",") for line in lines)
    ]


def test_the_whole_train_set_of_ava(test_data, tmp_path):
    with tarfile.open(test_data / "ava_csv" / "train.tar.xz") as archive:
        for member in filter(tarfile.TarInfo.isfile, archive):
            member.name = Path(member.name).name
            archive.extract(member, tmp_path, filter="data")
    table = read_annotations(tmp_path)
    shutil.rmtree(tmp_path)  # 237 MB

    assert len(table) == 2_676_314
    assert len(table.video_ids) == 120
    assert len(table.entity_ids) == 29_723
    lengths = np.diff(table.track_offsets)
    assert (lengths.min(), np.median(lengths), lengths.max()) == (21, 65, 304)
    assert np.bincount(table.frame_id).max() == 28
    within = np.diff(table.entity[table.track_rows]) == 0
    steps = np.diff(table.timestamp[table.track_rows])[within]
    assert len(steps) == 2_676_314 - 29_723
    assert ((steps > 0.0299) & (steps < 0.0501)).mean() > 0.999
    np.testing.assert_array_equal(table.track_rows, np.arange(len(table)))  # tracks lie together in the files
