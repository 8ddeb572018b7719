"""Unusual and damaged videos through the data stages, all in one directory as a user's would be."""

import math
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import assert_refused, printed
from numbered_videos import HEIGHT, WIDTH, ffmpeg, frame_number, make_video
from tiny_inputs import RATE, read_wav, run_here, write_text

SECONDS = 4
FPS25 = [round(index * 0.04, 2) for index in range(0, 25 * SECONDS, 3)]
VARIABLE = [round(index * 0.04, 2) for index in (*range(50), *range(50, 100, 4))]  # after 2 s, every fourth frame
FULL = (0.0, 0.0, 1.0, 1.0)
TONES = {"a8000": ("8000", "mono"), "a44100": ("44100", "stereo"), "a48000": ("48000", "5.1")}
BEEP = "aevalsrc='0.5*sin(2*PI*1000*t)*between(t,2,2.1)':d=4:s=48000"

# video_id -> timestamps and boxes of its rows
ROWS: dict[str, list[tuple[float, tuple[float, ...]]]] = {
    "plain": [(time, FULL) for time in FPS25],
    "cut_mkv": [(time, FULL) for time in FPS25],
    "cut_mp4": [(0.04, FULL), (3.0, FULL)],
    "cut_avi": [(time, FULL) for time in FPS25],
    "delayed_avi": [(time, FULL) for time in FPS25],
    "gap": [(time, FULL) for time in FPS25],
    "wide": [(0.0, FULL), (0.04, (0.1, 0.1, 0.2, 0.9))],
    "silent": [(time, FULL) for time in FPS25],
    "audio_only": [(0.04, FULL), (3.0, FULL)],
    "empty": [(0.04, FULL)],
    "text": [(0.04, FULL)],
    "pipe": [(0.04, FULL)],
    "variable_mp4": [(time, FULL) for time in VARIABLE] + [(3.93, FULL)],
    "variable_mkv": [(time, FULL) for time in VARIABLE] + [(3.93, FULL)],
    "rotated": [(time, FULL) for time in FPS25],
    "odd": [(0.4, FULL), (0.8, (0.1, 0.2, 0.5, 0.9)), (1.2, (0.5, 0.5, 0.503, 0.9)), (1.6, FULL)],
    "sixty": [(round(index / 60, 2), FULL) for index in range(0, 240, 7)],
    "late_frames": [(time, FULL) for time in FPS25],
    "late_audio": [(time, FULL) for time in FPS25],
    "edges": [(-1.0, FULL), (0.0, FULL), (3.96, FULL), (3.98, FULL), (4.0, FULL), (400.0, FULL)],
    "-dash [1] 'q' \"d\" %d é: x": [(0.4, FULL)],
}


def write_videos(folder: Path) -> None:
    folder.mkdir()
    frames = make_video(folder.parent / "frames.mp4", seconds=SECONDS)

    def add_beep(name: str) -> Path:
        """The frames with a beep at 2 s."""
        inputs = ("-i", frames, "-f", "lavfi", "-i", BEEP)
        ffmpeg(*inputs, "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "aac", folder / name)
        return folder / name

    plain = add_beep("plain.mp4")
    for name in ("cut_mkv.mkv", "cut_mp4.mp4"):
        path = add_beep(name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    mpeg4 = ("-c:v", "mpeg4", "-q:v", "4", "-bf", "2", "-g", "25", "-c:a", "mp3")
    ffmpeg("-i", plain, *mpeg4, folder / "delayed_avi.avi")  # packets without presentation times
    avi = (folder / "delayed_avi.avi").read_bytes()
    (folder / "cut_avi.avi").write_bytes(avi[: len(avi) * 6 // 10])
    ffmpeg("-i", plain, "-c", "copy", folder / "gap.ts")
    stream = (folder / "gap.ts").read_bytes()
    packets = len(stream) // 188
    (folder / "gap.ts").write_bytes(stream[: packets // 3 * 188] + stream[packets // 2 * 188 :])
    ffmpeg("-f", "lavfi", "-i", "color=gray:size=70000x16:rate=25:d=0.2", "-c:v", "ffv1", folder / "wide.mkv")
    shutil.copy(frames, folder / "silent.mp4")
    ffmpeg("-i", plain, "-map", "0:a", "-c", "copy", folder / "audio_only.mp4")
    (folder / "empty.mp4").touch()
    write_text(folder / "text.mp4", "This is not a video.\n" * 100)
    os.mkfifo(folder / "pipe.mp4")
    select = "select='if(lt(n,50),1,not(mod(n-50,4)))'"
    codec = ("-c:v", "libx264", "-preset", "veryfast", "-bf", "2", "-pix_fmt", "yuv420p", "-c:a", "copy")
    for name in ("variable_mp4.mp4", "variable_mkv.mkv"):
        ffmpeg("-i", plain, "-vf", select, "-fps_mode", "vfr", *codec, folder / name)
    ffmpeg("-display_rotation", 90, "-i", plain, "-c", "copy", folder / "rotated.mp4")
    odd = ("-vf", "scale=127:95", "-c:v", "ffv1", "-pix_fmt", "yuv444p", "-c:a", "copy")
    ffmpeg("-i", plain, *odd, folder / "odd.mkv")
    make_video(folder / "sixty.mp4", fps="60", seconds=SECONDS)
    for name, (video_input, audio_input) in {"late_frames": (0, 1), "late_audio": (1, 0)}.items():
        inputs = ("-itsoffset", 0.52, "-i", plain, "-i", plain)  # input 0 starts late
        ffmpeg(*inputs, "-map", f"{video_input}:v", "-map", f"{audio_input}:a", "-c", "copy", folder / f"{name}.mp4")
    shutil.copy(plain, folder / "edges.mp4")
    shutil.copy(plain, folder / "-dash [1] 'q' \"d\" %d é: x.mp4")
    for name, (rate, layout) in TONES.items():
        tone = f"aevalsrc='{'|'.join(['0.5*sin(2*PI*440*t)'] * {'mono': 1, 'stereo': 2, '5.1': 6}[layout])}':c={layout}"
        ffmpeg("-f", "lavfi", "-i", f"{tone}:s={rate}:d=3", "-c:a", "aac", "-ar", rate, folder / f"{name}.mp4")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Outputs of stage 1 in wavs/ and, with --align, in aligned/; outputs of stage 3 in crops/val/."""
    root = tmp_path_factory.mktemp("media")
    write_videos(root / "videos")
    lines = []
    for video, rows in ROWS.items():
        quoted = '"' + video.replace('"', '""') + '"'
        for time, box in rows:
            lines.append(f"{quoted},{time!r},{','.join(map(str, box))},NOT_SPEAKING,{quoted}\n")
    csv = write_text(root / "rows.csv", "".join(lines))
    result = extract_audio(root, "wavs")
    assert result.returncode == 1, result
    assert "Traceback" not in result.stderr
    assert "note: " in result.stdout
    (root / "some_videos").mkdir()
    for video in ("plain", "late_frames", "late_audio"):
        os.link(root / "videos" / f"{video}.mp4", root / "some_videos" / f"{video}.mp4")
    printed(extract_audio(root, "aligned", "--align", videos="some_videos"))
    videos, output = ("--ava-video-dir", root / "videos"), ("--output-dir", root / "crops")
    result = run_here("data/extract_face_crops_time.py", "--csv", csv, *videos, *output)
    assert result.returncode == 1, result
    assert "Traceback" not in result.stderr
    return root


def extract_audio(root: Path, directory: str, *flags: str, videos: str = "videos"):
    """Run stage 1."""
    arguments = ("--ava-video-dir", root / videos, "--target-audios", root / directory, *flags)
    return run_here("data/extract_audio_tracks.py", *arguments)


def crops(root: Path, video: str) -> dict[float, np.ndarray]:
    """Timestamp -> crop."""
    return {
        float(path.stem): cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        for path in (root / "crops" / "val" / video).glob("*.jpg")
    }


def frame_numbers(root: Path, video: str) -> dict[float, int]:
    """Timestamp -> number shown in the crop."""
    return {time: frame_number(cv2.resize(image, (WIDTH, HEIGHT))) for time, image in crops(root, video).items()}


def expected_numbers(times: list[float], fps: float = 25) -> dict[float, int]:
    return {time: math.floor(time * fps + 0.5) for time in times}


def failures(directory: Path, video: str) -> list[str]:
    return [line for line in (directory / "failures.txt").read_text().splitlines() if line.startswith(video)]


def notes(directory: Path) -> str:
    return (directory / "notes.txt").read_text()


def audio(root: Path, video: str, directory: str = "wavs") -> np.ndarray | None:
    path = root / directory / f"{video}.wav"
    return read_wav(path) if path.exists() else None


def beep_start(samples: np.ndarray) -> float:
    """Seconds to the start of the beep."""
    return np.flatnonzero(np.abs(samples.astype(float)) > 4000)[0] / RATE


def test_plain_video(root):
    assert frame_numbers(root, "plain") == expected_numbers(FPS25)
    assert failures(root / "crops" / "val", "plain") == []
    assert len(audio(root, "plain")) == SECONDS * RATE
    assert beep_start(audio(root, "plain")) == pytest.approx(2, abs=0.002)


@pytest.mark.parametrize("video", ["cut_mkv", "cut_avi"])
def test_truncated_videos_are_used_to_their_end(root, video):
    numbers = frame_numbers(root, video)
    assert 5 <= len(numbers) < len(FPS25)
    assert numbers == dict(list(expected_numbers(FPS25).items())[: len(numbers)])
    lines = failures(root / "crops" / "val", video)
    assert len(lines) == len(FPS25) - len(numbers)
    assert all(line.startswith(f"{video} at ") and line.endswith("no frame can be read") for line in lines)
    assert RATE < len(audio(root, video)) < SECONDS * RATE
    assert video != "cut_mkv" or "cut_mkv.mkv: audio ends at 2.0 s of 4.0 s" in notes(root / "wavs")


def test_truncated_mp4_without_its_index(root):
    assert crops(root, "cut_mp4") == {}
    (line,) = failures(root / "crops" / "val", "cut_mp4")
    assert line.startswith("cut_mp4: cannot be opened as a video")
    assert failures(root / "wavs", "cut_mp4") != []


def test_files_without_audio_or_without_frames(root):
    assert frame_numbers(root, "silent") == expected_numbers(FPS25)
    assert failures(root / "wavs", "silent") == ["silent: no audio stream"]
    assert audio(root, "silent") is None
    assert crops(root, "audio_only") == {}
    assert failures(root / "crops" / "val", "audio_only") == ["audio_only: no video stream"]
    assert beep_start(audio(root, "audio_only")) == pytest.approx(2, abs=0.002)


def test_gap_in_a_stream(root):
    """Frames after the gap are found by their timestamps."""
    numbers, expected = frame_numbers(root, "gap"), expected_numbers(FPS25)
    assert all(abs(numbers[time] - expected[time]) <= 25 for time in numbers)  # the frame before the gap is repeated
    after = [time for time in FPS25 if time > 3]
    assert {time: numbers[time] for time in after} == {time: expected[time] for time in after}
    assert len(audio(root, "gap")) == pytest.approx(SECONDS * RATE, abs=0.1 * RATE)


def test_avi_without_presentation_times(root):
    assert frame_numbers(root, "delayed_avi") == expected_numbers(FPS25)
    assert beep_start(audio(root, "delayed_avi")) == pytest.approx(2, abs=0.06)
    assert "delayed_avi" not in notes(root / "wavs")


def test_a_crop_too_large_for_jpeg_is_listed(root):
    assert list(crops(root, "wide")) == [0.04]
    (line,) = failures(root / "crops" / "val", "wide")
    assert line == "wide at 0.0 s of wide: a box of 70000 x 16 pixels cannot be a JPEG"


@pytest.mark.parametrize("video", ["empty", "text", "pipe"])
def test_files_that_are_not_videos_are_listed(root, video):
    for directory in (root / "wavs", root / "crops" / "val"):
        assert len(failures(directory, video)) == 1
    assert audio(root, video) is None
    assert crops(root, video) == {}


@pytest.mark.parametrize("video", ["variable_mp4", "variable_mkv"])
def test_variable_frame_rate(root, video):
    assert frame_numbers(root, video) == {**expected_numbers(VARIABLE), 3.93: 98}
    assert beep_start(audio(root, video)) == pytest.approx(2, abs=0.002)


def test_rotation_is_applied(root):
    images = crops(root, "rotated")
    assert {image.shape for image in images.values()} == {(WIDTH, HEIGHT, 3)}
    numbers = {time: frame_number(np.rot90(image, -1)) for time, image in images.items()}
    assert numbers == expected_numbers(FPS25)


def test_odd_width_and_height(root):
    images = crops(root, "odd")
    assert {time: image.shape[:2] for time, image in images.items()} == {
        0.4: (95, 127),
        0.8: (int(0.9 * 95) - int(0.2 * 95), int(0.5 * 127) - int(0.1 * 127)),
        1.6: (95, 127),
    }
    (line,) = failures(root / "crops" / "val", "odd")
    assert line == "odd at 1.2 s of odd: a box of 0 x 38 pixels cannot be a JPEG"


def test_60_frames_per_second(root):
    times = [time for time, _ in ROWS["sixty"]]
    assert frame_numbers(root, "sixty") == expected_numbers(times, 60)


@pytest.mark.parametrize("video", TONES)
def test_any_sample_rate_and_channel_layout(root, video):
    samples = audio(root, video).astype(float)
    assert len(samples) == pytest.approx(3 * RATE, abs=0.1 * RATE)
    spectrum = np.abs(np.fft.rfft(samples[RATE : 2 * RATE]))
    assert int(spectrum.argmax()) == 440
    assert np.abs(samples[RATE : 2 * RATE]).max() > 2000


def test_audio_and_frames_that_start_apart(root):
    """Audio starts with the container, frames are counted from the first one; --align starts both together."""
    for video in ("late_frames", "late_audio"):
        assert frame_numbers(root, video) == expected_numbers(FPS25)
    assert beep_start(audio(root, "late_audio")) == pytest.approx(2.52, abs=0.03)
    assert beep_start(audio(root, "late_frames")) == pytest.approx(2, abs=0.03)
    assert "late_frames.mp4: video starts 0.52 s after the audio; --align" in notes(root / "wavs")
    assert notes(root / "wavs").count("--align") == 1
    assert beep_start(audio(root, "late_audio", "aligned")) == pytest.approx(2.52, abs=0.03)
    assert beep_start(audio(root, "late_frames", "aligned")) == pytest.approx(1.48, abs=0.03)
    assert np.array_equal(audio(root, "plain", "aligned"), audio(root, "plain"))
    assert not (root / "aligned" / "notes.txt").exists()


def test_timestamps_outside_the_video_are_listed(root):
    assert frame_numbers(root, "edges") == {0.0: 0, 3.96: 99}
    lines = failures(root / "crops" / "val", "edges")
    assert [re.search(r" at (\S+) s", line)[1] for line in lines] == ["-1.0", "3.98", "4.0", "400.0"]


def test_unusual_characters_in_a_file_name(root):
    video = "-dash [1] 'q' \"d\" %d é: x"
    assert frame_numbers(root, video) == expected_numbers([0.4])
    assert beep_start(audio(root, video)) == pytest.approx(2, abs=0.002)


def test_aligned_and_unaligned_wavs_are_not_mixed(root):
    for directory, flags in (("wavs", ("--align",)), ("aligned", ())):
        assert_refused(extract_audio(root, directory, *flags), root / directory, "align", "--overwrite")
