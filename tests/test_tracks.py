"""Shots, rows and face tracks of a video."""

import functools
from collections.abc import Callable, Iterator
from unittest import mock

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_videos import frame_number, rate
from numbered_videos import make_video as make_numbered_video
from square_videos import DIM, SIZE, Square, SquareDetector, ava_shaped, background, draw, encode, make_video

from core.config import tracking_params
from core.detection.shots import Shots, detect_shots, row_rate
from core.detection.tracks import (
    FaceDetector,
    Track,
    box_iou,
    detect_tracks,
    link_detections,
    match_ava_shape,
)
from core.formats.annotations import read_annotations
from core.media.reader import VideoReader
from core.runtime.errors import InputError

NO_SEEK = float("inf")


def constant_rate_shots(seconds: float, fps: float, cuts: tuple[float, ...] = ()) -> Shots:
    half = 0.5 / fps
    return Shots(seconds, seconds - half, fps, list(cuts), [cut - half for cut in cuts], fps)


# Rows


@pytest.mark.parametrize(
    ("fps", "rows"),
    [
        *[(20, 20), (24000 / 1001, 24000 / 1001), (33.3, 33.3)],  # every frame
        *[(40, 20), (60000 / 1001, 30000 / 1001), (144, 24)],  # every n-th frame
        *[(1, 25), (19.9, 25), (34, 25)],  # half of 34 would be 17, too few
    ],
)
def test_row_rate(fps, rows):
    assert row_rate(fps) == pytest.approx(rows, abs=1e-9)


@pytest.mark.parametrize("fps", ["24000/1001", "60000/1001"])
def test_rows_are_all_frames_or_every_second(tmp_path, fps):
    path = make_numbered_video(tmp_path / "video.mp4", fps, seconds=3)
    with VideoReader(path) as reader:
        count = round(3 * rate(fps))
        shots = constant_rate_shots(count / reader.fps, reader.fps)
        frames = [frame_number(image) for image in reader.frames(shots.times, NO_SEEK)]
    assert frames == list(range(0, count, 2 if rate(fps) > 40 else 1))
    assert (shots.times == shots.times.round(2)).all()
    assert shots.shot.tolist() == [0] * len(frames)


def test_rows_of_a_slow_video_repeat_the_nearest_frame(tmp_path):
    fps = "25/2"
    path = make_numbered_video(tmp_path / "video.mp4", fps, seconds=4)
    count = round(4 * rate(fps))
    shots = constant_rate_shots(4.0, rate(fps))
    with VideoReader(path) as reader:
        frames = [frame_number(image) for image in reader.frames(shots.times, NO_SEEK)]
    assert frames == np.floor(shots.times * rate(fps) + 0.5).astype(int).tolist()
    assert len(frames) == (np.floor(np.arange(100) / 25 * rate(fps) + 0.5) < count).sum()
    assert set(frames) == set(range(count))


@pytest.mark.parametrize("fps", ["25/2", "24000/1001", "60000/1001"])
def test_rows_belong_to_the_shot_of_their_frame(fps):
    count = round(20 * rate(fps))
    for cut in range(1, count):
        shots = constant_rate_shots(count / rate(fps), rate(fps), (round(cut / rate(fps), 6),))
        frames = np.floor(shots.times * rate(fps) + 0.5)
        assert (shots.shot == (frames >= cut)).all(), cut


def test_shortest_video_has_one_row():
    assert constant_rate_shots(0.001, 999.0).times.tolist() == [0.0]


# Shots


@pytest.mark.parametrize(("fps", "suffix"), [("24000/1001", "mp4"), ("12", "avi")])
def test_cuts_are_found_at_their_frame(tmp_path, fps, suffix):
    cuts = [round(time * rate(fps)) / rate(fps) for time in (0.5, 1.3, 1.84)]  # seconds
    options = ("-c:v", "mpeg4", "-q:v", "3", "-bf", "0") if suffix == "avi" else ("-c:v", "libx264", "-bf", "2")
    path = make_video(tmp_path / f"video.{suffix}", [Square(20, 30)], 2.4, fps, cuts, audio=None, options=options)
    shots = detect_shots(path)
    assert shots.cuts == pytest.approx(cuts, abs=0.002)
    assert shots.seconds == pytest.approx(2.4, abs=0.6 / rate(fps))
    assert shots.fps == pytest.approx(rate(fps))
    assert shots.rate == row_rate(shots.fps)


WIDE = (1000, 120)


def moving(seed: int, count: int) -> Iterator[np.ndarray]:
    """A fast pan over a blurred background, at full speed from the first frame."""
    wide = cv2.GaussianBlur(background(seed, WIDE), (0, 0), 3)
    return (wide[:, 8 * index : 8 * index + SIZE[0]] for index in range(count))


def pan(max_speed: int) -> Callable[[int], Iterator[np.ndarray]]:
    """A pan over a blurred background that accelerates up to a speed in pixels per frame."""
    wide = cv2.GaussianBlur(background(1, WIDE), (0, 0), 3)
    offsets = np.minimum(np.arange(100) * 0.5, max_speed).cumsum().astype(int)
    return lambda count: (wide[:, left : left + SIZE[0]] for left in offsets[:count].tolist())


def zoom(count: int) -> Iterator[np.ndarray]:
    """A zoom into half of the frame."""
    image = cv2.GaussianBlur(background(1), (0, 0), 2)
    for factor in np.geomspace(1, 2, count):
        matrix = np.array([[factor, 0, SIZE[0] * (1 - factor) / 2], [0, factor, SIZE[1] * (1 - factor) / 2]])
        yield cv2.warpAffine(image, matrix, SIZE)


def fade(first: float, middle: float, last: float) -> Callable[[int], Iterator[np.ndarray]]:
    """Brightness that changes from the first factor to the second and to the last, each within 0.6 s."""
    factors = np.interp(np.arange(50), [5, 20, 25, 40], [first, middle, middle, last])
    return lambda count: ((factor * background(1)).round().astype(np.uint8) for factor in factors[:count])


GRADUAL = {
    **{"pan": pan(8), "motion from the first frame": lambda count: moving(1, count), "zoom": zoom},
    **{"fade out and in": fade(1, 0, 1), "light": fade(0.3, 1, 1)},
}


@pytest.mark.parametrize("images", GRADUAL.values(), ids=GRADUAL)
def test_gradual_changes_are_not_cuts(tmp_path, images):
    path = encode(tmp_path / "video.mp4", images(50), audio=None)
    assert detect_shots(path).cuts == []


def test_cut_within_a_pan_is_found(tmp_path):
    before, after = list(pan(3)(25)), [DIM - image for image in pan(3)(25)]
    path = encode(tmp_path / "video.mp4", iter(before + after), audio=None)
    assert detect_shots(path).cuts == pytest.approx([1.0])


def dissolve(seconds: float, fps: float, start: float = 1.5) -> np.ndarray:
    """Frames of a dissolve between two backgrounds, each with a square in motion. Its length may be 0."""
    times = np.arange(round((2 * start + seconds) * fps)) / fps
    shots = [draw([Square(x, 30, 40, (v, 0))], times) for x, v in ((20, 12), (110, -12))]
    weights = np.clip((times - start) / max(seconds, 1e-6), 0, 1)
    mixed = zip(*shots, weights, strict=True)
    return np.stack([(1 - w) * first + w * second[::-1] for first, second, w in mixed]).round().astype(np.uint8)


@pytest.mark.parametrize("fps", ["24000/1001", "60", "12"])
@pytest.mark.parametrize("seconds", [0.5, 1, 2])
def test_dissolve_is_a_cut_in_its_middle(tmp_path, seconds, fps):
    path = encode(tmp_path / "video.mp4", iter(dissolve(seconds, rate(fps))), fps, audio=None)
    assert detect_shots(path).cuts == pytest.approx([1.5 + seconds / 2], abs=0.1 + 0.05 * seconds)


def test_dissolves_and_cuts_of_one_video(tmp_path):
    """A cut or dissolve every 1.5 to 2.5 s."""
    parts = [dissolve(0, 25), dissolve(0.5, 25), dissolve(2, 25), dissolve(0, 25)]
    path = encode(tmp_path / "video.mp4", iter(np.concatenate(parts)), audio=None)
    assert detect_shots(path).cuts == pytest.approx([1.5, 3, 4.75, 6.5, 9, 11.5, 13], abs=0.1)


def test_fade_through_black_is_a_cut(tmp_path):
    weights = np.clip(np.abs(np.arange(80) - 40) / 15, 0, 1)
    images = [(w * background(int(index > 40))).astype(np.uint8) for index, w in enumerate(weights)]
    assert detect_shots(encode(tmp_path / "video.mp4", iter(images), audio=None)).cuts == pytest.approx([1.6], abs=0.1)


@pytest.mark.parametrize("lit", [(1.0,), (1.0, 1.0), (1.0, 0.8, 0.5, 0.2)], ids=["one frame", "two frames", "fading"])
def test_camera_flash_is_not_a_cut(tmp_path, lit):
    """Five flashes over a slow pan, two of them shortly after each other, then a cut."""
    images = np.stack(list(pan(1)(75))).astype(float)
    for start in (10, 24, 30, 45, 58):
        for index, strength in enumerate(lit, start):
            images[index] += strength * (240 - images[index])
    images = [*images.round().astype(np.uint8), *background(5)[None].repeat(10, 0)]
    path = encode(tmp_path / "video.mp4", iter(images), audio=None)
    assert detect_shots(path).cuts == pytest.approx([3.0])


def test_flash_between_two_shots_is_a_cut(tmp_path):
    images = [background(1)] * 25 + [np.full(SIZE[::-1], 250, np.uint8)] * 2 + [background(2)] * 25
    cuts = detect_shots(encode(tmp_path / "video.mp4", iter(images), audio=None)).cuts
    assert 1.0 in np.round(cuts, 2)


@pytest.mark.parametrize("cut", [84, 182])
def test_rows_belong_to_the_shot_of_their_frame_at_variable_frame_rate(tmp_path, cut):
    """60 frames per second for one second, 5 for two seconds, then 60 again, with a cut in one of these parts."""
    kept = np.array([*range(60), *range(60, 180, 12), *range(180, 240)])
    options = ("-vf", "select='if(between(n,60,179),not(mod(n,12)),1)'", "-fps_mode", "vfr")
    codec = ("-c:v", "libx264", "-preset", "veryfast", "-bf", "0")
    path = make_video(tmp_path / "video.mp4", [], 4, "60", [cut / 60], audio=None, options=(*options, *codec))
    shots = detect_shots(path)
    assert shots.cuts == pytest.approx([kept[kept >= cut][0] / 60], abs=0.002)
    with VideoReader(path) as reader:
        images = list(reader.frames(shots.times, NO_SEEK))
    after_cut = [int(np.abs(image.mean(axis=2) - background(1)).mean() < 20) for image in images]
    assert shots.shot[: len(after_cut)].tolist() == after_cut
    assert len(images) >= len(shots.times) - 1


# Linking of detections

STEP = 0.12  # seconds between detections: every third row


def box(x: float, y: float = 0.3, side: float = 0.2) -> list[float]:
    return [x, y, x + side, y + side]


def detections(count: int, *faces: Callable[[int], tuple | None]) -> list[tuple[float, np.ndarray]]:
    """Input of link_detections. Each face is a function from an index to (x, y, score), or to None if not detected."""
    result = []
    for index in range(count):
        values = [face(index) for face in faces]
        rows = [[*box(*value[:2]), value[2]] for value in values if value]
        result.append((round(index * STEP, 2), np.array(rows, float).reshape(-1, 5)))
    return result


def left_edges(track: Track) -> list[float]:
    return [round(float(corner[0]), 4) for corner in track.boxes]


def test_crossing_faces_keep_their_tracks():
    """In whatever order the detector returns them."""
    right, left = (lambda n: (0.02 + 0.04 * n, 0.3, 0.9)), (lambda n: (0.78 - 0.04 * n, 0.34, 0.9))
    swapped = enumerate(detections(20, right, left))
    swapped = [(time, faces[::-1].copy() if index % 2 else faces) for index, (time, faces) in swapped]
    first, second = sorted(link_detections(swapped), key=left_edges)
    assert left_edges(first) == [round(0.02 + 0.04 * n, 4) for n in range(20)]
    assert left_edges(second) == [round(0.78 - 0.04 * n, 4) for n in range(20)]


@pytest.mark.parametrize(("missing", "tracks"), [(5, 1), (6, 2)])
def test_gaps_up_to_the_maximum_are_bridged(missing, tracks):
    """Five missing detections are a gap of 0.72 s, six are a gap of 0.84 s."""
    assert STEP * 6 <= tracking_params["max_gap"] < STEP * 7
    linked = link_detections(detections(40, lambda n: None if 15 <= n < 15 + missing else (0.3, 0.3, 0.9)))
    assert len(linked) == tracks
    assert sum(len(track.times) for track in linked) == 40 - missing


def test_weak_tracks_are_dropped():
    """One confident detection is enough to keep a track."""
    weak = lambda n: (0.4, 0.5, 0.65)  # noqa: E731
    (track,) = link_detections(detections(30, weak, lambda n: (0.1, 0.3, 0.75 if n == 20 else 0.55)))
    assert left_edges(track) == [0.1] * 30


def test_fast_face_is_linked_by_its_predicted_box():
    """It moves by three quarters of its width between detections, too far for its last box."""
    x = np.cumsum([0, 0.02, 0.06, 0.1, 0.14, *[0.15] * 12])
    far = np.array([box(x[6]), box(x[7])])
    assert box_iou(far[:1], far[1:])[0, 0] < tracking_params["min_iou"]
    (track,) = link_detections(detections(len(x), lambda n: (x[n], 0.3, 0.9)))
    assert left_edges(track) == x.round(4).tolist()


random_faces = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 2), st.sampled_from([0.55, 0.75, 0.9])), max_size=4
).map(lambda faces: np.array([[*box(x / 12, y / 4), score] for x, y, score in faces], float).reshape(-1, 5))
random_detections = st.lists(st.tuples(st.integers(1, 8), random_faces), max_size=25)


@settings(deadline=None)
@given(random_detections)
def test_every_detection_is_in_one_track(gaps_and_faces):
    times = np.cumsum([gap for gap, _ in gaps_and_faces]) * STEP
    given_faces = [(float(time), faces) for time, (_, faces) in zip(times, gaps_and_faces, strict=True)]
    with mock.patch.dict(tracking_params, {"min_track_score": 0.0}):
        tracks = link_detections(given_faces)
    linked = [
        (time, *box.tolist(), score)
        for track in tracks
        for time, box, score in zip(track.times, track.boxes, track.scores, strict=True)
    ]
    assert sorted(linked) == sorted((time, *face) for time, faces in given_faces for face in faces.tolist())
    for track in tracks:
        gaps = np.diff(track.times)
        assert ((gaps > 0) & (gaps <= tracking_params["max_gap"] + 1e-9)).all()


# Tracks of a video

FACES = [
    Square(20, 30, velocity=(15, 0), end=2.4),
    Square(20, 30, velocity=(15, 0), start=2.4),  # continues the first in another shot
    Square(120, 80, 32, velocity=(-12, -5), start=0.4, end=2.2),
]


def find_tracks(path, detector=None, **options) -> tuple[Shots, list[tuple[np.ndarray, np.ndarray]]]:
    shots = detect_shots(path)
    with VideoReader(path) as reader:
        return shots, list(detect_tracks(reader, shots, detector or SquareDetector(), **options))


@pytest.fixture(scope="module")
def square_video(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("squares") / "video.mp4", FACES, 4.6, cuts=[2.4], audio=None)


def test_tracks_have_every_row_of_a_face_and_end_at_cuts(square_video):
    detector = SquareDetector()
    shots, tracks = find_tracks(square_video, detector)
    assert shots.cuts == [2.4]
    assert len(tracks) == 3
    tracks.sort(key=lambda track: (track[0][0], track[0][-1]))
    spans = [(times[0], times[-1]) for times, _ in tracks]
    assert spans[0] == (0.0, 2.36)  # from the first row of the video to the last row before the cut
    assert spans[1] == pytest.approx((0.4, 2.16), abs=0.12)
    assert spans[2] == (2.4, 4.56)  # from the first row after the cut to the last row of the video
    for (times, boxes), face in zip(tracks, (FACES[0], FACES[2], FACES[1]), strict=True):
        np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-9)
        true = np.array([face.box(time) for time in times])
        assert np.abs((boxes - true) * np.tile(SIZE, 2)).max() < 1.6  # pixels
        assert len(set(shots.shot[np.isin(shots.times, times)].tolist())) == 1
    assert detector.calls == len(range(0, 60, 3)) + 1 + len(range(60, 115, 3))


def test_boxes_are_shifted_into_the_frame(tmp_path):
    class DetectorBeyondTheFrame(SquareDetector):
        def detect(self, image):
            self.calls += 1
            x = 0.7 + 0.02 * (self.calls - 1)
            return np.array([[x, -0.1, x + 0.2, 0.3, 0.9]])

    path = make_video(tmp_path / "video.mp4", [], 2.4, audio=None)
    _, ((times, boxes),) = find_tracks(path, DetectorBeyondTheFrame())
    assert ((boxes >= 0) & (boxes <= 1)).all()
    np.testing.assert_allclose(np.ptp(boxes[:, 2:] - boxes[:, :2], axis=0), 0, atol=1e-5)  # not smaller at the edge
    assert boxes[:, 1].tolist() == [0] * len(times)
    assert 1.6 < times[-1] < 2


@settings(deadline=None)
@given(
    st.tuples(*[st.floats(-0.2, 1)] * 2, *[st.floats(0.01, 1.2)] * 2),
    st.sampled_from([(160, 120), (120, 160), (1920, 1080), (300, 10)]),
)
def test_boxes_have_the_shape_of_ava(corner_and_sides, size):
    x, y, width, height = corner_and_sides
    given_box = np.array([[x, y, x + width, y + height]])
    (result,) = match_ava_shape(given_box, np.array(size))
    (expected,) = ava_shaped(given_box, size)
    sides = expected[2:] - expected[:2]
    assert (result >= -1e-9).all()
    assert (result <= 1 + 1e-9).all()
    np.testing.assert_allclose(result[2:] - result[:2], np.minimum(sides, 1), atol=1e-9)
    if (expected >= 0).all() and (expected <= 1).all():
        np.testing.assert_allclose(result, expected, atol=1e-9)
        assert result.dot([0, 0, size[0], 0]) - result[0] * size[0] == pytest.approx(0.86 * sides[1] * size[1])


def test_boxes_have_the_shape_of_ava_as_displayed(tmp_path):
    """With pixels twice as wide as high."""
    options = ("-vf", "setsar=2/1", "-c:v", "libx264")
    path = make_video(tmp_path / "video.mp4", [Square(60, 40)], 1.4, audio=None, options=options)
    _, ((_, boxes),) = find_tracks(path)
    sides = (boxes[:, 2:] - boxes[:, :2]) * (2 * SIZE[0], SIZE[1])
    np.testing.assert_allclose(sides[:, 0] / sides[:, 1], 0.86, atol=0.001)


def test_short_tracks_are_dropped_with_a_note(tmp_path):
    path = make_video(tmp_path / "short.mp4", [Square(20, 30), Square(90, 30)], 0.8, audio=None)
    notes = []
    assert find_tracks(path, notes=notes)[1] == []
    assert notes == ["2 tracks shorter than 1 s were dropped (--min-track)"]
    assert len(find_tracks(path, min_track=0.5, notes=notes)[1]) == 2
    assert len(notes) == 1


def test_small_faces_are_dropped_with_a_note(tmp_path):
    """A square of 30 pixels becomes a box of 27.8 x 32.3 pixels."""
    path = make_video(tmp_path / "video.mp4", [Square(20, 30, 30), Square(90, 30, 45)], 1.4, audio=None)
    notes = []
    assert len(find_tracks(path, min_face=27, notes=notes)[1]) == 2
    assert notes == []
    assert len(find_tracks(path, min_face=29, notes=notes)[1]) == 1
    assert notes == ["1 tracks of faces below 29 pixels were dropped (--min-face)"]


# YuNet


@pytest.mark.parametrize("kind", ["text", "truncated"])
def test_files_that_are_not_yunet_are_errors(test_data, tmp_path, kind):
    whole = (test_data / "models" / "yunet_n_640_640.onnx").read_bytes()
    path = tmp_path / "detector.onnx"
    path.write_bytes(whole[: len(whole) // 2] if kind == "truncated" else b"not a network\n" * 30)
    with pytest.raises(InputError, match=f"^{path}: not a YuNet face detector"):
        FaceDetector(path)


@pytest.fixture(scope="module")
def yunet(test_data):
    return FaceDetector(test_data / "models" / "yunet_n_640_640.onnx")


def test_boxes_do_not_depend_on_the_frame_size(yunet, test_data):
    """Detect in one image that is downscaled, in one that is not, and in a portrait one."""
    path = test_data / "real_clips" / "videos" / "clearvoice_001_2faces.avi"
    with VideoReader(path) as reader:
        (image,) = reader.frames(np.array([1.0]), NO_SEEK)
    faces = yunet.detect(image)
    assert faces.shape == (2, 5)
    assert (faces[:, 4] > 0.8).all()
    small = yunet.detect(cv2.resize(image, (480, 270)))
    portrait = yunet.detect(np.pad(image, ((0, 1200), (0, 0), (0, 0))))
    portrait[:, [1, 3]] *= (720 + 1200) / 720
    for other in (small, portrait):
        assert (box_iou(faces[:, :4], other[:, :4]).max(axis=1) > 0.7).all()
    assert len(yunet.detect(np.zeros((8, 500, 3), np.uint8))) == 0
    np.testing.assert_array_equal(yunet.detect(image), faces)  # the detector keeps no state between sizes


CLIPS = {  # cuts in seconds, minimum number of long tracks, and seconds that make a track long
    "clearvoice_001_2faces.avi": ([], 2, 7.9),
    "face_recognition_short_hamilton.mp4": ([0.667, 2.736, 7.040], 3, 2.0),
}


@pytest.fixture(scope="module")
def real_tracks(yunet, test_data):
    """Cached function from the name of a clip to its tracks."""
    return functools.cache(lambda clip: find_tracks(test_data / "real_clips" / "videos" / clip, yunet))


@pytest.mark.parametrize("clip", CLIPS)
def test_tracks_of_real_clips(real_tracks, clip):
    cuts, min_tracks, seconds = CLIPS[clip]
    shots, tracks = real_tracks(clip)
    assert shots.cuts == pytest.approx(cuts, abs=0.002)
    long = [times for times, _ in tracks if times[-1] - times[0] >= seconds]
    assert len(long) >= min_tracks
    assert len(tracks) <= 2 * min_tracks + 2
    for times, boxes in tracks:
        rows = np.flatnonzero(np.isin(shots.times, times))
        assert len(rows) == len(times)
        assert len(set(shots.shot[rows].tolist())) == 1, "a track crosses a cut"
        assert times[-1] - times[0] >= tracking_params["min_track"]
        sides = (boxes[:, 2:] - boxes[:, :2]) * (16, 9)
        assert (np.abs(np.log(sides[:, 0] / sides[:, 1])) < np.log(2.2)).all()  # plausible aspect ratio of a face
    if "clearvoice" in clip:
        first, second = sorted(boxes.mean(axis=0)[[0, 2]].mean() for _, boxes in tracks)
        assert first < 0.4 < 0.6 < second


def test_tracks_of_a_real_clip_match_its_annotations(real_tracks, test_data):
    name = "clearvoice_001_2faces"
    _, tracks = real_tracks(f"{name}.avi")
    table = read_annotations(test_data / "real_clips" / "csv" / "val" / f"{name}-activespeaker.csv")
    for times, boxes in tracks:
        best = 0.0
        for entity in range(len(table.entity_ids)):
            rows = table.rows_of_track(entity)
            common, ours, theirs = np.intersect1d(times.round(2), table.timestamp[rows].round(2), return_indices=True)
            if len(common) > 0.8 * len(times):
                best = max(best, float(np.diagonal(box_iou(boxes[ours], table.box[rows[theirs]])).mean()))
        assert best > 0.6
