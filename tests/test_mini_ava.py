"""scripts/make_mini_ava.py through its command line: the layout, the formats, and that films and annotations agree."""

import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from core.ablation import single_cue_ap
from core.media.ffmpeg import ffmpeg_path, iter_audio
from core.media.reader import VideoPlan

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "make_mini_ava.py"
SECONDS = 6
SEED = 5  # two short films with every label, and with one to four faces
LABELS = {"NOT_SPEAKING", "SPEAKING_AUDIBLE", "SPEAKING_NOT_AUDIBLE"}


def make(
    root: Path, videos: int = 2, seconds: float = SECONDS, seed: int = SEED, more: tuple[str, ...] = ()
) -> subprocess.CompletedProcess:
    flags = ["--root", root, "--videos", videos, "--seconds", seconds, "--seed", seed, *more]
    return subprocess.run([sys.executable, SCRIPT, *map(str, flags)], capture_output=True, text=True, check=False)


def assert_refused(run: subprocess.CompletedProcess, reason: str) -> None:
    assert run.returncode == 2, run.stderr
    assert re.fullmatch(rf"error: .*{reason}.*\n", run.stderr), run.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, tuple[Path, str]]:
    """name -> root and what the script printed: `ava`, `again` with the same arguments, `other` with another seed.

    Each has one film to train on and one to validate on.
    """
    folder = tmp_path_factory.mktemp("mini")
    seeds = {"ava": SEED, "again": SEED, "other": SEED + 1}
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda name: make(folder / name, seed=seeds[name]), seeds))
    assert [run.returncode for run in runs] == [0, 0, 0], [run.stderr for run in runs]
    return {name: (folder / name, run.stdout) for name, run in zip(seeds, runs, strict=True)}


@pytest.fixture(scope="module")
def root(made) -> Path:
    return made["ava"][0]


@pytest.fixture(scope="module")
def rows(root) -> dict[str, list[list[str]]]:
    """video_id -> the eight fields of each of its rows."""
    return {csv.name[:11]: [line.split(",") for line in csv.read_text().splitlines()] for csv in csvs_of(root)}


@pytest.fixture(scope="module")
def frames(root) -> dict[str, np.ndarray]:
    """video_id -> all frames, BGR (frames, height, width, 3)."""
    return {path.stem: decode(path) for path in films_of(root)}


def csvs_of(root: Path) -> list[Path]:
    return sorted(root.glob("csv/*/*"))


def films_of(root: Path) -> list[Path]:
    return sorted(root.glob("videos/trainval/*"))


def decode(path: Path) -> np.ndarray:
    with VideoPlan(path) as film:
        return np.stack(list(film.frames(np.arange(SECONDS * 25 + 1) / 25, seek_gap=1e9)))


def sound_of(path: Path) -> np.ndarray:
    return np.concatenate(list(iter_audio(path)))


def pixels(row: list[str], image: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """BGR pixels (N, 3) of a part of a row's box, given in fractions of the box."""
    x1, y1, x2, y2 = (float(edge) * size for edge, size in zip(row[2:6], (640, 360, 640, 360), strict=True))
    xs, ys = x1 + np.array([left, right]) * (x2 - x1), y1 + np.array([top, bottom]) * (y2 - y1)
    return image[int(ys[0]) : int(ys[1]) + 1, int(xs[0]) : int(xs[1]) + 1].reshape(-1, 3).astype(int)


def frame_of(row: list[str]) -> int:
    return int(np.floor(float(row[1]) * 25 + 0.5))


def is_skin(bgr: np.ndarray) -> np.ndarray:
    return (bgr[..., 2] > bgr[..., 1]) & (bgr[..., 1] > bgr[..., 0]) & (bgr[..., 2] - bgr[..., 0] > 25)


def test_layout(root):
    split_of = {csv.name.removesuffix("-activespeaker.csv"): csv.parent.name for csv in csvs_of(root)}
    assert sorted(split_of.values()) == ["train", "val"]
    assert {film.name for film in films_of(root)} == {f"{video_id}.mp4" for video_id in split_of}
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{11}", video_id) for video_id in split_of)
    assert any(video_id.startswith("-") for video_id in split_of)
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) == 5 and root / "mini_ava_cfg.json" in files  # nothing half-made is left


def test_csv_format(root, rows):
    assert all(csv.read_bytes().endswith(b"\n") for csv in csvs_of(root))
    for video_id, lines in rows.items():
        for fields in lines:
            assert len(fields) == 8 and fields[0] == video_id and fields[6] in LABELS
            assert re.fullmatch(r"0|[1-9]\d*|(0|[1-9]\d*)\.(\d?[1-9])", fields[1]), fields[1]
            assert all(re.fullmatch(r"[01]\.\d{6}", edge) for edge in fields[2:6]), fields
            x1, y1, x2, y2 = map(float, fields[2:6])
            assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
            assert 25 < (x2 - x1) * 640 < 170
            assert re.fullmatch(rf"{re.escape(video_id)}_0000_0060:[1-9]\d*", fields[7])


def test_tracks_are_contiguous_and_two_to_five_seconds(rows):
    for lines in rows.values():
        changes = [now[7] for before, now in zip([lines[-1], *lines], lines, strict=False) if before[7] != now[7]]
        assert len(changes) == len(set(changes)) > 1
        tracks = defaultdict(list)
        for fields in lines:
            tracks[fields[7]].append(frame_of(fields))
        for indices in tracks.values():
            assert np.all(np.diff(indices) == 1)
            assert 2 * 25 <= len(indices) <= 5 * 25
        assert max(max(indices) for indices in tracks.values()) < SECONDS * 25


def test_one_to_four_faces_in_a_frame(rows):
    faces = [count for lines in rows.values() for count in Counter(fields[1] for fields in lines).values()]
    assert set(faces) <= {1, 2, 3, 4} and len(set(faces)) > 1


def test_films_are_h264_and_aac(root, frames):
    for film in films_of(root):
        probe = subprocess.run(
            [ffmpeg_path(), "-hide_banner", "-i", f"file:{film}"], capture_output=True, text=True, check=False
        ).stderr
        assert re.search(r"Video: h264.*yuv420p.*640x360.*25 fps", probe), probe
        assert re.search(r"Audio: aac.*(16000|44100|48000) Hz, mono", probe), probe
        assert len(frames[film.stem]) == SECONDS * 25


def test_boxes_show_faces(rows, frames):
    for video_id, lines in rows.items():
        images = frames[video_id]
        centres = [np.median(pixels(row, images[frame_of(row)], 0.4, 0.4, 0.6, 0.6), axis=0) for row in lines]
        assert is_skin(np.array(centres)).mean() > 0.85  # the others: heads turned away
        assert is_skin(images[::25].astype(int)).mean() < 0.35  # and not because everything looks like skin


def test_mouths_move_with_their_voices(root, rows, frames):
    together = defaultdict(list)  # frames that the sound is shifted by -> correlation in each track
    for film in films_of(root):
        sound = sound_of(film).astype(float)
        spoken = defaultdict(list)
        for row in rows[film.stem]:
            if row[6] == "SPEAKING_AUDIBLE" and 5 <= frame_of(row) < SECONDS * 25 - 5:
                spoken[row[7]].append(row)
        for track in spoken.values():
            mouths = [pixels(row, frames[film.stem][frame_of(row)], 0.3, 0.58, 0.7, 0.85) for row in track]
            darkness = [(mouth.max(axis=1) < 90).mean() for mouth in mouths]
            for shift in (-4, 0, 4):
                middles = [(frame_of(row) + shift) * 640 for row in track]
                loudness = [np.sqrt(np.mean(sound[middle - 320 : middle + 320] ** 2)) for middle in middles]
                if len(track) > 20 and np.std(darkness) > 0:  # else too short, or hidden throughout
                    together[shift].append(np.corrcoef(darkness, loudness)[0, 1])
    assert len(together[0]) >= 3
    assert np.mean(together[0]) > 0.4
    assert np.mean(together[0]) > 0.3 + max(np.mean(together[-4]), np.mean(together[4]))


def test_labels_and_report(rows, made):
    labels = Counter(fields[6] for lines in rows.values() for fields in lines)
    assert set(labels) == LABELS
    share, printed = labels["SPEAKING_AUDIBLE"] / labels.total(), made["ava"][1]
    assert 0.15 < share < 0.5  # of two short films: the next test sees many
    assert f"SPEAKING_AUDIBLE {share:.1%}" in printed
    assert f"2 films, {len({row[7] for lines in rows.values() for row in lines})} tracks" in printed
    assert "data/extract_audio_tracks.py" in printed


@pytest.fixture(scope="module")
def script():
    """The script as a module, for what is told without drawing."""
    spec = importlib.util.spec_from_file_location("make_mini_ava", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_mini_ava"] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def plan(script, scenario) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the rows of 80 films: labels (N,), cues (N, 6) beside faces and voices, whether the mouth is hidden (N,)."""
    labels, cues, hidden = [], [], []
    for index in range(80):
        film = script.VideoPlan(np.random.default_rng([5, index]), scenario)
        film.cast = script.plan_cast(film.rng)
        for shot in script.plan_shots(film, 300):
            for track in shot.tracks:
                labels.append(script.label_frames(track))
                x1, y1, x2, y2 = script.face_boxes(track, film.scenario.size).T
                faces, age = np.full(len(x1), len(shot.tracks)), track.times - shot.first / 25
                cues.append(np.stack([x2 - x1, y2 - y1, x1 + x2, y1 + y2, faces, age], axis=1))
                _, start, end = track.hidden
                hidden.append((track.times > start) & (track.times < end))
    return np.concatenate(labels), np.concatenate(cues), np.concatenate(hidden)


def away_from_chance(cue: np.ndarray, speaking: np.ndarray) -> float:
    """How far the area under the ROC curve is from a half."""
    ranks = np.argsort(np.argsort(cue + 1e-9 * np.random.default_rng(0).random(len(cue))))
    return abs((ranks[speaking].mean() - (speaking.sum() - 1) / 2) / (~speaking).sum() - 0.5)


@pytest.mark.parametrize("hard", [False, True])
def test_shares_over_many_films_and_nothing_but_faces_and_voices_tells_the_label(script, hard):
    labels, cues, hidden = plan(script, script.HARD if hard else script.Scenario())
    shares = np.bincount(labels) / len(labels)
    assert 0.25 < shares[1] < 0.35
    assert (0.005 < shares[2] < 0.03) if hard else (0.03 < shares[2] < 0.12)
    assert (0.3 < hidden.mean() < 0.5) if hard else (0.05 < hidden.mean() < 0.15)
    for cue in (*cues.T, hidden):
        assert away_from_chance(cue, labels == 1) < 0.1
    # Nor do all of them together, however they hang together.
    half = len(labels) // 2
    parts = {"train": slice(0, half, 5), "val": slice(half, None)}
    seen = {split: np.column_stack([cues, hidden])[part] for split, part in parts.items()}
    speaking = {split: (labels == 1)[part] for split, part in parts.items()}
    assert single_cue_ap(seen, speaking, 0) < speaking["val"].mean() + 0.1


def test_hard_films_hide_mouths_for_seconds_and_show_others_meanwhile(script):
    seconds, alone = [], 0
    for index in range(40):
        film = script.VideoPlan(np.random.default_rng([5, index]), script.HARD)
        film.cast = script.plan_cast(film.rng)
        for shot in script.plan_shots(film, 300):
            alone += len(shot.tracks) == 1
            stretches = [track.hidden[1:] for track in shot.tracks if track.hidden[0]]
            seconds += [end - start for start, end in stretches]
    assert alone == 0 and min(seconds) >= 1.5 and max(seconds) <= 3.5


def test_chins_of_hard_films_tell_nothing(script):
    """Behind a microphone, a face that talks and one that does not are one picture; not so in the usual films."""
    person = script.plan_cast(np.random.default_rng(0))[0]
    for jaw, told in ((script.Scenario().jaw, True), (script.HARD.jaw, False)):
        images = []
        for openness in (0.0, 1.0):
            image = np.full((360, 640, 3), 90, np.uint8)
            pen = script.Pen(image, np.array([320.0, 150.0]), 110.0, 0.0)
            script.draw_face(pen, person, 0.0, np.array([openness, 1.0, 0.0]), jaw, 0.0)
            script.draw_cover(pen, person, "microphone", 1.0)
            images.append(image)
        assert np.any(images[0] != images[1]) == told


def test_same_arguments_make_the_same_films(root, made, frames, tmp_path):
    again = made["again"][0]
    assert [path.name for path in films_of(again)] == [path.name for path in films_of(root)]
    for ours, theirs in zip(csvs_of(root), csvs_of(again), strict=True):
        assert ours.name == theirs.name and ours.read_bytes() == theirs.read_bytes()
    for ours, theirs in zip(films_of(root), films_of(again), strict=True):
        assert np.array_equal(frames[ours.stem], decode(theirs))
        assert np.array_equal(sound_of(ours), sound_of(theirs))


def test_another_seed_makes_other_films(root, made, frames):
    other = films_of(made["other"][0])
    assert not {path.name for path in other} & {path.name for path in films_of(root)}
    assert all(not np.array_equal(decode(path), images) for path in other for images in frames.values())


def test_second_run_only_makes_what_is_missing(root):
    before = {path: path.stat().st_mtime_ns for path in [*films_of(root), *csvs_of(root)]}
    assert make(root).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    missing = csvs_of(root)[0]
    text = missing.read_bytes()
    missing.unlink()
    assert make(root).returncode == 0
    assert missing.read_bytes() == text
    kept = [path for path in before if path.name[:11] != missing.name[:11]]
    assert len(kept) == 2 and all(path.stat().st_mtime_ns == before[path] for path in kept)


def test_goes_on_with_films_of_before_there_were_hard_ones(root):
    record = root / "mini_ava_cfg.json"
    settings = json.loads(record.read_text())
    before = settings | {"scenario": {name: value for name, value in settings["scenario"].items() if name != "jaw"}}
    del before["hard"]
    record.write_text(json.dumps(before))
    assert make(root).returncode == 0
    assert json.loads(record.read_text()) == settings


def test_refuses(root, tmp_path):
    (tmp_path / "real" / "csv").mkdir(parents=True)
    assert_refused(make(root, seed=4), r"different arguments \(seed\)")
    assert_refused(make(root, more=("--hard",)), r"different arguments \(hard, scenario\)")
    assert_refused(make(tmp_path / "real"), "not of this script's making")
    assert_refused(make(tmp_path / "new", videos=1), "--videos must be at least 2")
    assert not (tmp_path / "new").exists()
