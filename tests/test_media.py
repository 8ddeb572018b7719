"""Films of every kind through the data stages: what becomes of each is defined, and its neighbours are not harmed.

All of them lie in one directory and go through the stages together, as somebody's films would.
"""

import math
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import assert_refused
from numbered_videos import HEIGHT, WIDTH, ffmpeg, make_video, number
from processes import run
from tiny_inputs import RATE, read_wav, write_text

SECONDS = 4
FPS25 = [round(index * 0.04, 2) for index in range(0, 25 * SECONDS, 3)]
# 25 frames a second for two seconds, then one in four of them.
VARIABLE = [round(index * 0.04, 2) for index in (*range(50), *range(50, 100, 4))]
FULL = (0.0, 0.0, 1.0, 1.0)
TONE = {"a8000": ("8000", "mono"), "a44100": ("44100", "stereo"), "a48000": ("48000", "5.1")}
BEEP = "aevalsrc='0.5*sin(2*PI*1000*t)*between(t,2,2.1)':d=4:s=48000"

# video_id -> moments of its rows and their boxes
ROWS: dict[str, list[tuple[float, tuple[float, ...]]]] = {
    "plain": [(moment, FULL) for moment in FPS25],
    "cut_mkv": [(moment, FULL) for moment in FPS25],
    "cut_mp4": [(0.04, FULL), (3.0, FULL)],
    "cut_avi": [(moment, FULL) for moment in FPS25],
    "delayed_avi": [(moment, FULL) for moment in FPS25],
    "hole": [(moment, FULL) for moment in FPS25],
    "wide": [(0.0, FULL), (0.04, (0.1, 0.1, 0.2, 0.9))],
    "silent": [(moment, FULL) for moment in FPS25],
    "sound_only": [(0.04, FULL), (3.0, FULL)],
    "empty": [(0.04, FULL)],
    "text": [(0.04, FULL)],
    "pipe": [(0.04, FULL)],
    "variable_mp4": [(moment, FULL) for moment in VARIABLE] + [(3.93, FULL)],
    "variable_mkv": [(moment, FULL) for moment in VARIABLE] + [(3.93, FULL)],
    "turned": [(moment, FULL) for moment in FPS25],
    "odd": [(0.4, FULL), (0.8, (0.1, 0.2, 0.5, 0.9)), (1.2, (0.5, 0.5, 0.503, 0.9)), (1.6, FULL)],
    "sixty": [(round(index / 60, 2), FULL) for index in range(0, 240, 7)],
    "late_picture": [(moment, FULL) for moment in FPS25],
    "late_sound": [(moment, FULL) for moment in FPS25],
    "edges": [(-1.0, FULL), (0.0, FULL), (3.96, FULL), (3.98, FULL), (4.0, FULL), (400.0, FULL)],
    "-dash [1] 'q' \"d\" %d é: x": [(0.4, FULL)],
}


def write_films(films: Path) -> None:
    films.mkdir()
    picture = make_video(films.parent / "picture.mp4", seconds=SECONDS)

    def join(name: str, *options: object, before: tuple = ()) -> Path:
        """The picture with a beep at 2 s; options go before the output, `before` before both inputs."""
        sources = ("-i", picture, "-f", "lavfi", "-i", BEEP)
        ffmpeg(*before, *sources, "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "aac", *options, films / name)
        return films / name

    whole = join("plain.mp4")
    for name, kind in (("cut_mkv", "mkv"), ("cut_mp4", "mp4")):
        path = join(f"{name}.{kind}")
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    mpeg4 = ("-c:v", "mpeg4", "-q:v", "4", "-bf", "2", "-g", "25", "-c:a", "mp3")
    ffmpeg("-i", whole, *mpeg4, films / "delayed_avi.avi")  # whose packets do not tell when they are shown
    cut = (films / "delayed_avi.avi").read_bytes()
    (films / "cut_avi.avi").write_bytes(cut[: len(cut) * 6 // 10])
    ffmpeg("-i", whole, "-c", "copy", films / "hole.ts")
    stream = (films / "hole.ts").read_bytes()
    packets = len(stream) // 188
    (films / "hole.ts").write_bytes(stream[: packets // 3 * 188] + stream[packets // 2 * 188 :])
    ffmpeg("-f", "lavfi", "-i", "color=gray:size=70000x16:rate=25:d=0.2", "-c:v", "ffv1", films / "wide.mkv")
    shutil.copy(picture, films / "silent.mp4")
    ffmpeg("-i", whole, "-map", "0:a", "-c", "copy", films / "sound_only.mp4")
    (films / "empty.mp4").touch()
    write_text(films / "text.mp4", "This is not a film.\n" * 100)
    os.mkfifo(films / "pipe.mp4")
    chosen = "select='if(lt(n,50),1,not(mod(n-50,4)))'"
    for kind in ("mp4", "mkv"):
        codec = ("-c:v", "libx264", "-preset", "veryfast", "-bf", "2", "-pix_fmt", "yuv420p")
        ffmpeg(
            "-i", whole, "-vf", chosen, "-fps_mode", "vfr", *codec, "-c:a", "copy", films / f"variable_{kind}.{kind}"
        )
    ffmpeg("-display_rotation", 90, "-i", whole, "-c", "copy", films / "turned.mp4")
    ffmpeg("-i", whole, "-vf", "scale=127:95", "-c:v", "ffv1", "-pix_fmt", "yuv444p", "-c:a", "copy", films / "odd.mkv")
    make_video(films / "sixty.mp4", fps="60", seconds=SECONDS)
    for name, (late, early) in {"late_picture": (0, 1), "late_sound": (1, 0)}.items():
        inputs = ("-itsoffset", 0.52, "-i", whole, "-i", whole)
        ffmpeg(*inputs, "-map", f"{late}:v", "-map", f"{early}:a", "-c", "copy", films / f"{name}.mp4")
    shutil.copy(whole, films / "edges.mp4")
    shutil.copy(whole, films / "-dash [1] 'q' \"d\" %d é: x.mp4")
    for name, (rate, layout) in TONE.items():
        tone = f"aevalsrc='{'|'.join(['0.5*sin(2*PI*440*t)'] * {'mono': 1, 'stereo': 2, '5.1': 6}[layout])}':c={layout}"
        ffmpeg("-f", "lavfi", "-i", f"{tone}:s={rate}:d=3", "-c:a", "aac", "-ar", rate, films / f"{name}.mp4")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """<root>/wavs, <root>/aligned, <root>/crops/val: what stage 1, with and without --align, and stage 3 make."""
    root = tmp_path_factory.mktemp("media")
    write_films(root / "films")
    lines = []
    for video, rows in ROWS.items():
        quoted = '"' + video.replace('"', '""') + '"'
        for moment, box in rows:
            corners = ",".join(map(str, box))
            lines.append(f"{quoted},{moment!r},{corners},NOT_SPEAKING,{quoted}\n")
    csv = write_text(root / "rows.csv", "".join(lines))
    films = ("--ava-video-dir", root / "films")
    for flags, name in (((), "wavs"), (("--align",), "aligned")):
        result = run(root, "data/extract_audio_tracks.py", *films, "--target-audios", root / name, *flags)
        assert result.returncode == 1, result
        assert "Traceback" not in result.stderr
        assert "note: " in result.stdout
    result = run(root, "data/extract_face_crops_time.py", "--csv", csv, *films, "--output-dir", root / "crops")
    assert result.returncode == 1, result
    assert "Traceback" not in result.stderr
    return root


def crops(made: Path, video: str) -> dict[float, np.ndarray]:
    """Moment -> image, of the crops that are there."""
    return {
        float(path.stem): cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        for path in (made / "crops" / "val" / video).glob("*.jpg")
    }


def numbers(made: Path, video: str) -> dict[float, int]:
    return {moment: number(cv2.resize(image, (WIDTH, HEIGHT))) for moment, image in crops(made, video).items()}


def failures(directory: Path, video: str) -> list[str]:
    return [line for line in (directory / "failures.txt").read_text().splitlines() if line.startswith(video)]


def notes(directory: Path) -> str:
    return (directory / "notes.txt").read_text()


def sound(made: Path, video: str, directory: str = "wavs") -> np.ndarray | None:
    path = made / directory / f"{video}.wav"
    return read_wav(path) if path.exists() else None


def beep(samples: np.ndarray) -> float:
    """Seconds to where the beep begins."""
    return np.flatnonzero(np.abs(samples.astype(float)) > 4000)[0] / RATE


def at(moments: list[float], fps: float = 25) -> dict[float, int]:
    return {moment: math.floor(moment * fps + 0.5) for moment in moments}


def test_an_ordinary_film(made):
    assert numbers(made, "plain") == at(FPS25)
    assert failures(made / "crops" / "val", "plain") == []
    assert len(sound(made, "plain")) == SECONDS * RATE
    assert beep(sound(made, "plain")) == pytest.approx(2, abs=0.002)


@pytest.mark.parametrize("video", ["cut_mkv", "cut_avi"])
def test_cut_off_at_60_percent(made, video):
    """What is there is taken; each row after it is named, and the sound is as long as what is left of it."""
    found = numbers(made, video)
    assert 5 <= len(found) < len(FPS25)
    assert found == dict(list(at(FPS25).items())[: len(found)])
    named = failures(made / "crops" / "val", video)
    assert len(named) == len(FPS25) - len(found)
    assert all(f"{video} at " in line and "no frame can be read there" in line for line in named)
    assert RATE < len(sound(made, video)) < SECONDS * RATE
    assert video != "cut_mkv" or "cut_mkv.mkv: its sound is damaged (File ended prematurely)" in notes(made / "wavs")


def test_cut_off_without_its_index(made):
    # An mp4 has its index at the end, without which nothing can be read.
    assert crops(made, "cut_mp4") == {}
    assert failures(made / "crops" / "val", "cut_mp4") == ["cut_mp4: cannot be opened as a film"]
    assert failures(made / "wavs", "cut_mp4") != []


def test_without_sound_or_without_picture(made):
    assert numbers(made, "silent") == at(FPS25)
    assert failures(made / "wavs", "silent") == ["silent: it has no sound"]
    assert sound(made, "silent") is None
    assert crops(made, "sound_only") == {}
    assert failures(made / "crops" / "val", "sound_only") == ["sound_only: cannot be opened as a film"]
    assert beep(sound(made, "sound_only")) == pytest.approx(2, abs=0.002)


def test_a_hole_in_a_stream(made):
    """Rows after it get the frames of their time, not those that come as many frames after the hole."""
    found = numbers(made, "hole")
    wanted = at(FPS25)
    assert all(abs(found[moment] - wanted[moment]) <= 25 for moment in found)  # in the hole the frame before it stays
    assert {moment: found[moment] for moment in found if moment > 3} == {m: wanted[m] for m in wanted if m > 3}
    assert len(sound(made, "hole")) == pytest.approx(SECONDS * RATE, abs=0.1 * RATE)  # silence in the hole


def test_frames_whose_packets_tell_no_time(made):
    assert numbers(made, "delayed_avi") == at(FPS25)
    assert beep(sound(made, "delayed_avi")) == pytest.approx(2, abs=0.06)
    assert "delayed_avi" not in notes(made / "wavs")


def test_a_face_too_wide_for_a_jpeg_is_listed_and_the_next_one_done(made):
    assert list(crops(made, "wide")) == [0.04]
    (line,) = failures(made / "crops" / "val", "wide")
    assert "wide at 0.0 s: 70000 x 16 pixels are too many for a JPEG" in line


@pytest.mark.parametrize("video", ["empty", "text", "pipe"])
def test_what_is_no_film(made, video):
    for directory in (made / "wavs", made / "crops" / "val"):
        assert len(failures(directory, video)) == 1
    assert sound(made, video) is None
    assert crops(made, video) == {}


@pytest.mark.parametrize("video", ["variable_mp4", "variable_mkv"])
def test_variable_frame_rate(made, video):
    """Each row gets the frame that is on show at its time, which is not the n-th one."""
    found = numbers(made, video)
    assert found == {**at(VARIABLE), 3.93: 98}
    assert beep(sound(made, video)) == pytest.approx(2, abs=0.002)


def test_rotation_is_done(made):
    """Boxes are shares of the frame as a player shows it."""
    images = crops(made, "turned")
    assert {image.shape for image in images.values()} == {(WIDTH, HEIGHT, 3)}
    turned = {moment: number(np.rot90(image, -1)) for moment, image in images.items()}
    assert turned == at(FPS25)


def test_odd_width_and_height(made):
    images = crops(made, "odd")
    assert {moment: image.shape[:2] for moment, image in images.items()} == {
        0.4: (95, 127),
        0.8: (int(0.9 * 95) - int(0.2 * 95), int(0.5 * 127) - int(0.1 * 127)),
        1.6: (95, 127),
    }
    (line,) = failures(made / "crops" / "val", "odd")
    assert "odd at 1.2 s: the box rounds to nothing in a frame of 127 x 95" in line


def test_sixty_frames_a_second(made):
    moments = [moment for moment, _ in ROWS["sixty"]]
    assert numbers(made, "sixty") == at(moments, 60)


@pytest.mark.parametrize("video", TONE)
def test_any_sampling_rate_and_number_of_channels(made, video):
    samples = sound(made, video).astype(float)
    assert len(samples) == pytest.approx(3 * RATE, abs=0.1 * RATE)
    spectrum = np.abs(np.fft.rfft(samples[RATE : 2 * RATE]))
    assert int(spectrum.argmax()) == 440
    assert np.abs(samples[RATE : 2 * RATE]).max() > 2000


def test_picture_and_sound_that_do_not_begin_together(made):
    """Frames are counted from the first one, sound from where the film begins; --align has both begin together."""
    for video in ("late_picture", "late_sound"):
        assert numbers(made, video) == at(FPS25)
    assert beep(sound(made, "late_sound")) == pytest.approx(2.52, abs=0.03)
    assert beep(sound(made, "late_picture")) == pytest.approx(2, abs=0.03)
    assert "late_picture.mp4: its picture begins 0.52 s after its sound; --align" in notes(made / "wavs")
    assert notes(made / "wavs").count("begins") == 1
    assert beep(sound(made, "late_sound", "aligned")) == pytest.approx(2.52, abs=0.03)
    assert beep(sound(made, "late_picture", "aligned")) == pytest.approx(1.48, abs=0.03)
    assert np.array_equal(sound(made, "plain", "aligned"), sound(made, "plain"))
    assert "begins" not in notes(made / "aligned")


def test_moments_before_and_after_the_film(made):
    assert numbers(made, "edges") == {0.0: 0, 3.96: 99}
    named = failures(made / "crops" / "val", "edges")
    assert [line.split(" s: ")[0].split(" at ")[1] for line in named] == ["-1.0", "3.98", "4.0", "400.0"]


def test_a_name_of_odd_characters(made):
    video = "-dash [1] 'q' \"d\" %d é: x"
    assert numbers(made, video) == at([0.4])
    assert beep(sound(made, video)) == pytest.approx(2, abs=0.002)


def test_notes_stay_while_what_they_are_about_does(made):
    before = notes(made / "wavs")
    (made / "wavs" / "late_picture.wav").unlink()
    films = ("--ava-video-dir", made / "films")
    assert run(made, "data/extract_audio_tracks.py", *films, "--target-audios", made / "wavs").returncode == 1
    assert sorted(notes(made / "wavs").splitlines()) == sorted(before.splitlines())


def test_aligned_and_other_sound_do_not_mix(made):
    films = ("--ava-video-dir", made / "films")
    for directory, flags in (("wavs", ("--align",)), ("aligned", ())):
        result = run(made, "data/extract_audio_tracks.py", *films, "--target-audios", made / directory, *flags)
        assert_refused(result, made / directory, "--align", "--overwrite")
