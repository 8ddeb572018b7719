"""Which frame is shown at a timestamp, on films whose frames carry their number; faces cut out of them."""

import contextlib
import io
import math
import os
import shutil
import socket
import subprocess
import threading
import wave
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, assert_refused, row, run_script, write_lines
from numbered_videos import CODECS, H264, HEIGHT, WIDTH, make_video, number, rate
from PIL import Image

from core.config import SEEK_GAP_SECONDS
from core.media.crops import crop_face
from core.media.ffmpeg import ffmpeg_path, iter_audio, list_videos
from core.media.reader import VideoReader
from core.runtime.errors import InputError

FPS = ("25", "30000/1001", "24000/1001")
NEVER = 1e9  # seconds between two frames that would make a reader seek


def read(path: Path, indices: list[int] | np.ndarray, seek_gap: float = NEVER) -> list[tuple[int, int]]:
    """The index each frame was given out as, and the number it carries."""
    indices = np.asarray(indices)
    with VideoReader(path) as film:
        images = film.frames(indices / film.fps, seek_gap)
        return [(index, number(image)) for index, image in zip(indices, images, strict=False)]


@pytest.fixture(scope="module", params=[(fps, kind) for fps in FPS for kind in CODECS], ids=lambda x: f"{x[1]}-{x[0]}")
def film(request, tmp_path_factory) -> tuple[Path, float]:
    fps, kind = request.param
    return make_video(tmp_path_factory.mktemp("films") / f"film.{kind}", fps), rate(fps)


# The frame at a timestamp


def test_frames_shown_at_timestamps(film):
    """Frame floor(t * fps + 0.5), read forward, whatever the container and the B-frames."""
    path, fps = film
    timestamps = np.unique(np.random.default_rng(0).integers(0, 1990, 150)) / 100
    expected = [math.floor(t * fps + 0.5) for t in timestamps.tolist()]
    with VideoReader(path) as opened:
        assert opened.fps == pytest.approx(fps, rel=1e-9)
        assert opened.size == (WIDTH, HEIGHT)
        assert [number(image) for image in opened.frames(timestamps, NEVER)] == expected


@pytest.mark.parametrize("seek_gap", [0.02, 0.3, 2.0])
def test_seeking_gives_the_same_frames(film, seek_gap):
    path, fps = film
    for seed in range(2):
        wanted = np.unique(np.random.default_rng(seed).integers(0, int(19.9 * fps), 40))
        assert read(path, wanted, seek_gap) == [(index, index) for index in wanted]
    jumps = [49, 50, 51, 99, 100, 149, 151, 299, 301, 302, 449]  # before, at and after keyframes
    assert read(path, jumps, seek_gap) == [(index, index) for index in jumps]


def test_every_frame_in_turn(film):
    path, fps = film
    count = round(20 * fps)
    assert read(path, range(count)) == [(index, index) for index in range(count)]


@pytest.mark.parametrize("seek_gap", [NEVER, 0.3])
def test_reading_ends_where_the_film_ends(film, seek_gap):
    path, fps = film
    last = round(20 * fps) - 1
    wanted = [3, last - 1, last, last + 1, last + 2, last + 1000]
    assert read(path, wanted, seek_gap) == [(index, index) for index in wanted[:3]]
    assert read(path, [last + 1, last + 2], seek_gap) == []
    assert read(path, [5, last + 3000], seek_gap) == [(5, 5)]


@pytest.mark.parametrize("kind", ["mkv", "avi"])
@pytest.mark.parametrize("seek_gap", [NEVER, 0.3])
def test_a_film_that_breaks_off(tmp_path, kind, seek_gap):
    path = make_video(tmp_path / f"film.{kind}", seconds=12)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    wanted = list(range(0, 300, 10))
    found = read(path, wanted, seek_gap)
    assert found == [(index, index) for index in wanted[: len(found)]]
    assert 5 <= len(found) <= 25


@pytest.mark.parametrize(
    ("name", "codec"),
    [("film.ts", H264), ("film.mpg", ("-c:v", "mpeg2video", "-q:v", "4", "-bf", "2", "-g", "24"))],
    ids=["ts", "mpg"],
)
@pytest.mark.parametrize("seek_gap", [NEVER, 1.0])
def test_a_film_without_an_index_of_its_frames(tmp_path, name, codec, seek_gap):
    """Streams as recorded from television have no list of their frames; the frames are the same."""
    path = make_video(tmp_path / name, seconds=60, codec=codec)
    wanted = np.cumsum(np.random.default_rng(0).integers(26, 80, 25))
    assert read(path, wanted, seek_gap) == [(index, index) for index in wanted]


def test_timestamps_on_the_edge_between_two_frames(tmp_path):
    """From the middle of a frame's time on, the next one is meant."""
    moments = np.array([0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.97])
    with VideoReader(make_video(tmp_path / "film.mp4", seconds=1)) as film:
        assert [number(image) for image in film.frames(moments, NEVER)] == [0, 0, 1, 1, 1, 1, 2, 24]
    with VideoReader(tmp_path / "film.mp4") as film:
        assert list(film.frames(np.array([0.98, 1.0]), NEVER)) == []


# What is no film


class Listener:
    """Counts the connections to a local port, as a server that a playlist points to would see them."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.socket.accept()[0].close()
                self.connections += 1


@pytest.fixture
def listener():
    one = Listener()
    yield one
    one.socket.close()


def impostors(folder: Path, port: int) -> dict[str, str]:
    """Texts that ffmpeg, let loose, takes for films: each opens another file or address."""
    secret = folder / "secret.ts"
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:2.0,\n{}\n#EXT-X-ENDLIST\n"
    return {
        "playlist of a file": hls.format("secret.ts"),
        "playlist of a path": hls.format(f"file:{secret}"),
        "playlist of an address": hls.format(f"http://127.0.0.1:{port}/a.ts"),
        "list of files": "ffconcat version 1.0\nfile secret.ts\n",
        "list of addresses": f"ffconcat version 1.0\nfile http://127.0.0.1:{port}/a.mp4\n",
        "manifest": "<?xml version='1.0'?>\n<MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static' "
        "mediaPresentationDuration='PT2S' profiles='urn:mpeg:dash:profile:isoff-on-demand:2011'><Period>"
        "<AdaptationSet mimeType='video/mp4'><Representation id='1' bandwidth='1'>"
        f"<BaseURL>http://127.0.0.1:{port}/a.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>\n",
        "session": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 33\n",
    }


@pytest.mark.parametrize("kind", impostors(Path(), 0))
def test_a_text_that_poses_as_a_film_opens_nothing_else(tmp_path, listener, kind):
    make_video(tmp_path / "secret.ts", seconds=2, codec=H264)
    path = tmp_path / "film.mp4"
    path.write_text(impostors(tmp_path, listener.port)[kind])
    with pytest.raises(ValueError):
        VideoReader(path)
    with pytest.raises(ValueError):
        list(iter_audio(path))
    assert listener.connections == 0


def test_the_impostors_are_live_ones(tmp_path, listener):
    """Without the reader's precautions ffmpeg does open what they point to."""
    make_video(tmp_path / "secret.ts", seconds=2, codec=H264)
    texts = impostors(tmp_path, listener.port)
    for kind in ("playlist of a file", "playlist of an address", "list of files"):
        path = tmp_path / "film.m3u8"
        path.write_text(texts[kind])
        loose = ("-protocol_whitelist", "file,http,tcp")
        if "playlist" in kind:
            loose = (*loose, "-allowed_extensions", "ALL")
        command = [ffmpeg_path(), "-loglevel", "error", *loose, "-i", str(path), "-f", "null", "-"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
        assert kind == "playlist of an address" or done.returncode == 0, done.stderr
    assert listener.connections > 0


@pytest.mark.parametrize(
    "content",
    [None, b"", b"no film\n" * 100, bytes(10_000), b"\x00\x00\x00\x18ftypmp42" + bytes(100)],
    ids=["missing", "empty", "text", "zeros", "a head without a body"],
)
def test_files_that_are_no_film(tmp_path, content):
    path = tmp_path / "film.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError):
        VideoReader(path)
    with pytest.raises(ValueError):
        list(iter_audio(path))


def test_a_folder_and_a_wav_are_no_films(tmp_path):
    (tmp_path / "film.mp4").mkdir()
    with wave.open(str(tmp_path / "sound.mp4"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(32000))
    for name in ("film.mp4", "sound.mp4"):
        with pytest.raises(ValueError):
            VideoReader(tmp_path / name)


@pytest.mark.parametrize("name", ["-film.mp4", "a b:c.mp4", "http:x.mp4", "film%03d.mp4", "pipe:0.mp4", "\u00e4.mp4"])
def test_names_are_names_whatever_they_look_like(tmp_path, monkeypatch, name):
    shutil.copy(make_video(tmp_path / "plain.mp4", seconds=2), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert read(Path(name), [7]) == [(7, 7)]


def test_films_of_a_folder(tmp_path):
    for name in ("one.mp4", "two.mkv", "-three.webm", "four.MP4", "notes.txt", "five.en.vtt", ".hidden.mp4"):
        (tmp_path / name).write_bytes(b"")
    films = list_videos(tmp_path)
    assert {"one", "two", "-three"} <= set(films)
    assert films["two"] == tmp_path / "two.mkv"
    assert not {"notes", "five", "five.en"} & set(films)
    (tmp_path / "one.mkv").write_bytes(b"")
    with pytest.raises(InputError, match=r"one\."):
        list_videos(tmp_path)


# Cutting


def test_corners_of_a_box_are_cut_off_to_whole_pixels():
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    # 0.1 * 128 = 12.8, 0.9 * 128 = 115.2, 0.31 * 96 = 29.76, 0.79 * 96 = 75.84
    with Image.open(io.BytesIO(crop_face(image, np.array([0.1, 0.31, 0.9, 0.79])))) as crop:
        assert crop.size == (115 - 12, 75 - 29)
        assert crop.format == "JPEG"
    with Image.open(io.BytesIO(crop_face(image, np.array([0.0, 0.0, 1.0, 1.0])))) as crop:
        assert crop.size == (WIDTH, HEIGHT)


def test_colours_are_not_swapped():
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:] = (200, 100, 20)  # OpenCV's order: blue, green, red
    with Image.open(io.BytesIO(crop_face(image, np.array([0.0, 0.0, 0.5, 0.5])))) as crop:
        assert np.abs(np.array(crop.getpixel((5, 5))) - (20, 100, 200)).max() <= 3


FULL = ("0", "0", "1", "1")
LABELS = ("NOT_SPEAKING", "SPEAKING_AUDIBLE", "SPEAKING_NOT_AUDIBLE")


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """A folder with one long film, longer than the stretch over which the script seeks, and a short one."""
    folder = tmp_path_factory.mktemp("films")
    make_video(folder / "long.mkv", "24000/1001", seconds=60)
    make_video(folder / "short.mp4", "30000/1001", seconds=12)
    return folder


def cut(films: Path, csv: Path, output: Path, *options: str):
    script = ROOT / "data" / "extract_face_crops_time.py"
    return run_script(
        script, "--csv", csv, "--ava-video-dir", films, "--output-dir", output, "--split", "val", *options
    )


def number_of_crop(path: Path) -> int:
    with Image.open(path) as image:
        return number(np.asarray(image.convert("L")))


@pytest.mark.parametrize("workers", [1, 2])
def test_crops_of_two_films(tmp_path, films, workers):
    """Every row of every label, far apart and close together, several faces in a frame, one track at the edges."""
    times = {
        "long": ["0", "0.04", "1.5", "2.75", "2.79", "30.1", "30.14", "30.18", "55.98", "59.9"],
        "short": [str(round(0.5 + n / 30, 2)) for n in range(60)],
    }
    assert SEEK_GAP_SECONDS < 30.1 - 2.79
    part = ("0.1", "0.31", "0.9", "0.79")
    lines = []
    for video, texts in times.items():
        for n, text in enumerate(texts):
            lines.append(row(f"{video}:1", text, LABELS[n % 3], video, FULL))
            if n % 2:
                lines.append(row(f"{video}:2", text, LABELS[n // 2 % 3], video, part))
    output = tmp_path / "crops"
    result = cut(films, write_lines(tmp_path / "faces.csv", lines), output, "--workers", str(workers))
    assert result.returncode == 0, result.stdout + result.stderr
    made = {str(path.relative_to(output)) for path in output.rglob("*.jpg")}
    assert made == {
        f"val/{entity}/{float(time)}.jpg" for entity, time in ((x.split(",")[7], x.split(",")[1]) for x in lines)
    }
    for video, fps in (("long", 24000 / 1001), ("short", 30000 / 1001)):
        for text in times[video]:
            found = number_of_crop(output / "val" / f"{video}:1" / f"{float(text)}.jpg")
            assert found == math.floor(float(text) * fps + 0.5), (video, text)
    with Image.open(output / "val" / "short:2" / f"{float(times['short'][1])}.jpg") as crop:
        assert crop.size == (115 - 12, 75 - 29)
    assert not (output / "val" / "failures.txt").exists()
    assert not [path for path in output.rglob("*") if path.name.startswith(".")]


def test_a_crop_is_the_frame_as_opencv_writes_it(tmp_path, films):
    csv = write_lines(tmp_path / "faces.csv", [row("a", "3.37", video="short", box=("0.1", "0.31", "0.9", "0.79"))])
    assert cut(films, csv, tmp_path / "crops").returncode == 0
    capture = cv2.VideoCapture(str(films / "short.mp4"))
    for _ in range(math.floor(3.37 * 30000 / 1001 + 0.5) + 1):
        _, image = capture.read()
    capture.release()
    _, expected = cv2.imencode(".jpg", image[29:75, 12:115], [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert (tmp_path / "crops" / "val" / "a" / "3.37.jpg").read_bytes() == expected.tobytes()


def test_failures_are_listed_and_their_neighbours_done(tmp_path, films):
    lines = [
        row("a", "11.9", video="short", box=FULL),
        row("a", "11.96", video="short", box=FULL),
        row("a", "12.5", video="short", box=FULL),  # the film has ended
        row("a", "900", video="short", box=FULL),
        row("b", "11.9", video="short", box=("0.5", "0.2", "0.5001", "0.6")),  # less than a pixel
        row("b", "11.96", video="short", box=FULL),
        row("c", "1", video="nowhere", box=FULL),  # no such film
        row("d", "1", video="long", box=FULL),
        row("e", "1", video="broken", box=FULL),  # no film in its file
    ]
    mine = tmp_path / "films"
    shutil.copytree(films, mine)
    (mine / "broken.mp4").write_text("not a film\n")
    output = tmp_path / "crops"
    csv = write_lines(tmp_path / "faces.csv", lines)
    result = cut(mine, csv, output)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    made = {str(path.relative_to(output / "val")) for path in output.rglob("*.jpg")}
    assert made == {"a/11.9.jpg", "a/11.96.jpg", "b/11.96.jpg", "d/1.0.jpg"}
    assert number_of_crop(output / "val" / "b" / "11.96.jpg") == math.floor(11.96 * 30000 / 1001 + 0.5)

    failures = (output / "val" / "failures.txt").read_text().splitlines()
    assert len(failures) == 5
    for words in (("short", "a", "12.5"), ("short", "a", "900"), ("short", "b", "11.9"), ("nowhere",), ("broken",)):
        assert [line for line in failures if all(word in line for word in words)], words
    assert "5 failed" in result.stdout

    # Once the faults are mended, the same command makes what is missing and only that, and the list goes.
    write_lines(csv, [line for line in lines if not line.startswith(("short,12.5", "short,900", "nowhere"))][:-1])
    lines = [line.replace("0.5001", "0.6") for line in csv.read_text().splitlines()]
    write_lines(csv, lines)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.jpg")}
    result = cut(mine, csv, output)
    assert result.returncode == 0, result.stdout + result.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "note: the annotations are others than at first" in result.stdout
    assert (output / "val" / "b" / "11.9.jpg").exists()
    assert not (output / "val" / "failures.txt").exists()


def test_a_second_run_makes_nothing_again(tmp_path, films):
    mine = tmp_path / "films"
    shutil.copytree(films, mine)
    csv = write_lines(tmp_path / "faces.csv", [row("a", t, video="short", box=FULL) for t in ("1", "1.04", "2")])
    output = tmp_path / "crops"
    assert cut(mine, csv, output).returncode == 0
    crops = sorted(output.rglob("*.jpg"))
    assert len(crops) == 3
    crops[0].write_bytes(b"left as it is")
    before = [path.stat().st_mtime_ns for path in crops]
    (mine / "short.mp4").unlink()  # a film of which nothing is wanted is not opened
    result = cut(mine, csv, output)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [path.stat().st_mtime_ns for path in crops] == before
    # Only what is missing is made, and all of it on demand.
    shutil.copy(films / "short.mp4", mine)
    crops[1].unlink()
    assert cut(mine, csv, output).returncode == 0
    assert number_of_crop(crops[1]) == math.floor(1.04 * 30000 / 1001 + 0.5)
    assert crops[0].read_bytes() == b"left as it is"
    assert cut(mine, csv, output, "--overwrite").returncode == 0
    assert number_of_crop(crops[0]) == 30


def test_a_moment_before_the_film_has_no_crop(tmp_path, films):
    csv = write_lines(tmp_path / "faces.csv", [row("a", t, video="short", box=FULL) for t in ("-5", "-0.1", "0.5")])
    result = cut(films, csv, tmp_path / "crops")
    assert result.returncode in (1, 2), result.stdout + result.stderr
    made = {path.name for path in tmp_path.rglob("*.jpg")}
    assert made == ({"0.5.jpg"} if result.returncode == 1 else set())


def test_a_film_that_breaks_off_under_the_script(tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    path = make_video(films / "half.mkv", seconds=12)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    make_video(films / "whole.mp4", seconds=3)
    lines = [row(video, t, video=video, box=FULL) for video, end in (("half", 12), ("whole", 3)) for t in range(end)]
    result = cut(films, write_lines(tmp_path / "faces.csv", lines), tmp_path / "crops")
    assert result.returncode == 1, result.stdout + result.stderr
    whole = tmp_path / "crops" / "val" / "whole"
    assert [number_of_crop(whole / f"{t}.0.jpg") for t in range(3)] == [0, 25, 50]
    half = sorted(int(float(path.stem)) for path in (tmp_path / "crops" / "val" / "half").iterdir())
    assert half == list(range(len(half)))
    assert 2 <= len(half) <= 10
    failures = (tmp_path / "crops" / "val" / "failures.txt").read_text().splitlines()
    assert len(failures) == 12 - len(half)


def test_a_folder_of_films_that_is_not_there(tmp_path):
    csv = write_lines(tmp_path / "faces.csv", [row("a", 1)])
    assert_refused(cut(tmp_path / "nowhere", csv, tmp_path / "crops"), tmp_path / "nowhere")
    assert not (tmp_path / "crops").exists()


def test_ffmpeg_on_the_path_comes_first(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    carried = ffmpeg_path()
    assert os.access(carried, os.X_OK)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert ffmpeg_path() == str(program)
