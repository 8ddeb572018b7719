"""From scores to output files: segments, tracks.csv, speakers.json, speakers.rttm, boxes in frames, the timeline."""

import json
import warnings

import cv2
import jsonschema
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_inputs import speakers_json

from core.detection import overlay
from core.detection.overlay import mark_faces, marked_frames, score_colour, visible_rows
from core.detection.segments import (
    describe_tracks,
    segments,
    short_name,
    write_rttm,
    write_segments,
    write_tracks,
    write_vtt,
)
from core.detection.timeline import LANES, plot_timeline
from core.detection.tracks import Track, reading_order
from core.formats.annotations import FaceTable, read_annotations
from core.formats.csv_table import check_name
from core.formats.predictions import read_scores
from core.reports import fonts, plots
from core.reports.fonts import cut, drawable, text_width
from core.runtime.errors import InputError

FRAME = (640, 360)  # width, height
BOX = (0.25, 0.25, 0.5, 0.75)


def make_table(*tracks: tuple[str, list[float]], video: str = "video", boxes: list | None = None) -> FaceTable:
    """Table of tracks, each an entity id and its timestamps. Without `boxes`, all rows have the same box."""
    entity = np.repeat(np.arange(len(tracks), dtype=np.int32), [len(times) for _, times in tracks])
    timestamp = np.array([time for _, times in tracks for time in times], float)
    box = np.array(boxes if boxes is not None else [BOX] * len(timestamp), float).reshape(-1, 4)
    label, video_index = np.zeros(len(timestamp), np.int8), np.zeros(len(timestamp), np.int32)
    return FaceTable([video], [name for name, _ in tracks], video_index, entity, timestamp, label, box)


def timestamps(count: int, first: float = 0.0, step: float = 0.04) -> list[float]:
    return [round(first + step * index, 2) for index in range(count)]


# Segments


@pytest.mark.parametrize(
    ("times", "scores", "expected"),
    [
        (timestamps(4), [0.1, 0.2, 0.3, 0.4], []),
        (timestamps(6, 1), [0.1, 0.5, 0.7, 0.4, 0.9, 0.2], [(1.04, 1.12, 0.6), (1.16, 1.20, 0.9)]),
        ([*timestamps(3), *timestamps(3, 1)], [0.9] * 6, [(0, 0.12, 0.9), (1.0, 1.12, 0.9)]),  # a gap
        ([*timestamps(3), *timestamps(3, 0.16)], [0.9] * 6, [(0, 0.28, 0.9)]),  # one missing row is not a gap
        # A row ends at the start of the next one.
        ([0, 0.03, 0.06, 1, 2], [0.9, 0.1, 0.9, 0.1, 0.1], [(0, 0.03, 0.9), (0.06, 0.545, 0.9)]),
        ([5.0], [0.9], [(5.0, 5.04, 0.9)]),
        ([], [], []),
    ],
)
def test_segments_by_hand(times, scores, expected):
    found = segments(np.array(times, float), np.array(scores, float), 0.5)
    assert [tuple(segment.values()) for segment in found] == [pytest.approx(segment) for segment in expected]


@pytest.mark.parametrize(
    ("video", "entity", "short"),
    [("v", "v:1", "1"), ("v", "v_a:2", "a:2"), ("v", "anna", "anna"), ("v", "v", "v"), ("a", "b:a", "b:a")],
)
def test_short_names(video, entity, short):
    assert short_name(make_table((entity, [0.0]), video=video), 0) == short


# speakers.json


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    content = json.loads((ROOT / "docs" / "speakers.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


def test_description_of_tracks(schema):
    boxes = [(0.1, 0.1, 0.2, 0.3), (0.1, 0.1, 0.3, 0.5), (0.1, 0.1, 0.15, 0.2), *[BOX] * 2]
    table = make_table(("video:1", timestamps(3, 2)), ("empty", []), ("b b", timestamps(2, 1)), boxes=boxes)
    tracks = describe_tracks(table, np.array([0.9, 0.7, 0.1, 0.2, 0.3]), 0.5, FRAME, {"video:1": "Anna"})
    assert tracks == [
        {
            **{
                "id": "video:1",
                "person": "Anna",
                "start": 2.0,
                "end": 2.12,
                "rows": 3,
                "box_width": 64.0,
                "box_height": 72.0,
            },
            **{"mean_score": 0.566667, "speaking_seconds": 0.08},
            "speaking": [{"start": 2.0, "end": 2.08, "mean_score": 0.8}],
        },
        {
            **{
                "id": "b b",
                "person": None,
                "start": 1.0,
                "end": 1.08,
                "rows": 2,
                "box_width": 160.0,
                "box_height": 180.0,
            },
            **{"mean_score": 0.25, "speaking_seconds": 0, "speaking": []},
        },
    ]
    schema.validate(speakers_json(tracks=tracks))


track_steps = st.lists(st.lists(st.integers(0, 500), min_size=1, max_size=12, unique=True).map(sorted), max_size=4)


@given(track_steps, st.data(), st.sampled_from([0.0, 0.5, 1.0]))
def test_descriptions_match_the_schema(schema, steps, data, threshold):
    table = make_table(*((f"vi deo:{n}", [t / 25 for t in times]) for n, times in enumerate(steps)), video="vi deo")
    scores = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(table), max_size=len(table))), float)
    tracks = describe_tracks(table, scores, threshold, FRAME)
    schema.validate(json.loads(json.dumps(speakers_json(tracks=tracks))))
    for track in tracks:
        assert track["start"] <= track["end"]
        for part in track["speaking"]:
            assert track["start"] <= part["start"] <= part["end"] <= track["end"]
        assert track["speaking_seconds"] == pytest.approx(sum(p["end"] - p["start"] for p in track["speaking"]))


def test_schema_requires_every_value(schema):
    def check(part: object) -> None:
        if isinstance(part, dict):
            assert sorted(part.get("properties", [])) == sorted(part.get("required", []))
            assert ("properties" in part) == ("additionalProperties" in part)
            for value in part.values():
                check(value)

    check(schema.schema["properties"])
    content = speakers_json(tracks=[])
    assert schema.is_valid({**content, "settings": {**content["settings"], "face_detector_sha256": None}})
    assert not schema.is_valid({**content, "tracks": None})


# speakers.rttm


def test_rttm(tmp_path):
    table = make_table(("a b:1", timestamps(5, 2)), ("a b:2\t", timestamps(5)), video="a b")
    scores = np.array([0.9, 0.1, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.6, 0.6])
    write_rttm(tmp_path / "x.rttm", "a b", describe_tracks(table, scores, 0.5, FRAME))
    assert (tmp_path / "x.rttm").read_bytes().decode() == (
        "SPEAKER a_b 1 0.120 0.080 <NA> <NA> a_b:2_ <NA> <NA>\n"
        "SPEAKER a_b 1 2.000 0.040 <NA> <NA> a_b:1 <NA> <NA>\n"
        "SPEAKER a_b 1 2.080 0.120 <NA> <NA> a_b:1 <NA> <NA>\n"
    )


# speakers.vtt


def test_subtitles(tmp_path):
    table = make_table(("a:1", timestamps(3, 3599.92)), ("2", timestamps(2)), video="a")
    tracks = describe_tracks(table, np.ones(5), 0.5, FRAME, {"2": "A <b> & C"})
    write_vtt(tmp_path / "x.vtt", tracks)
    assert (tmp_path / "x.vtt").read_text() == (
        "WEBVTT\n"
        "\n00:00:00.000 --> 00:00:00.080\n<v A &lt;b&gt; &amp; C>A &lt;b&gt; &amp; C\n"
        "\n00:59:59.920 --> 01:00:00.040\n<v a:1>a:1\n"
    )


# speakers.csv


def test_segments_as_a_table(tmp_path):
    table = make_table(("a, b:1", timestamps(5, 2)), ("2", timestamps(5)), video="a, b")
    scores = np.array([0.9, 0.1, 0.9, 0.8, 0.9, 0.1, 0.1, 0.1, 0.6, 0.6])
    write_segments(tmp_path / "x.csv", describe_tracks(table, scores, 0.5, FRAME, {"2": "Zo\u00eb"}))
    lines = ["track,person,start,end,mean_score", "2,Zo\u00eb,0.12,0.2,0.6"]
    lines += ['"a, b:1",,2.0,2.04,0.9', '"a, b:1",,2.08,2.2,0.866667']
    assert (tmp_path / "x.csv").read_text().splitlines() == lines
    write_segments(tmp_path / "x.csv", [])
    assert (tmp_path / "x.csv").read_text().splitlines() == lines[:1]


# tracks.csv


def test_tracks_csv_is_read_as_annotations_and_as_scores(tmp_path):
    video = 'a "video", 50 % \u00e4\u6587'
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((7, 2, 2)), axis=1).reshape(7, 4)  # x1 y1 x2 y2
    tracks = (f"{video}:1", timestamps(4, 7.04)), ("anna", timestamps(3))
    table = make_table(*tracks, video=video, boxes=corners.tolist())
    scores = np.array([0.5, 0.49999, 1 / 3, 1.0, 0.0, 1e-17, 0.75])
    write_tracks(tmp_path / "tracks.csv", table, scores, 0.5)
    assert (tmp_path / "tracks.csv").read_text().splitlines()[0] == (
        "video_id,frame_timestamp,entity_box_x1,entity_box_y1,entity_box_x2,entity_box_y2,label,entity_id,score"
    )
    loaded = read_annotations(tmp_path / "tracks.csv")
    assert (loaded.video_ids, loaded.entity_ids) == (table.video_ids, table.entity_ids)
    for name in ("video", "entity", "timestamp", "box"):
        assert (getattr(loaded, name) == getattr(table, name)).all()
    assert loaded.label.tolist() == [1, 0, 0, 1, 0, 0, 1]
    rows = read_scores(tmp_path / "tracks.csv")
    assert rows["score"].tolist() == scores.tolist()
    assert rows["entity_id"].tolist() == [f"{video}:1"] * 4 + ["anna"] * 3


# Boxes in frames


@pytest.mark.parametrize(("size", "score"), [((360, 640), 0.0), ((1920, 1080), 1.0)])
def test_boxes_are_drawn_at_their_place(size, score):
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    mark_faces(image, np.array([BOX]), np.array([score]), ["1"], threshold=1.5)
    left, top, right, bottom = width // 4, height // 4, width // 2, height * 3 // 4
    middle = (top + bottom) // 2
    for y, x in ((middle, left), (middle, right), (bottom, (left + right) // 2), (top, right - 3)):
        assert np.abs(image[y, x].astype(int) - score_colour(score)).max() <= 20, (y, x)
    drawn = image.any(axis=2)
    assert not drawn[top + 8 : bottom - 8, left + 8 : right - 8].any()
    thickness = max(1, round(min(size) / 240))
    drawn[: bottom + 2 * thickness, left - 2 * thickness : right + 2 * thickness] = False
    assert drawn[bottom:].sum() == 0
    assert drawn[:, : left - 2 * thickness].sum() == 0


CORNERS = [(x, y) for x in (0.0, 0.45, 0.9) for y in (0.0, 0.02, 0.5, 0.85, 0.9)]


@pytest.mark.parametrize(("size", "name"), [((640, 360), "1"), ((240, 320), "a long name")])
def test_scores_are_within_the_frame_wherever_the_face_is(size, name):
    white_pixels = []
    for x, y in [(0.4, 0.5), *CORNERS]:
        image = np.zeros((size[1], size[0], 3), np.uint8)
        mark_faces(image, np.array([[x, y, x + 0.1, y + 0.1]]), np.array([0.25]), [name], 0.5)
        white_pixels.append(int((image.min(axis=2) > 200).sum()))
    assert white_pixels[0] > 20
    assert white_pixels == [white_pixels[0]] * len(white_pixels)


LONG_NAMES = ["participant_01", "participant_02", "\u5f20\u4e09", "\u674e\u56db", "\U0001f389", 30 * "W", 240 * "x"]


def test_names_of_any_length_and_script_are_drawn():
    images = []
    for name in ["1", *LONG_NAMES]:
        image = np.zeros((360, 640, 3), np.uint8)
        mark_faces(image, np.array([BOX]), np.array([0.5]), [drawable(name)], 0.5)
        assert not image[:, : FRAME[0] // 4 - 4].any()
        assert not image[:, FRAME[0] // 2 + 4 :].any()  # no wider than the face
        images.append(image.tobytes())
    assert len(set(images)) == len(images)


def label_boxes(monkeypatch, size: tuple[int, int], boxes: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) of the labels that are drawn at faces (n, 4), in pixels of a frame of a size (W, H)."""
    labels, place = [], overlay._place_label
    monkeypatch.setattr(overlay, "_place_label", lambda *args: labels.append(place(*args)) or labels[-1])
    names = [str(number) for number in range(1, len(boxes) + 1)]
    mark_faces(np.zeros((*size[::-1], 3), np.uint8), boxes, np.full(len(boxes), 0.5), names, 0.5)
    return np.array(labels)


@pytest.mark.parametrize("size", [FRAME, (1280, 720)])
@pytest.mark.parametrize("columns", [1, 2, 5, 7])
def test_labels_of_many_faces_do_not_overlap(monkeypatch, size, columns):
    faces = np.stack(np.meshgrid(np.arange(columns), np.arange(columns)), axis=-1).reshape(-1, 2) + 0.5
    faces += np.random.default_rng(columns).uniform(-0.1, 0.1, faces.shape)
    boxes = np.hstack((faces, faces)) / columns + np.array([-0.16, -0.3, 0.16, 0.3]) / columns
    labels = label_boxes(monkeypatch, size, boxes)
    for number, label in enumerate(labels):
        others = np.delete(labels, number, axis=0)
        assert not ((others[:, :2] < label[2:]) & (others[:, 2:] > label[:2])).all(axis=1).any()
    face_widths = (boxes[:, 2] - boxes[:, 0]) * size[0]
    assert (labels[:, 2] - labels[:, 0] < 1.6 * face_widths).all()
    assert (labels[:, :2] >= 0).all()
    assert (labels[:, 2:] <= size).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Zo\u00eb 1: $x$ [a]", "Zo\u00eb 1: $x$ [a]"),
        ("\u5f20\u4e09 2", "[5f20][4e09] 2"),
        ("a\U0001f389", "a[1f389]"),
    ],
)
def test_characters_without_a_font_are_replaced_by_their_code_points(monkeypatch, text, expected):
    monkeypatch.setattr(fonts, "_characters", lambda: {chr(code) for code in range(0x250)})
    assert drawable(text) == expected


def test_text_is_cut_to_a_width():
    assert cut("short", 4) == "short"
    assert cut("participant_01", 5) == "part\u2026_01"
    assert cut(240 * "x", 0.1) == "x\u2026"
    assert all(text_width(cut(name, width)) <= width for name in ("a b", 99 * "W", "iiiiWWWW") for width in (2, 3.5, 9))


def test_boxes_that_reach_the_threshold_are_thicker():
    silent, speaking = (np.zeros((720, 1280, 3), np.uint8) for _ in range(2))
    for image, threshold in ((silent, 0.6), (speaking, 0.5)):
        mark_faces(image, np.array([BOX]), np.array([0.5]), ["1"], threshold)
    assert speaking.any(axis=2).sum() > 1.1 * silent.any(axis=2).sum()


def visible_at(table: FaceTable, times: list[float]) -> dict[float, list[float]]:
    """Timestamp of a frame -> timestamps of the rows drawn into it."""
    visible = visible_rows(table, np.array(times, float))
    return {time: table.timestamp[rows].tolist() for time, rows in zip(times, visible, strict=True)}


def test_rows_are_visible_at_their_timestamps():
    table = make_table(("a", timestamps(3, 0.12)), ("b", timestamps(2, 0.16)))
    expected = {0.12: [0.12], 0.16: [0.16, 0.16], 0.2: [0.2, 0.2]}
    assert visible_at(table, timestamps(8)) == {time: expected.get(time, []) for time in timestamps(8)}


def test_nearest_row_is_visible_if_rows_and_frames_differ_in_rate():
    visible = visible_at(make_table(("a", [1.0, 1.2, 1.4])), timestamps(40, 0.8))
    assert {time for time, rows in visible.items() if rows} == set(timestamps(15, 0.92))
    assert all(abs(rows[0] - time) <= 0.1 + 1e-6 for time, rows in visible.items() if rows)
    visible = visible_at(make_table(("a", timestamps(25))), [round(index / 30, 2) for index in range(30)])
    assert all(len(rows) == 1 and abs(rows[0] - time) <= 0.02 + 1e-6 for time, rows in visible.items())


def test_tracks_are_not_visible_in_gaps():
    table = make_table(("a", [*timestamps(3), *timestamps(3, 0.16), *timestamps(3, 0.8)]))
    visible = visible_at(table, timestamps(25))
    assert visible[0.12] != []  # one missing row is not a gap
    hidden = {time for time, rows in visible.items() if not rows and time < 0.88}
    assert set(timestamps(11, 0.32)) <= hidden <= set(timestamps(13, 0.28))


def test_tracks_without_rows_are_not_visible():
    tracks = make_table(("a", timestamps(3)), ("b", timestamps(3)), ("c", timestamps(3)))
    assert visible_rows(tracks.keep(np.array([0, 1, 2, 6, 7])), np.array(timestamps(4))) == [[0, 3], [1, 4], [2], []]
    assert visible_rows(make_table(), np.array(timestamps(2))) == [[], []]


def test_frames_are_marked_in_copies_and_broken_ones_replaced():
    table = make_table(("video:1", timestamps(2)), ("video:2", timestamps(1, 0.08)))
    images = [np.full((360, 640, 3), 10 * index, np.uint8) for index in range(4)]
    frames = [images[0], None, images[2], images[3]]
    scores = np.array([0.1, 0.9, 0.5])
    marked = list(marked_frames(iter(frames), FRAME, np.array(timestamps(4)), table, scores, 0.7))
    assert len(marked) == 4
    assert all((image == 10 * index).all() for index, image in enumerate(images))
    assert [tuple(image[180, 160]) for image in marked[:3]] == [score_colour(score) for score in scores]
    assert (marked[1][300, 600] == 0).all()  # the frame before the broken one, without its box
    assert (marked[3] == 30).all()


# Numbers of tracks


def test_tracks_are_numbered_in_reading_order():
    rng = np.random.default_rng(0)
    for columns, lines in ((2, 1), (5, 5), (7, 7)):
        corners = [np.array((x, y)) + rng.uniform(-0.1, 0.1, 2) for y in range(lines) for x in range(columns)]
        tracks = [Track([0.0, 1.0], [np.append(c, c + 0.6), np.append(c, c + 0.5)], [1.0, 1.0]) for c in corners]
        shuffled = [tracks[index] for index in rng.permutation(len(tracks))]
        assert [id(track) for track in reading_order(shuffled)] == [id(track) for track in tracks]
    assert reading_order([]) == []


# The timeline


def thumbnail(track: int) -> Image.Image:
    return Image.new("RGB", (40 + track % 7, 300), (10, 200, 30))


@pytest.mark.parametrize("count", [0, LANES + 1])
def test_timeline_has_as_many_pages_as_needed(tmp_path, count):
    """The names of videos and tracks are plain text, even if they look like formulas."""
    tracks = [(f"$x^2$:{n}", timestamps(1 if n in (0, LANES) else 30, 100 - n)) for n in range(count)]
    table = make_table(("empty", []), *tracks, video="$x^2$")
    faces = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = plot_timeline(
            tmp_path / "timeline.png",
            table,
            np.zeros(len(table)),
            0.5,
            (0.0, 130.0),
            lambda n: faces.append(n) or thumbnail(n),
        )
    names = ["timeline.png", "timeline_2.png"] if count > LANES else ["timeline.png"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert faces == list(range(count, 0, -1))  # in order of time


def test_timeline_shows_speech(tmp_path):
    table = make_table(("video:1", timestamps(100)))
    plots = []
    for number, scores in enumerate((np.zeros(100), np.ones(100))):
        (path,) = plot_timeline(tmp_path / f"{number}.png", table, scores, 0.5, (0.0, 4.0), thumbnail)
        plots.append(cv2.imread(str(path)).astype(int))
    assert (np.abs(plots[1] - plots[0]).max(axis=2) > 20).mean() > 0.1


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (3600.0, [f"0:{minute:02}:00" for minute in range(0, 60, 5)] + ["1:00:00"]),
        (30 * 3600.0, [f"{hour}:00:00" for hour in range(0, 31, 3)]),
    ],
)
def test_long_timelines_are_labelled_in_hours(tmp_path, monkeypatch, seconds, expected):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure) or figure.canvas.draw() or path)
    table = make_table(("video:1", np.linspace(0, seconds, 200, endpoint=False).tolist()))
    plot_timeline(tmp_path / "x.png", table, np.zeros(200), 0.5, (0.0, seconds), thumbnail)
    axes = drawn[0].axes[1]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    low, high = axes.get_xlim()
    assert [label for label, at in zip(labels, axes.get_xticks(), strict=True) if low <= at <= high] == expected
    plots.plt.close(drawn[0])


def test_too_long_name_of_a_video_is_an_error():
    with pytest.raises(InputError, match=r"240 bytes; rename the file"):
        check_name(81 * "\u4e2d", "x.mp4")
