"""Annotations: official and augmented files give the same table; invalid files are refused with file and line.

`test_bad_input.py` compares the reader with a plain one on many more files.
"""

import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import row, write_lines

from core.formats.annotations import FaceTable, find_annotations, read_annotations
from core.runtime.errors import InputError

HEADER = (
    "video_id,frame_timestamp,entity_box_x1,entity_box_y1,entity_box_x2,entity_box_y2,label,entity_id,label_id,"
    "instance_id"
)
LABEL_IDS = {"NOT_SPEAKING": 0, "SPEAKING_AUDIBLE": 1, "SPEAKING_NOT_AUDIBLE": 2}
SILENT, AUDIBLE, NOT_AUDIBLE = LABEL_IDS


def augment(official: list[str]) -> list[str]:
    """Lines of the augmented file: timestamps as floats, label_id, and numbered stretches of one label."""
    lines, stretches = [HEADER], {}
    for line in official:
        fields = line.split(",")
        fields[1] = str(float(fields[1]))
        label, entity = fields[6], fields[7]
        last, count = stretches.get(entity, (label, 0))
        stretches[entity] = (label, count + (label != last))
        lines.append(",".join([*fields, str(LABEL_IDS[label]), f"{entity}:{stretches[entity][1]}"]))
    return lines


VIDEOS = {
    "alpha": [
        row("alpha:1", "1299", AUDIBLE, "alpha"),
        row("alpha:1", "1299.04", AUDIBLE, "alpha", ("0", "0", "1", "1")),
        row("alpha:2", "1299.04", NOT_AUDIBLE, "alpha", ("0.123456", "0.5", "0.654321", "0.999")),
        row("alpha:1", "1299.1", SILENT, "alpha"),
        row("alpha:2", "1299.1", SILENT, "alpha"),
        row("alpha:2", "1300", NOT_AUDIBLE, "alpha"),
    ],
    "beta": [row("beta:1", "1299", NOT_AUDIBLE, "beta"), row("beta:1", "1299.04", SILENT, "beta")],
}
LINES = [line for lines in VIDEOS.values() for line in lines]


def assert_equal(one: FaceTable, two: FaceTable) -> None:
    assert (one.video_ids, one.entity_ids) == (two.video_ids, two.entity_ids)
    for name in ("video", "entity", "timestamp", "label", "box", "audio_start", "anyone_speaking", "frame_id"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


def rows_of(table: FaceTable) -> list[tuple[str, str, float, int]]:
    """(video, entity, timestamp, label) of each row."""
    videos, entities = np.array(table.video_ids)[table.video], np.array(table.entity_ids)[table.entity]
    columns = (videos, entities, table.timestamp, table.label)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def read(tmp_path: Path, lines: list[str], end: str = "\n") -> FaceTable:
    return read_annotations(write_lines(tmp_path / "faces.csv", lines, end))


# Valid files


@pytest.fixture
def csv_dir(tmp_path) -> Path:
    """csv/val/<video>-activespeaker.csv of two videos, and their augmented file."""
    directory = tmp_path / "csv"
    for video, lines in VIDEOS.items():
        write_lines(directory / "val" / f"{video}-activespeaker.csv", lines)
    write_lines(directory / "ava_activespeaker_val_augmented.csv", augment(LINES))
    return directory


def test_table_of_an_official_file(csv_dir):
    table = read_annotations(csv_dir / "val" / "alpha-activespeaker.csv")
    assert rows_of(table) == [
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
    assert table.track_video().tolist() == [0, 0]
    assert table.is_speaking.tolist() == [True, True, False, False, False, False]
    assert table.anyone_speaking.tolist() == [True, True, True, False, False, False]


def test_all_forms_give_equal_tables(csv_dir):
    augmented = read_annotations(csv_dir / "ava_activespeaker_val_augmented.csv")
    directory = read_annotations(csv_dir / "val")
    official = read_annotations(write_lines(csv_dir / "all-activespeaker.csv", LINES))
    assert len(augmented) == 8
    assert_equal(augmented, directory)
    assert_equal(official, directory)


def test_directory_is_read_instead_of_a_missing_augmented_file(csv_dir):
    path = csv_dir / "ava_activespeaker_val_augmented.csv"
    with_file = read_annotations(path)
    path.unlink()
    assert find_annotations(path) == [csv_dir / "val" / f"{video}-activespeaker.csv" for video in VIDEOS]
    assert_equal(read_annotations(path), with_file)


@pytest.mark.parametrize("name", ["ava_activespeaker_train_augmented.csv", "val_augmented.csv", "nothing"])
def test_missing_files_are_named(csv_dir, name):
    with pytest.raises(InputError, match=re.escape(str(csv_dir / name))):
        read_annotations(csv_dir / name)


def test_rows_keep_the_order_of_the_file(tmp_path):
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
    assert [(video, entity, time) for video, entity, time, _ in rows_of(table)] == [
        ("two", "z", 5), ("one", "a", 1), ("two", "y", 5), ("one", "a", 2), ("two", "z", 6), ("two", "y", 6),
        ("one", "b", 1),
    ]  # fmt: skip
    assert (table.video_ids, table.entity_ids) == (["two", "one"], ["z", "a", "y", "b"])
    assert table.position.tolist() == [0, 0, 0, 1, 1, 1, 0]
    assert [table.rows_of_track(entity).tolist() for entity in range(4)] == [[0, 4], [1, 3], [2, 5], [6]]
    assert [table.rows_of_video(video).tolist() for video in range(2)] == [[0, 2, 4, 5], [1, 3, 6]]


def test_ids_are_never_converted(tmp_path):
    """Not even if a column has nothing but numbers, of which some are equal."""
    ids = ["-5KQ66BBWC4_0900_0960:1", "_a", "a b", "\u00e4\u5b57", "a.b.c", "...a", "a'b", "nan", "True", "1e5"]
    for names in (ids, ["7", "07", "7.0", "7e0", "007"]):
        table = read(tmp_path, [row(name, time, video=name) for time in (1, 2) for name in names])
        assert table.video_ids == table.entity_ids == names


# Values derived from rows


def test_rows_of_a_frame_share_a_frame_id(tmp_path):
    """Equal timestamps of two videos are two frames, also if one video ends at the timestamp that another starts at."""
    lines = [row(video, 900, AUDIBLE if video == "b" else SILENT, video) for video in "abc"]
    lines += [row("a", "901.0", video="a"), row("a2", 901, video="a"), row("d", 901, video="d")]
    table = read(tmp_path, lines)
    frames = [(line.split(",")[0], float(line.split(",")[1])) for line in lines]
    same = table.frame_id[:, None] == table.frame_id
    np.testing.assert_array_equal(same, [[one == two for two in frames] for one in frames])
    assert table.frame_id.max() == 4
    assert table.anyone_speaking.tolist() == [False, True, False, False, False, False]


def test_selected_rows_keep_values_of_the_full_table(tmp_path):
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
        assert rows_of(kept) == [("video", "a", time, 0) for time in (1.0, 2.0, 3.0)]
        assert kept.anyone_speaking.tolist() == [True, False, True]
    late = table.keep(np.array([2, 3, 4]))
    assert rows_of(late) == [("video", "a", 2.0, 0), ("video", "b", 2.0, 0), ("video", "a", 3.0, 0)]
    assert late.audio_start.tolist() == [1.0, 1.0, 3.0]  # start of the wavs of a, b and c
    assert late.position.tolist() == [0, 0, 1]
    assert late.rows_of_track(0).tolist() == [0, 2]
    assert late.rows_of_track(2).tolist() == []
    assert late.track_video().tolist() == [0, 0, -1]
    assert late.box.shape == (3, 4)
    assert len(table) == 6 and table.position.tolist() == [0, 0, 1, 1, 2, 0]  # unchanged


# Invalid files

GOOD = [row("a", 1), row("b", 1), row("a", 2), row("b", 2)]


def refusal(path: Path, line: int | None = None) -> str:
    """Return the error message of a file. It must start with the file, and the line if one is given."""
    with pytest.raises(InputError) as error:
        read_annotations(path)
    message = str(error.value)
    assert re.match(re.escape(str(path)) + ("" if line is None else rf", line {line}\b"), message), message
    assert "\n" not in message
    return message


BROKEN_LINES = {
    "seven columns": ",".join(row("c", 1).split(",")[:7]),
    "nine columns": row("c", 1) + ",1",
    "box below 0": row("c", 1, box=("-0.1", "0.2", "0.3", "0.6")),
    "y1 > y2": row("c", 1, box=("0.1", "0.7", "0.3", "0.6")),
    "NaN in the box": row("c", 1, box=("nan", "0.2", "0.3", "0.6")),
    "infinite timestamp": row("c", "1e999"),
    "unknown label": row("c", 1, "SPEAKING"),
    "duplicate timestamp": row("a", "1.00"),
    "decreasing timestamp": row("a", 0.96),
    "track in another video": row("a", 1.5, video="other"),
    "entity with slashes": row("../x", 1),
    "entity ..": row("..", 1),
    "empty entity": row("", 1),
    "entity with NUL": row("a\0b", 1),
    "entity of 300 characters": row("x" * 300, 1),
    "video with a control character": row("c", 1, video="a\x1b[2J"),
}


@pytest.mark.parametrize("line", BROKEN_LINES.values(), ids=BROKEN_LINES)
def test_broken_lines_are_refused_with_their_number(tmp_path, line):
    lines = [*GOOD[:2], line, *GOOD[2:]]
    refusal(write_lines(tmp_path / "faces.csv", lines), line=3)
    refusal(write_lines(tmp_path / "faces.csv", [HEADER, *(f"{x},0,i:0" for x in lines)]), line=4)


def test_the_invalid_file_of_a_directory_is_named(tmp_path):
    """Wavs and crops are named after the entity, so an entity must not be in two videos."""
    write_lines(tmp_path / "a-activespeaker.csv", [row("x", 1, video="a")])
    path = write_lines(tmp_path / "b-activespeaker.csv", [row("y", 1, video="b"), row("x", 2, video="b")])
    with pytest.raises(InputError) as error:
        read_annotations(tmp_path)
    assert str(error.value) == f"{path}, line 2: entity x is also in video a"


@pytest.mark.parametrize("cut", [2, 5, 30])
def test_truncated_files_are_refused(tmp_path, cut):
    path = write_lines(tmp_path / "faces.csv", [row("talk:1", 1), row("talk:1", 2)])
    path.write_bytes(path.read_bytes()[:-cut])
    assert "truncated" in refusal(path, line=2)


FILES = {
    "empty": b"",
    "header only": HEADER.encode() + b"\n",
    "utf-16": row("a", 1).encode("utf-16") + b"\n",
    "one long line": b"x" * 3_000_000 + b"\n",
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_files_without_a_table_are_refused(tmp_path, content):
    path = tmp_path / "faces.csv"
    path.write_bytes(content)
    refusal(path)


def test_missing_and_duplicate_columns_are_named(tmp_path):
    for column in set(HEADER.split(",")[1:8]) - {"label"}:
        path = write_lines(tmp_path / "faces.csv", [HEADER.replace(column, "other"), *augment(GOOD)[1:]])
        assert column in refusal(path, line=1)
    refusal(write_lines(path, [HEADER.replace("video_id", "other"), *augment(GOOD)[1:]]), line=1)
    assert "duplicate" in refusal(write_lines(path, [HEADER.replace("label_id", "label"), *augment(GOOD)[1:]]), line=1)


# Files of AVA


def test_a_truncated_file_of_ava(test_data):
    path = test_data / "ava_csv" / "val" / "8nO5FFbIAog-activespeaker.csv"
    lines = path.read_bytes().count(b"\n")
    assert "truncated" in refusal(path, line=lines + 1)


@pytest.mark.parametrize("video", ["g1wyIcLPbq0", "rJKeqfTlAeY"])
def test_whole_files_of_ava(test_data, video):
    path = test_data / "ava_csv" / "val" / f"{video}-activespeaker.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    expected = [(fields[0], fields[7], float(fields[1]), LABEL_IDS[fields[6]]) for fields in rows]
    assert rows_of(read_annotations(path)) == expected


@pytest.mark.slow
def test_the_train_set_of_ava(test_data, tmp_path):
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
    same_track = np.diff(table.entity[table.track_rows]) == 0
    intervals = np.diff(table.timestamp[table.track_rows])[same_track]
    assert len(intervals) == 2_676_314 - 29_723
    assert ((intervals > 0.0299) & (intervals < 0.0501)).mean() > 0.999
    np.testing.assert_array_equal(table.track_rows, np.arange(len(table)))  # the rows of a track are adjacent
