"""Damaged files and command lines: they are read correctly or refused in one line with file and line number.

Expected results are computed by oracle.py. fuzz_readers.py runs any number of random cases.
"""

import csv
import io
import random
from collections.abc import Callable
from pathlib import Path

import fuzz_readers
import numpy as np
import pytest
from fuzz_readers import (
    KINDS,
    NASTY,
    Trial,
    attempt,
    check_annotations,
    check_predictions,
    check_store,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import BOX, LABELS, OFFICIAL, PREDICTED, STORED, WIDTH

from core.formats.annotations import read_annotations
from core.runtime.errors import InputError

ROW = "talk,1,0.1,0.2,0.3,0.6,NOT_SPEAKING,a"
LATER = "talk,2,0.1,0.2,0.3,0.6,SPEAKING_AUDIBLE,a"
AUGMENTED = ",".join([*OFFICIAL, "label_id", "instance_id"])
STORE = (",".join(STORED), "talk,1,a,0,0,0", "talk,2,a,1,0,0")
PREDICTION = "a,1.0,-1.0401285886764526,0.25"
PREDICTED_ROW = ("talk", 1.0, "a")

quick = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
nasty_text = st.sampled_from([word.decode() for word in NASTY if word.isascii()] + ["é", "\uff11", "\u2028"])


@pytest.fixture
def trial(tmp_path) -> Trial:
    return Trial(tmp_path / "case", random.Random(0))


def lines(*rows: str) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


# Numbered cases

COUNTS = {"annotations": 50, "features": 60, "predictions": 40, "command_line": 60}


def assert_no_findings(what: str, numbers: range, directory: Path) -> None:
    results = {number: attempt(what, 7, number, directory / "case") for number in numbers}
    findings = [f"{what} {number}: {finding}" for number, (*_, finding) in results.items() if finding]
    assert not findings
    accepted = sum(accepted for _, accepted, _ in results.values())
    assert 0.1 < accepted / len(numbers) < 0.9  # both outcomes are tested


@pytest.mark.parametrize("what", COUNTS)
def test_numbered_cases(tmp_path, what):
    assert_no_findings(what, range(COUNTS[what]), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("what", COUNTS)
def test_more_numbered_cases(tmp_path, what):
    assert_no_findings(what, range(COUNTS[what], 20 * COUNTS[what]), tmp_path)


# Any text


@quick
@given(st.binary(max_size=200), st.sampled_from(["", AUGMENTED, ",".join(STORED), ",".join(PREDICTED)]))
def test_any_bytes(trial, data, head):
    data = head.encode() + b"\n" * bool(head) + data
    check_annotations(trial, {"faces.csv": data})
    check_store(trial, {"talk.csv": data})
    check_predictions(trial, {"talk.csv": data}, [PREDICTED_ROW])
    check_predictions(trial, {"scores.csv": data}, [PREDICTED_ROW])


good_field = {
    "video_id": st.sampled_from(["talk", "talk", "nan", "7"]),
    "frame_timestamp": st.integers(0, 500).map(lambda value: f"{value / 100:g}"),
    **dict.fromkeys(BOX[:2], st.integers(0, 499).map(lambda value: f"{value / 1000}")),
    **dict.fromkeys(BOX[2:], st.integers(500, 1000).map(lambda value: f"{value / 1000}")),
    "label": st.sampled_from(LABELS),
    "entity_id": st.sampled_from(["talk:1", "talk:2", "7", "007", "True"]),
}


@st.composite
def annotation_files(draw) -> bytes:
    """A file of a few rows with mostly valid fields, quoted by csv or not at all."""
    order = draw(st.permutations(OFFICIAL))
    header = draw(st.booleans())
    order = order if header else OFFICIAL
    rows = [[draw(good_field[name]) for name in order] for _ in range(draw(st.integers(1, 6)))]
    for _ in range(draw(st.integers(0, 2))):
        draw(st.sampled_from(rows))[draw(st.integers(0, 7))] = draw(nasty_text | st.text(max_size=5))
    table = [*([list(order)] if header else []), *rows]
    if draw(st.booleans()):
        draw(st.sampled_from(table)).append(draw(nasty_text))
    end = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    text = io.StringIO(newline="")
    if draw(st.booleans()):
        csv.writer(text, lineterminator=end, quoting=draw(st.sampled_from([0, 1]))).writerows(table)
    else:
        text.write("".join(",".join(row) + end for row in table))
    return (draw(st.sampled_from(["", "\ufeff", "\n"])) + text.getvalue()).encode("utf-8", "surrogatepass")


@quick
@given(annotation_files())
def test_any_fields_of_annotations(trial, data):
    check_annotations(trial, {"faces.csv": data})


numbers = (
    st.floats(0, 0.25).map(repr)
    | st.floats(0, 0.25).map(lambda value: f"{value:.30f}")
    | st.integers(0, 2500).map(lambda value: repr(float(np.nextafter(value / 10000, 1))))
    | st.from_regex(r"0?\.[0-4][0-9]{0,30}", fullmatch=True)
    | st.from_regex(r"[0-9]{1,20}(\.[0-9]{0,20})?[eE]-(2[2-9]|3[0-9])", fullmatch=True)
)


@quick
@given(st.lists(numbers, min_size=1, max_size=5), st.integers(0, 5))
def test_numbers_are_read_exactly(trial, texts, blank):
    """With a blank line between them."""
    rows = [f"talk,{index},{text},0,1,1,NOT_SPEAKING,a" for index, text in enumerate(texts)]
    rows.insert(min(blank, len(rows)), "")
    assert check_annotations(trial, {"faces.csv": lines(*rows)})


# Arrays

header_parts = st.tuples(
    st.sampled_from(["'<f4'", "'>f4'", "'<f8'", "'O'", "'<f4", "'f4'", "[('a', '<f4')]", "('<f4', (2,))", "[]"]),
    st.sampled_from(["False", "True", "0", "[]", "{[]: 1}"]),
    st.lists(st.sampled_from(["2", str(WIDTH), "0", "-1", "-2", "1", "2L", "True", "9" * 30, "()"]), max_size=3),
)


@quick
@given(header_parts, st.sampled_from([1, 2, 3, 0, 255]), st.sampled_from(["", " ", "(", "\\", "'", "é"]), st.booleans())
def test_any_header_of_an_array(trial, parts, version, prefix, right_length):
    descr, order, shape = parts
    text = f"{prefix}{{'descr': {descr}, 'fortran_order': {order}, 'shape': ({', '.join([*shape, ''])}), }}"
    text = text.encode("latin-1") + b"\n"
    length = (len(text) if right_length else 20).to_bytes(2 if version == 1 else 4, "little")
    array = b"\x93NUMPY" + bytes([version, 0]) + length + text + np.arange(2 * WIDTH, dtype="<f4").tobytes()
    check_store(trial, {"talk.csv": lines(*STORE), "talk.npy": array})


# Predictions

key = st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["1", "1.0", "1.04", "-0.0", "0"]), st.sampled_from("xy"))


@quick
@given(st.lists(key, min_size=1, max_size=6), st.sets(st.integers(0, 6)), st.lists(key, max_size=1))
def test_predictions_are_joined_or_refused(trial, predicted, unwanted, more):
    """By video, time as a number, and entity. Each row of the ground truth occurs once."""
    wanted = [row for index, row in enumerate(predicted) if index not in unwanted or index == 0] + more
    truth = list(dict.fromkeys((video, float(text), name) for video, text, name in wanted))
    files = {}
    for index, (video, text, name) in enumerate(predicted):
        files[f"{video}.csv"] = files.get(f"{video}.csv", b"") + lines(f"{name},{text},{index},0.5")
    check_predictions(trial, files, truth)


# Files that were once read incorrectly

FILES = {  # description: (file name, content, valid)
    "field too long for csv": ("faces.csv", lines("v" * 200_000 + ROW[4:]), False),
    "field too long in a later line": ("faces.csv", lines(ROW, LATER.replace("talk", "v" * 200_000)), False),
    "name of an archive": ("faces.csv.zip", lines(ROW, LATER), True),
    "name of a compressed file": ("faces.csv.xz", lines(ROW, LATER), True),
    "True alone in a column of numbers": ("faces.csv", lines(ROW.replace(",1,", ",True,")), False),
    "False in a box": ("faces.csv", lines(ROW.replace("0.1", "False"), LATER.replace("0.1", "False")), False),
    "number of 30 digits": ("faces.csv", lines(ROW.replace(",1,", f",{'1' * 30},")), True),
    "digits that are not ASCII": ("faces.csv", lines(ROW, LATER.replace(",2,", ",\uff12,")), False),
    "space that is not ASCII": ("faces.csv", lines(ROW, LATER.replace(",2,", ",2\xa0,")), False),
    "line end in the header": ("faces.csv", lines('video_id,frame_timestamp,"label', ROW), False),
    "one column too few, then one too many": ("faces.csv", lines(AUGMENTED, f"{ROW},0", f"{LATER},1,a:0,more"), False),
    "blank line and many digits": ("faces.csv", lines(ROW, "", LATER.replace("0.1", "0.1000000000001")), True),
    "line of quoted blanks": ("faces.csv", lines(ROW, '"  "', LATER), False),
    "line of an empty quoted field": ("faces.csv", lines(ROW, '""', LATER), False),
    "carriage return as a line end": ("faces.csv", lines(f"{ROW}\r{LATER}", "", ROW), False),
    "timestamps far apart": ("faces.csv", lines(ROW.replace(",1,", ",-1e308,"), LATER.replace(",2,", ",1e308,")), True),
}


@pytest.mark.parametrize(("name", "data", "valid"), FILES.values(), ids=FILES)
def test_annotations_once_read_incorrectly(trial, name, data, valid):
    assert check_annotations(trial, {name: data}) == valid


def test_a_boolean_in_a_later_chunk_is_refused(tmp_path):
    """pandas converts these files in chunks of 65,536 rows, and a column of nothing but True to ones."""
    rows = [f"talk,{time},0,0,1,1,NOT_SPEAKING,a" for time in range(65_536)]
    (tmp_path / "faces.csv").write_bytes(lines(*rows, ROW.replace(",1,", ",True,")))
    with pytest.raises(InputError, match=r"faces\.csv, line 65537: frame_timestamp is 'True', not a number"):
        read_annotations(tmp_path / "faces.csv")


@pytest.mark.parametrize("value", ["true", "null", '""1""', "1e39", "[1]", "NaN", "1_0", "0x1", ""])
def test_released_features_that_are_not_numbers(trial, value):
    row, good = "talk,1,a,0,0,0,", ["0.5"] * (WIDTH - 1)
    assert check_store(trial, {"talk.csv": lines(f'{row}"[{", ".join([*good, "1e-9"])}]"')})
    assert not check_store(trial, {"talk.csv": lines(f'{row}"[{", ".join([*good, value])}]"')})


# Tests of these tests


def wrong_labels(path: Path):
    table = read_annotations(path)
    table.label[:] = 2
    return table


def any_label(path: Path):
    path.write_bytes(path.read_bytes().replace(b"LOUD", b"SPEAKING_AUDIBLE"))
    return read_annotations(path)


def refusing(message: str) -> Callable:
    def read(path: Path):
        raise InputError(message.format(path=path))

    return read


def failing(path: Path):
    raise KeyError("x")


INVALID = LATER.replace("SPEAKING_AUDIBLE", "LOUD")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "reader", "finding"),
    [
        (LATER, wrong_labels, "wrong row"),
        (LATER, failing, "KeyError"),
        (LATER, refusing("{path}, line 2: no"), "refuses a valid file"),
        (INVALID, any_label, "accepts an error (value): faces.csv, line 2"),
        (INVALID, refusing("{path}: no"), "no line number"),
        (INVALID, refusing("{path}, line 1: no"), "wrong line number"),
        (INVALID, refusing("faces.csv, line 2: no"), "without the name"),
        (INVALID, refusing("{path}, line 2:\nno"), "more than one line"),
        (INVALID, read_annotations, ""),
        (LATER, read_annotations, ""),
    ],
)
def test_wrong_readers_are_found(tmp_path, monkeypatch, second, reader, finding):
    monkeypatch.setattr(fuzz_readers, "read_annotations", reader)
    monkeypatch.setitem(KINDS, "annotations", lambda trial: check_annotations(trial, {"faces.csv": lines(ROW, second)}))
    _, accepted, found = attempt("annotations", 0, 0, tmp_path / "case")
    assert finding in found
    assert bool(finding) == bool(found)
    assert accepted == (not finding and second == LATER)
