"""Frames of numbered videos at given timestamps, files that are not videos, and crops by the script of stage 3."""

import contextlib
import math
import shutil
import socket
import threading
import wave
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import row, write_lines
from numbered_videos import H264, HEIGHT, WIDTH, frame_number, make_video, rate
from PIL import Image
from tiny_inputs import run_here

from core.config import SEEK_GAP_SECONDS
from core.media.audio import iter_audio
from core.media.container import list_videos
from core.media.reader import VideoReader
from core.runtime.errors import InputError

NO_SEEKING = float("inf")  # a seek_gap
SECONDS = 5
VARIANTS = [
    ("mp4", "25"),
    ("mp4", "30000/1001"),
    ("mp4", "24000/1001"),
    ("mkv", "24000/1001"),
    ("avi", "30000/1001"),
]


def read(path: Path, indices: list[int] | np.ndarray, seek_gap: float = NO_SEEKING) -> list[tuple[int, int]]:
    """(requested index, frame number) of the frames that can be read."""
    indices = np.asarray(indices)
    with VideoReader(path) as reader:
        images = reader.frames(indices / reader.fps, seek_gap)
        return [(index, frame_number(image)) for index, image in zip(indices, images, strict=False)]


@pytest.fixture(scope="module", params=VARIANTS, ids="-".join)
def video(request, tmp_path_factory) -> tuple[Path, float]:
    suffix, fps = request.param
    return make_video(tmp_path_factory.mktemp("videos") / f"video.{suffix}", fps, SECONDS), rate(fps)


# Frames at timestamps


def test_frame_at_a_timestamp_is_the_nearest(video):
    path, fps = video
    timestamps = np.unique(np.random.default_rng(0).integers(0, 490, 80)) / 100
    expected = [math.floor(t * fps + 0.5) for t in timestamps.tolist()]
    with VideoReader(path) as reader:
        assert reader.fps == pytest.approx(fps, rel=1e-9)
        assert reader.size == (WIDTH, HEIGHT)
        assert [frame_number(image) for image in reader.frames(timestamps, NO_SEEKING)] == expected


@pytest.mark.parametrize("seek_gap", [0.02, 0.3, 1.0])
def test_seeking_reads_the_same_frames(video, seek_gap):
    path, fps = video
    for seed in range(2):
        indices = np.unique(np.random.default_rng(seed).integers(0, int(4.9 * fps), 25))
        assert read(path, indices, seek_gap) == [(index, index) for index in indices]
    indices = [49, 50, 51, 99, 100, 101]  # around keyframes
    assert read(path, indices, seek_gap) == [(index, index) for index in indices]


def test_all_frames_in_order(video):
    path, fps = video
    count = round(SECONDS * fps)
    assert read(path, range(count)) == [(index, index) for index in range(count)]


@pytest.mark.parametrize("seek_gap", [NO_SEEKING, 0.3])
def test_reading_ends_with_the_video(video, seek_gap):
    path, fps = video
    last = round(SECONDS * fps) - 1
    indices = [3, last - 1, last, last + 1, last + 2, last + 1000]
    assert read(path, indices, seek_gap) == [(index, index) for index in indices[:3]]
    assert read(path, [last + 1, last + 2], seek_gap) == []
    assert read(path, [5, last + 3000], seek_gap) == [(5, 5)]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("video.ts", H264), ("video.mpg", ("-c:v", "mpeg2video", "-q:v", "4", "-bf", "2", "-g", "24"))],
    ids=["ts", "mpg"],
)
@pytest.mark.parametrize("seek_gap", [NO_SEEKING, 1.0])
def test_containers_without_a_frame_index(tmp_path, name, codec, seek_gap):
    path = make_video(tmp_path / name, seconds=20, codec=codec)
    indices = np.cumsum(np.random.default_rng(0).integers(26, 60, 8))
    assert read(path, indices, seek_gap) == [(index, index) for index in indices]


def test_timestamps_between_two_frames(tmp_path):
    timestamps = np.array([0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.97])
    with VideoReader(make_video(tmp_path / "video.mp4", seconds=1)) as reader:
        frames = [frame_number(image) for image in reader.frames(timestamps, NO_SEEKING)]
    assert frames == [0, 0, 1, 1, 1, 1, 2, 24]
    with VideoReader(tmp_path / "video.mp4") as reader:
        assert list(reader.frames(np.array([0.98, 1.0]), NO_SEEKING)) == []


# Files that are not videos


class Listener:
    """Counts connections to a local port."""

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
    listener = Listener()
    yield listener
    listener.socket.close()


def playlists(folder: Path, port: int) -> dict[str, str]:
    """Texts that ffmpeg accepts as videos by default. Each refers to another file or address."""
    secret = folder / "secret.ts"
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:2.0,\n{}\n#EXT-X-ENDLIST\n"
    return {
        "hls of a file": hls.format("secret.ts"),
        "hls of a path": hls.format(f"file:{secret}"),
        "hls of an address": hls.format(f"http://127.0.0.1:{port}/a.ts"),
        "concat of files": "ffconcat version 1.0\nfile secret.ts\n",
        "concat of addresses": f"ffconcat version 1.0\nfile http://127.0.0.1:{port}/a.mp4\n",
        "dash": "<?xml version='1.0'?>\n<MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static' "
        "mediaPresentationDuration='PT2S' profiles='urn:mpeg:dash:profile:isoff-on-demand:2011'><Period>"
        "<AdaptationSet mimeType='video/mp4'><Representation id='1' bandwidth='1'>"
        f"<BaseURL>http://127.0.0.1:{port}/a.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>\n",
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 33\n",
    }


@pytest.mark.parametrize("kind", playlists(Path(), 0))
def test_playlists_open_no_other_file_or_address(tmp_path, listener, kind):
    make_video(tmp_path / "secret.ts", seconds=2, codec=H264)
    path = tmp_path / "video.mp4"
    path.write_text(playlists(tmp_path, listener.port)[kind])
    with pytest.raises(ValueError):
        VideoReader(path)
    with pytest.raises(ValueError):
        list(iter_audio(path))
    assert listener.connections == 0


@pytest.mark.parametrize(
    "content",
    [None, b"", b"not a video\n" * 100, bytes(10_000), b"\x00\x00\x00\x18ftypmp42" + bytes(100)],
    ids=["missing", "empty", "text", "zeros", "mp4 header only"],
)
def test_files_that_are_not_videos(tmp_path, content):
    path = tmp_path / "video.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError):
        VideoReader(path)
    with pytest.raises(ValueError):
        list(iter_audio(path))


def test_directories_and_wavs_are_not_videos(tmp_path):
    (tmp_path / "directory.mp4").mkdir()
    with wave.open(str(tmp_path / "audio.mp4"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(32000))
    for name in ("directory.mp4", "audio.mp4"):
        with pytest.raises(ValueError):
            VideoReader(tmp_path / name)


@pytest.mark.parametrize("name", ["-video.mp4", "a b:c.mp4", "http:x.mp4", "video%03d.mp4", "pipe:0.mp4", "\u00e4.mp4"])
def test_unusual_file_names(tmp_path, monkeypatch, name):
    shutil.copy(make_video(tmp_path / "plain.mp4", seconds=2), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert read(Path(name), [7]) == [(7, 7)]


def test_videos_of_a_directory(tmp_path):
    for name in ("one.mp4", "two.mkv", "-three.webm", "four.MP4", "notes.txt", "five.en.vtt", ".hidden.mp4"):
        (tmp_path / name).write_bytes(b"")
    videos = list_videos(tmp_path)
    assert set(videos) == {"one", "two", "-three", "four"}
    assert videos["two"] == tmp_path / "two.mkv"
    (tmp_path / "one.mkv").write_bytes(b"")
    with pytest.raises(InputError, match=r"one\."):
        list_videos(tmp_path)


# Crops


FULL = ("0", "0", "1", "1")
LABELS = ("NOT_SPEAKING", "SPEAKING_AUDIBLE", "SPEAKING_NOT_AUDIBLE")
LONG_FPS, SHORT_FPS = 24000 / 1001, 30000 / 1001


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """A directory with a video longer than the gap that stage 3 seeks over, and a short one."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "long.mkv", "24000/1001", seconds=60)
    make_video(folder / "short.mp4", "30000/1001", seconds=12)
    return folder


def extract(videos: Path, csv: Path, output: Path, *options: str):
    """Run stage 3."""
    arguments = ("--csv", csv, "--ava-video-dir", videos, "--output-dir", output, "--split", "val", *options)
    return run_here("data/extract_face_crops_time.py", *arguments)


def crop_number(path: Path) -> int:
    """The frame number shown in a full-frame crop."""
    with Image.open(path) as image:
        return frame_number(np.asarray(image.convert("L")))


@pytest.mark.parametrize("workers", [1, 2])
def test_crops_of_two_videos(tmp_path, videos, workers):
    timestamps = {
        "long": ["0", "0.04", "1.5", "2.75", "2.79", "30.1", "30.14", "30.18", "55.98", "59.9"],
        "short": [str(round(0.5 + n / 30, 2)) for n in range(60)],
    }
    assert SEEK_GAP_SECONDS < 30.1 - 2.79
    box = ("0.1", "0.31", "0.9", "0.79")
    lines = []
    for video, texts in timestamps.items():
        for n, text in enumerate(texts):
            lines.append(row(f"{video}:1", text, LABELS[n % 3], video, FULL))
            if n % 2:
                lines.append(row(f"{video}:2", text, LABELS[n // 2 % 3], video, box))
    output = tmp_path / "crops"
    result = extract(videos, write_lines(tmp_path / "faces.csv", lines), output, "--workers", str(workers))
    assert result.returncode == 0, result.stdout + result.stderr
    written = {str(path.relative_to(output)) for path in output.rglob("*.jpg")}
    assert written == {
        f"val/{entity}/{float(time)}.jpg" for entity, time in ((x.split(",")[7], x.split(",")[1]) for x in lines)
    }
    for video, fps in (("long", LONG_FPS), ("short", SHORT_FPS)):
        for text in timestamps[video]:
            number = crop_number(output / "val" / f"{video}:1" / f"{float(text)}.jpg")
            assert number == math.floor(float(text) * fps + 0.5), (video, text)
    with Image.open(output / "val" / "short:2" / f"{float(timestamps['short'][1])}.jpg") as crop:
        assert crop.size == (115 - 12, 75 - 29)
    assert not (output / "val" / "failures.txt").exists()
    assert not list(output.rglob(".partial*"))


def test_crops_equal_those_of_opencv(tmp_path, videos):
    csv = write_lines(tmp_path / "faces.csv", [row("a", "3.37", video="short", box=("0.1", "0.31", "0.9", "0.79"))])
    assert extract(videos, csv, tmp_path / "crops").returncode == 0
    capture = cv2.VideoCapture(str(videos / "short.mp4"))
    for _ in range(math.floor(3.37 * SHORT_FPS + 0.5) + 1):
        _, image = capture.read()
    capture.release()
    _, expected = cv2.imencode(".jpg", image[29:75, 12:115], [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert (tmp_path / "crops" / "val" / "a" / "3.37.jpg").read_bytes() == expected.tobytes()


def test_failed_rows_are_listed_and_all_others_written(tmp_path, videos):
    lines = [
        row("a", "11.9", video="short", box=FULL),
        row("a", "11.96", video="short", box=FULL),
        row("a", "12.5", video="short", box=FULL),  # after the end of the video
        row("a", "900", video="short", box=FULL),
        row("b", "11.9", video="short", box=("0.5", "0.2", "0.5001", "0.6")),  # narrower than a pixel
        row("b", "11.96", video="short", box=FULL),
        row("c", "1", video="missing", box=FULL),
        row("d", "1", video="long", box=FULL),
        row("e", "1", video="broken", box=FULL),
    ]
    own_videos = tmp_path / "videos"
    shutil.copytree(videos, own_videos)
    (own_videos / "broken.mp4").write_text("not a video\n")
    output = tmp_path / "crops"
    csv = write_lines(tmp_path / "faces.csv", lines)
    result = extract(own_videos, csv, output)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    written = {str(path.relative_to(output / "val")) for path in output.rglob("*.jpg")}
    assert written == {"a/11.9.jpg", "a/11.96.jpg", "b/11.96.jpg", "d/1.0.jpg"}
    assert crop_number(output / "val" / "b" / "11.96.jpg") == math.floor(11.96 * SHORT_FPS + 0.5)

    failures = (output / "val" / "failures.txt").read_text().splitlines()
    assert len(failures) == 5
    for text in ("a at 12.5 s of short: ", "a at 900.0 s ", "b at 11.9 s ", "missing: no video", "broken: "):
        assert any(text in line for line in failures), text
    assert "4 crops written, 0 skipped, 5 failed" in result.stdout

    # With the causes removed, the same command writes only the missing crops and deletes the list.
    kept = [line for line in lines if not line.startswith(("short,12.5", "short,900", "missing", "broken"))]
    write_lines(csv, [line.replace("0.5001", "0.6") for line in kept])
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.jpg")}
    result = extract(own_videos, csv, output)
    assert result.returncode == 0, result.stdout + result.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "note: annotations differ from the first run's" in result.stdout
    assert (output / "val" / "b" / "11.9.jpg").exists()
    assert not (output / "val" / "failures.txt").exists()


def test_existing_crops_are_skipped(tmp_path, videos):
    own_videos = tmp_path / "videos"
    shutil.copytree(videos, own_videos)
    csv = write_lines(tmp_path / "faces.csv", [row("a", t, video="short", box=FULL) for t in ("1", "1.04", "2")])
    output = tmp_path / "crops"
    assert extract(own_videos, csv, output).returncode == 0
    crops = sorted(output.rglob("*.jpg"))
    assert len(crops) == 3
    crops[0].write_bytes(b"unchanged")
    before = [path.stat().st_mtime_ns for path in crops]
    (own_videos / "short.mp4").unlink()  # not opened, because all of its crops exist
    result = extract(own_videos, csv, output)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [path.stat().st_mtime_ns for path in crops] == before
    shutil.copy(videos / "short.mp4", own_videos)
    crops[1].unlink()
    assert extract(own_videos, csv, output).returncode == 0
    assert crop_number(crops[1]) == math.floor(1.04 * SHORT_FPS + 0.5)
    assert crops[0].read_bytes() == b"unchanged"
    assert extract(own_videos, csv, output, "--overwrite").returncode == 0
    assert crop_number(crops[0]) == 30
