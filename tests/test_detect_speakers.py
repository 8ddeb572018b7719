"""scripts/detect_speakers.py: a film in, who speaks when out, through its command line and with small networks."""

import contextlib
import csv
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, assert_refused
from golden import fill
from numbered_videos import ffmpeg
from numbered_videos import rate as rate_of
from processes import Fault, Running, kill, run, samples
from square_videos import QUICK, Square, SquareDetector, make_video
from stages import make_inputs
from tiny_inputs import (
    RATE,
    Track,
    digests,
    faces_of,
    files_under,
    official_line,
    read_csv,
    read_json,
    read_wav,
    run_here,
    write_annotations,
    write_text,
)

import core.detection.timeline
import core.detection.tracks
from core.config import tracking_params
from core.detection.shots import row_rate
from core.formats.annotations import read_annotations
from core.formats.predictions import read_scores
from core.media.ffmpeg import ffmpeg_path, iter_audio
from core.media.reader import VideoReader

SCRIPT = "scripts/detect_speakers.py"
SMALL = ("--clip-length", 1, "--clips", 3, "--time-stride", 2, "--speakers", 2, "--workers", 0)
STEPS = ["shots", "tracks", "sound", "crops", "encoder", "context", "results", "film"]
SIZE = (320, 240)  # pixels
FACES = [
    Square(40, 50, 60, (20, 0), end=0.8),
    Square(200, 120, 60, (-10, 0), end=0.8),
    Square(64, 50, 60, (20, 0), begin=0.8),  # where the first would have gone on, but in another shot
]
FACE = [Square(60, 60, 60, (40, 20))]
CLICK = "aevalsrc='0.8*sin(2*PI*1000*t)*between(t,0.6,0.64)':s=48000"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Weights of small networks, and films with tracks: films/one.mp4 and films/two.mp4, val.csv."""
    root = make_inputs(tmp_path_factory.mktemp("inputs"))
    weights = torch.load(root / "STE.pth", weights_only=True)
    torch.save({**weights, "fc_final.bias": weights["fc_final.bias"] + 1}, root / "other.pth")
    weights = torch.load(root / "ASC.pth", weights_only=True)  # which are sure of what they say, now and then
    weights = {name: 40 * value if "fc_final" in name else value for name, value in weights.items()}
    torch.save({**weights, "fc_final.bias": weights["fc_final.bias"] + torch.tensor([-3.7, 3.7])}, root / "ASC.pth")
    yield root
    for path in root.glob("*.pth"):  # 90 MB each
        path.unlink()


@pytest.fixture(scope="module", autouse=True)
def quick_networks(root):
    """Networks are not filled with random numbers before their weights are loaded, which takes half of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_normal_", "kaiming_uniform_", "uniform_"):
            patch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
        yield


@contextlib.contextmanager
def squares_for_faces():
    """Bright squares are faces, and a track may be as short as a test's films are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core.detection.tracks, "FaceDetector", SquareDetector)
        patch.setitem(tracking_params, "min_track_seconds", 0.3)
        yield


@pytest.fixture
def squares():
    with squares_for_faces():
        yield


def arguments(root: Path, film: Path, out: Path, *more: object) -> list[object]:
    weights = ("--ste-weights", root / "STE.pth", "--asc-weights", root / "ASC.pth")
    return [SCRIPT, film, "cpu", "--output-dir", out, *weights, "--face-detector", root / "val.csv", *SMALL, *more]


def detect(root: Path, film: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return run_here(*arguments(root, film, out, *more))


def done(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The steps that a run did; the others were done already."""
    assert result.returncode == 0, result.stdout + result.stderr
    told = re.findall(rf"^({'|'.join(STEPS)}):( done already)?$", result.stdout, re.M)
    assert [name for name, _ in told] == [name for name in STEPS if name in dict(told)]
    return [name for name, already in told if not already]


@pytest.fixture(scope="module")
def base(root, tmp_path_factory):
    """<base>/talk.mp4, three faces and a cut, and <base>/out, what becomes of it."""
    folder = tmp_path_factory.mktemp("base")
    make_video(folder / "talk.mp4", FACES, 1.6, cuts=[0.8], size=SIZE, sound=CLICK)
    with squares_for_faces():
        result = detect(root, folder / "talk.mp4", folder / "out")
    assert done(result) == STEPS
    (folder / "printed.txt").write_text(result.stdout)
    (folder / "bars.txt").write_text(result.stderr)
    return folder


@pytest.fixture
def copied(base, tmp_path) -> Path:
    """A copy of `base/out` that may be changed."""
    return Path(shutil.copytree(base / "out", tmp_path / "out"))


def contents(out: Path) -> dict[str, str]:
    """SHA-256 of every file but locks."""
    return {name: digest for name, digest in digests(out).items() if not name.endswith(".lock")}


def moments(out: Path) -> dict[str, int]:
    """When each file was written, but those that every run writes."""
    names = (name for name in files_under(out) if not name.endswith((".lock", "_cfg.json")))
    return {name: (out / name).stat().st_mtime_ns for name in names}


# What is written


def test_what_is_in_the_directory(base):
    assert sorted(path.name for path in (base / "out").iterdir() if not path.name.startswith(".")) == [
        "detect_speakers_cfg.json",
        "speakers.json",
        "speakers.rttm",
        "talk_speakers.mp4",
        "timeline.png",
        "tracks.csv",
        "work",
    ]
    assert not [name for name in files_under(base / "out") if ".partial" in name]
    settings = read_json(base / "out" / "detect_speakers_cfg.json")
    assert (settings["video"], settings["clips"], settings["threshold"]) == (str(base / "talk.mp4"), 3, 0.5)


def test_what_is_printed(base):
    """What is about to happen, a bar for each step, and where it all lies."""
    printed, bars = (base / "printed.txt").read_text(), (base / "bars.txt").read_text()
    assert f"output_dir     {base / 'out'}" in printed
    assert "3 tracks in 1.6 s of film" in printed
    assert str(base / "out" / "talk_speakers.mp4") in printed
    assert re.search(rf"^next: .*{base / 'out' / 'tracks.csv'} is wrong", printed, re.M)
    for bar in ("shots", "faces", "sound", "slices", "crops", "film"):
        assert re.search(rf"{bar}: 100%", bars), bar
    assert len(re.findall(r"\b100%\|#+\| 60/60 ", bars)) >= 3  # crops, encoder, context


def test_tracks_are_where_the_faces_are(base):
    table = read_annotations(base / "out" / "tracks.csv")
    assert table.video_ids == ["talk"]
    assert len(table.entity_ids) == 3
    spans = []
    for track in range(3):
        rows = table.rows_of_track(track)
        times = table.timestamp[rows]
        errors = [
            np.abs((table.box[rows] - [face.box(time, SIZE) for time in times]) * np.tile(SIZE, 2)).max()
            for face in FACES
        ]
        assert min(errors) < 2  # pixels
        spans.append((float(times[0]), float(times[-1])))
    assert sorted(spans) == [(0.0, 0.76), (0.0, 0.76), (0.8, 1.56)]
    scores = read_scores(base / "out" / "tracks.csv")["score"]
    assert scores.between(0, 1).all()
    assert scores.min() < 0.3 < 0.7 < scores.max()
    assert (table.label == (scores >= 0.5)).all()


def test_the_json_keeps_to_its_schema_and_says_what_the_csv_says(base):
    content = read_json(base / "out" / "speakers.json")
    jsonschema.validate(content, read_json(ROOT / "docs" / "speakers.schema.json"))
    assert content["video"] == {
        **{"id": "talk", "file": "talk.mp4", "seconds": 1.6, "frame_rate": 25.0, "width": 320, "height": 240},
        **{"rows_per_second": 25.0, "cuts": [0.8]},
    }
    assert content["settings"]["threshold"] == 0.5
    assert (content["settings"]["clips"], content["settings"]["time_stride"]) == (3, 2)
    table, scores = read_annotations(base / "out" / "tracks.csv"), read_scores(base / "out" / "tracks.csv")["score"]
    assert [track["id"] for track in content["tracks"]] == table.entity_ids
    for number, track in enumerate(content["tracks"]):
        rows = table.rows_of_track(number)
        times, values = table.timestamp[rows], scores.to_numpy()[rows]
        assert (track["rows"], track["start"]) == (len(rows), times[0])
        assert track["end"] == pytest.approx(times[-1] + 0.04)
        assert (track["box_width"], track["box_height"]) == pytest.approx((60, 60), abs=1.5)
        assert track["mean_score"] == pytest.approx(values.mean(), abs=1e-6)
        spoken = [any(p["start"] - 1e-6 <= time < p["end"] - 1e-6 for p in track["speaking"]) for time in times]
        assert spoken == (values >= 0.5).tolist()
        assert track["speaking_seconds"] == pytest.approx(0.04 * sum(spoken))
    lines = [line.split() for line in (base / "out" / "speakers.rttm").read_text().splitlines()]
    parts = [(part["start"], track["id"]) for track in content["tracks"] for part in track["speaking"]]
    assert [(float(line[3]), line[7]) for line in lines] == sorted(parts)


def test_the_timeline_is_a_picture(base):
    image = cv2.imread(str(base / "out" / "timeline.png"))
    assert min(image.shape[:2]) > 200
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50


def facts(film: Path) -> str:
    """What ffmpeg tells of a film."""
    command = [ffmpeg_path(), "-hide_banner", "-nostdin", "-i", f"file:{film}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def duration(film: Path) -> float:
    hours, minutes, seconds = re.search(r"Duration: (\d+):(\d+):([\d.]+)", facts(film)).groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def frames_of(film: Path) -> list[np.ndarray]:
    with VideoReader(film) as opened:
        count = np.arange(100_000) / opened.fps
        return list(opened.frames(count, float("inf")))


def assert_plays_in_a_browser(film: Path) -> None:
    told = facts(film)
    assert re.search(r"Video: h264 .*yuv420p", told), told
    assert "Audio: aac" in told
    assert len(re.findall("Stream #", told)) == 2
    head = film.read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")  # it begins before it is whole


def assert_boxes(out: Path, film: Path) -> None:
    """In the frames that are written: each row's box at its place, green or red, and the film's own picture around."""
    marked = out / f"{film.stem}_speakers.mp4"
    with VideoReader(marked) as opened:
        rows_per_second = opened.fps
    images = frames_of(marked)
    with VideoReader(film) as opened:
        size = opened.size
        originals = list(opened.frames(np.arange(len(images)) / rows_per_second, float("inf")))
    assert len(originals) == len(images)
    table = pd.read_csv(out / "tracks.csv")
    boxes = np.rint(table.filter(like="entity_box").to_numpy() * np.tile(size, 2)).astype(int)
    place = np.rint(table["frame_timestamp"] * rows_per_second).astype(int).clip(upper=len(images) - 1)
    changes, hues, around = [], [], []
    for index, (image, original) in enumerate(zip(images, originals, strict=True)):
        image = image[: size[1], : size[0]].astype(int)
        change = np.abs(image - original).max(axis=2)
        for row in np.flatnonzero(place == index):
            left, top, right, bottom = boxes[row]
            for y, x in (((top + bottom) // 2, left), ((top + bottom) // 2, right), (bottom, (left + right) // 2)):
                near = np.s_[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                changes.append(change[near].max())
                if abs(table["score"][row] - 0.5) > 0.3:
                    greener = (image[near][..., 1] - image[near][..., 2]).ravel()
                    hues.append(greener.max() if table["score"][row] > 0.5 else -greener.min())
            change[max(top - 40, 0) : bottom + 40, max(left - 6, 0) : right + 90] = 0
        around.append(np.mean(change > 40))
    assert len(changes) >= 15
    assert np.mean(np.array(changes) > 25) > 0.9
    assert not hues or np.mean(np.array(hues) > 5) > 0.85  # thin lines lose some colour
    assert max(around) < 0.01


def test_the_film_plays_as_long_and_its_boxes_are_where_they_belong(base):
    film = base / "out" / "talk_speakers.mp4"
    assert_plays_in_a_browser(film)
    assert len(frames_of(film)) == 40
    assert duration(film) == pytest.approx(1.6, abs=0.05)
    with VideoReader(film) as opened:
        assert opened.size == SIZE
        assert opened.fps == pytest.approx(25)
    assert_boxes(base / "out", base / "talk.mp4")
    assert click(film) == pytest.approx(0.6, abs=0.03)


def click(film: Path) -> float:
    """Seconds from the beginning of a film to the first loud moment."""
    sound = np.concatenate(list(iter_audio(film))).astype(float)
    return float(np.flatnonzero(np.abs(sound) > 8000)[0] / RATE)


# No second path


def test_is_what_the_numbered_stages_make_of_the_same_tracks(base, root, tmp_path):
    """Byte for byte: sound, slices, crops, features and logits, and the scores after them."""
    csv, work = base / "out" / "tracks.csv", base / "out" / "work"
    (tmp_path / "films").mkdir()
    shutil.copy(base / "talk.mp4", tmp_path / "films")
    films, common = ("--ava-video-dir", tmp_path / "films"), ("--csv", csv, "--split", "val")
    sound, slices, crops = (tmp_path / name for name in ("audio_tracks", "instance_wavs_time", "instance_crops_time"))
    both = ("--audio-dir", slices, "--video-dir", crops, "--weights", root / "STE.pth", "--workers", 0)
    features, predictions = tmp_path / "ste_features", tmp_path / "asc_predictions"
    context = ("--features-val-full", features, "--weights", root / "ASC.pth", "--output-dir", predictions)
    scores = (tmp_path / "scores.csv", "--ground-truth-csv", tmp_path / "truth.csv", "--smoothing", 11)
    for command in (
        ("data/extract_audio_tracks.py", *films, "--target-audios", sound),
        ("data/slice_audio_tracks.py", *common, "--ava-audio-dir", sound, "--output-dir", slices),
        ("data/extract_face_crops_time.py", *common, *films, "--output-dir", crops),
        ("STE_forward.py", 1, "cpu", *common, *both, "--output-dir", features),
        ("ASC_forward.py", 3, 2, 2, "cpu", *context),
        (
            *("ASC_prediction_postprocessing.py", "--predictions-dir", predictions, "--ground-truth", csv),
            *("--predictions-csv", *scores),
        ),
    ):
        result = run_here(*command)
        assert result.returncode == 0, result.stdout + result.stderr
    mine = digests(work)
    for name, digest in digests(tmp_path).items():
        if name.startswith(("audio", "instance", "asc")) and not name.endswith(("lock", "json")):
            assert mine[name] == digest, name
    assert len([name for name in mine if name.endswith(".jpg")]) == 60
    for name in ("talk.npy", "talk.csv"):
        mine_is, theirs_is = work / "ste_features" / "val" / name, features / name
        if name.endswith("npy"):
            assert (np.load(mine_is) == np.load(theirs_is)).all()
        else:  # whose labels are those that the tracks were given with
            assert [line[:3] + line[4:] for line in read_csv(mine_is)] == [
                line[:3] + line[4:] for line in read_csv(theirs_is)
            ]
    assert read_scores(tmp_path / "scores.csv")["score"].tolist() == read_scores(csv)["score"].tolist()


# Again


def test_a_second_run_has_nothing_to_do(copied, base, root, squares):
    before, kept = contents(copied), moments(copied)
    result = detect(root, base / "talk.mp4", copied)
    assert done(result) == []
    assert result.stdout.count("done already") == len(STEPS)
    assert moments(copied) == kept
    assert {name for name, digest in contents(copied).items() if before[name] != digest} <= {"detect_speakers_cfg.json"}


@pytest.mark.parametrize(
    ("flags", "again"),
    [
        (("--threshold", 0.3), ["results"]),
        (("--smoothing", 0), ["results", "film"]),
        (("--ste-weights", "{root}/other.pth"), ["encoder", "context", "results", "film"]),
        (("--overwrite",), STEPS),
    ],
)
def test_what_has_changed_is_done_again_with_all_after_it(copied, base, root, squares, flags, again):
    flags = [str(flag).format(root=root) for flag in flags]
    assert done(detect(root, base / "talk.mp4", copied, *flags)) == again
    settings = read_json(copied / "speakers.json")["settings"]
    if "--threshold" in flags:
        assert settings["threshold"] == 0.3
        labels, scores = read_annotations(copied / "tracks.csv").label, read_scores(copied / "tracks.csv")["score"]
        assert (labels == (scores >= 0.3)).all()
    if "--overwrite" in flags:
        assert {name for name, digest in contents(copied).items() if contents(base / "out")[name] != digest} <= {
            "detect_speakers_cfg.json",
        }
        assert done(detect(root, base / "talk.mp4", copied)) == []


def test_another_film_of_the_same_name_is_not_taken_for_the_first(copied, base, root, squares, tmp_path):
    make_video(tmp_path / "talk.mp4", FACE, 0.8, size=SIZE)
    assert done(detect(root, tmp_path / "talk.mp4", copied)) == STEPS
    content = read_json(copied / "speakers.json")
    assert content["video"]["seconds"] == pytest.approx(0.8)
    assert len(content["tracks"]) == 1
    crops = {Path(name).parts[-2] for name in files_under(copied) if name.endswith(".jpg")}
    assert crops == {"talk:1"}


def test_a_result_that_is_missing_is_made_again(copied, base, root, squares):
    before = contents(copied)
    (copied / "speakers.rttm").unlink()
    assert done(detect(root, base / "talk.mp4", copied)) == ["results"]
    (copied / "talk_speakers.mp4").unlink()
    assert done(detect(root, base / "talk.mp4", copied)) == ["film"]
    assert {n for n, digest in contents(copied).items() if before[n] != digest} <= {"detect_speakers_cfg.json"}


def test_pages_of_a_timeline_that_has_fewer_of_them_now(root, tmp_path, monkeypatch):
    monkeypatch.setattr(core.detection.timeline, "LANES", 2)
    film = make_video(tmp_path / "film.mp4", [], 0.4, size=SIZE)
    many = [Track(f"film:{n}", "00", 0.04, "film") for n in range(3)]
    csv = write_annotations(tmp_path / "tracks.csv", faces_of(many))
    assert detect(root, film, tmp_path / "out", "--tracks", csv).returncode == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"timeline.png", "timeline_2.png"}
    write_annotations(csv, faces_of(many[:2]))
    assert detect(root, film, tmp_path / "out", "--tracks", csv).returncode == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"timeline.png"}


# Tracks that are given


def test_corrected_tracks_are_not_written_over_and_can_be_given_elsewhere(copied, base, root, squares, tmp_path):
    lines = (copied / "tracks.csv").read_text().splitlines(keepends=True)
    kept = [line for line in lines if "talk:2" not in line]
    kept = [line.replace("NOT_SPEAKING", "SPEAKING_NOT_AUDIBLE").replace("talk:3", "anna") for line in kept]
    corrected = write_text(copied / "tracks.csv", "".join(kept))
    before = contents(copied)
    for flags in (("--threshold", 0.1), ("--overwrite",)):
        assert_refused(detect(root, base / "talk.mp4", copied, *flags), corrected, "--tracks")
    (tmp_path / "link.csv").symlink_to(corrected)
    assert_refused(
        detect(root, base / "talk.mp4", copied, "--tracks", tmp_path / "link.csv"), "--tracks", "--output-dir"
    )
    assert contents(copied) == before

    again = tmp_path / "again"
    found = done(detect(root, base / "talk.mp4", again, "--tracks", corrected))
    assert found == STEPS
    table = read_annotations(again / "tracks.csv")
    assert sorted(table.entity_ids) == ["anna", "talk:1"]
    assert (table.box == read_annotations(corrected).box).all()
    assert corrected.read_text() == "".join(kept)
    assert {track["id"] for track in read_json(again / "speakers.json")["tracks"]} == {"anna", "talk:1"}

    both = ("--audio-dir", again / "work/instance_wavs_time", "--video-dir", again / "work/instance_crops_time")
    weights = ("--weights", root / "STE.pth", "--workers", 0)
    result = run_here("STE_forward.py", 1, "cpu", "--csv", corrected, *both, *weights, "--output-dir", tmp_path / "ste")
    assert result.returncode == 0, result.stderr
    assert len(read_csv(tmp_path / "ste" / "talk.csv")) == 41


def test_moved_away_the_corrected_tracks_free_the_directory(copied, base, root, squares, tmp_path):
    (copied / "tracks.csv").write_text("mine\n")
    assert_refused(detect(root, base / "talk.mp4", copied), copied / "tracks.csv")
    (copied / "tracks.csv").rename(tmp_path / "mine.csv")
    assert done(detect(root, base / "talk.mp4", copied)) == ["results"]


def test_a_file_of_that_name_that_was_not_made_here(root, tmp_path):
    """It is not written over, and once it is gone the same command works."""
    film = root / "films" / "one.mp4"
    foreign = write_text(tmp_path / "out" / "tracks.csv", "somebody's\n")
    assert_refused(detect(root, film, tmp_path / "out", "--tracks", root / "val.csv"), foreign)
    assert foreign.read_text() == "somebody's\n"
    foreign.unlink()
    assert detect(root, film, tmp_path / "out", "--tracks", root / "val.csv").returncode == 0


def test_tracks_in_every_form_and_of_many_films(root, tmp_path):
    """Official, augmented, a directory of files: the film's rows are taken, with the times that they have."""
    film = root / "films" / "one.mp4"
    lines = (root / "val.csv").read_text().splitlines(keepends=True)
    directory = tmp_path / "csvs"
    for video in ("one", "two"):
        write_text(directory / f"{video}-activespeaker.csv", "".join(x for x in lines if x.startswith(video)))
    results = []
    for number, source in enumerate((root / "val.csv", directory)):
        out = tmp_path / str(number)
        assert detect(root, film, out, "--tracks", source, "--face-detector", "nowhere.onnx").returncode == 0
        results.append((out / "tracks.csv").read_bytes())
        table = read_annotations(out / "tracks.csv")
        assert table.timestamp.tolist() == [0.4, 0.44, 0.48, 0.52, *(round(0.52 + 0.04 * n, 2) for n in range(7))]
    assert results[0] == results[1]


def test_tracks_beyond_the_film_are_listed_and_the_rest_is_scored(root, tmp_path):
    """One track begins after its end, one goes on beyond it, one is whole."""
    film = make_video(tmp_path / "film.mp4", FACE, 1.2, size=SIZE)
    rows = [Track("whole", "000", 0.4), Track("beyond", "0000", 1.12), Track("after", "000", 7.0)]
    csv = write_annotations(tmp_path / "tracks.csv", faces_of(rows))
    result = detect(root, film, tmp_path / "out", "--tracks", csv)
    assert "Traceback" not in result.stderr
    assert result.returncode == 1, result.stdout + result.stderr
    listed = (tmp_path / "out" / "failures.txt").read_text().splitlines()
    assert str(tmp_path / "out" / "failures.txt") in result.stdout
    assert "5 of 10 rows" in result.stdout
    assert [line for line in listed if "beyond at 1.2 s" in line or "beyond at 1.24 s" in line] == listed[1:3]
    assert all("film" in line for line in listed)
    table = read_annotations(tmp_path / "out" / "tracks.csv")
    assert table.entity_ids == ["whole", "beyond"]
    assert table.timestamp.tolist() == [0.4, 0.44, 0.48, 1.12, 1.16]
    jsonschema.validate(
        read_json(tmp_path / "out" / "speakers.json"), read_json(ROOT / "docs" / "speakers.schema.json")
    )
    again = detect(root, film, tmp_path / "out", "--tracks", csv)
    assert again.returncode == 1
    assert "crops: done already" in again.stdout
    assert (tmp_path / "out" / "failures.txt").read_text().splitlines() == listed


def test_tracks_all_beyond_the_film(root, tmp_path):
    film = make_video(tmp_path / "film.mp4", FACE, 1.2, size=SIZE)
    csv = write_annotations(tmp_path / "tracks.csv", faces_of([Track("after", "000", 7.0)]))
    result = detect(root, film, tmp_path / "out", "--tracks", csv)
    assert "Traceback" not in result.stderr
    assert result.returncode in (1, 2)
    assert "after" in (tmp_path / "out" / "failures.txt").read_text()


def test_failures_of_other_tracks_are_forgotten(root, tmp_path, squares):
    """Also where there is nothing to cut out any more."""
    film = make_video(tmp_path / "film.mp4", [], 1.2, size=SIZE)
    rows = [Track("film:1", "00", 0.4), Track("film:2", "00", 7.0)]
    csv = write_annotations(tmp_path / "tracks.csv", faces_of(rows))
    assert detect(root, film, tmp_path / "out", "--tracks", csv).returncode == 1
    assert (tmp_path / "out" / "failures.txt").exists()
    assert detect(root, film, tmp_path / "out").returncode == 0
    assert not (tmp_path / "out" / "failures.txt").exists()
    assert read_json(tmp_path / "out" / "speakers.json")["tracks"] == []


# Films of every kind


@pytest.fixture
def found(root, squares, tmp_path):
    """Runs the script on a film; gives back speakers.json, which keeps to its schema."""

    def run(film: Path, *more: object) -> dict:
        result = detect(root, film, tmp_path / "out", *more)
        assert result.returncode == 0, result.stdout + result.stderr
        content = read_json(tmp_path / "out" / "speakers.json")
        jsonschema.validate(content, read_json(ROOT / "docs" / "speakers.schema.json"))
        assert_plays_in_a_browser(tmp_path / "out" / f"{film.stem}_speakers.mp4")
        return content

    return run


def test_a_film_without_faces(found, root, tmp_path):
    film = make_video(tmp_path / "empty.mp4", [], 0.8, size=SIZE, sound=CLICK)
    content = found(film)
    assert content["tracks"] == []
    out = tmp_path / "out"
    assert (out / "speakers.rttm").read_text() == ""
    assert len((out / "tracks.csv").read_text().splitlines()) == 1
    marked = out / "empty_speakers.mp4"
    assert len(frames_of(marked)) == 20
    assert click(marked) == pytest.approx(0.6, abs=0.03)
    assert cv2.imread(str(out / "timeline.png")) is not None
    assert done(detect(root, film, out)) == []


def test_a_film_without_sound(root, squares, tmp_path):
    film = make_video(tmp_path / "silent.mp4", FACE, 1.2, size=SIZE, sound=None)
    assert_refused(detect(root, film, tmp_path / "out"), film, "no sound")
    assert files_under(tmp_path) == ["silent.mp4"]


@pytest.mark.parametrize("fps", ["60", "30000/1001", "12"])
def test_a_film_of_another_frame_rate(found, tmp_path, fps):
    """Rows come 20 to 33 times a second, and so do the frames with boxes."""
    film = make_video(tmp_path / "film.mp4", FACE, 1, fps, size=SIZE, sound=CLICK)
    content = found(film)
    rows = row_rate(rate_of(fps))
    assert content["video"]["frame_rate"] == pytest.approx(rate_of(fps), abs=0.001)
    assert content["video"]["rows_per_second"] == pytest.approx(rows, abs=0.001)
    (track,) = content["tracks"]
    assert track["start"] == 0
    assert track["end"] == pytest.approx(1, abs=0.5 / rate_of(fps) + 0.5 / rows)
    assert track["rows"] == pytest.approx(rows, abs=2)
    out = tmp_path / "out"
    table = read_annotations(out / "tracks.csv")
    shown = np.floor(table.timestamp * rate_of(fps) + 0.5) / rate_of(fps)
    true = np.array([FACE[0].box(time, SIZE) for time in shown])
    slack = 2 if rate_of(fps) > 20 else 2 + 40 / rate_of(fps)  # pixels; where frames are seen twice it may move between
    assert np.abs((table.box - true) * np.tile(SIZE, 2)).max() < slack
    marked = out / "film_speakers.mp4"
    assert duration(marked) == pytest.approx(duration(film), abs=0.05)
    assert len(frames_of(marked)) == pytest.approx(rows, abs=1)
    assert click(marked) == pytest.approx(0.6, abs=0.03)
    assert_boxes(out, film)


def test_a_film_whose_frame_rate_varies(found, tmp_path):
    """25 frames a second, then every fourth of them: boxes follow the frame on show."""
    chosen = ("-vf", "select='if(lt(n,15),1,not(mod(n-15,4)))'", "-fps_mode", "vfr")
    film = make_video(tmp_path / "film.mp4", FACE, 1.4, size=SIZE, sound=CLICK, options=(*chosen, *QUICK))
    content = found(film)
    assert content["video"]["frame_rate"] < 20
    (track,) = content["tracks"]
    assert 1.27 < track["end"] < 1.45  # the last of its frames begins at 1.24 s
    table = read_annotations(tmp_path / "out" / "tracks.csv")
    true = np.array([FACE[0].box(time, SIZE) for time in table.timestamp])
    assert np.abs((table.box - true) * np.tile(SIZE, 2)).max() < 2 + 40 * 0.16
    marked = tmp_path / "out" / "film_speakers.mp4"
    assert duration(marked) == pytest.approx(1.4, abs=0.13)
    assert click(marked) == pytest.approx(0.6, abs=0.03)
    assert_boxes(tmp_path / "out", film)


def test_a_film_that_stands_upright_and_one_that_is_turned(found, tmp_path):
    """Boxes are shares of the frame as it is shown; the result needs no turning."""
    film = make_video(tmp_path / "plain.mp4", FACE, 0.8, size=SIZE)
    ffmpeg("-display_rotation", 90, "-i", film, "-c", "copy", tmp_path / "turned.mp4")
    content = found(tmp_path / "turned.mp4")
    assert (content["video"]["width"], content["video"]["height"]) == (240, 320)
    (track,) = content["tracks"]
    assert track["rows"] == 20
    marked = tmp_path / "out" / "turned_speakers.mp4"
    assert "240x320" in facts(marked)
    assert "rotation" not in facts(marked)
    assert_boxes(tmp_path / "out", tmp_path / "turned.mp4")


def test_odd_width_and_height(found, tmp_path):
    options = ("-c:v", "ffv1", "-pix_fmt", "yuv444p", "-c:a", "aac")
    film = make_video(tmp_path / "odd.mkv", FACE, 0.8, size=(319, 241), options=options)
    content = found(film)
    assert (content["video"]["width"], content["video"]["height"]) == (319, 241)
    marked = tmp_path / "out" / "odd_speakers.mp4"
    assert "320x242" in facts(marked)
    assert_boxes(tmp_path / "out", film)


@pytest.mark.parametrize("name", ["one, two: 100 %d%%.mp4", "-dash.mp4", "d\u00e9j\u00e0 'vu' [1].mkv"])
def test_a_name_of_odd_characters(root, tmp_path, monkeypatch, name):
    """Given as it stands in its directory; one with a leading dash as ./-dash.mp4, as everywhere."""
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "plain.mkv", FACE, 0.6, size=SIZE, sound=CLICK)
    ffmpeg("-i", tmp_path / "plain.mkv", "-c", "copy", f"file:{tmp_path / name}")
    video = Path(name).stem
    lines = [
        [video, f"{face.time}", 0.2, 0.2, 0.5, 0.7, "NOT_SPEAKING", f"{video}:1"]
        for face in Track("", "000", 0.2).faces
    ]
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    given = f"./{name}" if name.startswith("-") else name
    out = Path("out, 5 % of it")
    result = detect(root, given, out, "--tracks", "rows.csv")
    assert result.returncode == 0, result.stderr
    assert read_json(out / "speakers.json")["video"]["id"] == video
    assert read_annotations(out / "tracks.csv").entity_ids == [f"{video}:1"]
    assert len(frames_of(out / f"{video}_speakers.mp4")) == 15
    assert done(detect(root, given, out, "--tracks", "rows.csv")) == []


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("late sound", 1.12), ("late picture", 0.08), ("short sound", 0.6), ("long sound", 0.6)],
)
def test_picture_and_sound_that_do_not_begin_or_end_together(root, tmp_path, kind, expected):
    """Sound stays in step with the picture, in the film that is written and where tracks are cut out of it."""
    sound = f"{CLICK}:d={({'short sound': 0.8, 'long sound': 3.0}).get(kind, 1.6)}"
    whole = make_video(tmp_path / "whole.mp4", FACE, 1.6, size=SIZE, sound=sound)
    film = tmp_path / "film.mp4"
    late, early = {"late sound": (1, 0), "late picture": (0, 1)}.get(kind, (1, 1))
    inputs = ("-itsoffset", 0.52, "-i", whole, "-i", whole)
    ffmpeg(*inputs, "-map", f"{late}:v", "-map", f"{early}:a", "-c", "copy", film)
    csv = write_annotations(tmp_path / "rows.csv", faces_of([Track("film:1", "0" * 5, 0.4)]))
    result = detect(root, film, tmp_path / "out", "--tracks", csv)
    assert result.returncode == 0, result.stdout + result.stderr
    marked = tmp_path / "out" / "film_speakers.mp4"
    assert len(frames_of(marked)) == 40
    assert click(marked) == pytest.approx(expected, abs=0.03)
    wav = read_wav(tmp_path / "out" / "work" / "audio_tracks" / "film.wav")
    assert np.flatnonzero(np.abs(wav.astype(float)) > 8000)[0] / RATE == pytest.approx(expected, abs=0.03)
    assert len(wav) >= 1.6 * RATE
    assert duration(marked) == pytest.approx(max(1.6, len(wav) / RATE), abs=0.06)


def test_a_film_that_breaks_off(root, squares, tmp_path):
    """As much as is left of it, and what is written can be played."""
    film = make_video(tmp_path / "film.mkv", FACE, 2, size=SIZE)
    film.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    result = detect(root, film, tmp_path / "out")
    assert "Traceback" not in result.stderr
    assert result.returncode == 0, result.stderr
    content = read_json(tmp_path / "out" / "speakers.json")
    assert 0.4 < content["video"]["seconds"] < 1.7
    assert content["tracks"][0]["end"] <= content["video"]["seconds"] + 0.02
    marked = tmp_path / "out" / "film_speakers.mp4"
    assert len(frames_of(marked)) == pytest.approx(25 * content["video"]["seconds"], abs=4)  # the last ones are broken


# What is refused


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--ste-weights {tmp}/no.pth", ["no.pth", "downloads.sh weights"]),
        ("--asc-weights {tmp}/no.pth", ["no.pth", "downloads.sh weights", "ASC_train.py"]),
        ("--face-detector {tmp}/no.onnx", ["no.onnx", "downloads.sh detector", "--tracks"]),
        ("--face-detector {root}/val.csv", ["val.csv", "not a YuNet face detector"]),
        ("--ste-weights {root}/val.csv", ["val.csv", "not a file of weights"]),
        ("--ste-weights {root}/ASC.pth", ["ASC.pth", "another network"]),
        ("--asc-weights {root}/STE.pth", ["STE.pth"]),
        ("--clip-length 3", ["STE.pth", "--clip-length 3"]),
        ("--clips 5", ["ASC.pth", "--clips 5"]),
        ("--speakers 3", ["ASC.pth", "--speakers 3"]),
        ("--tracks {tmp}/no.csv", ["no.csv"]),
        ("--tracks {root}/STE.pth", ["STE.pth"]),
        ("--tracks {root}/two.csv", ["two.csv", "two", "one"]),
        ("--clip-length 2", ["--clip-length", "odd"]),
        ("--smoothing 4", ["--smoothing", "0 for none"]),
        ("--threshold 1.5", ["--threshold", "0 to 1"]),
        ("--threshold nan", ["--threshold"]),
        ("--seed -1", ["--seed"]),
        ("--precision fp16", ["--precision"]),
    ],
)
def test_what_cannot_be_used_is_one_line(root, tmp_path, flags, words):
    if "two.csv" in flags:
        rows = [Track("two:1", "00", 0.1, "two")]
        write_annotations(root / "two.csv", faces_of(rows))
    flags = flags.format(root=root, tmp=tmp_path).split()
    tracks = () if "--tracks" in flags or "--face-detector" in flags else ("--tracks", root / "val.csv")
    result = detect(root, root / "films" / "one.mp4", tmp_path / "out", *tracks, *flags)
    assert_refused(result, *words)
    if "two.csv" not in str(flags) and "--tracks" not in flags:
        assert files_under(tmp_path) == []


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "directory", "sound", "pipe"])
def test_what_is_no_film(root, tmp_path, kind):
    film = tmp_path / "film.mp4"
    if kind == "empty":
        film.touch()
    elif kind == "text":
        write_text(film, "This is not a film.\n" * 100)
    elif kind == "directory":
        film.mkdir()
    elif kind == "sound":
        ffmpeg("-i", root / "films" / "one.mp4", "-map", "0:a", "-c", "copy", film)
    elif kind == "pipe":
        os.mkfifo(film)
    csv = write_text(tmp_path / "rows.csv", official_line(faces_of([Track("film:1", "0", 0.4)])[0]))
    assert_refused(detect(root, film, tmp_path / "out", "--tracks", csv), film)
    assert not (tmp_path / "out").exists()


def test_where_nothing_can_be_written(root, tmp_path):
    film, tracks = root / "films" / "one.mp4", ("--tracks", root / "val.csv")
    out = write_text(tmp_path / "out", "a file")
    assert_refused(detect(root, film, out, *tracks), out)
    for name in ("work/thesis.txt", "one_speakers.mp4", "speakers.json"):
        mine = write_text(tmp_path / name.replace("/", "_") / name, "mine")
        place = tmp_path / name.replace("/", "_")
        assert_refused(detect(root, film, place, *tracks, "--overwrite"), place / name.partition("/")[0], "not made")
        assert mine.read_text() == "mine"
    write_text(tmp_path / "broken" / ".steps.json", "{")
    assert_refused(detect(root, film, tmp_path / "broken", *tracks), ".steps.json", "--overwrite")
    assert detect(root, film, tmp_path / "broken", *tracks, "--overwrite").returncode == 0


def test_the_directory_of_another_film_is_refused(copied, root):
    before = contents(copied)
    film, tracks = root / "films" / "one.mp4", ("--tracks", root / "val.csv")
    assert_refused(detect(root, film, copied, *tracks), copied, "talk.mp4", "--output-dir")
    assert contents(copied) == before


def test_a_command_line_without_a_place_for_the_results(root):
    assert_refused(run_here(SCRIPT, root / "films" / "one.mp4", "cpu"), "--output-dir")


# Whatever ends a run


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory) -> dict[str, str]:
    """What a process of its own makes of films/one.mp4."""
    folder = tmp_path_factory.mktemp("whole")
    result = run(folder / "printed", *given_tracks(root, folder / "out"))
    assert result.returncode == 0, result
    return results(folder / "out")


def given_tracks(root: Path, out: Path, *more: object) -> list[object]:
    return arguments(root, root / "films" / "one.mp4", out, "--tracks", root / "val.csv", *more)


def results(out: Path) -> dict[str, str]:
    return {name: digest for name, digest in contents(out).items() if not name.endswith("_cfg.json")}


MOMENTS = [
    ("cv2.imencode", 5),  # among the crops
    ("core.detection.pipeline.sha256", 1),  # tracks.csv is known, and not yet there
    ("core.detection.segments.write_bytes", 1),  # the json is there, the rttm is not
    ("core.detection.overlay.mark_face", 4),  # in the film
]


def test_killed_again_and_again_the_same_command_goes_on(root, undisturbed, tmp_path):
    """Nothing half-written ever has a final name, and it all ends as in a run that was not disturbed."""
    out = tmp_path / "out"
    command = given_tracks(root, out)
    for moment in MOMENTS:
        kill(tmp_path, command, moment)
        wrong = {name for name, digest in results(out).items() if undisturbed.get(name) != digest}
        assert {name for name in wrong if ".partial" not in name} <= {".steps.json", "work/tracks.csv"}
    result = run(tmp_path, *command)
    assert result.returncode == 0, result
    found = results(out)
    assert {name: digest for name, digest in found.items() if ".partial" not in name} == undisturbed
    assert found == undisturbed  # what the killed runs left is cleared up


def test_ctrl_c_ends_in_one_line_that_says_how_to_go_on(root, undisturbed, tmp_path):
    command = given_tracks(root, tmp_path / "out")
    running = Running(tmp_path, *command, fault=Fault(interrupt_at=("core.detection.overlay.mark_face", 3)))
    result = running.wait(60)
    assert result.returncode == 130, result
    assert result.stderr.splitlines()[-1].startswith("interrupted; ")
    assert "Traceback" not in result.stderr
    assert not running.companions()
    assert not [name for name in files_under(tmp_path / "out") if ".partial" in name]
    wrong = {name for name, digest in results(tmp_path / "out").items() if undisturbed.get(name) != digest}
    assert wrong == {".steps.json"}


@pytest.mark.parametrize(("limit", "file"), [(30_000, "one.wav"), (60_000, "one_speakers.mp4")])
def test_full_disk_is_one_line_with_the_path(root, undisturbed, tmp_path, limit, file):
    """While the sound is written, and while the film is."""
    result = run(tmp_path, *given_tracks(root, tmp_path / "out"), fault=Fault(file_size=limit))
    assert_one_line_of_failure(result, file)
    wrong = {name for name, digest in results(tmp_path / "out").items() if undisturbed.get(name) != digest}
    assert wrong == {".steps.json"}


def assert_one_line_of_failure(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit status 1, the machine's fault and not the film's, and a last line `error: ...` with all the words in it."""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], result.stderr
    assert all(word in lines[-1] for word in words), lines[-1]
    assert result.returncode == 1, lines[-1]


def test_two_at_once_the_second_is_refused(root, undisturbed, tmp_path):
    command = given_tracks(root, tmp_path / "out")
    first = Running(tmp_path / "first", *command, fault=Fault(stop_at=("core.detection.pipeline.extract_crops", 1)))
    first.until_stopped()
    assert_refused(run(tmp_path / "second", *command), "another process")
    os.kill(first.process.pid, signal.SIGCONT)
    assert first.wait().returncode == 0
    assert results(tmp_path / "out") == undisturbed


# Real clips


def test_a_real_clip(test_data, tmp_path):
    """Its last seconds, a cut among them: two faces, and the logits of the numbered stages, bit for bit."""
    clip = test_data / "real_clips" / "videos" / "clearvoice_002_2faces.avi"
    film, out = tmp_path / "films" / "clip.mp4", tmp_path / "out"
    film.parent.mkdir()
    ffmpeg("-ss", 4.68, "-i", clip, "-c:v", "libx264", "-preset", "veryfast", "-crf", 20, "-c:a", "aac", film)
    torch.save(fill.ste_state(11), tmp_path / "STE.pth")
    torch.save(fill.asc_state(11, 3), tmp_path / "ASC.pth")
    weights = ("--ste-weights", tmp_path / "STE.pth", "--asc-weights", tmp_path / "ASC.pth")
    detector = ("--face-detector", test_data / "models" / "yunet_n_640_640.onnx")
    loading = ("--precision", "fp32", "--workers", 0, "--batch-size", 32)
    result = run_here(SCRIPT, film, "cpu", "--output-dir", out, *weights, *detector, *loading)
    assert done(result) == STEPS
    content = read_json(out / "speakers.json")
    jsonschema.validate(content, read_json(ROOT / "docs" / "speakers.schema.json"))
    (cut,) = content["video"]["cuts"]
    assert cut == pytest.approx(5.88 - 4.68, abs=0.05)
    assert len(content["tracks"]) == 2
    for track in content["tracks"]:
        assert track["start"] == 0
        assert track["end"] == pytest.approx(cut, abs=0.03)
        assert 100 < track["box_width"] < 200
    assert_plays_in_a_browser(out / "clip_speakers.mp4")
    assert duration(out / "clip_speakers.mp4") == pytest.approx(duration(film), abs=0.08)
    assert_boxes(out, film)

    common = ("--csv", out / "tracks.csv", "--split", "val")
    films, both = ("--ava-video-dir", film.parent), ("--audio-dir", tmp_path / "s", "--video-dir", tmp_path / "c")
    stores = ("--features-val-full", tmp_path / "f", "--weights", tmp_path / "ASC.pth", "--output-dir", tmp_path / "p")
    for command in (
        ("data/extract_audio_tracks.py", *films, "--target-audios", tmp_path / "w", "--align"),
        ("data/slice_audio_tracks.py", *common, "--ava-audio-dir", tmp_path / "w", "--output-dir", tmp_path / "s"),
        ("data/extract_face_crops_time.py", *common, *films, "--output-dir", tmp_path / "c"),
        (
            *("STE_forward.py", 11, "cpu", *common, *both, *loading, "--weights", tmp_path / "STE.pth"),
            *("--output-dir", tmp_path / "f"),
        ),
        ("ASC_forward.py", 11, 4, 3, "cpu", *stores),
    ):
        result = run_here(*command)
        assert result.returncode == 0, result.stdout + result.stderr
    for mine, theirs in (("ste_features/val/clip.npy", "f/clip.npy"), ("asc_predictions/clip.csv", "p/clip.csv")):
        assert (out / "work" / mine).read_bytes() == (tmp_path / theirs).read_bytes()
    for path in tmp_path.glob("*.pth"):
        path.unlink()


# Hours


@pytest.mark.slow
def test_memory_does_not_grow_with_the_film(root, tmp_path):
    """Ten minutes take what one takes, and not a gigabyte of frames or a hundred megabytes of sound more."""
    most = {}
    for minutes in (1, 10):
        film = tmp_path / f"film{minutes}.mp4"
        picture = f"testsrc2=size=320x240:rate=25:duration={60 * minutes}"
        sound = f"anoisesrc=duration={60 * minutes}:sample_rate=16000:seed=1"
        ffmpeg("-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound, *QUICK, film)
        tracks = [Track(f"t{n}", "000", 10.0 * n + 1, film.stem) for n in range(6)]
        csv = write_annotations(tmp_path / f"{minutes}.csv", faces_of(tracks))
        command = arguments(root, film, tmp_path / f"out{minutes}", "--tracks", csv)
        running = Running(tmp_path, *command, fault=Fault(sample_at="core.runtime.steps.StepCache._note"))
        result = running.wait(500)
        assert result.returncode == 0, result.stderr
        most[minutes] = max(peak for _, peak, _ in samples(result))
    assert most[10] - most[1] < 60e6, most
