"""scripts/detect_speakers.py on generated videos, through its command line and with small networks."""

import contextlib
import csv
import os
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, assert_refused, printed
from imageio_ffmpeg import get_ffmpeg_exe
from numbered_videos import ffmpeg
from processes import Fault, Running, kill, run, samples
from square_videos import H264_AAC, Square, SquareDetector, make_video
from timed_videos import AAC, H264, beep_times, make_timed_video, shown_time
from tiny_inputs import (
    RATE,
    Face,
    Track,
    digests,
    faces_of,
    files_under,
    official_line,
    read_csv,
    read_json,
    read_wav,
    run_here,
    succeed,
    write_annotations,
    write_text,
)

import core.detection.timeline
import core.detection.tracks
from core.config import tracking_params
from core.formats.annotations import read_annotations
from core.formats.predictions import read_scores
from core.lr_asd import LR_ASD
from core.media.audio import iter_audio
from core.media.reader import VideoReader
from core.models import ASC_Net

SCRIPT = "scripts/detect_speakers.py"
SMALL = ("--clip-length", 1, "--clips", 3, "--time-stride", 2, "--speakers", 2, "--workers", 0, "--marked-video")
STEPS = ["shots", "tracks", "crops", "audio", "encoder", "context", "results", "review page", "marked video"]
SIZE = (320, 240)  # pixels
FACES = [
    Square(40, 50, 60, (20, 0), end=0.8),
    Square(200, 120, 60, (-10, 0), end=0.8),
    Square(64, 50, 60, (20, 0), start=0.8),  # continues the first in another shot
]
FACE = [Square(60, 60, 60, (40, 20))]
CLICK = "aevalsrc='0.8*sin(2*PI*1000*t)*between(t,0.6,0.64)':s=48000"
SCHEMA = read_json(ROOT / "docs" / "speakers.schema.json")
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def root(inputs, tmp_path_factory):
    """Weights of small networks, videos, and their tracks in val.csv."""
    root = Path(shutil.copytree(inputs, tmp_path_factory.mktemp("root") / "inputs"))
    weights = torch.load(root / "STE.pth", weights_only=True)
    torch.save({**weights, "fc_final.bias": weights["fc_final.bias"] + 1}, root / "other.pth")
    weights = torch.load(root / "ASC.pth", weights_only=True)  # scaled to scores near 0 and 1
    weights = {name: 40 * value if "fc_final" in name else value for name, value in weights.items()}
    torch.save({**weights, "fc_final.bias": weights["fc_final.bias"] + torch.tensor([-1.8, 1.8])}, root / "ASC.pth")
    return root


@contextlib.contextmanager
def square_detector():
    """Detect bright squares as faces, and accept tracks as short as the test videos."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core.detection.tracks, "FaceDetector", SquareDetector)
        patch.setitem(tracking_params, "min_track", 0.3)
        yield


@pytest.fixture
def squares():
    with square_detector():
        yield


def one_video(root: Path) -> Path:
    """A video without bright squares, with tracks in val.csv."""
    return root / "videos" / "one.mp4"


def arguments(root: Path, video: Path | str, out: Path, *more: object) -> list[object]:
    weights = ("--ste-weights", root / "STE.pth", "--asc-weights", root / "ASC.pth")
    return [SCRIPT, video, "cpu", "--output-dir", out, *weights, "--face-detector", root / "val.csv", *SMALL, *more]


def detect(root: Path, video: Path | str, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return run_here(*arguments(root, video, out, *more))


def steps_run(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Steps that a successful run did not skip."""
    steps = re.findall(rf"^({'|'.join(STEPS)}):( already done)?$", printed(result), re.M)
    assert [name for name, _ in steps] == [name for name in STEPS if name in dict(steps)]
    return [name for name, skipped in steps if not skipped]


@pytest.fixture(scope="module")
def base(root, tmp_path_factory):
    """A complete run with face detection: <base>/talk.mp4, three faces and a cut, and <base>/out, its output."""
    directory = tmp_path_factory.mktemp("base")
    make_video(directory / "talk.mp4", FACES, 1.6, cuts=[0.8], size=SIZE, audio=CLICK)
    with square_detector():
        result = detect(root, directory / "talk.mp4", directory / "out")
    assert steps_run(result) == STEPS
    (directory / "stdout.txt").write_text(result.stdout)
    return directory


@pytest.fixture
def copied(base, tmp_path) -> Path:
    """A copy of `base/out`, next to it, that may be changed."""
    return Path(shutil.copytree(base / "out", base / tmp_path.name))


def contents(out: Path) -> dict[str, str]:
    """SHA-256 of every file, except locks and saved settings."""
    return {name: digest for name, digest in digests(out).items() if not name.endswith((".lock", "_cfg.json"))}


# Encoders


def test_scores_of_an_encoder_without_context(root, squares, tmp_path):
    """LR-ASD's own scores, from a region of the frame that may end outside it, and the context network on request."""
    make_video(tmp_path / "talk.mp4", [Square(40, 178, 60)], 0.8, size=SIZE, audio=CLICK)
    torch.manual_seed(0)
    torch.save(LR_ASD().state_dict(), root / "lr_asd.model")
    weights = ("--encoder", "lr-asd-wild", "--encoder-weights", root / "lr_asd.model")
    small = ("--face-detector", root / "val.csv", *SMALL)
    command = (SCRIPT, tmp_path / "talk.mp4", "cpu", "--output-dir", tmp_path / "out", *weights, *small)
    result = run_here(*command)
    assert steps_run(result) == [name for name in STEPS if name != "context"]
    assert "scores: the encoder's own (lr-asd-wild), without a context network" in result.stdout
    content = read_json(tmp_path / "out" / "speakers.json")
    jsonschema.validate(content, SCHEMA)
    settings = content["settings"]
    assert (settings["encoder"], settings["asc_weights_sha256"]) == ("lr-asd-wild", None)
    scores = read_scores(tmp_path / "out" / "tracks.csv")["score"]
    logits = pd.read_csv(tmp_path / "out" / "work" / "ste_features" / "val" / "talk.csv")
    smooth = logits[["logit_0", "logit_1"]].rolling(11, center=True, min_periods=11).median().dropna()
    expected = 1 / (1 + np.exp(smooth["logit_0"] - smooth["logit_1"]))
    np.testing.assert_allclose(scores.to_numpy()[smooth.index], expected, atol=1e-6)
    crop = next((tmp_path / "out" / "work" / "crops_of_encoder").glob("*/*.png"))
    image = cv2.imread(str(crop))
    assert image.shape == (112, 112, 3)
    assert (image[-2:] == 110).all()  # below the frame

    assert_refused(run_here(*command, "--asc-weights", root / "ASC.pth"), "ASC.pth", "128 features per row")
    torch.save(ASC_Net(3, 2, feature_size=128).state_dict(), root / "narrow.pth")
    assert steps_run(run_here(*command, "--asc-weights", root / "narrow.pth")) == STEPS[5:]


# Output


def test_output_files(base):
    assert sorted(path.name for path in (base / "out").iterdir() if not path.name.startswith(".")) == [
        "detect_speakers_cfg.json",
        "review.html",
        "speakers.csv",
        "speakers.json",
        "speakers.rttm",
        "speakers.vtt",
        "talk_speakers.mp4",
        "timeline.png",
        "tracks.csv",
        "work",
    ]
    assert not [name for name in files_under(base / "out") if ".partial" in name]
    settings = read_json(base / "out" / "detect_speakers_cfg.json")
    assert (settings["video"], settings["clips"], settings["threshold"]) == (str(base / "talk.mp4"), 3, 0.5)
    assert min(cv2.imread(str(base / "out" / "timeline.png")).shape[:2]) > 200
    stdout = (base / "stdout.txt").read_text()
    assert "3 tracks in 1.6 s of video" in stdout
    assert str(base / "out" / "review.html") in stdout
    tracks = read_json(base / "out" / "speakers.json")["tracks"]
    spoken = sorted((track["speaking_seconds"] for track in tracks if track["speaking"]), reverse=True)
    assert re.findall(r"^  talk:\d: ([\d.]+) s of speech$", stdout, re.M) == [f"{seconds:.1f}" for seconds in spoken]


def test_tracks_match_the_faces(base):
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


def test_json_matches_its_schema_the_csv_and_the_rttm(base):
    content = read_json(base / "out" / "speakers.json")
    jsonschema.validate(content, SCHEMA)
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
        times, track_scores = table.timestamp[rows], scores.to_numpy()[rows]
        assert (track["rows"], track["start"]) == (len(rows), times[0])
        assert track["end"] == pytest.approx(times[-1] + 0.04)
        assert (track["box_width"], track["box_height"]) == pytest.approx((60 * 0.86**0.5, 60 / 0.86**0.5), abs=1.5)
        assert track["mean_score"] == pytest.approx(track_scores.mean(), abs=1e-6)
        spoken = [any(p["start"] - 1e-6 <= time < p["end"] - 1e-6 for p in track["speaking"]) for time in times]
        assert spoken == (track_scores >= 0.5).tolist()
        assert track["speaking_seconds"] == pytest.approx(0.04 * sum(spoken))
    lines = [line.split() for line in (base / "out" / "speakers.rttm").read_text().splitlines()]
    segments = [(segment["start"], track["id"]) for track in content["tracks"] for segment in track["speaking"]]
    assert [(float(line[3]), line[7]) for line in lines] == sorted(segments)
    assert [(float(row[2]), row[0]) for row in read_csv(base / "out" / "speakers.csv")[1:]] == sorted(segments)


def ffmpeg_info(video: Path) -> str:
    command = [get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-i", f"file:{video}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def duration(video: Path) -> float:
    hours, minutes, seconds = re.search(r"Duration: (\d+):(\d+):([\d.]+)", ffmpeg_info(video)).groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def read_frames(video: Path) -> list[np.ndarray]:
    with VideoReader(video) as reader:
        return list(reader.frames(np.arange(100_000) / reader.fps, float("inf")))


def click_time(video: Path) -> float:
    """Timestamp in seconds of the first loud sample."""
    samples = read_wav(video) if video.suffix == ".wav" else np.concatenate(list(iter_audio(video)))
    samples = samples.astype(float)
    return float(np.flatnonzero(np.abs(samples) > 8000)[0] / RATE)


def assert_plays_in_browsers(video: Path) -> None:
    info = ffmpeg_info(video)
    assert re.search(r"Video: h264 .*yuv420p", info), info
    assert "Audio: aac" in info
    assert len(re.findall("Stream #", info)) == 2
    content = video.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays before it is complete


def assert_boxes_are_drawn(out: Path, video: Path) -> None:
    """Each frame of the marked video has the boxes of its rows and equals the video elsewhere."""
    marked = out / f"{video.stem}_speakers.mp4"
    with VideoReader(marked) as reader:
        rows_per_second = reader.fps
    images = read_frames(marked)
    with VideoReader(video) as reader:
        size = reader.size
        originals = list(reader.frames(np.arange(len(images)) / rows_per_second, float("inf")))
    assert len(originals) == len(images)
    table = pd.read_csv(out / "tracks.csv")
    boxes = np.rint(table.filter(like="entity_box").to_numpy() * np.tile(size, 2)).astype(int)
    frame = np.rint(table["frame_timestamp"] * rows_per_second).astype(int).clip(upper=len(images) - 1)
    changes, elsewhere = [], []
    for index, (image, original) in enumerate(zip(images, originals, strict=True)):
        image = image[: size[1], : size[0]].astype(int)
        change = np.abs(image - original).max(axis=2)
        for row in np.flatnonzero(frame == index):
            left, top, right, bottom = boxes[row]
            for y, x in (((top + bottom) // 2, left), ((top + bottom) // 2, right), (bottom, (left + right) // 2)):
                changes.append(change[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max())
            change[max(top - 40, 0) : bottom + 40, max(left - 6, 0) : right + 90] = 0
        elsewhere.append(np.mean(change > 40))
    assert len(changes) >= 15
    assert np.mean(np.array(changes) > 25) > 0.9
    assert max(elsewhere) < 0.01


def test_marked_video(base):
    marked = base / "out" / "talk_speakers.mp4"
    assert_plays_in_browsers(marked)
    assert len(read_frames(marked)) == 40
    assert duration(marked) == pytest.approx(1.6, abs=0.05)
    with VideoReader(marked) as reader:
        assert reader.size == SIZE
        assert reader.fps == pytest.approx(25)
    assert_boxes_are_drawn(base / "out", base / "talk.mp4")
    assert click_time(marked) == pytest.approx(0.6, abs=0.03)


def test_intermediate_files_equal_those_of_the_numbered_stages(base, root, tmp_path):
    """Byte for byte: audio, crops, features and logits; and the scores after post-processing."""
    tracks_csv, work = base / "out" / "tracks.csv", base / "out" / "work"
    (tmp_path / "videos").mkdir()
    shutil.copy(base / "talk.mp4", tmp_path / "videos")
    videos, common = ("--ava-video-dir", tmp_path / "videos"), ("--csv", tracks_csv, "--split", "val")
    audio, wavs, crops = (tmp_path / name for name in ("audio_tracks", "instance_wavs_time", "instance_crops_time"))
    both = ("--audio-dir", wavs, "--video-dir", crops, "--weights", root / "STE.pth", "--workers", 0)
    features, predictions = tmp_path / "ste_features", tmp_path / "asc_predictions"
    context = ("--features-val-full", features, "--weights", root / "ASC.pth", "--output-dir", predictions)
    scores = (tmp_path / "scores.csv", "--ground-truth-csv", tmp_path / "truth.csv", "--smoothing", 11)
    for command in (
        ("data/extract_audio_tracks.py", *videos, "--target-audios", audio),
        ("data/slice_audio_tracks.py", *common, "--ava-audio-dir", audio, "--output-dir", wavs),
        ("data/extract_face_crops_time.py", *common, *videos, "--output-dir", crops),
        ("STE_forward.py", 1, "cpu", *common, *both, "--output-dir", features),
        ("ASC_forward.py", 3, 2, 2, "cpu", *context),
        (
            *("ASC_prediction_postprocessing.py", "--predictions-dir", predictions, "--ground-truth", tracks_csv),
            *("--predictions-csv", *scores),
        ),
    ):
        succeed(*command)
    ours = digests(work)
    for name, digest in digests(tmp_path).items():
        if name.startswith(("audio", "instance", "asc")) and not name.endswith(("lock", "json")):
            assert ours[name] == digest, name
    assert len([name for name in ours if name.endswith(".jpg")]) == 60
    ours = work / "ste_features" / "val"
    assert (np.load(ours / "talk.npy") == np.load(features / "talk.npy")).all()
    without_label = [
        [line[:3] + line[4:] for line in read_csv(directory / "talk.csv")] for directory in (ours, features)
    ]
    assert without_label[0] == without_label[1]
    assert read_scores(tmp_path / "scores.csv")["score"].tolist() == read_scores(tracks_csv)["score"].tolist()


# Reruns


def test_second_run_skips_every_step(copied, base, root, squares):
    """Missing results are written again."""
    names = [name for name in files_under(copied) if not name.endswith((".lock", "_cfg.json"))]
    before = {name: (copied / name).stat().st_mtime_ns for name in names}
    assert steps_run(detect(root, base / "talk.mp4", copied)) == []
    assert {name: (copied / name).stat().st_mtime_ns for name in names} == before
    (copied / "speakers.rttm").unlink()
    (copied / "talk_speakers.mp4").unlink()
    assert steps_run(detect(root, base / "talk.mp4", copied)) == ["results", "marked video"]
    assert contents(copied) == contents(base / "out")


@pytest.mark.parametrize(
    ("flags", "repeated"),
    [
        (("--threshold", 0.3), ["results", "review page", "marked video"]),
        (("--duration", 0.6), STEPS),
        (("--min-face", 20), STEPS[1:]),
        (("--audio-stream", 0), STEPS[3:]),
        pytest.param(("--ste-weights", "{root}/other.pth"), STEPS[4:], marks=slow),
        pytest.param(("--overwrite",), STEPS, marks=slow),
    ],
)
def test_changed_steps_and_later_ones_are_repeated(copied, base, root, squares, flags, repeated):
    flags = [str(flag).format(root=root) for flag in flags]
    assert steps_run(detect(root, base / "talk.mp4", copied, *flags)) == repeated
    if "--threshold" in flags:
        assert read_json(copied / "speakers.json")["settings"]["threshold"] == 0.3
        labels, scores = read_annotations(copied / "tracks.csv").label, read_scores(copied / "tracks.csv")["score"]
        assert (labels == (scores >= 0.3)).all()
    if "--overwrite" in flags:
        assert contents(copied) == contents(base / "out")


def test_another_video_of_the_same_name_repeats_every_step(copied, root, squares, tmp_path):
    make_video(tmp_path / "talk.mp4", FACE, 0.8, size=SIZE)
    assert steps_run(detect(root, tmp_path / "talk.mp4", copied)) == STEPS
    content = read_json(copied / "speakers.json")
    assert content["video"]["seconds"] == pytest.approx(0.8)
    assert len(content["tracks"]) == 1
    assert {Path(name).parts[-2] for name in files_under(copied) if name.endswith(".jpg")} == {"talk:1"}


def test_marked_video_is_optional_if_browsers_play_the_video(base, root, squares, tmp_path):
    command = [flag for flag in arguments(root, base / "talk.mp4", tmp_path / "out") if flag != "--marked-video"]
    assert steps_run(run_here(*command)) == STEPS[:-1]
    assert not list((tmp_path / "out").glob("*.mp4"))
    ffmpeg("-i", base / "talk.mp4", "-c", "copy", tmp_path / "talk.mkv")
    command = [tmp_path / "talk.mkv" if argument == base / "talk.mp4" else argument for argument in command]
    assert steps_run(run_here(*command, "--overwrite")) == STEPS
    assert '"source":"talk_speakers.mp4"' in (tmp_path / "out" / "review.html").read_text()


def test_names_of_persons_are_in_all_results(copied, base, root, squares, tmp_path):
    persons = write_text(tmp_path / "persons.csv", "track,person\ntalk:1,Anna B\ntalk:3,Anna B\nother,Carl\n")
    result = detect(root, base / "talk.mp4", copied, "--persons", persons, "--threshold", 0)
    assert steps_run(result) == ["results", "review page", "marked video"]
    content = read_json(copied / "speakers.json")
    jsonschema.validate(content, SCHEMA)
    assert [track["person"] for track in content["tracks"]] == ["Anna B", None, "Anna B"]
    assert sorted(row[1] for row in read_csv(copied / "speakers.csv")[1:]) == ["", "Anna B", "Anna B"]
    assert [line.split()[7] for line in (copied / "speakers.rttm").read_text().splitlines()].count("Anna_B") == 2
    assert (copied / "speakers.vtt").read_text().count("<v Anna B>Anna B\n") == 2
    assert (copied / "review.html").read_text().count('"person":"Anna B"') == 2
    missing = detect(root, base / "talk.mp4", copied, "--persons", tmp_path / "missing.csv")
    assert_refused(missing, "missing.csv")


# Given tracks


def test_corrected_tracks_are_kept_and_can_be_used(copied, base, root, squares, tmp_path):
    lines = (copied / "tracks.csv").read_text().splitlines(keepends=True)
    lines = [line for line in lines if "talk:2" not in line]
    lines = [line.replace("NOT_SPEAKING", "SPEAKING_NOT_AUDIBLE").replace("talk:3", "anna") for line in lines]
    corrected = write_text(copied / "tracks.csv", "".join(lines))
    before = contents(copied)
    for flags in (("--threshold", 0.1), ("--overwrite",)):
        assert_refused(detect(root, base / "talk.mp4", copied, *flags), corrected, "--tracks")
    (tmp_path / "link.csv").symlink_to(corrected)
    assert_refused(detect(root, base / "talk.mp4", copied, "--tracks", tmp_path / "link.csv"), "--output-dir")
    assert contents(copied) == before

    again = tmp_path / "again"
    assert steps_run(detect(root, base / "talk.mp4", again, "--tracks", corrected)) == STEPS
    table = read_annotations(again / "tracks.csv")
    assert sorted(table.entity_ids) == ["anna", "talk:1"]
    assert (table.box == read_annotations(corrected).box).all()
    assert corrected.read_text() == "".join(lines)
    assert {track["id"] for track in read_json(again / "speakers.json")["tracks"]} == {"anna", "talk:1"}

    both = ("--audio-dir", again / "work/instance_wavs_time", "--video-dir", again / "work/instance_crops_time")
    weights = ("--weights", root / "STE.pth", "--workers", 0)
    succeed("STE_forward.py", 1, "cpu", "--csv", corrected, *both, *weights, "--output-dir", tmp_path / "ste")
    assert len(read_csv(tmp_path / "ste" / "talk.csv")) == 41

    corrected.rename(tmp_path / "corrected.csv")
    assert steps_run(detect(root, base / "talk.mp4", copied)) == ["results"]


def test_tracks_from_a_directory_of_official_files(root, tmp_path):
    """Only the rows of the video are used, at their own timestamps, and no detector is needed."""
    lines = (root / "val.csv").read_text().splitlines(keepends=True)
    for video in ("one", "two"):
        rows = [line for line in lines if line.startswith(video)]
        write_text(tmp_path / "csv" / f"{video}-activespeaker.csv", "".join(rows))
    flags = ("--tracks", tmp_path / "csv", "--face-detector", "missing.onnx")
    printed(detect(root, one_video(root), tmp_path / "out", *flags))
    table = read_annotations(tmp_path / "out" / "tracks.csv")
    assert table.timestamp.tolist() == [0.4, 0.44, 0.48, 0.52, *(round(0.52 + 0.04 * n, 2) for n in range(7))]


def test_rows_beyond_the_end_of_the_video_are_listed(root, tmp_path):
    """One track is complete, one continues beyond the end, and one starts after it. Other tracks end the list."""
    video = make_video(tmp_path / "video.mp4", FACE, 1.2, size=SIZE)
    tracks = [
        Track(*track, "video") for track in (("complete", "000", 0.4), ("beyond", "0000", 1.12), ("after", "000", 7.0))
    ]
    csv_file = write_annotations(tmp_path / "tracks.csv", faces_of(tracks))
    result = detect(root, video, tmp_path / "out", "--tracks", csv_file)
    assert "Traceback" not in result.stderr
    assert result.returncode == 1, result.stdout + result.stderr
    failures = (tmp_path / "out" / "failures.txt").read_text().splitlines()
    assert str(tmp_path / "out" / "failures.txt") in result.stdout
    assert "5 of 10 rows" in result.stdout
    assert [line.partition(":")[0] for line in failures] == [
        *("beyond at 1.2 s of video", "beyond at 1.24 s of video"),
        *(f"after at {time} s of video" for time in (7.0, 7.04, 7.08)),
        "after",  # its audio
    ]
    table = read_annotations(tmp_path / "out" / "tracks.csv")
    assert table.entity_ids == ["complete", "beyond"]
    assert table.timestamp.tolist() == [0.4, 0.44, 0.48, 1.12, 1.16]
    jsonschema.validate(read_json(tmp_path / "out" / "speakers.json"), SCHEMA)
    second = detect(root, video, tmp_path / "out", "--tracks", csv_file)
    assert second.returncode == 1
    assert "crops: already done" in second.stdout
    assert (tmp_path / "out" / "failures.txt").read_text().splitlines() == failures
    write_annotations(csv_file, faces_of(tracks[:1]))
    printed(detect(root, video, tmp_path / "out", "--tracks", csv_file))
    assert not (tmp_path / "out" / "failures.txt").exists()


def test_unusual_row_rates_are_noted(root, tmp_path):
    rows = [Face("one", "one:1", round(0.1 + 0.08 * n, 2), 0) for n in range(5)]
    csv_file = write_annotations(tmp_path / "rows.csv", rows)
    output = printed(detect(root, one_video(root), tmp_path / "out", "--tracks", csv_file))
    assert f"note: {csv_file}: rows are 0.08 s apart" in output


# Choosing tracks, streams and a part


def test_reason_for_no_tracks_is_printed(copied, base, root, squares):
    for _ in range(2):
        result = detect(root, base / "talk.mp4", copied, "--min-face", 70)
        assert "no faces were found in 1.6 s" in result.stdout
        assert "3 tracks of faces below 70 pixels were dropped (--min-face)" in result.stdout
    assert read_json(copied / "speakers.json")["tracks"] == []


def test_part_of_a_video(base, root, squares, tmp_path):
    """Its rows and times are those of the whole video."""
    out = tmp_path / "out"
    assert steps_run(detect(root, base / "talk.mp4", out, "--start", 0.4, "--duration", 0.8)) == STEPS
    content = read_json(out / "speakers.json")
    jsonschema.validate(content, SCHEMA)
    assert (content["settings"]["start"], content["settings"]["duration"]) == (0.4, 0.8)
    assert (content["video"]["seconds"], content["video"]["cuts"]) == (1.2, [0.8])
    table, whole = (read_annotations(directory / "tracks.csv") for directory in (out, base / "out"))
    inside = whole.keep((whole.timestamp > 0.39) & (whole.timestamp < 1.19))
    assert np.unique(table.timestamp).tolist() == np.unique(inside.timestamp).tolist()
    assert len(table) == len(inside) == 30
    marked = out / "talk_speakers.mp4"
    assert len(read_frames(marked)) == 20
    assert click_time(marked) == pytest.approx(0.6 - 0.4, abs=0.03)
    wav, whole_wav = (read_wav(directory / "work" / "audio_tracks" / "talk.wav") for directory in (out, base / "out"))
    assert not wav[: int(0.4 * RATE)].any()
    assert (wav[int(0.4 * RATE) : int(1.2 * RATE)] == whole_wav[int(0.4 * RATE) : int(1.2 * RATE)]).all()
    given = ("--start", 0.4, "--duration", 0.6, "--tracks", base / "out" / "tracks.csv")
    assert steps_run(detect(root, base / "talk.mp4", tmp_path / "given", *given)) == STEPS
    times = read_annotations(tmp_path / "given" / "tracks.csv").timestamp
    assert (times.min(), times.max()) == (0.4, 0.96)


def test_part_far_from_the_start(root, squares, tmp_path):
    """It is reached by seeking."""
    video, out = tmp_path / "long.mp4", tmp_path / "out"
    audio = "aevalsrc='0.8*sin(2*PI*1000*t)*between(t,21.4,21.44)':s=48000"
    face = Square(60, 40, 40, (2, 0))
    make_video(video, [face], 22, audio=audio, options=(*H264_AAC, "-g", 25))
    assert steps_run(detect(root, video, out, "--start", 21, "--duration", 0.8)) == STEPS
    table = read_annotations(out / "tracks.csv")
    assert table.timestamp.tolist() == [round(21 + 0.04 * n, 2) for n in range(20)]
    error = np.abs((table.box - [face.box(time) for time in table.timestamp]) * np.tile((160, 120), 2)).max()
    assert error < 2  # pixels
    assert click_time(out / "long_speakers.mp4") == pytest.approx(0.4, abs=0.03)
    assert click_time(out / "work" / "audio_tracks" / "long.wav") == pytest.approx(21.4, abs=0.01)


def test_chosen_streams(root, squares, tmp_path):
    """The second video stream is smaller and has a face; the second audio stream has the click."""
    make_video(tmp_path / "first.mp4", [], 0.8, size=SIZE, audio="anullsrc=r=48000:cl=mono")
    make_video(tmp_path / "second.mp4", [Square(60, 40)], 0.8, audio=CLICK)
    streams = [word for file in (0, 1) for kind in "va" for word in ("-map", f"{file}:{kind}")]
    video = tmp_path / "both.mkv"
    ffmpeg("-i", tmp_path / "first.mp4", "-i", tmp_path / "second.mp4", *streams, "-c", "copy", video)
    printed(detect(root, video, tmp_path / "out", "--video-stream", 1, "--audio-stream", 1))
    content = read_json(tmp_path / "out" / "speakers.json")
    assert (content["video"]["width"], len(content["tracks"])) == (160, 1)
    for path in ("work/audio_tracks/both.wav", "both_speakers.mp4"):
        assert click_time(tmp_path / "out" / path) == pytest.approx(0.6, abs=0.03)


# Several videos


def test_videos_of_a_directory(root, tmp_path):
    """A failure or crash of one does not stop the others. The default output directories are next to the videos."""
    videos = tmp_path / "videos"
    write_text(videos / "broken.mp4", "not a video")
    write_text(videos / "notes.txt", "ignored")
    for name in ("one", "two", "three"):
        shutil.copy(root / "videos" / f"{name}.mp4", videos)
    command = arguments(root, videos, "", "--tracks", root / "val.csv")
    del command[3:5]  # --output-dir
    result = run(tmp_path, *command, fault=Fault(crash_on=("core.detection.pipeline.detect_shots", "two.mp4")))
    assert result.returncode == 1, result
    assert "notes.txt" in result.stdout
    assert "2 of 4 videos are done" in result.stdout
    broken, crashed = re.findall("failed: .*", result.stderr)
    assert broken.startswith(f"failed: {videos / 'broken.mp4'}: cannot be opened as a video")
    assert crashed.startswith(f"failed: {videos / 'two.mp4'}: its process died")
    for name in ("one", "three"):
        assert (videos / f"{name}_speakers" / f"{name}_speakers.mp4").exists()
        assert read_json(videos / f"{name}_speakers" / "detect_speakers_cfg.json")["video"] == f"{videos / name}.mp4"
    result = run(tmp_path, *command)
    assert "3 of 4 videos are done" in result.stdout
    assert result.stdout.count("already done") == 2 * len(STEPS)


def test_several_videos_share_a_parent_directory(root, tmp_path):
    command = arguments(root, one_video(root), tmp_path / "out", "--tracks", root / "val.csv")
    command[2:2] = [tmp_path / "no.mp4"]
    result = run(tmp_path / "printed", *command)
    assert result.returncode == 1, result
    assert "1 of 2 videos are done" in result.stdout
    assert result.stderr.endswith(f"failed: {tmp_path / 'no.mp4'}: no such file; it should be a video\n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one_speakers"]
    result = run(tmp_path / "printed", *command, "--speakers", 3)
    assert_refused(result, "ASC.pth", "--speakers 3")


def test_videos_must_not_share_an_output_directory(base, root, tmp_path):
    shutil.copy(base / "talk.mp4", tmp_path / "talk.mkv")
    command = arguments(root, base / "talk.mp4", tmp_path / "out")
    assert_refused(run_here(*command[:2], tmp_path / "talk.mkv", *command[2:]), "talk.mkv", "rename one of them")
    (tmp_path / "empty").mkdir()
    assert_refused(detect(root, tmp_path / "empty", tmp_path / "out"), "empty", "no videos")


# Unusual videos


@pytest.fixture
def speakers(root, squares, tmp_path):
    """Function that runs the script on a video and returns the content of speakers.json."""

    def run_script(video: Path, *more: object) -> dict:
        printed(detect(root, video, tmp_path / "out", *more))
        content = read_json(tmp_path / "out" / "speakers.json")
        jsonschema.validate(content, SCHEMA)
        assert_plays_in_browsers(tmp_path / "out" / f"{video.stem}_speakers.mp4")
        return content

    return run_script


def test_video_without_faces(speakers, root, tmp_path):
    video = make_video(tmp_path / "empty.mp4", [], 0.8, size=SIZE, audio=CLICK)
    assert speakers(video)["tracks"] == []
    out = tmp_path / "out"
    assert (out / "speakers.rttm").read_text() == ""
    assert len((out / "tracks.csv").read_text().splitlines()) == 1
    marked = out / "empty_speakers.mp4"
    assert len(read_frames(marked)) == 20
    assert click_time(marked) == pytest.approx(0.6, abs=0.03)
    assert cv2.imread(str(out / "timeline.png")) is not None
    assert steps_run(detect(root, video, out)) == []


def test_video_without_audio_is_an_error(root, squares, tmp_path):
    video = make_video(tmp_path / "silent.mp4", FACE, 1.2, size=SIZE, audio=None)
    assert_refused(detect(root, video, tmp_path / "out"), video, "no audio")
    assert files_under(tmp_path) == ["silent.mp4"]


def test_sixty_frames_per_second(speakers, tmp_path):
    video = make_video(tmp_path / "video.mp4", FACE, 1, "60", size=SIZE, audio=CLICK)
    content = speakers(video)
    assert (content["video"]["frame_rate"], content["video"]["rows_per_second"]) == (60, 30)
    (track,) = content["tracks"]
    assert (track["start"], track["rows"]) == (0, 30)
    assert track["end"] == pytest.approx(1, abs=0.02)
    out = tmp_path / "out"
    table = read_annotations(out / "tracks.csv")
    true = np.array([FACE[0].box(np.floor(time * 60 + 0.5) / 60, SIZE) for time in table.timestamp])
    assert np.abs((table.box - true) * np.tile(SIZE, 2)).max() < 2  # pixels
    marked = out / "video_speakers.mp4"
    assert duration(marked) == pytest.approx(duration(video), abs=0.05)
    assert len(read_frames(marked)) == 30
    assert click_time(marked) == pytest.approx(0.6, abs=0.03)
    assert_boxes_are_drawn(out, video)


@pytest.mark.parametrize("kind", ["rotated", "odd"])
def test_rotated_videos_and_odd_sizes(speakers, tmp_path, kind):
    """Boxes and marked video are those of the displayed frame. Odd sides of the marked video get a pixel more."""
    if kind == "rotated":
        made = make_video(tmp_path / "plain.mp4", FACE, 0.8, size=SIZE)
        video, size, marked_size = tmp_path / "rotated.mp4", (240, 320), "240x320"
        ffmpeg("-display_rotation", 90, "-i", made, "-c", "copy", video)
    else:
        options, size, marked_size = ("-c:v", "ffv1", "-pix_fmt", "yuv444p", "-c:a", "aac"), (319, 241), "320x242"
        video = make_video(tmp_path / "odd.mkv", FACE, 0.8, size=size, options=options)
    content = speakers(video)
    assert (content["video"]["width"], content["video"]["height"]) == size
    assert [track["rows"] for track in content["tracks"]] == [20]
    info = ffmpeg_info(tmp_path / "out" / f"{kind}_speakers.mp4")
    assert marked_size in info
    assert "rotation of" not in info
    assert_boxes_are_drawn(tmp_path / "out", video)


def test_special_characters_in_names(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "-d\u00e9j\u00e0 'vu' [1], two: 100 %d%%.mp4"
    make_video(tmp_path / "plain.mkv", FACE, 0.6, size=SIZE, audio=CLICK)
    ffmpeg("-i", tmp_path / "plain.mkv", "-c", "copy", f"file:{tmp_path / name}")
    video_id = Path(name).stem
    lines = [
        [video_id, f"{face.time}", 0.2, 0.2, 0.5, 0.7, "NOT_SPEAKING", f"{video_id}:1"]
        for face in Track("", "000", 0.2).faces
    ]
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    out = Path("out, 5 % of it")
    printed(detect(root, f"./{name}", out, "--tracks", "rows.csv"))
    assert read_json(out / "speakers.json")["video"]["id"] == video_id
    assert read_annotations(out / "tracks.csv").entity_ids == [f"{video_id}:1"]
    assert len(read_frames(out / f"{video_id}_speakers.mp4")) == 15
    assert steps_run(detect(root, f"./{name}", out, "--tracks", "rows.csv")) == []


@pytest.mark.parametrize("late", ["video", "audio"])
def test_marked_video_is_on_time(root, tmp_path, late):
    """A rotated video of variable frame rate, whose audio and video start 0.52 s apart."""
    drop = ("-vf", "select='not(between(mod(n,25),8,18))'", "-fps_mode", "vfr")  # 11 of 25 frames are missing
    made = make_timed_video(tmp_path / "made.mp4", options=(*drop, *H264, *AAC))
    inputs = ("-display_rotation", 90, "-itsoffset", 0.52 * (late == "video"), "-i", made)
    inputs = (*inputs, "-itsoffset", 0.52 * (late == "audio"), "-i", made)
    ffmpeg(*inputs, "-map", "0:v", "-map", "1:a", "-c", "copy", tmp_path / "video.mp4")
    csv_file = write_annotations(tmp_path / "rows.csv", faces_of([Track("video:1", "0" * 5, 0.4, "video")]))
    printed(detect(root, tmp_path / "video.mp4", tmp_path / "out", "--tracks", csv_file))
    marked = tmp_path / "out" / "video_speakers.mp4"
    with VideoReader(marked) as reader:
        times = np.arange(0, 3.9, 1 / reader.fps)
        images = list(reader.frames(times, 60.0))
    shown = np.array([shown_time(cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE)) for image in images])
    frames = np.array([n for n in range(100) if not 8 <= n % 25 <= 18]) / 25
    displayed = frames[np.searchsorted(frames, times + 0.001) - 1]  # each until the next one
    assert np.abs(shown - displayed).max() < 0.041
    expected = np.arange(1, 4) + (-0.52 if late == "video" else 0.52)
    for path in (marked, tmp_path / "out" / "work" / "audio_tracks" / "video.wav"):
        samples = read_wav(path) if path.suffix == ".wav" else np.concatenate(list(iter_audio(path)))
        assert beep_times(samples) == pytest.approx(expected, abs=0.01)


def test_truncated_video(root, squares, tmp_path):
    video = make_video(tmp_path / "video.mkv", FACE, 2, size=SIZE)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    result = detect(root, video, tmp_path / "out")
    assert "Traceback" not in result.stderr
    printed(result)
    content = read_json(tmp_path / "out" / "speakers.json")
    assert 0.4 < content["video"]["seconds"] < 1.7
    assert content["tracks"][0]["end"] <= content["video"]["seconds"] + 0.02
    frames = read_frames(tmp_path / "out" / "video_speakers.mp4")
    assert len(frames) == pytest.approx(25 * content["video"]["seconds"], abs=4)  # the last frames are broken


# Errors


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--ste-weights {tmp}/no.pth", ["no.pth", "downloads.sh weights"]),
        ("--face-detector no.onnx --asc-weights no.pth", ["no.pth, --face-detector", "downloads.sh weights detector"]),
        ("--video-stream 1", ["no video stream 1", "it has 1"]),
        ("--audio-stream 1", ["no audio stream 1", "it has 1"]),
        ("--start 100", ["one.mp4", "no frame from 100 s on"]),
        ("--face-detector {root}/val.csv", ["val.csv", "not a YuNet face detector"]),
        ("--clip-length 3", ["STE.pth", "--clip-length 3"]),
        ("--speakers 3", ["ASC.pth", "--speakers 3"]),
        ("--tracks {root}/two.csv", ["two.csv", "no rows of one"]),
    ],
)
def test_unusable_arguments_are_one_line(root, tmp_path, flags, words):
    if "two.csv" in flags:
        write_annotations(root / "two.csv", faces_of([Track("two:1", "00", 0.1, "two")]))
    flags = flags.format(root=root, tmp=tmp_path).split()
    tracks = () if "--tracks" in flags or "--face-detector" in flags else ("--tracks", root / "val.csv")
    result = detect(root, one_video(root), tmp_path / "out", *tracks, *flags)
    assert_refused(result, *(word.format(tmp=tmp_path) for word in words))
    if "--tracks" not in flags and "--start" not in flags:
        assert files_under(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("audio", "no video stream"),
        ("cut", "cut off: its index is missing; record or download it again"),
        ("pipe", "no such file"),
    ],
)
def test_files_that_are_no_videos_are_errors(root, tmp_path, kind, words):
    video = tmp_path / "video.mp4"
    if kind == "audio":
        ffmpeg("-i", one_video(root), "-map", "0:a", "-c", "copy", video)
    elif kind == "cut":
        video.write_bytes(one_video(root).read_bytes()[:2000])
    elif kind == "pipe":
        os.mkfifo(video)
    csv_file = write_text(tmp_path / "rows.csv", official_line(faces_of([Track("video:1", "0", 0.4, "video")])[0]))
    assert_refused(detect(root, video, tmp_path / "out", "--tracks", csv_file), video, words)
    assert not (tmp_path / "out").exists()


def test_files_of_others_are_not_overwritten(root, tmp_path):
    video, tracks = one_video(root), ("--tracks", root / "val.csv")
    out = write_text(tmp_path / "out", "a file")
    assert_refused(detect(root, video, out, *tracks), out)
    for name in ("work/thesis.txt", "one_speakers.mp4", "tracks.csv"):
        out = tmp_path / name.replace("/", "_")
        other = write_text(out / name, "other")
        assert_refused(detect(root, video, out, *tracks, "--overwrite"), out / Path(name).parts[0])
        assert other.read_text() == "other"


def test_directory_that_cannot_be_used_is_an_error(copied, base, root, squares):
    before = contents(copied)
    result = detect(root, one_video(root), copied, "--tracks", root / "val.csv")
    assert_refused(result, copied, "talk.mp4", "--output-dir")
    assert contents(copied) == before
    write_text(copied / ".steps.json", "{")
    assert_refused(detect(root, base / "talk.mp4", copied), ".steps.json", "--overwrite")


# Interrupted runs


def with_tracks(root: Path, out: Path) -> list[object]:
    return arguments(root, one_video(root), out, "--tracks", root / "val.csv")


KILLS = [
    ("cv2.imencode", 5),  # while writing crops
    ("core.detection.pipeline.sha256", 1),  # before tracks.csv is renamed
    ("core.detection.overlay.mark_faces", 4),  # while writing the marked video
]


@slow
def test_killed_runs_are_resumed(root, tmp_path):
    """No partial file ever has its final name, and the result equals that of an uninterrupted run."""
    printed(run(tmp_path, *with_tracks(root, tmp_path / "uninterrupted")))
    expected, command = contents(tmp_path / "uninterrupted"), with_tracks(root, tmp_path / "out")
    for call in KILLS:
        kill(tmp_path, command, call)
        differing = {name for name, digest in contents(tmp_path / "out").items() if expected.get(name) != digest}
        assert {name for name in differing if ".partial" not in name} <= {".steps.json", "work/tracks.csv"}
    printed(run(tmp_path, *command))
    assert contents(tmp_path / "out") == expected  # without the partial files of killed runs


# Long videos


@slow
def test_memory_does_not_depend_on_the_length_of_the_video(root, tmp_path):
    peaks = {}
    for minutes in (1, 6):
        video = tmp_path / f"video{minutes}.mp4"
        frames = f"testsrc2=size=160x120:rate=25:duration={60 * minutes}"
        audio = f"anoisesrc=duration={60 * minutes}:sample_rate=16000:seed=1"
        ffmpeg("-f", "lavfi", "-i", frames, "-f", "lavfi", "-i", audio, *H264_AAC, video)
        tracks = [Track(f"t{n}", "000", 10.0 * n + 1, video.stem) for n in range(6)]
        csv_file = write_annotations(tmp_path / f"{minutes}.csv", faces_of(tracks))
        command = arguments(root, video, tmp_path / f"out{minutes}", "--tracks", csv_file)
        running = Running(tmp_path, *command, fault=Fault(sample_at="core.runtime.resume.StepCache._set"))
        result = running.wait(500)
        printed(result)
        peaks[minutes] = max(peak for _, peak, _ in samples(result))
    assert peaks[6] - peaks[1] < 30e6, peaks  # bytes
