"""Unusual videos that show the true time: frames within half a frame, audio within 10 ms."""

import shutil
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from numbered_videos import ffmpeg
from timed_videos import (
    AAC,
    AUDIO_RATE,
    H264,
    HEIGHT,
    WIDTH,
    beep_times,
    beeps,
    can_encode,
    make_timed_video,
    shown_time,
    timed_frames,
)
from tiny_inputs import read_wav

from core.detection.shots import detect_shots
from core.media.audio import extract_audio
from core.media.container import list_videos
from core.media.reader import VideoReader
from core.runtime.jobs import Outcome

slow = pytest.mark.slow
SECONDS = 4
DROP = ("-vf", "select='not(between(mod(n,25),8,18))'", "-fps_mode", "vfr")  # 11 of 25 frames are missing


def assert_frames_are_on_time(path: Path, tolerance: float = 0.021, until: float = SECONDS - 0.1, **options) -> None:
    times = np.arange(0, until, 0.13)
    with VideoReader(path, **options) as reader:
        images = list(reader.frames(times, 60.0))
    errors = np.array([shown_time(image) for image in images]) - times
    assert len(images) == len(times)
    assert np.abs(errors).max() <= tolerance, errors


def frame_times(path: Path) -> list[tuple[float, float]]:
    """Timestamp of every frame, and the time that it shows."""
    with VideoReader(path) as reader:
        return [(time, shown_time(frame.to_ndarray(format="bgr24"))) for _, time, frame in reader.timeline()]


def test_padding_of_the_audio_may_end_in_two_blocks(tmp_path):
    """The audio of this mp4 has 297 samples in its last block of 16,384 samples, and 318 samples of padding."""
    seconds, rate = 2.0467, 44_100
    path = make_timed_video(tmp_path / "video.mp4", 2, audio=beeps(seconds, rate), audio_rate=rate)
    samples, _ = aligned_audio(path)
    assert len(samples) == pytest.approx(seconds * 16_000, abs=2)


def aligned_audio(path: Path, **options) -> tuple[np.ndarray, list[str]]:
    """The audio from the first frame on, and the notes."""
    outcome, wav = Outcome(), path.with_suffix(".wav")
    extract_audio(path, wav, True, outcome, lambda _: None, **options)
    return read_wav(wav), outcome.notes


def assert_audio_is_on_time(path: Path, seconds: float = SECONDS, **options) -> list[str]:
    """Returns the notes."""
    samples, notes = aligned_audio(path, **options)
    found = beep_times(samples)
    assert len(found) == int(seconds - 0.1), found
    assert np.abs(found - np.arange(1, len(found) + 1)).max() <= 0.01, found
    return notes


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return make_timed_video(tmp_path_factory.mktemp("plain") / "plain.mp4")


def copy(source: Path, target: Path, *options: object, inputs: tuple = ()) -> Path:
    ffmpeg(*inputs, "-i", source, "-map", 0, "-c", "copy", *options, target)
    return target


def test_plain_video_has_no_notes(plain):
    assert_frames_are_on_time(plain)
    assert assert_audio_is_on_time(plain) == []
    with VideoReader(plain) as reader:
        assert reader.notes == []


# Codecs


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_av1(tmp_path, suffix):
    audio = ("-c:a", "libopus") if suffix == "webm" else AAC
    encoder = ("-c:v", "libsvtav1", "-preset", 12, "-crf", 20, "-pix_fmt", "yuv420p")
    path = make_timed_video(tmp_path / f"video.{suffix}", options=(*encoder, *audio))
    assert_frames_are_on_time(path)
    assert_audio_is_on_time(path)


def without_decoder(source: Path, target: Path) -> Path:
    """Name another codec, which FFmpeg knows but cannot decode."""
    target.write_bytes(source.read_bytes().replace(b"avc1", b"evc1"))
    return target


def test_a_codec_without_decoder_is_named(plain, tmp_path):
    path = without_decoder(plain, tmp_path / "video.mp4")
    for read in (VideoReader, detect_shots):
        with pytest.raises(ValueError, match=r"video codec cannot be decoded: .* evc "):
            read(path)
    assert_audio_is_on_time(path)


# Times


def test_variable_rate_in_wmv(tmp_path):
    options = (*DROP, "-c:v", "wmv2", "-q:v", 3, "-c:a", "wmav2")
    path = make_timed_video(tmp_path / "video.wmv", options=options)
    assert_frames_are_on_time(path, 0.48)
    assert_audio_is_on_time(path)
    shown = frame_times(path)
    assert np.abs(np.diff(shown, axis=1)).max() < 0.002


@pytest.mark.parametrize("name", ["video.MPEG4", "video.qt", "video.f4v", "video", "video.avi"])
def test_times_do_not_depend_on_the_suffix(tmp_path, name):
    made = make_timed_video(tmp_path / "made.mp4", options=(*DROP, *H264, *AAC))
    path = tmp_path / name
    shutil.copy(made, path)
    shown = frame_times(path)
    assert len(shown) == 56
    assert np.abs(np.diff(shown, axis=1)).max() < 0.002


def test_dropped_frames_in_avi(tmp_path):
    path = make_timed_video(tmp_path / "video.avi", options=(*DROP, "-c:v", "mjpeg", "-q:v", 3, "-c:a", "pcm_s16le"))
    shown = frame_times(path)
    assert len(shown) == 56
    assert np.abs(np.diff(shown, axis=1)).max() < 0.041  # ffmpeg shows the first frame twice as long
    assert_audio_is_on_time(path)
    assert detect_shots(path).seconds == pytest.approx(SECONDS, abs=0.1)


def test_dvd_with_pulldown_flags(tmp_path):
    """24 frames per second, of which every second one is shown for three fields: 30 frames per second are declared."""
    rate = Fraction(24000, 1001)
    times = np.arange(round(SECONDS * rate)) / float(rate)
    data = b"".join(image.tobytes() for image in timed_frames(times))
    stream = tmp_path / "video.m2v"
    frames = ("-f", "rawvideo", "-pix_fmt", "gray", "-video_size", f"{WIDTH}x{HEIGHT}", "-framerate", rate, "-i", "-")
    ffmpeg(
        *frames, "-c:v", "mpeg2video", "-q:v", 3, "-g", 12, "-flags", "+ildct", "-pix_fmt", "yuv420p", stream, data=data
    )
    content = bytearray(stream.read_bytes())
    number = 0
    for start in range(len(content) - 9):
        if content[start : start + 4] == b"\0\0\1\xb3":  # sequence header
            content[start + 7] = content[start + 7] & 0xF0 | 4  # 30000/1001 frames per second
        elif content[start : start + 4] == b"\0\0\1\xb5" and content[start + 4] >> 4 == 8:  # picture coding extension
            first, repeated = number % 4 in (0, 3), number % 2 == 0
            content[start + 7] = content[start + 7] & 0x7D | first << 7 | repeated << 1
            content[start + 8] |= 0x80  # progressive frame
            number += 1
    stream.write_bytes(content)
    raw = tmp_path / "audio.raw"
    # ffmpeg starts a bare video stream 0.05 s late.
    raw.write_bytes(bytes(2 * round(0.05 * AUDIO_RATE)) + beeps(SECONDS).tobytes())
    audio = ("-f", "s16le", "-ar", AUDIO_RATE, "-ac", 1, "-i", raw)
    path = tmp_path / "video.mpg"
    ffmpeg("-fflags", "+genpts", "-i", stream, *audio, "-c:v", "copy", "-c:a", "mp2", path)
    assert_frames_are_on_time(path, 0.04)
    assert_audio_is_on_time(path)
    assert detect_shots(path).seconds == pytest.approx(SECONDS, abs=0.1)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_audio_clock_that_drifts(tmp_path, suffix):
    """The clock of the audio is 0.5 % slow: its timestamps are right, its samples are too few."""
    true = np.arange(round(SECONDS / 1.005 * AUDIO_RATE)) / AUDIO_RATE * 1.005
    tone = 0.6 * np.sin(2 * np.pi * 3000 * true) * (true % 1 < 0.03) * (true > 0.5)
    made = make_timed_video(tmp_path / "made.mkv", audio=(tone * 32767).astype("<i2"))
    path = copy(made, tmp_path / f"video.{suffix}", "-bsf:a", "setts=ts=TS*1.005")
    assert_audio_is_on_time(path)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
def test_lost_audio_packets(plain, tmp_path, suffix):
    path = copy(plain, tmp_path / f"video.{suffix}", "-bsf:a", "noise=drop='between(n,70,72)'")
    assert_audio_is_on_time(path)


@pytest.mark.parametrize("before", [2, 30, 59])
def test_ts_clock_that_wraps(plain, tmp_path, before):
    """The clock of 33 bits at 90 kHz starts again at 0, or would do so within a minute."""
    path = copy(plain, tmp_path / "video.ts", "-output_ts_offset", 2**33 / 90000 - before)
    assert_frames_are_on_time(path)
    assert_audio_is_on_time(path)
    samples = Outcome()
    extract_audio(path, tmp_path / "unaligned.wav", False, samples, lambda _: None)
    assert beep_times(read_wav(tmp_path / "unaligned.wav"))[0] == pytest.approx(1, abs=0.05)


def test_clock_that_starts_again(plain, tmp_path):
    """Two recordings in one file, as in the cells of a DVD."""
    part = copy(plain, tmp_path / "part.ts", "-t", 2)
    path = tmp_path / "video.ts"
    path.write_bytes(part.read_bytes() * 2)
    with VideoReader(path) as reader:
        images = list(reader.frames(np.arange(0, 3.9, 0.1), 60.0))
    steps = np.diff([shown_time(image) for image in images])
    assert len(images) == 39
    assert (steps < 0).sum() == 1
    assert np.abs(steps[steps > 0] - 0.1).max() < 0.081


# Files in a directory


def test_videos_of_any_suffix_are_listed_and_other_files_named(plain, tmp_path, capsys):
    for suffix in ("mts", "m2ts", "3gp", "MPEG4", "vob"):
        codecs = ("-c:v", "mpeg2video", "-c:a", "mp2") if suffix == "vob" else ("-c", "copy")
        container = "mp4" if suffix == "MPEG4" else {"vob": "vob", "3gp": "mov"}.get(suffix, "mpegts")
        ffmpeg("-i", plain, *codecs, "-f", container, tmp_path / f"{suffix}.{suffix}")
    (tmp_path / "notes.txt").write_text("not a video\n")
    ffmpeg("-i", plain, "-vn", "-c", "copy", tmp_path / "vob.m4a")
    assert set(list_videos(tmp_path)) == {"mts", "m2ts", "3gp", "MPEG4", "vob"}
    printed = capsys.readouterr().out
    assert "note: " in printed
    assert "notes.txt" in printed
    assert "vob.m4a" in printed


# Display


def test_rotated_video_with_pixels_that_are_not_square(tmp_path):
    made = make_timed_video(tmp_path / "made.mp4", 1, filters="setsar=4/3")
    path = copy(made, tmp_path / "video.mp4", inputs=("-display_rotation", 90))
    with VideoReader(made) as reader:
        assert reader.pixel_aspect == (4, 3)
        original = next(reader.frames(np.zeros(1), 1.0))
    with VideoReader(path) as reader:
        assert reader.size == (HEIGHT, WIDTH)
        assert reader.pixel_aspect == (3, 4)
        assert (next(reader.frames(np.zeros(1), 1.0)) == cv2.rotate(original, cv2.ROTATE_90_COUNTERCLOCKWISE)).all()


@pytest.mark.parametrize(
    ("options", "axes"),
    [
        (("-display_hflip",), lambda image: image[:, ::-1]),
        (("-display_vflip",), lambda image: image[::-1]),
        (("-display_rotation", 180), lambda image: image[::-1, ::-1]),
        (("-display_rotation", 270), lambda image: np.rot90(image, 3)),
    ],
    ids=["mirrored", "upside down", "180", "270"],
)
def test_display_matrix(plain, tmp_path, options, axes):
    path = copy(plain, tmp_path / "video.mp4", inputs=options)
    images = []
    for each in (plain, path):
        with VideoReader(each) as reader:
            images.append(next(reader.frames(np.zeros(1), 1.0)))
    assert (images[1] == axes(images[0])).all()


# Streams


def join(target: Path, sources: list[Path], maps: list[str], *options: object) -> Path:
    inputs = [argument for source in sources for argument in ("-i", source)]
    mapped = [argument for each in maps for argument in ("-map", each)]
    ffmpeg(*inputs, *mapped, "-c", "copy", *options, target)
    return target


def test_several_video_streams(plain, tmp_path):
    """Without a flag the largest is used, with a flag the default one; the others are named."""
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=5:duration=4", *H264, tmp_path / "small.mp4")
    path = join(tmp_path / "plain.ts", [tmp_path / "small.mp4", plain], ["0:v", "1:v", "1:a"])
    assert_frames_are_on_time(path)
    with VideoReader(path) as reader:
        assert reader.notes == ["2 video streams, of which number 1 is used (from 0)"]
    with VideoReader(path, stream=0) as reader:
        assert reader.size == (64, 48)
    flags = ("-disposition:v:0", "default", "-disposition:v:1", 0)
    path = join(tmp_path / "flag.mkv", [tmp_path / "small.mp4", plain], ["0:v", "1:v", "1:a"], *flags)
    with VideoReader(path) as reader:
        assert reader.size == (64, 48)
    assert_frames_are_on_time(path, stream=1)
    with pytest.raises(ValueError, match="no video stream 2"):
        VideoReader(path, stream=2)


def test_cover_and_still_are_not_the_video(plain, tmp_path):
    ffmpeg("-i", plain, "-frames:v", 1, "-vf", "scale=1280:720", tmp_path / "cover.png")
    sources = [tmp_path / "cover.png", plain]
    cover = join(tmp_path / "cover.mp4", sources, ["0:v", "1"], "-disposition:v:0", "attached_pic")
    still = join(tmp_path / "still.mp4", sources, ["0:v", "1"])
    for path in (cover, still):
        assert_frames_are_on_time(path)


def test_several_audio_streams(plain, tmp_path):
    ffmpeg("-f", "lavfi", "-i", f"anullsrc=r=48000:d={SECONDS}", *AAC, tmp_path / "silent.mp4")
    flags = ("-disposition:a:0", "default", "-disposition:a:1", 0)
    sources, maps = [plain, tmp_path / "silent.mp4"], ["0:v", "1:a", "0:a"]
    path = join(tmp_path / "video.mp4", sources, maps, *flags)
    samples, notes = aligned_audio(path)
    assert not samples.any()
    assert any("2 audio streams, of which number 0 is used (from 0)" in note for note in notes)
    assert any("no audible audio" in note for note in notes)
    assert assert_audio_is_on_time(path, stream=1) == []
    flags = ("-disposition:a:0", 0, "-disposition:a:1", "default")
    assert_audio_is_on_time(join(tmp_path / "second.mp4", sources, maps, *flags))


def test_a_stream_without_decoder_beside_a_good_one(plain, tmp_path):
    ffmpeg("-i", plain, "-vf", "scale=640:360", *H264, "-an", tmp_path / "large.mp4")
    both = join(tmp_path / "both.mp4", [tmp_path / "large.mp4", plain], ["0:v", "1:v", "1:a"])
    content = both.read_bytes()
    path = tmp_path / "video.mp4"
    path.write_bytes(content.replace(b"avc1", b"evc1", content.count(b"avc1") - 1))  # all but the last
    assert_frames_are_on_time(path)
    with VideoReader(path) as reader:
        assert reader.notes == ["2 video streams, of which number 1 is used (from 0)"]


# Silent audio


def test_digital_silence_is_noted(tmp_path):
    path = make_timed_video(tmp_path / "video.mp4", 2, audio=np.zeros(2 * AUDIO_RATE, "<i2"))
    _, notes = aligned_audio(path)
    assert notes == ["video.mp4: no audible audio, only digital silence"]


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_inverted_channel(tmp_path, codec):
    left = beeps(SECONDS)
    audio = np.stack([left, -left], axis=1)
    path = make_timed_video(tmp_path / "video.mkv", audio=audio, channels=2, options=(*H264, "-c:a", codec))
    (note,) = assert_audio_is_on_time(path)
    assert "one is inverted" in note
    audio = np.stack([left, 0 * left], axis=1)  # a microphone on one channel
    path = make_timed_video(tmp_path / "video.mkv", audio=audio, channels=2, options=(*H264, "-c:a", codec))
    assert assert_audio_is_on_time(path) == []


# High dynamic range and interlacing


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_high_dynamic_range(tmp_path, transfer):
    """Grey levels and colours of a standard video, encoded as HDR, come back."""
    rng = np.random.default_rng(0)
    standard = rng.integers(20, 200, (3, 4, 3)).astype(np.uint8).repeat(60, 0).repeat(80, 1)  # RGB
    to_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    nits = 203 * (standard / 255) ** 2.4 @ to_2020.T
    if transfer == "smpte2084":
        power = (nits / 10_000) ** (1305 / 8192)
        code = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** (2523 / 32)
    else:
        scene = (nits / 1000) ** (1 / 1.2)
        code = np.where(
            scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(12 * scene.clip(0.03) - 0.28466892) + 0.55991073
        )
    data = (code * 65535).round().astype("<u2").tobytes() * 5
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb48le", "-video_size", "320x180", "-framerate", 25, "-i", "-")
    tags = f"color_primaries=bt2020:color_trc={transfer}:colorspace=bt2020nc:range=tv"
    convert = f"scale=out_color_matrix=bt2020nc:out_range=tv,format=yuv420p10le,setparams={tags}"
    codec = f"log-level=none:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
    path = tmp_path / "video.mp4"
    ffmpeg(*raw, "-vf", convert, "-c:v", "libx265", "-crf", 8, "-x265-params", codec, path, data=data)
    expected = standard[30::60, 40::80, ::-1].astype(int)
    errors = []
    for enhance in (False, True):
        with VideoReader(path, enhance=enhance) as reader:
            image = next(reader.frames(np.zeros(1), 1.0))
            assert bool(reader.notes) != enhance
        errors.append(np.abs(image[30::60, 40::80].astype(int) - expected))
    assert errors[0].mean() > 15
    assert errors[1].mean() < 8


@pytest.mark.parametrize("codec", [H264, ("-c:v", "mpeg2video", "-q:v", 2)], ids=["h264", "mpeg2"])
def test_interlaced_video(tmp_path, codec):
    """A bright square in fast motion: fields of two times are combed."""
    images = []
    for index in range(100):  # fields at 50 per second
        image = np.full((HEIGHT, WIDTH), 60, np.uint8)
        left = 6 * index % (WIDTH - 60)
        image[40:120, left : left + 60] = 220
        images.append(image.tobytes())
    raw = ("-f", "rawvideo", "-pix_fmt", "gray", "-video_size", f"{WIDTH}x{HEIGHT}", "-framerate", 50, "-i", "-")
    path = tmp_path / "video.mkv"
    options = ("-vf", "tinterlace=interleave_top,setfield=tff", *codec, "-flags", "+ilme+ildct", "-pix_fmt", "yuv420p")
    ffmpeg(*raw, *options, path, data=b"".join(images))
    combed, counts = [], []
    for enhance in (False, True):
        with VideoReader(path, enhance=enhance) as reader:
            frames = list(reader.frames(np.arange(50) / 25, 60.0))
            assert bool(reader.notes) != enhance
        rows = np.array([image[60:100, :, 0] for image in frames[5:45]]).astype(int)
        combed.append((np.abs(rows[:, 1:-1] - (rows[:, :-2] + rows[:, 2:]) / 2) > 40).mean())
        counts.append(len(frames))
    assert counts == [50, 50]
    assert combed[0] > 0.01
    assert combed[1] < combed[0] / 5


# Containers and codecs

AUDIO_CODECS = {"webm": "libopus", "avi": "pcm_s16le", "wmv": "wmav2", "mpg": "ac3", "vob": "ac3", "ogv": "libvorbis"}
AUDIO_CODECS |= {"mxf": "pcm_s16le", "dv": "pcm_s16le"}
PIXELS = {"h264": "yuv420p", "hevc": "yuv420p", "hevc10": "yuv420p10le", "prores": "yuv422p10le", "mjpeg": "yuvj420p"}
ENCODERS = {
    "h264": ("libx264", "-preset", "veryfast"),
    "hevc": ("libx265", "-preset", "veryfast", "-x265-params", "log-level=none"),
    "hevc10": ("libx265", "-preset", "veryfast", "-x265-params", "log-level=none"),
    "vp8": ("libvpx", "-deadline", "realtime", "-b:v", "2M"),
    "vp9": ("libvpx-vp9", "-deadline", "realtime", "-cpu-used", 8, "-b:v", "2M"),
    "av1": ("libsvtav1", "-preset", 12, "-crf", 25),
    "mpeg2": ("mpeg2video", "-q:v", 3),
    "mpeg4": ("mpeg4", "-q:v", 3, "-bf", 2),
    "prores": ("prores_ks",),
    "wmv2": ("wmv2", "-q:v", 3),
    "mjpeg": ("mjpeg", "-q:v", 3),
    "theora": ("libtheora", "-q:v", 8),
}
TABLE = {
    "mp4": ("hevc10", "mpeg4"),
    "mov": ("prores", "mjpeg"),
    "mkv": tuple(ENCODERS),
    "webm": ("vp9",),
    "avi": ("h264", "mpeg4"),
    "wmv": ("wmv2",),
    "mpg": ("mpeg2",),
    "vob": ("mpeg2",),
    "ts": ("hevc", "mpeg2"),
    "mts": ("h264",),
    "3gp": ("mpeg4",),
    "flv": ("h264",),
    "ogv": ("theora",),
    "mxf": ("mpeg2",),
}


@slow
@pytest.mark.parametrize("variable", [False, True], ids=["constant", "variable"])
@pytest.mark.parametrize(("suffix", "codec"), [(suffix, codec) for suffix, codecs in TABLE.items() for codec in codecs])
def test_containers_and_codecs(tmp_path, suffix, codec, variable):
    encoder = ENCODERS[codec]
    if not can_encode(encoder[0]):
        pytest.skip(f"ffmpeg has no {encoder[0]}")
    if variable and suffix in ("mpg", "vob", "mxf", "ogv"):
        pytest.skip("ffmpeg repeats frames in this container")
    audio = ("-c:a", AUDIO_CODECS.get(suffix, "aac"))
    # FFmpeg does not store presentation times in these two: frames that are not in order make them ambiguous.
    in_order = ("-bf", 0) if suffix in ("avi", "mxf") else ()
    pixels = (*in_order, "-pix_fmt", PIXELS.get(codec, "yuv420p"))
    shape = {"mts": ("-f", "mpegts"), "3gp": ("-f", "mov"), "wmv": ("-f", "asf")}.get(suffix, ())
    options = (*(DROP if variable else ()), "-c:v", *encoder, *pixels, *audio, *shape)
    path = make_timed_video(tmp_path / f"video.{suffix}", options=options)
    assert_frames_are_on_time(path, 0.48 if variable else 0.021)
    assert_audio_is_on_time(path)
    shown = frame_times(path)
    assert len(shown) >= 56
    assert np.abs(np.diff(shown, axis=1)).max() < 0.021


@slow
def test_dv(tmp_path):
    path = make_timed_video(tmp_path / "video.dv", options=("-target", "pal-dv"))
    assert_frames_are_on_time(path)
    assert_audio_is_on_time(path)
