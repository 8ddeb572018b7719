"""Damaged files: they are read correctly or refused in one line with file and line number.

Expected results are computed by oracle.py. fuzz_readers.py runs any number of random cases.
"""

import random

import numpy as np
import pytest
from fuzz_readers import (
    KINDS,
    Trial,
    attempt,
    check_annotations,
    check_predictions,
    check_store,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import OFFICIAL, PREDICTED, STORED, WIDTH

from core.formats.annotations import read_annotations
from core.runtime.errors import InputError

ROW = "talk,1,0.1,0.2,0.3,0.6,NOT_SPEAKING,a"
LATER = "talk,2,0.1,0.2,0.3,0.6,SPEAKING_AUDIBLE,a"
AUGMENTED = ",".join([*OFFICIAL, "label_id", "instance_id"])
PREDICTED_ROW = ("talk", 1.0, "a")

quick = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def trial(tmp_path) -> Trial:
    return Trial(tmp_path / "case", random.Random(0))


def lines(*rows: str) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


@pytest.mark.parametrize("what", KINDS)
def test_numbered_cases(tmp_path, what):
    results = [attempt(what, 7, number, tmp_path / "case") for number in range(100)]
    assert [finding for _, finding in results if finding] == []
    accepted = sum(accepted for accepted, _ in results)
    assert 10 < accepted < 90  # both outcomes are tested


@quick
@given(st.binary(max_size=200), st.sampled_from(["", AUGMENTED, ",".join(STORED), ",".join(PREDICTED)]))
def test_any_bytes(trial, data, head):
    data = head.encode() + b"\n" * bool(head) + data
    check_annotations(trial, {"faces.csv": data})
    check_store(trial, {"talk.csv": data})
    check_predictions(trial, {"talk.csv": data}, [PREDICTED_ROW])
    check_predictions(trial, {"scores.csv": data}, [PREDICTED_ROW])


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


CODE = pytest.param("__import__('os').mkdir('run')", id="code")
NESTED = pytest.param("[" * 5000, id="nested")


@pytest.mark.parametrize("value", ["true", "null", '""1""', "1e39", "[1]", "NaN", "1_0", "0x1", "", CODE, NESTED])
def test_released_features_that_are_not_numbers(trial, value):
    row, good = "talk,1,a,0,0,0,", ["0.5"] * (WIDTH - 1)
    assert check_store(trial, {"talk.csv": lines(f'{row}"[{", ".join([*good, "1e-9"])}]"')})
    assert not check_store(trial, {"talk.csv": lines(f'{row}"[{", ".join([*good, value])}]"')})
