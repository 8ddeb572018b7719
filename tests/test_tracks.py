"""Face tracks out of films: which rows there are, where shots change, and which detections are one face."""

import functools
import itertools
from collections.abc import Callable, Iterator
from unittest import mock

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_videos import make_video as make_numbered_film
from numbered_videos import frame_number, rate
from square_videos import DIM, SIZE, Square, SquareDetector, draw, encode, ground, make_video

from core.config import tracking_params
from core.detection.shots import Shots, detect_shots, row_rate, scene_scores
from core.detection.tracks import FaceDetector, Track, detect_tracks, face_table, link_detections, overlap
from core.formats.annotations import read_annotations
from core.media.reader import VideoReader
from core.runtime.errors import InputError
from core.runtime.files import write_csv

FOREVER = float("inf")


def rows_of(seconds: float, fps: float, cuts: tuple[float, ...] = ()) -> Shots:
    """The rows of a film of a constant frame rate."""
    half = 0.5 / fps
    return Shots(seconds, seconds - half, fps, list(cuts), [cut - half for cut in cuts], fps, True)


# Rows


@pytest.mark.parametrize(
    ("fps", "rows"),
    [
        (20, 20),
        (24000 / 1001, 24000 / 1001),
        (24, 24),
        (25, 25),
        (30000 / 1001, 30000 / 1001),
        (30, 30),
        (33.3, 33.3),
        (40, 20),
        (48, 24),
        (50, 25),
        (60000 / 1001, 30000 / 1001),
        (60, 30),
        (90, 22.5),
        (100, 25),
        (120, 24),
        (144, 24),
        (240, 24),
        (1, 25),
        (5, 25),
        (10, 25),
        (12, 25),
        (12.5, 25),
        (15, 25),
        (19.9, 25),
        (34, 25),  # its half would be 17
        (37.5, 25),
        (39, 25),
    ],
)
def test_rows_a_second(fps, rows):
    assert row_rate(fps) == pytest.approx(rows, abs=1e-9)


@given(st.floats(0.01, 999.9))
def test_rows_are_as_close_as_those_of_ava(fps):
    """And where they are not 25 a second, each is a frame of its own, evenly taken."""
    rows = row_rate(fps)
    assert 20 <= rows <= 33.4
    if rows != 25:
        assert fps / rows == pytest.approx(round(fps / rows), abs=1e-9)


@pytest.mark.parametrize("fps", ["24000/1001", "24", "25", "30000/1001", "30", "50", "60000/1001", "60"])
def test_each_row_is_the_next_or_every_second_frame(tmp_path, fps):
    path = make_numbered_film(tmp_path / "film.mp4", fps, seconds=5)
    with VideoReader(path) as film:
        frames = round(5 * rate(fps))
        timeline = rows_of(frames / film.fps, film.fps)
        shown = [frame_number(image) for image in film.frames(timeline.times, FOREVER)]
    assert shown == list(range(0, frames, 2 if rate(fps) > 40 else 1))
    assert (timeline.times == timeline.times.round(2)).all()
    assert timeline.shot.tolist() == [0] * len(shown)


@pytest.mark.parametrize("fps", ["10", "12", "25/2", "15"])
def test_frames_of_a_slow_film_are_seen_again(tmp_path, fps):
    """25 rows a second all the same, each of the frame that is nearest, as long as there is one."""
    path = make_numbered_film(tmp_path / "film.mp4", fps, seconds=4)
    frames = round(4 * rate(fps))
    timeline = rows_of(4.0, rate(fps))
    with VideoReader(path) as film:
        shown = [frame_number(image) for image in film.frames(timeline.times, FOREVER)]
    expected = np.floor(timeline.times * rate(fps) + 0.5).astype(int)
    assert shown == expected.tolist()
    assert len(shown) == (np.floor(np.arange(100) / 25 * rate(fps) + 0.5) < frames).sum()
    assert set(shown) == set(range(frames))


@pytest.mark.parametrize("fps", ["10", "12", "25/2", "15", "24000/1001", "25", "30000/1001", "50", "60000/1001", "120"])
def test_a_shot_begins_with_the_row_of_the_frame_after_the_cut(fps):
    """Whichever frame that is: a row is of the shot of the frame that is read for it."""
    frames = round(20 * rate(fps))
    for cut in range(1, frames):
        timeline = rows_of(frames / rate(fps), rate(fps), (round(cut / rate(fps), 6),))
        shown = np.floor(timeline.times * rate(fps) + 0.5)
        assert (timeline.shot == (shown >= cut)).all(), cut


def test_a_film_of_a_moment_has_a_row():
    assert rows_of(0.001, 999.0).times.tolist() == [0.0]


def test_facts_make_the_same_timeline_again():
    timeline = rows_of(3.0, 25.0, (1.0, 2.04))
    again = Shots(**timeline.to_dict())
    assert again.to_dict() == timeline.to_dict()
    assert (again.shot == timeline.shot).all()
    assert np.flatnonzero(np.diff(timeline.shot)).tolist() == [24, 50]


# Shots


@pytest.mark.parametrize("fps", ["24000/1001", "25", "60", "12"])
@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi"])
def test_hard_cuts_are_found_at_their_frame(tmp_path, fps, kind):
    cuts = [round(part * rate(fps)) / rate(fps) for part in (0.5, 1.3, 1.84)]  # seconds
    options = ("-c:v", "mpeg4", "-q:v", "3", "-bf", "0") if kind == "avi" else ("-c:v", "libx264", "-bf", "2")
    path = make_video(tmp_path / f"film.{kind}", [Square(20, 30)], 2.4, fps, cuts, sound=None, options=options)
    timeline = detect_shots(path)
    assert timeline.cuts == pytest.approx(cuts, abs=0.002)
    assert timeline.seconds == pytest.approx(2.4, abs=0.6 / rate(fps))
    assert timeline.fps == pytest.approx(rate(fps))
    assert timeline.rate == row_rate(timeline.fps)
    found = [round(cut * rate(fps)) for cut in timeline.cuts]
    assert found == [round(cut * rate(fps)) for cut in cuts]


def test_a_film_in_colour_and_one_of_few_pixels(tmp_path):
    colours = np.zeros((50, 64, 64), np.uint8)
    colours[30:] = 200
    path = encode(tmp_path / "tiny.mp4", iter(colours), size=(64, 64), sound=None)
    assert detect_shots(path).cuts == pytest.approx([1.2], abs=0.001)


WIDE = (1000, 120)


def still(count: int) -> Iterator[np.ndarray]:
    return (ground(1) for _ in range(count))


def pan(step: int) -> Callable[[int], Iterator[np.ndarray]]:
    """A camera that turns, faster and faster up to some pixels a frame, past a ground that is blurred by it."""
    wide = cv2.GaussianBlur(ground(1, WIDE), (0, 0), 3)
    at = np.minimum(np.arange(100) * 0.5, step).cumsum().astype(int)
    return lambda count: (wide[:, left : left + SIZE[0]] for left in at[:count].tolist())


def fade(frames: int, last: int | None) -> Callable[[int], Iterator[np.ndarray]]:
    """From one picture to another, or to black, in so many frames, after half a second."""
    after = np.zeros_like(ground(1)) if last is None else ground(last)

    def images(count: int) -> Iterator[np.ndarray]:
        for index in range(count):
            share = np.clip((index - 12) / frames, 0, 1)
            yield ((1 - share) * ground(1) + share * after).round().astype(np.uint8)

    return images


def walk(count: int) -> Iterator[np.ndarray]:
    """Two faces cross a picture in a second."""
    return draw([Square(0, 10, 50, (160, 0)), Square(110, 60, 50, (-160, 0))], np.arange(count) / 25)


@pytest.mark.parametrize(
    "images",
    [still, pan(1), pan(4), pan(8), fade(12, None), fade(12, 2), fade(25, 2), walk],
    ids=["still", "slow pan", "pan", "fast pan", "fade to black", "dissolve", "slow dissolve", "faces that cross"],
)
def test_what_is_no_cut(tmp_path, images):
    path = encode(tmp_path / "film.mp4", images(50), sound=None)
    assert detect_shots(path).cuts == []


def test_a_film_that_begins_in_motion_is_not_cut_at_its_second_frame(tmp_path):
    wide = cv2.GaussianBlur(ground(1, WIDE), (0, 0), 3)
    moving = (wide[:, 8 * index : 8 * index + SIZE[0]] for index in range(50))
    path = encode(tmp_path / "film.mp4", moving, sound=None)
    assert list(scene_scores(path))[1][1] > tracking_params["cut_score"]
    assert detect_shots(path).cuts == []


def test_a_cut_within_a_pan_is_found_all_the_same(tmp_path):
    one, two = list(pan(3)(25)), [DIM - image for image in pan(3)(25)]
    assert detect_shots(encode(tmp_path / "film.mp4", iter(one + two), sound=None)).cuts == pytest.approx([1.0])


def test_one_cut_is_one_also_where_what_follows_moves(tmp_path):
    """The frame after a cut differs from it less than from the frame before."""
    wide = cv2.GaussianBlur(ground(2, WIDE), (0, 0), 3)
    moving = (wide[:, 8 * index : 8 * index + SIZE[0]] for index in range(25))
    path = encode(tmp_path / "film.mp4", itertools.chain(still(25), moving), sound=None)
    assert detect_shots(path).cuts == pytest.approx([1.0])


@pytest.mark.parametrize("cut", [13, 60, 84, 181, 182, 183, 200, 239])
def test_where_the_frame_rate_varies_a_row_is_of_the_shot_of_its_frame(tmp_path, cut):
    """60 frames a second for a second, 5 for two seconds, 60 again: a cut in either part, and between them."""
    shown = np.array([*range(60), *range(60, 180, 12), *range(180, 240)])
    options = ("-vf", "select='if(between(n,60,179),not(mod(n,12)),1)'", "-fps_mode", "vfr")
    codec = ("-c:v", "libx264", "-preset", "veryfast", "-bf", "0")
    path = make_video(tmp_path / "film.mp4", [], 4, "60", [cut / 60], sound=None, options=(*options, *codec))
    timeline = detect_shots(path)
    assert timeline.cuts == pytest.approx([shown[shown >= cut][0] / 60], abs=0.002)
    with VideoReader(path) as film:
        images = list(film.frames(timeline.times, FOREVER))
    after = [int(np.abs(image.mean(axis=2) - ground(1)).mean() < 20) for image in images]
    assert timeline.shot[: len(after)].tolist() == after
    assert len(images) >= len(timeline.times) - 1


@pytest.mark.parametrize("content", [b"", b"no film\n" * 50])
def test_shots_of_what_is_no_film(tmp_path, content):
    (tmp_path / "film.mp4").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be opened as a video"):
        detect_shots(tmp_path / "film.mp4")


# Boxes that overlap


def test_overlap_by_hand():
    first = np.array([[0, 0, 2, 2], [0, 0, 1, 1], [5, 5, 6, 7]], float)
    second = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [2, 0, 3, 2], [5, 5, 5, 7]], float)
    expected = [
        [1 / 7, 1, 0, 0],  # a quarter in common, the same, a common side, nothing
        [0, 1 / 4, 0, 0],  # a common corner, within it
        [0, 0, 0, 0],  # a box without an area has nothing in common with one that it lies in
    ]
    np.testing.assert_allclose(overlap(first, second), expected, atol=1e-12)
    assert overlap(np.empty((0, 4)), second).shape == (0, 4)
    assert overlap(second[3:], second[3:]).tolist() == [[0]]


boxes = st.tuples(*[st.floats(0, 1)] * 4).map(
    lambda v: [min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3])]
)


@given(st.lists(boxes, min_size=1, max_size=4), st.lists(boxes, min_size=1, max_size=4))
def test_overlap_is_a_share_and_the_same_from_both_sides(first, second):
    first, second = np.array(first), np.array(second)
    found = overlap(first, second)
    assert ((found >= 0) & (found <= 1 + 1e-9)).all()
    np.testing.assert_allclose(found, overlap(second, first).T)


# Detections that are one face

STEP = 0.12  # seconds between sightings: every third row


def box(x: float, y: float = 0.3, side: float = 0.2) -> list[float]:
    return [x, y, x + side, y + side]


def sightings(count: int, *faces: Callable[[int], tuple | None]) -> list[tuple[float, np.ndarray]]:
    """What was found at each of so many times: (x, y, score) of every face that has one there, in this order."""
    seen = []
    for place in range(count):
        found = [face(place) for face in faces]
        rows = [[*box(*values[:2]), values[2]] for values in found if values]
        seen.append((round(place * STEP, 2), np.array(rows, float).reshape(-1, 5)))
    return seen


def lefts(track: Track) -> list[float]:
    return [round(float(corner[0]), 4) for corner in track.boxes]


def test_a_face_that_keeps_still():
    (track,) = link_detections(sightings(20, lambda n: (0.3, 0.3, 0.9)))
    assert track.times == [round(n * STEP, 2) for n in range(20)]
    assert lefts(track) == [0.3] * 20
    assert track.scores == [0.9] * 20


def test_nothing_at_all():
    assert link_detections([]) == []
    assert link_detections(sightings(20)) == []


def test_two_faces_cross():
    """Each goes on the way it went, in whatever order they are found."""
    right, left = (lambda n: (0.02 + 0.04 * n, 0.3, 0.9)), (lambda n: (0.78 - 0.04 * n, 0.34, 0.9))
    swapping = sightings(20, right, left)
    swapping = [(time, found[::-1] if place % 2 else found) for place, (time, found) in enumerate(swapping)]
    one, two = sorted(link_detections(swapping), key=lefts)
    assert lefts(one) == [round(0.02 + 0.04 * n, 4) for n in range(20)]
    assert lefts(two) == [round(0.78 - 0.04 * n, 4) for n in range(20)]


@pytest.mark.parametrize(("missing", "tracks"), [(1, 1), (5, 1), (6, 2), (15, 2)])
def test_a_face_that_is_out_of_sight(missing, tracks):
    """Up to 0.8 s it stays the same track: five sightings missing are a gap of 0.72 s, six one of 0.84."""
    assert STEP * 6 <= tracking_params["max_gap"] < STEP * 7
    found = link_detections(sightings(40, lambda n: None if 15 <= n < 15 + missing else (0.3, 0.3, 0.9)))
    assert len(found) == tracks
    assert sum(len(track.times) for track in found) == 40 - missing


def test_a_face_that_moves_while_it_is_out_of_sight():
    found = link_detections(sightings(40, lambda n: None if 15 <= n < 19 else (0.1 + 0.012 * n, 0.3, 0.9)))
    assert len(found) == 1


def test_a_false_detection_is_dropped():
    face = lambda n: (0.1, 0.3, 0.9)  # noqa: E731
    once = lambda n: (0.7, 0.5, 0.95) if n == 7 else None  # noqa: E731
    weak = lambda n: (0.4, 0.5, 0.65)  # noqa: E731
    (track,) = link_detections(sightings(30, once, face, weak))
    assert set(lefts(track)) == {0.1}


def test_weak_detections_keep_a_face_that_was_clear_once():
    (track,) = link_detections(sightings(30, lambda n: (0.1, 0.3, 0.75 if n == 20 else 0.55)))
    assert len(track.times) == 30


def test_a_short_track_is_dropped_and_the_shortest_kept():
    assert link_detections(sightings(9, lambda n: (0.1, 0.3, 0.9))) == []  # 0.96 s from the first to the last
    assert len(link_detections(sightings(10, lambda n: (0.1, 0.3, 0.9)))) == 1


def test_a_face_elsewhere_is_another_track():
    one, two = link_detections(sightings(40, lambda n: (0.1 if n < 20 else 0.5, 0.3, 0.9)))
    assert (set(lefts(one)), set(lefts(two))) == ({0.1}, {0.5})
    assert one.times[-1] < two.times[0]


def test_a_fast_face_is_looked_for_where_it_goes():
    """From one sighting to the next it leaves three quarters of its box; standing still it would be lost."""
    x = np.cumsum([0, 0.02, 0.06, 0.1, 0.14, *[0.15] * 12])
    far = np.array([box(x[6]), box(x[7])])
    assert overlap(far[:1], far[1:])[0, 0] < tracking_params["min_iou"]
    (track,) = link_detections(sightings(len(x), lambda n: (x[n], 0.3, 0.9)))
    assert lefts(track) == x.round(4).tolist()


def test_a_face_that_stops_is_not_lost():
    (track,) = link_detections(sightings(30, lambda n: (0.1 + 0.05 * min(n, 10), 0.3, 0.9)))
    assert len(track.times) == 30


def test_where_a_face_is_expected():
    still = Track([1.0], [np.array(box(0.3))], [0.9])
    np.testing.assert_allclose(still.expected(1.5), box(0.3))
    moving = Track([1.0, 1.1], [np.array(box(0.3)), np.array(box(0.32))], [0.9, 0.9])
    np.testing.assert_allclose(moving.expected(1.25), box(0.35))
    np.testing.assert_allclose(moving.expected(9.0), box(0.52))  # no further than its own side


def test_boxes_between_sightings():
    track = Track([1.0, 1.2, 1.3], [np.array(box(0.3)), np.array(box(0.5)), np.array(box(0.4, side=0.4))], [0.9] * 3)
    got = track.box_at(np.array([1.0, 1.05, 1.2, 1.25, 1.3]))
    np.testing.assert_allclose(got, [box(0.3), box(0.35), box(0.5), box(0.45, side=0.3), box(0.4, side=0.4)])


detections = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 2), st.sampled_from([0.55, 0.75, 0.9])), max_size=4
).map(lambda found: np.array([[*box(x / 12, y / 4), score] for x, y, score in found], float).reshape(-1, 5))
histories = st.lists(st.tuples(st.integers(1, 8), detections), max_size=25)


@settings(deadline=None)
@given(histories)
def test_every_detection_is_in_one_track_at_most(history):
    """Of whatever was found; and in exactly one where no track is dropped."""
    times = np.cumsum([gap for gap, _ in history]) * STEP
    seen = [(float(time), found) for time, (_, found) in zip(times, history, strict=True)]
    for lenient in (False, True):
        with mock.patch.dict(tracking_params, {"min_track_seconds": 0.0, "min_track_score": 0.0} if lenient else {}):
            tracks = link_detections(seen)
            params = dict(tracking_params)
        left = {(time, *row.tolist()): 0 for time, found in seen for row in found}
        for time, found in seen:
            for row in found.tolist():
                left[(time, *row)] += 1
        for track in tracks:
            gaps = np.diff(track.times)
            assert (gaps > 0).all()  # one face at a time
            assert (gaps <= params["max_gap"] + 1e-9).all()
            assert track.times[-1] - track.times[0] >= params["min_track_seconds"]
            assert max(track.scores) >= params["min_track_score"]
            for moment in zip(track.times, track.boxes, track.scores, strict=True):
                left[(moment[0], *moment[1].tolist(), moment[2])] -= 1
        assert min(left.values(), default=0) >= 0
        if lenient:
            assert sum(left.values()) == 0


# Tracks of a film

FACES = [
    Square(20, 30, speed=(15, 0), end=2.4),
    Square(20, 30, speed=(15, 0), begin=2.4),  # where the first would have gone on, but in another shot
    Square(120, 80, 32, speed=(-12, -5), begin=0.4, end=2.2),
]


def tracks_of(path, detector=None) -> tuple[Shots, list[tuple[np.ndarray, np.ndarray]]]:
    timeline = detect_shots(path)
    with VideoReader(path) as film:
        return timeline, list(detect_tracks(film, timeline, detector or SquareDetector()))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("drawn") / "film.mp4", FACES, 4.6, cuts=[2.4], sound=None)


def test_tracks_of_a_drawn_film(drawn):
    """Every row of every face, and nobody crosses a cut; looked for in every third row, boxes hold between too."""
    detector = SquareDetector()
    timeline, found = tracks_of(drawn, detector)
    assert timeline.cuts == [2.4]
    assert len(found) == 3
    found.sort(key=lambda track: (track[0][0], track[0][-1]))
    spans = [(times[0], times[-1]) for times, _ in found]
    assert spans[0] == (0.0, 2.36)  # from the first row of the film to the last before the cut
    assert spans[1] == pytest.approx((0.4, 2.16), abs=0.12)
    assert spans[2] == (2.4, 4.56)  # the first row after it, the last of the film
    for (times, boxes), face in zip(found, (FACES[0], FACES[2], FACES[1]), strict=True):
        np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-9)
        true = np.array([face.box(time) for time in times])
        assert np.abs((boxes - true) * np.tile(SIZE, 2)).max() < 1.6  # pixels
        shots = timeline.shot[np.isin(timeline.times, times)]
        assert len(set(shots.tolist())) == 1
    assert detector.seen == len(range(0, 60, 3)) + 1 + len(range(60, 115, 3))


def test_the_same_film_at_other_rates(tmp_path):
    for fps in ("60", "12", "30000/1001"):
        path = make_video(tmp_path / "film.mp4", FACES[:2], 4.6, fps, cuts=[2.4], sound=None)
        timeline, ((first, _), (second, _)) = tracks_of(path)
        cut = round(2.4 * rate(fps)) / rate(fps)
        assert timeline.cuts == pytest.approx([cut], abs=0.6 / rate(fps))
        assert first[0] == 0
        assert first[-1] < timeline.cuts[0] <= second[0] + 0.5 / rate(fps) + 1e-9
        assert second[0] - first[-1] == pytest.approx(1 / timeline.rate, abs=0.011)
        frames = round(4.6 * rate(fps))
        assert second[-1] == timeline.times[np.floor(timeline.times * rate(fps) + 0.5) < frames][-1]
        assert timeline.rate == pytest.approx(row_rate(rate(fps)))


def test_faces_that_leave_the_frame_and_nobody(tmp_path):
    """Boxes are cut off at the frame's edge, and rows end where nothing is left to cut out."""
    path = make_video(tmp_path / "film.mp4", [Square(100, 30, 40, (40, 0))], 2.4, sound=None)
    _, ((times, boxes),) = tracks_of(path)
    assert times[-1] == pytest.approx(1.5, abs=0.12)  # when the last of it has gone
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert ((boxes[:, 2:] - boxes[:, :2]) * SIZE >= 2 - 1e-3).all()
    empty = make_video(tmp_path / "empty.mp4", [], 1, sound=None)
    assert tracks_of(empty)[1] == []
    assert len(face_table("empty", [])) == 0


def test_boxes_out_of_the_frame_are_no_rows(tmp_path):
    """A detector may see a face go on beyond the edge; what it says is cut off there."""

    class Beyond(SquareDetector):
        def detect(self, image):
            self.seen += 1
            x = 0.7 + 0.02 * (self.seen - 1)
            return np.array([[x, -0.1, x + 0.2, 0.3, 0.9]])

    path = make_video(tmp_path / "film.mp4", [], 2.4, sound=None)
    _, ((times, boxes),) = tracks_of(path, Beyond())
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert ((boxes[:, 2:] - boxes[:, :2]) * SIZE >= 2 - 1e-3).all()
    assert boxes[:, 1].tolist() == [0] * len(times)
    assert 1.6 < times[-1] < 2


def test_frames_that_cannot_be_read(tmp_path):
    """A film that breaks off: what is seen until then are tracks."""
    path = make_video(tmp_path / "film.mkv", [Square(20, 30, speed=(5, 0))], 6, sound=None)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    timeline, ((times, _),) = tracks_of(path)
    assert 1 < times[-1] <= timeline.seconds


def test_rows_of_tracks_go_through_a_csv(drawn, tmp_path):
    _, found = tracks_of(drawn)
    table = face_table("a film, 50 %", found)
    assert table.entity_ids == [f"a film, 50 %:{number}" for number in (1, 2, 3)]
    assert set(table.label.tolist()) == {0}
    write_csv(tmp_path / "rows.csv", table.official_columns(), header=False)
    again = read_annotations(tmp_path / "rows.csv")
    assert again.entity_ids == table.entity_ids
    for name in ("video", "entity", "timestamp", "label", "box"):
        assert (getattr(again, name) == getattr(table, name)).all()


# YuNet


def onnx_of_another_kind() -> bytes:
    """A network that gives back the image that it is given."""

    def field(number: int, content: bytes | int) -> bytes:
        if isinstance(content, int):
            return bytes([number << 3, content])
        return bytes([number << 3 | 2, len(content)]) + content

    shape = field(2, b"".join(field(1, field(1, size)) for size in (1, 3, 32, 32)))
    kind = field(2, field(1, field(1, 1) + shape))
    node = field(1, b"in") + field(2, b"out") + field(4, b"Identity")
    graph = field(1, node) + field(2, b"g") + field(11, field(1, b"in") + kind) + field(12, field(1, b"out") + kind)
    return field(1, 8) + field(8, field(2, 13)) + field(7, graph)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a network\n" * 30, bytes(1000), onnx_of_another_kind()],
    ids=["empty", "text", "zeros", "other"],
)
def test_a_file_that_is_no_detector(tmp_path, content):
    path = tmp_path / "detector.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError) as refusal:
        FaceDetector(path)
    assert str(refusal.value).startswith(f"{path}: not a YuNet face detector")
    assert "\n" not in str(refusal.value)


@pytest.fixture(scope="module")
def yunet(test_data):
    return FaceDetector(test_data / "models" / "yunet_n_640_640.onnx")


def test_half_a_detector(test_data, tmp_path):
    whole = (test_data / "models" / "yunet_n_640_640.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a YuNet face detector"):
        FaceDetector(tmp_path / "half.onnx")


def test_faces_are_where_they_are_whatever_the_size_of_the_frame(yunet, test_data):
    """Shares of the frame, in an image that is scaled down, in one that is not, and in one that stands upright."""
    path = test_data / "real_clips" / "videos" / "clearvoice_001_2faces.avi"
    with VideoReader(path) as film:
        (image,) = film.frames(np.array([1.0]), FOREVER)
    whole = yunet.detect(image)
    assert whole.shape == (2, 5)
    assert (whole[:, 4] > 0.8).all()
    small = yunet.detect(cv2.resize(image, (480, 270)))
    upright = yunet.detect(np.pad(image, ((0, 1200), (0, 0), (0, 0))))
    upright[:, [1, 3]] *= (720 + 1200) / 720
    for other in (small, upright):
        best = overlap(whole[:, :4], other[:, :4])
        assert (best.max(axis=1) > 0.7).all()
    assert len(yunet.detect(np.zeros((8, 500, 3), np.uint8))) == 0
    np.testing.assert_array_equal(yunet.detect(image), whole)  # nothing stays from other sizes


CLIPS = {  # where they are cut, in seconds, and at least so many tracks of at least so many seconds
    "avobjects_cnn_4faces.mp4": ([], 4, 14),
    "clearvoice_001_2faces.avi": ([], 2, 7.9),
    "clearvoice_002_2faces.avi": ([5.88], 2, 5.8),
    "face_recognition_short_hamilton.mp4": ([0.667, 2.736, 7.040], 3, 2.0),
}


@pytest.fixture(scope="module")
def real_tracks(yunet, test_data):
    """The tracks of a clip, found once."""
    return functools.cache(lambda clip: tracks_of(test_data / "real_clips" / "videos" / clip, yunet))


@pytest.mark.parametrize("clip", CLIPS)
def test_tracks_of_real_clips(real_tracks, clip):
    cuts, least, seconds = CLIPS[clip]
    timeline, found = real_tracks(clip)
    assert timeline.cuts == pytest.approx(cuts, abs=0.002)
    long = [track for track in found if track[0][-1] - track[0][0] >= seconds]
    assert len(long) >= least
    assert len(found) <= 2 * least + 2
    for times, boxes in found:
        rows = np.flatnonzero(np.isin(timeline.times, times))
        assert len(rows) == len(times)
        assert len(set(timeline.shot[rows].tolist())) == 1, "a track crosses a cut"
        assert times[-1] - times[0] >= tracking_params["min_track_seconds"]
        sides = (boxes[:, 2:] - boxes[:, :2]) * (16, 9)
        assert (np.abs(np.log(sides[:, 0] / sides[:, 1])) < np.log(2.2)).all()  # a face is no strip
    if "clearvoice" in clip:
        assert len(found) == 2
        (one, _), (two, _) = sorted((boxes.mean(axis=0)[[0, 2]].mean(), None) for _, boxes in found)
        assert one < 0.4 < 0.6 < two


def test_tracks_of_a_real_clip_are_those_of_its_annotations(real_tracks, test_data):
    """Each of the two faces lies on one track that was annotated for it."""
    name = "clearvoice_001_2faces"
    _, found = real_tracks(f"{name}.avi")
    table = read_annotations(test_data / "real_clips" / "csv" / "val" / f"{name}-activespeaker.csv")
    for times, boxes in found:
        best = 0.0
        for track in range(len(table.entity_ids)):
            rows = table.rows_of_track(track)
            common, mine, theirs = np.intersect1d(times.round(2), table.timestamp[rows].round(2), return_indices=True)
            if len(common) > 0.8 * len(times):
                pairs = np.diagonal(overlap(boxes[mine], table.box[rows[theirs]]))
                best = max(best, float(pairs.mean()))
        assert best > 0.6
