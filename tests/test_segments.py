"""From scores to what is written of them: segments, csv, json, rttm, boxes in frames and the picture of all tracks."""

import copy
import itertools
import json
import re
import statistics
import warnings
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from core.detection.overlay import SILENT, SPEAKING, colour, mark_face, marked_frames, visible_rows
from core.detection.segments import (
    Segment,
    describe_tracks,
    row_interval,
    segments,
    short_name,
    write_rttm,
    write_tracks,
)
from core.detection.timeline import LANES, plot_timeline
from core.formats.annotations import FaceTable, read_annotations
from core.formats.predictions import read_scores
from core.runtime.errors import InputError

FRAME = (640, 360)  # width, height
BOX = (0.25, 0.25, 0.5, 0.75)


def make_table(*tracks: tuple[str, list[float]], video: str = "film", boxes: list | None = None) -> FaceTable:
    """Names and times of tracks; every row has the same box where none are given."""
    entity = np.repeat(np.arange(len(tracks), dtype=np.int32), [len(times) for _, times in tracks])
    times = np.array([time for _, own in tracks for time in own], float)
    box = np.array(boxes if boxes is not None else [BOX] * len(times), float).reshape(-1, 4)
    label, film = np.zeros(len(times), np.int8), np.zeros(len(times), np.int32)
    return FaceTable([video], [name for name, _ in tracks], film, entity, times, label, box)


def at(count: int, first: float = 0.0, step: float = 0.04) -> list[float]:
    return [round(first + step * index, 2) for index in range(count)]


# Segments


@pytest.mark.parametrize(
    ("times", "scores", "expected"),
    [
        (at(4), [0.1, 0.2, 0.3, 0.4], []),
        (at(4), [0.6, 0.7, 0.8, 0.9], [(0, 0.16, 0.75)]),
        (at(6, 1), [0.1, 0.5, 0.7, 0.4, 0.9, 0.2], [(1.04, 1.12, 0.6), (1.16, 1.20, 0.9)]),
        (at(6, 1), [0.6, 0.1, 0.1, 0.1, 0.1, 0.8], [(1.0, 1.04, 0.6), (1.2, 1.24, 0.8)]),
        ([*at(3), *at(3, 1)], [0.9] * 6, [(0, 0.12, 0.9), (1.0, 1.12, 0.9)]),  # out of sight
        ([*at(3), *at(3, 0.16)], [0.9] * 6, [(0, 0.28, 0.9)]),  # a row is missing, which is no gap
        ([*at(3), *at(3, 1)], [0.9, 0.9, 0.1, 0.1, 0.9, 0.9], [(0, 0.08, 0.9), (1.04, 1.12, 0.9)]),
        (
            [0, 0.03, 0.06, 1, 2],
            [0.9, 0.1, 0.9, 0.1, 0.1],
            [(0, 0.03, 0.9), (0.06, 0.545, 0.9)],
        ),  # a row ends with the next
        ([5.0], [0.9], [(5.0, 5.04, 0.9)]),
        ([5.0], [0.4], []),
        ([], [], []),
    ],
)
def test_segments_by_hand(times, scores, expected):
    found = segments(np.array(times, float), np.array(scores, float), 0.5)
    assert [(part.start, part.end) for part in found] == [part[:2] for part in expected]
    assert [part.score for part in found] == pytest.approx([part[2] for part in expected])


def plain_segments(times: list[float], scores: list[float], threshold: float) -> list[Segment]:
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    step = statistics.median(steps) if steps else 0.04
    groups: list[list[int]] = []
    for row, score in enumerate(scores):
        if score < threshold:
            continue
        goes_on = groups and groups[-1][-1] == row - 1 and times[row] - times[row - 1] <= 2 * step
        groups[-1].append(row) if goes_on else groups.append([row])
    ends = [min(time + step, later) for time, later in zip(times, [*times[1:], float("inf")], strict=True)]
    return [
        Segment(round(times[rows[0]], 3), round(ends[rows[-1]], 3), statistics.fmean(scores[r] for r in rows))
        for rows in groups
    ]


@given(
    st.lists(st.tuples(st.sampled_from([3, 4, 4, 4, 8, 9, 100]), st.floats(0, 1)), min_size=1, max_size=30),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_segments_as_a_plain_loop_finds_them(rows, threshold):
    times = (np.cumsum([gap for gap, _ in rows]) / 100).tolist()
    scores = [score for _, score in rows]
    found = segments(np.array(times, float), np.array(scores, float), threshold)
    expected = plain_segments(times, scores, threshold)
    assert [(part.start, part.end) for part in found] == [(part.start, part.end) for part in expected]
    assert [part.score for part in found] == pytest.approx([part.score for part in expected])
    assert all(part.score >= threshold for part in found)
    assert all(one.end <= two.start for one, two in itertools.pairwise(found))


def test_step_of_a_track():
    assert row_interval(np.array([0.0, 0.04, 0.08, 3.0])) == pytest.approx(0.04)
    assert row_interval(np.array([3.0])) == 0.04


@pytest.mark.parametrize(
    ("video", "entity", "short"),
    [
        ("film", "film:1", "1"),
        ("film", "film_a:2", "a:2"),
        ("film", "anna", "anna"),
        ("film", "film", "film"),
        ("a", "b:a", "b:a"),
    ],
)
def test_short_names(video, entity, short):
    assert short_name(make_table((entity, [0.0]), video=video), 0) == short


# speakers.json

SETTINGS = {
    **{"threshold": 0.5, "smoothing": 11, "clip_length": 11, "clips": 11, "time_stride": 4, "speakers": 3},
    **{"precision": "fp32", "seed": 0, "ste_weights_sha256": "0" * 64, "asc_weights_sha256": "a" * 64},
    "face_detector_sha256": "f" * 64,
}
VIDEO = {
    **{"id": "film", "file": "film.mp4", "seconds": 6.04, "frame_rate": 29.97, "width": 640, "height": 360},
    **{"rows_per_second": 29.97, "cuts": [0.5, 3]},
}


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    content = json.loads((ROOT / "docs" / "speakers.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


def document(tracks: list[dict]) -> dict:
    return {"schema_version": 1, "video": VIDEO, "settings": SETTINGS, "tracks": tracks}


def test_what_is_said_of_a_track(schema):
    """Boxes in pixels of the frame, spans and segments in seconds."""
    boxes = [(0.1, 0.1, 0.2, 0.3), (0.1, 0.1, 0.3, 0.5), (0.1, 0.1, 0.15, 0.2), *[BOX] * 2]
    table = make_table(("film:1", at(3, 2)), ("lost", []), ("b b", at(2, 1)), boxes=boxes)
    scores = np.array([0.9, 0.7, 0.1, 0.2, 0.3])
    found = describe_tracks(table, scores, 0.5, FRAME)
    assert found == [
        {
            **{"id": "film:1", "start": 2.0, "end": 2.12, "rows": 3, "box_width": 64.0, "box_height": 72.0},
            **{"mean_score": 0.566667, "speaking_seconds": 0.08},
            "speaking": [{"start": 2.0, "end": 2.08, "mean_score": 0.8}],
        },
        {
            **{"id": "b b", "start": 1.0, "end": 1.08, "rows": 2, "box_width": 160.0, "box_height": 180.0},
            **{"mean_score": 0.25, "speaking_seconds": 0, "speaking": []},
        },
    ]
    schema.validate(document(found))


tracks = st.lists(st.lists(st.integers(0, 500), min_size=1, max_size=12, unique=True).map(sorted), max_size=4)


@given(tracks, st.data(), st.sampled_from([0.0, 0.5, 1.0]))
def test_whatever_is_said_of_tracks_keeps_to_the_schema(schema, spans, data, threshold):
    table = make_table(*((f"film:{n}", [t / 25 for t in times]) for n, times in enumerate(spans)))
    scores = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(table), max_size=len(table))), float)
    found = describe_tracks(table, scores, threshold, FRAME)
    schema.validate(json.loads(json.dumps(document(found))))
    for track in found:
        assert track["start"] <= track["end"]
        for part in track["speaking"]:
            assert track["start"] <= part["start"] <= part["end"] <= track["end"]
        assert track["speaking_seconds"] == pytest.approx(sum(p["end"] - p["start"] for p in track["speaking"]))


def places(content: object, path: tuple = ()) -> list[tuple]:
    """The way to every value of a document."""
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        return [place for key, value in items for place in [(*path, key), *places(value, (*path, key))]]
    return []


def test_the_schema_refuses_what_is_broken(schema):
    table = make_table(("film:1", at(3)), ("film:2", at(3)))
    whole = document(describe_tracks(table, np.full(6, 0.75), 0.5, FRAME))
    assert schema.is_valid(whole)
    assert schema.is_valid({**whole, "settings": {**SETTINGS, "face_detector_sha256": None}})
    assert len(places(whole)) > 40
    for way in places(whole):
        for change in ("missing", "wrong"):
            broken = copy.deepcopy(whole)
            at_place = broken
            for key in way[:-1]:
                at_place = at_place[key]
            if change == "missing":
                if isinstance(at_place, list):
                    continue
                del at_place[way[-1]]
            else:
                at_place[way[-1]] = {"?": 1}
            assert not schema.is_valid(broken), (way, change)
    for way, value in (
        (("schema_version",), 2),
        (("more",), 1),
        (("video", "more"), 1),
        (("video", "seconds"), 0),
        (("video", "cuts"), [-1.0]),
        (("video", "rows_per_second"), 12),
        (("settings", "precision"), "fp16"),
        (("settings", "threshold"), 1.5),
        (("settings", "ste_weights_sha256"), "0" * 63),
        (("settings", "asc_weights_sha256"), None),
        (("settings", "face_detector_sha256"), "squares"),
        (("tracks", 0, "mean_score"), 1.01),
        (("tracks", 0, "rows"), 0),
        (("tracks", 1, "id"), ""),
        (("tracks", 1, "box_width"), 0),
        (("tracks", 1, "more"), 1),
        (("tracks", 1, "speaking", 0, "mean_score"), -0.1),
        (("tracks", 1, "speaking", 0, "more"), "x"),
    ):
        broken = copy.deepcopy(whole)
        at_place = broken
        for key in way[:-1]:
            at_place = at_place[key]
        at_place[way[-1]] = value
        assert not schema.is_valid(broken), way


def test_the_schema_says_what_everything_is(schema):
    """Nothing is let through that it does not name, and every object lists what it must have."""

    def objects(part: object) -> list[dict]:
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
        return [found for value in inner for found in objects(value)] + (
            [part] if isinstance(part, dict) and part.get("type") == "object" else []
        )

    found = objects(schema.schema)
    assert len(found) == 5
    for part in found:
        assert part["additionalProperties"] is False
        assert sorted(part["required"]) == sorted(part["properties"])


# speakers.rttm


def test_rttm(tmp_path):
    table = make_table(("a b:1", at(5, 2)), ("a b:2\t", at(5)), video="a b")
    scores = np.array([0.9, 0.1, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.6, 0.6])
    write_rttm(tmp_path / "x.rttm", "a b", describe_tracks(table, scores, 0.5, FRAME))
    assert (tmp_path / "x.rttm").read_bytes().decode() == (
        "SPEAKER a_b 1 0.120 0.080 <NA> <NA> a_b:2_ <NA> <NA>\n"
        "SPEAKER a_b 1 2.000 0.040 <NA> <NA> a_b:1 <NA> <NA>\n"
        "SPEAKER a_b 1 2.080 0.120 <NA> <NA> a_b:1 <NA> <NA>\n"
    )


def test_rttm_of_nobody(tmp_path):
    write_rttm(tmp_path / "x.rttm", "film", describe_tracks(make_table(("a", at(3))), np.zeros(3), 0.5, FRAME))
    assert (tmp_path / "x.rttm").read_bytes() == b""


@given(tracks, st.data())
def test_rttm_says_what_the_json_says(tmp_path_factory, spans, data):
    path = tmp_path_factory.getbasetemp() / "property.rttm"
    table = make_table(*((f"fi lm:{n}", [t / 25 for t in times]) for n, times in enumerate(spans)), video="fi lm")
    scores = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(table), max_size=len(table))), float)
    found = describe_tracks(table, scores, 0.5, FRAME)
    write_rttm(path, "fi lm", found)
    lines = [line.split(" ") for line in path.read_text().splitlines()]
    assert all(len(line) == 10 and line[:3] == ["SPEAKER", "fi_lm", "1"] for line in lines)
    starts = [float(line[3]) for line in lines]
    assert starts == sorted(starts)
    said = sorted((float(line[3]), float(line[4]), line[7]) for line in lines)
    parts = [(part, track["id"].replace(" ", "_")) for track in found for part in track["speaking"]]
    expected = sorted((part["start"], part["end"] - part["start"], name) for part, name in parts)
    assert [(line[0], line[2]) for line in said] == [(line[0], line[2]) for line in expected]
    assert [line[1] for line in said] == pytest.approx([line[1] for line in expected], abs=5e-4)


# tracks.csv


@pytest.mark.parametrize("video", ["film", "a film, 50 %", 'with "quotes"', "-dash", "\u00e4\u6587"])
def test_tracks_are_annotations_and_scores(tmp_path, video):
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((7, 2, 2)), axis=1).reshape(7, 4)  # x1 y1 x2 y2
    table = make_table((f"{video}:1", at(4, 7.04)), ("anna", at(3)), video=video, boxes=corners.tolist())
    scores = np.array([0.5, 0.49999, 1 / 3, 1.0, 0.0, 1e-17, 0.75])
    write_tracks(tmp_path / "tracks.csv", table, scores, 0.5)
    assert (tmp_path / "tracks.csv").read_text().splitlines()[0] == (
        "video_id,frame_timestamp,entity_box_x1,entity_box_y1,entity_box_x2,entity_box_y2,label,entity_id,score"
    )
    again = read_annotations(tmp_path / "tracks.csv")
    assert (again.video_ids, again.entity_ids) == (table.video_ids, table.entity_ids)
    for name in ("video", "entity", "timestamp", "box"):
        assert (getattr(again, name) == getattr(table, name)).all()
    assert again.label.tolist() == [1, 0, 0, 1, 0, 0, 1]
    read = read_scores(tmp_path / "tracks.csv")
    assert read["score"].tolist() == scores.tolist()
    assert read["entity_id"].tolist() == [f"{video}:1"] * 4 + ["anna"] * 3


def test_tracks_of_nobody_are_a_header(tmp_path):
    write_tracks(tmp_path / "tracks.csv", make_table(), np.empty(0), 0.5)
    assert len((tmp_path / "tracks.csv").read_text().splitlines()) == 1
    with pytest.raises(InputError, match="no rows"):
        read_annotations(tmp_path / "tracks.csv")


# Boxes in frames


def test_colours_go_from_red_to_green():
    assert colour(0.0) == tuple(SILENT)
    assert colour(1.0) == tuple(SPEAKING)
    blue, green, red = zip(*map(colour, np.linspace(0, 1, 11)), strict=True)
    assert list(green) == sorted(green)
    assert list(red) == sorted(red, reverse=True)
    assert (green[0], red[-1]) < (100, 100) < (green[-1], red[0])
    assert all(0 <= value <= 255 and isinstance(value, int) for value in (*blue, *green, *red))


def drawn_pixels(image: np.ndarray) -> np.ndarray:
    """(H, W) where a black image was drawn into."""
    return image.any(axis=2)


@pytest.mark.parametrize("size", [(640, 360), (360, 640), (1920, 1080), (160, 120)])
@pytest.mark.parametrize("score", [0.0, 0.37, 1.0])
def test_a_box_is_drawn_where_it_belongs(size, score):
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    mark_face(image, np.array(BOX), score, "1")
    left, top, right, bottom = width // 4, height // 4, width // 2, height * 3 // 4
    middle = (top + bottom) // 2
    for y, x in ((middle, left), (middle, right), (bottom, (left + right) // 2), (top, right - 3)):
        assert np.abs(image[y, x].astype(int) - colour(score)).max() <= 20, (y, x)
    inside = drawn_pixels(image)[top + 8 : bottom - 8, left + 8 : right - 8]
    assert not inside.any()
    thick = max(1, round(min(size) / 240))
    outside = drawn_pixels(image).copy()
    outside[: bottom + 2 * thick, left - 2 * thick : right + 2 * thick] = False
    assert outside[bottom:].sum() == 0
    assert outside[:, : left - 2 * thick].sum() == 0


CORNERS = [(x, y) for x in (0.0, 0.001, 0.45, 0.88, 0.9) for y in (0.0, 0.02, 0.5, 0.85, 0.9)]


@pytest.mark.parametrize("size", [(640, 360), (240, 320)])
@pytest.mark.parametrize("name", ["1", "1234", "somebody"])
def test_the_score_is_within_the_frame_wherever_the_face_is(size, name):
    """As much of its white letters is seen at every edge as in the middle."""
    letters = []
    for x, y in [(0.4, 0.5), *CORNERS]:
        image = np.zeros((size[1], size[0], 3), np.uint8)
        mark_face(image, np.array([x, y, x + 0.1, y + 0.1]), 0.25, name)
        letters.append(int((image.min(axis=2) > 200).sum()))
    assert letters[0] > 20
    assert letters == [letters[0]] * len(letters)


@pytest.mark.parametrize("size", [(160, 120), (640, 360), (1280, 720)])
def test_a_face_at_the_edges_of_the_frame_has_four_sides(size):
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    mark_face(image, np.array([0.0, 0.0, 1.0, 1.0]), 1.0, "1")
    drawn = drawn_pixels(image)
    middle = height * 3 // 5, width * 3 // 5
    assert drawn[middle[0], :4].any()
    assert drawn[middle[0], -4:].any()
    assert drawn[:4, middle[1]].any()
    assert drawn[-4:, middle[1]].any()


def test_long_names_are_left_out():
    short, long, other = (np.zeros((360, 640, 3), np.uint8) for _ in range(3))
    for image, name in ((short, "12"), (long, "somebody"), (other, "somebody else")):
        mark_face(image, np.array(BOX), 0.5, name)
    assert (long == other).all()
    assert (short != long).any()


def shown(table: FaceTable, times: list[float]) -> dict[float, list[float]]:
    """Moment of the film -> moments of the rows that are on show there."""
    places, rows = visible_rows(table, np.array(times, float))
    assert (np.diff(places) >= 0).all()
    return {time: table.timestamp[rows[places == place]].tolist() for place, time in enumerate(times)}


def test_rows_are_shown_at_their_moments():
    """From half a row before the first to half a row after the last."""
    table = make_table(("a", at(3, 0.12)), ("b", at(2, 0.16)))
    assert shown(table, at(8)) == {
        **{0.0: [], 0.04: [], 0.08: [], 0.12: [0.12], 0.16: [0.16, 0.16], 0.2: [0.2, 0.2], 0.24: [], 0.28: []}
    }


def test_rows_at_another_rate_than_the_film():
    """Each moment has the nearest row."""
    sparse = make_table(("a", [1.0, 1.2, 1.4]))
    found = shown(sparse, at(40, 0.8))
    assert {time for time, rows in found.items() if rows} == set(at(15, 0.92))
    assert all(abs(rows[0] - time) <= 0.1 + 1e-6 for time, rows in found.items() if rows)
    dense = make_table(("a", at(21, 1.0, 0.01)))
    found = shown(dense, at(10, 0.88))
    assert {time: rows for time, rows in found.items() if rows} == {time: [time] for time in at(6, 1.0)}
    thirtieths = [round(index / 30, 2) for index in range(30)]
    found = shown(make_table(("a", at(25))), thirtieths)
    assert all(len(rows) == 1 and abs(rows[0] - time) <= 0.02 + 1e-6 for time, rows in found.items())


def test_a_track_is_not_shown_while_it_is_out_of_sight():
    table = make_table(("a", [*at(3), *at(3, 0.16), *at(3, 0.8)]))
    found = shown(table, at(25))
    assert found[0.12] != []  # one row is missing
    hidden = {time for time, rows in found.items() if not rows and time < 0.88}
    assert set(at(11, 0.32)) <= hidden <= set(at(13, 0.28))


def test_tracks_without_a_row_are_not_shown():
    """As tracks are whose rows could not be cut out."""
    table = make_table(("a", at(3)), ("b", at(3)), ("c", at(3))).keep(np.array([0, 1, 2, 6, 7]))
    places, rows = visible_rows(table, np.array(at(4)))
    assert list(zip(places.tolist(), rows.tolist(), strict=True)) == [(0, 0), (0, 3), (1, 1), (1, 4), (2, 2)]
    assert [len(part) for part in visible_rows(make_table(), np.array(at(4)))] == [0, 0]
    assert [len(part) for part in visible_rows(make_table(), np.empty(0))] == [0, 0]


def test_frames_are_marked_and_the_originals_are_not():
    table = make_table(("film:1", at(2)), ("film:2", at(1, 0.08)))
    images = [np.full((360, 640, 3), 10 * place, np.uint8) for place in range(4)]
    given_images = [images[0], None, images[2], images[3]]
    out = list(marked_frames(iter(given_images), FRAME, np.array(at(4)), table, np.array([0.1, 0.9, 0.5])))
    assert len(out) == 4
    assert all((image == 10 * place).all() for place, image in enumerate(images))
    middle = 180, 160
    assert [tuple(image[middle]) for image in out[:3]] == [colour(score) for score in (0.1, 0.9, 0.5)]
    assert (out[1][300, 600] == 0).all()  # of a broken frame: the one before it, without its box
    assert (out[3] == 30).all()


def test_a_film_that_begins_broken():
    (image,) = marked_frames(iter([None]), (64, 48), np.array([0.0]), make_table(), np.empty(0))
    assert image.shape == (48, 64, 3)
    assert not image.any()


# The picture


def thumbnail(track: int) -> Image.Image:
    return Image.new("RGB", (40 + track % 7, 300), (10, 200, 30))


@pytest.mark.parametrize(("count", "pages"), [(0, 1), (1, 1), (LANES + 1, 2), (40, 3)])
def test_pages_of_the_timeline(tmp_path, count, pages):
    """A lane each, in order of time, on as many pages as it takes; a lone row has a lane too."""
    spans = [(f"film:{n}", at(1 if n in (0, LANES) else 30, 100 - n)) for n in range(count)]
    table = make_table(("lost", []), *spans)
    scores = np.random.default_rng(0).random(len(table))
    faces = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = plot_timeline(
            tmp_path / "timeline.png", table, scores, 0.5, 130.0, lambda track: faces.append(track) or thumbnail(track)
        )
    names = ["timeline.png", "timeline_2.png", "timeline_3.png"][:pages]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert faces == list(range(count, 0, -1))
    green = []
    for path in paths:
        image = cv2.imread(str(path))
        assert image.shape[1] == 1210
        green.append(np.abs(image.astype(int) - (30, 200, 10)).max(axis=2) < 12)
    runs = [int((np.diff(page.any(axis=1).astype(int), prepend=0) == 1).sum()) for page in green]
    assert runs == ([min(LANES, count - start) for start in range(0, count, LANES)] or [0])


def test_speech_is_seen_in_the_timeline(tmp_path):
    table = make_table(("film:1", at(100)))
    pictures = []
    for number, scores in enumerate((np.zeros(100), np.r_[np.zeros(50), np.ones(50)], np.ones(100))):
        (path,) = plot_timeline(tmp_path / f"{number}.png", table, scores, 0.5, 4.0, thumbnail)
        pictures.append(cv2.imread(str(path)).astype(int))
    silent, half, whole = pictures
    changed = [np.abs(picture - silent).max(axis=2) > 20 for picture in (half, whole)]
    lane = changed[1].any(axis=0)
    first, last = np.flatnonzero(lane)[[0, -1]]
    assert (
        changed[0][:, first : first + (last - first) // 3].sum()
        < changed[1][:, first : first + (last - first) // 3].sum() / 5
    )
    assert (
        changed[0][:, last - (last - first) // 3 : last].sum()
        > 0.8 * changed[1][:, last - (last - first) // 3 : last].sum()
    )


@pytest.mark.parametrize("name", ["film $x^2$", "film:\u6587\u5b57", "a_b%d"])
def test_names_that_matplotlib_could_take_for_something_else(tmp_path: Path, name: str):
    table = make_table((f"{name}:1", at(30)), video=name)
    (path,) = plot_timeline(tmp_path / "timeline.png", table, np.zeros(30), 0.5, 2.0, thumbnail)
    assert re.fullmatch(r"timeline\.png", path.name)
    assert cv2.imread(str(path)) is not None
