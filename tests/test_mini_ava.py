"""Synthetic videos: layout and formats of scripts/make_mini_ava.py, and agreement of videos and annotations."""

import hashlib
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_refused, printed
from imageio_ffmpeg import get_ffmpeg_exe
from tiny_inputs import digests, run_here

from core.ablation import single_cue_ap
from core.formats.annotations import LABELS, read_annotations
from core.media.audio import iter_audio
from core.media.reader import VideoReader
from core.synthetic.drawing import Canvas, draw_cover, draw_face, draw_frames
from core.synthetic.plan import HARD, Scenario, plan_cast, plan_video
from core.synthetic.video import annotation_lines, face_boxes, frame_labels
from core.synthetic.voice import synthesise_audio

SECONDS = 6
SEED = 5  # two short videos with all labels and with one to four faces
FPS = 25


def make(root: Path, *more: object, videos: int = 2, seed: int = SEED) -> subprocess.CompletedProcess[str]:
    flags = ("--root", root, "--videos", videos, "--seconds", SECONDS, "--seed", seed)
    return run_here("scripts/make_mini_ava.py", *flags, *more)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, str]:
    """Root with one video for training and one for validation, and the output of the script."""
    root = tmp_path_factory.mktemp("mini") / "ava"
    return root, printed(make(root))


@pytest.fixture(scope="module")
def root(made) -> Path:
    return made[0]


@pytest.fixture(scope="module")
def rows(root) -> dict[str, list[list[str]]]:
    """video_id -> rows of eight fields."""
    return {csv.name[:11]: [line.split(",") for line in csv.read_text().splitlines()] for csv in csvs_of(root)}


@pytest.fixture(scope="module")
def frames(root) -> dict[str, np.ndarray]:
    """video_id -> BGR frames (frames, height, width, 3)."""
    return {path.stem: decode(path) for path in videos_of(root)}


def csvs_of(root: Path) -> list[Path]:
    return sorted(root.glob("csv/*/*"))


def videos_of(root: Path) -> list[Path]:
    return sorted(root.glob("videos/trainval/*"))


def decode(path: Path) -> np.ndarray:
    with VideoReader(path) as video:
        return np.stack(list(video.frames(np.arange(SECONDS * FPS + 1) / FPS, seek_gap=1e9)))


def pixels(row: list[str], image: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """BGR pixels (N, 3) of a part of a row's box. The part is given in fractions of the box."""
    x1, y1, x2, y2 = (float(edge) * size for edge, size in zip(row[2:6], (640, 360, 640, 360), strict=True))
    xs, ys = x1 + np.array([left, right]) * (x2 - x1), y1 + np.array([top, bottom]) * (y2 - y1)
    return image[int(ys[0]) : int(ys[1]) + 1, int(xs[0]) : int(xs[1]) + 1].reshape(-1, 3).astype(int)


def frame_of(row: list[str]) -> int:
    return int(np.floor(float(row[1]) * FPS + 0.5))


def is_skin(bgr: np.ndarray) -> np.ndarray:
    return (bgr[..., 2] > bgr[..., 1]) & (bgr[..., 1] > bgr[..., 0]) & (bgr[..., 2] - bgr[..., 0] > 25)


# Files


def test_layout(root):
    split_of = {csv.name.removesuffix("-activespeaker.csv"): csv.parent.name for csv in csvs_of(root)}
    assert sorted(split_of.values()) == ["train", "val"]
    assert {path.name for path in videos_of(root)} == {f"{video_id}.mp4" for video_id in split_of}
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{11}", video_id) for video_id in split_of)
    assert any(video_id.startswith("-") for video_id in split_of)


def test_annotations_are_valid(root, rows):
    assert sum(len(read_annotations(csv)) for csv in csvs_of(root)) == sum(map(len, rows.values()))
    for video_id, lines in rows.items():
        for fields in lines:
            assert len(fields) == 8 and fields[0] == video_id and fields[6] in LABELS
            assert re.fullmatch(r"0|[1-9]\d*|(0|[1-9]\d*)\.(\d?[1-9])", fields[1]), fields[1]
            assert re.fullmatch(rf"{re.escape(video_id)}_0000_0060:[1-9]\d*", fields[7])


def test_tracks_are_contiguous_and_last_two_to_five_seconds(rows):
    for lines in rows.values():
        tracks = defaultdict(list)
        for fields in lines:
            tracks[fields[7]].append(frame_of(fields))
        assert [fields[7] for fields in lines] == [name for name, indices in tracks.items() for _ in indices]
        for indices in tracks.values():
            assert np.all(np.diff(indices) == 1)
            assert 2 * FPS <= len(indices) <= 5 * FPS
            assert max(indices) < SECONDS * FPS


def test_videos_are_h264_and_aac(root, frames):
    for path in videos_of(root):
        command = [get_ffmpeg_exe(), "-hide_banner", "-i", f"file:{path}"]
        probe = subprocess.run(command, capture_output=True, text=True, check=False).stderr
        assert re.search(r"Video: h264.*yuv420p.*640x360.*25 fps", probe), probe
        assert re.search(r"Audio: aac.*(16000|44100|48000) Hz, mono", probe), probe
        assert len(frames[path.stem]) == SECONDS * FPS


def test_all_labels_occur_and_the_next_command_is_printed(rows, made):
    assert {fields[6] for lines in rows.values() for fields in lines} == set(LABELS)
    assert "data/extract_audio_tracks.py" in made[1]


# Content


def test_boxes_contain_faces(rows, frames):
    for video_id, lines in rows.items():
        images = frames[video_id]
        centres = [np.median(pixels(row, images[frame_of(row)], 0.4, 0.4, 0.6, 0.6), axis=0) for row in lines]
        assert is_skin(np.array(centres)).mean() > 0.85  # the others are turned away
        assert is_skin(images[::25].astype(int)).mean() < 0.35  # the background is not skin-coloured


def test_mouths_move_with_their_voices(root, rows, frames):
    correlations = defaultdict(list)  # audio shift in frames -> correlation in each track
    for path in videos_of(root):
        audio = np.concatenate(list(iter_audio(path))).astype(float)
        speaking = defaultdict(list)
        for row in rows[path.stem]:
            if row[6] == "SPEAKING_AUDIBLE" and 5 <= frame_of(row) < SECONDS * FPS - 5:
                speaking[row[7]].append(row)
        for track in speaking.values():
            mouths = [pixels(row, frames[path.stem][frame_of(row)], 0.3, 0.58, 0.7, 0.85) for row in track]
            darkness = [(mouth.max(axis=1) < 90).mean() for mouth in mouths]
            for shift in (-4, 0, 4):
                centres = [(frame_of(row) + shift) * 640 for row in track]
                loudness = [np.sqrt(np.mean(audio[centre - 320 : centre + 320] ** 2)) for centre in centres]
                if len(track) > 20 and np.std(darkness) > 0:  # otherwise too short, or hidden throughout
                    correlations[shift].append(np.corrcoef(darkness, loudness)[0, 1])
    assert len(correlations[0]) >= 3
    assert np.mean(correlations[0]) > 0.4
    assert np.mean(correlations[0]) > 0.3 + max(np.mean(correlations[-4]), np.mean(correlations[4]))


def plan_rows(scenario: Scenario) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (N,), cues other than face and voice (N, 6), and whether the mouth is hidden (N,), of 80 videos."""
    labels, cues, hidden = [], [], []
    for index in range(80):
        for shot in plan_video(np.random.default_rng([5, index]), scenario, 300).shots:
            for track in shot.tracks:
                labels.append(frame_labels(track))
                x1, y1, x2, y2 = face_boxes(track, scenario.size).T
                num_faces, age = np.full(len(x1), len(shot.tracks)), track.times - shot.first / FPS
                cues.append(np.stack([x2 - x1, y2 - y1, x1 + x2, y1 + y2, num_faces, age], axis=1))
                _, start, end = track.hidden
                hidden.append((track.times > start) & (track.times < end))
    return np.concatenate(labels), np.concatenate(cues), np.concatenate(hidden)


def auc_distance_from_chance(cue: np.ndarray, speaking: np.ndarray) -> float:
    ranks = np.argsort(np.argsort(cue + 1e-9 * np.random.default_rng(0).random(len(cue))))
    return abs((ranks[speaking].mean() - (speaking.sum() - 1) / 2) / (~speaking).sum() - 0.5)


@pytest.mark.parametrize("hard", [False, True])
def test_only_faces_and_voices_reveal_the_label(hard):
    labels, cues, hidden = plan_rows(HARD if hard else Scenario())
    fractions = np.bincount(labels) / len(labels)
    assert 0.25 < fractions[1] < 0.35
    assert (0.005 < fractions[2] < 0.03) if hard else (0.03 < fractions[2] < 0.12)
    assert (0.3 < hidden.mean() < 0.5) if hard else (0.05 < hidden.mean() < 0.15)
    for cue in (*cues.T, hidden):
        assert auc_distance_from_chance(cue, labels == 1) < 0.1
    # Nor does a combination of them.
    half = len(labels) // 2
    parts = {"train": slice(0, half, 5), "val": slice(half, None)}
    inputs = {split: np.column_stack([cues, hidden])[part] for split, part in parts.items()}
    speaking = {split: (labels == 1)[part] for split, part in parts.items()}
    assert single_cue_ap(inputs, speaking, 0) < speaking["val"].mean() + 0.1


def test_chins_do_not_reveal_the_label_in_hard_videos():
    """A talking and a silent face are identical behind a microphone, but not if the chin moves."""
    person = plan_cast(np.random.default_rng(0))[0]
    for jaw, differ in ((Scenario().jaw, True), (HARD.jaw, False)):
        images = []
        for openness in (0.0, 1.0):
            image = np.full((360, 640, 3), 90, np.uint8)
            canvas = Canvas(image, np.array([320.0, 150.0]), 110.0, 0.0)
            draw_face(canvas, person, 0.0, np.array([openness, 1.0, 0.0]), jaw, 0.0)
            draw_cover(canvas, person, "microphone", 1.0)
            images.append(image)
        assert np.any(images[0] != images[1]) == differ


# Reproducibility

DRAWS = {  # SHA-256 of the annotations, and the next draw after all frames
    "default": ("eff82d90cfee6e9dd1c18fdbfa64e53219bd8d96e3a8e27680275760af041ab2", 2651280444),
    "hard": ("e457e6f688c4c5b143e74634a01075ecbe85f82e4c99178aca701918337a9dc4", 3174932824),
}


@pytest.mark.parametrize(("name", "scenario"), [("default", Scenario()), ("hard", HARD)])
def test_random_draws_are_those_of_the_recorded_results(name, scenario):
    """The results in docs/ablation.md and in the README were measured on videos with these draws."""
    video = plan_video(np.random.default_rng(5), scenario, 125)
    annotations = "".join(annotation_lines("video", video)).encode()
    synthesise_audio(video, 16000)
    assert sum(1 for _ in draw_frames(video)) == 125
    assert (hashlib.sha256(annotations).hexdigest(), video.rng.integers(1 << 32)) == DRAWS[name]


def test_same_arguments_give_the_same_bytes(root, tmp_path):
    printed(make(tmp_path))
    assert digests(tmp_path) == digests(root)


def test_only_missing_videos_are_made(root):
    before = {path: path.stat().st_mtime_ns for path in [*videos_of(root), *csvs_of(root)]}
    missing = csvs_of(root)[0]
    content = missing.read_bytes()
    missing.unlink()
    printed(make(root))
    assert missing.read_bytes() == content
    kept = [path for path in before if path.name[:11] != missing.name[:11]]
    assert len(kept) == 2 and all(path.stat().st_mtime_ns == before[path] for path in kept)


def test_unusable_arguments_and_roots_are_errors(root, tmp_path):
    (tmp_path / "real" / "csv").mkdir(parents=True)
    assert_refused(make(root, seed=4), "made with seed 5, now 4")
    assert_refused(make(root, "--hard"), "made with hard False, now True")
    assert_refused(make(tmp_path / "real"), "not made by this script")
    assert_refused(make(tmp_path / "new", videos=1), "--videos", "at least 2")
    assert not (tmp_path / "new").exists()
