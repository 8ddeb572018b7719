"""Sound of a clip: cut, fitted and turned into MFCCs as the released weights heard it; wavs read and refused."""

import json
import struct
import tracemalloc
import wave
from pathlib import Path

import numpy as np
import pytest
import python_speech_features
import soundfile
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from core.contexts import window
from core.formats.clips import read_wav, wav_length, write_wav
from core.mfcc import clip_bounds, clip_mfccs, fit_clip, mfccs, slice_bounds
from core.runtime.errors import InputError

RATE = 16000
CASES = {case["name"]: case for case in json.loads((GOLDEN / "mfcc_cases.json").read_text())}
ODD = range(1, 22, 2)


@pytest.fixture(scope="module")
def chirp() -> np.ndarray:
    return read_wav(GOLDEN / "chirp.wav")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "mfcc.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def track_mfccs(samples: np.ndarray, timestamps: np.ndarray, windows: np.ndarray, begin: float) -> np.ndarray:
    """MFCCs of the clips of a track from the whole of its wav."""
    return clip_mfccs(samples, *clip_bounds(timestamps, windows, begin), windows.shape[1])


def noise(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8000, 8000, length).astype(np.int16)


def mfcc_of_one_clip(samples: np.ndarray, first: float, last: float, begin: float, clip_length: int) -> np.ndarray:
    """(13, W) of one clip, step by step in the order of the specification's section 5."""
    sound = samples[int((first - begin) * 16000) : int((last - begin) * 16000)]
    if len(sound) < 0.08 * 16000:
        sound = np.zeros(int(16000 * clip_length / 25))
    d = int((16000 * clip_length / 27 - len(sound)) / 2)
    if d > 0:
        sound = np.pad(sound, (d, d), mode="reflect")
    elif d < 0:
        sound = sound[-d:d]
    return python_speech_features.mfcc(sound, 16000).T


# Against the released implementation


@pytest.mark.parametrize("name", CASES)
def test_golden_mfccs(name, chirp, golden):
    timestamps = np.array(CASES[name]["timestamps"])
    found = track_mfccs(chirp, timestamps, np.arange(len(timestamps))[None], 10.0)
    assert found.shape == golden[name].shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, golden[name], rtol=0, atol=1e-4)


def test_golden_cases_cover_what_they_should():
    assert {case["clip_length"] for case in CASES.values()} == {1, 3, 5, 11}
    assert {case["fps"] for case in CASES.values()} == {24, 25, 30}
    assert len(CASES) == 66


# Whole tracks


def track(fps: float, rows: int, begin: float) -> np.ndarray:
    """Timestamps as AVA writes them, to hundredths of a second."""
    return np.round(begin + np.arange(rows) / fps, 2)


@pytest.mark.parametrize("fps", [24, 25, 30])
@pytest.mark.parametrize("clip_length", [1, 3, 11, 21])
def test_all_clips_of_a_track_equal_single_ones(fps, clip_length):
    timestamps = track(fps, 40, 902.13)
    first, last = slice_bounds(timestamps[0], timestamps[-1])
    samples = noise(int(last - first), seed=fps)
    windows = window(np.arange(40), np.full(40, 40), clip_length)
    together = track_mfccs(samples, timestamps, windows, timestamps[0])
    for row, positions in enumerate(windows):
        begin, end = timestamps[positions[0]], timestamps[positions[-1]]
        expected = mfcc_of_one_clip(samples, begin, end, timestamps[0], clip_length)
        np.testing.assert_allclose(together[row], expected, rtol=0, atol=1e-4)


def test_a_track_longer_than_one_batch_of_clips():
    timestamps = track(25, 304, 1000.0)
    samples = noise(16000 * 13)
    windows = window(np.arange(304), np.full(304, 304), 11)
    together = track_mfccs(samples, timestamps, windows, 1000.0)
    assert together.shape == (304, 13, 40)
    for row in (0, 127, 128, 129, 255, 256, 303):
        alone = track_mfccs(samples, timestamps, windows[row : row + 1], 1000.0)
        np.testing.assert_allclose(together[row], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("fps", [24, 25, 30])
@pytest.mark.parametrize("clip_length", ODD)
def test_every_clip_of_a_track_has_as_many_frames(fps, clip_length):
    rows = 60
    timestamps = track(fps, rows, 33.4)
    windows = window(np.arange(rows), np.full(rows, rows), clip_length)
    samples = noise(int((timestamps[-1] - timestamps[0]) * RATE))
    found = track_mfccs(samples, timestamps, windows, timestamps[0])
    # Frames of 400 samples every 160 samples; the last one is filled up with zeros.
    frames = {1: 3, 3: 10, 11: 40}.get(clip_length, 1 + int(np.ceil((RATE * clip_length / 27 - 400) / 160)))
    assert found.shape == (rows, 13, frames)
    assert np.isfinite(found).all()


def test_where_the_sound_begins_is_a_matter_of_the_track_not_of_its_rows():
    """Rows may be left out at the beginning of a track; its wav still starts where it was annotated to."""
    samples = noise(3 * RATE)
    timestamps = track(25, 76, 10.0)
    whole = track_mfccs(samples, timestamps, window(np.array([40]), np.array([76]), 11), 10.0)
    rest = track_mfccs(samples, timestamps[30:], window(np.array([10]), np.array([46]), 11), 10.0)
    np.testing.assert_array_equal(whole, rest)


def test_mfccs_of_clips_that_differ_by_a_sample():
    clips = [noise(6517, 1), noise(6518, 2), noise(6519, 3)]
    for clip, found in zip(clips, mfccs(clips), strict=True):
        np.testing.assert_allclose(found, python_speech_features.mfcc(clip, RATE).T, rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9000), st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 30, 32767]))
def test_mfccs_equal_python_speech_features(length, seed, loudness):
    clip = np.random.default_rng(seed).integers(-loudness - (loudness > 1), loudness + 1, length).astype(np.int16)
    expected = python_speech_features.mfcc(clip, RATE).T
    np.testing.assert_allclose(mfccs([clip])[0], expected, rtol=0, atol=1e-9)


# Fitting


def test_short_sound_is_reflected_at_both_ends():
    sound = np.arange(1500, dtype=np.int16)
    fitted = fit_clip(sound, 3)  # to 1777.78 samples: 138.89 missing at each end, so 138
    assert len(fitted) == 1500 + 2 * 138
    np.testing.assert_array_equal(fitted[:139], np.arange(138, -1, -1))  # the first sample is not doubled
    np.testing.assert_array_equal(fitted[138 : 138 + 1500], sound)
    np.testing.assert_array_equal(fitted[-139:], np.arange(1499, 1499 - 139, -1))


def test_long_sound_is_cut_at_both_ends():
    sound = np.arange(2000, dtype=np.int16)
    np.testing.assert_array_equal(fit_clip(sound, 3), np.arange(111, 1889))  # 1777.78: 111.1 too many at each end


@pytest.mark.parametrize("length", [1776, 1777, 1778, 1779])
def test_sound_that_fits_is_left_alone(length):
    sound = noise(length)
    np.testing.assert_array_equal(fit_clip(sound, 3), sound)


def test_reflection_wider_than_the_sound_goes_back_and_forth():
    sound = np.arange(1, 1281, dtype=np.int16)
    fitted = fit_clip(sound, 11)  # 6518.52: 2619 missing at each end, more than twice the sound
    triangle = np.concatenate((sound, sound[-2:0:-1]))  # one period of 2558
    np.testing.assert_array_equal(fitted, triangle[(np.arange(len(fitted)) - 2619) % 2558])


@pytest.mark.parametrize("length", [0, 1, 640, 1279])
@pytest.mark.parametrize("clip_length", [1, 3, 11])
def test_sound_under_80_milliseconds_is_silence(length, clip_length):
    fitted = fit_clip(np.full(length, 1000, np.int16), clip_length)
    assert len(fitted) > 0
    assert not fitted.any()


def test_80_milliseconds_are_sound():
    assert fit_clip(np.full(1280, 1000, np.int16), 3).all()


def test_silence_has_the_length_the_released_code_gives_it():
    # T = 11: int(16000 * 11 / 25) = 7040 zeros, of which int((6518.52 - 7040) / 2) = 260 go at each end.
    assert len(fit_clip(np.zeros(0, np.int16), 11)) == 7040 - 2 * 260


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 40000), st.sampled_from(ODD))
def test_fitted_length(length, clip_length):
    fitted = fit_clip(np.ones(length, np.int16), clip_length)
    target = 16000 * clip_length / 27
    assert abs(len(fitted) - target) < 2
    # Whatever was given, the number of frames is the same.
    assert np.ceil((len(fitted) - 400) / 160) == np.ceil((target - 400) / 160)


def test_samples_between_two_times():
    start, stop = slice_bounds(np.array([0.0, 1.03, 902.04]), np.array([0.04, 1.03, 904.0]))
    assert start.tolist() == [0, int(1.03 * 16000), int(902.04 * 16000)]
    assert stop.tolist() == [int(0.04 * 16000), int(1.03 * 16000), 904 * 16000]
    # Cut off, not rounded: as binary fractions, 1000.04 - 1000.0 is a little less than 0.04.
    assert int(slice_bounds(0.0, 1000.04 - 1000.0)[1]) == 639


# Wavs


def test_wav_round_trip(tmp_path):
    path, samples = tmp_path / "a" / "-id:with.dots.wav", noise(12345)
    write_wav(path, [samples])
    assert wav_length(path) == 12345
    np.testing.assert_array_equal(read_wav(path), samples)
    assert read_wav(path).dtype == np.int16
    with wave.open(str(path)) as file:  # another reader sees the same
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        np.testing.assert_array_equal(np.frombuffer(file.readframes(12345), "<i2"), samples)


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 10), (500, 1000), (990, 2000), (1000, 1001), (5000, 6000), (7, 7), (0, None), (300, None)]
)
def test_part_of_a_wav(tmp_path, start, stop):
    path, samples = tmp_path / "part.wav", noise(1000)
    write_wav(path, [samples])
    np.testing.assert_array_equal(read_wav(path, start, stop), samples[start:stop])


def test_only_the_part_is_read(tmp_path):
    """Two hours of sound, as a file with holes: a second of it takes no more memory than a second."""
    path, second, size = tmp_path / "film.wav", noise(RATE), 2 * 7200 * RATE
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16,
                         b"data", size)  # fmt: skip
    with path.open("wb") as file:
        file.write(header)
        file.seek(44 + 2 * 5000 * RATE)
        file.write(second.tobytes())
        file.truncate(44 + size)
    tracemalloc.start()
    found = read_wav(path, 5000 * RATE, 5001 * RATE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(found, second)
    assert peak < 1_000_000


def refused(path: Path) -> str:
    """The message with which both ways to look at the wav refuse it."""
    with pytest.raises(InputError) as by_length:
        wav_length(path)
    with pytest.raises(InputError) as by_reading:
        read_wav(path)
    assert str(by_length.value) == str(by_reading.value)
    assert str(path) in str(by_length.value)
    assert "\n" not in str(by_length.value)
    return str(by_length.value)


@pytest.mark.parametrize(
    ("rate", "channels", "options"),
    [
        (8000, 1, {"subtype": "PCM_16"}),
        (44100, 1, {"subtype": "PCM_16"}),
        (16000, 2, {"subtype": "PCM_16"}),
        (16000, 1, {"subtype": "PCM_U8"}),
        (16000, 1, {"subtype": "PCM_24"}),
        (16000, 1, {"subtype": "FLOAT"}),
        (16000, 1, {"subtype": "PCM_16", "format": "FLAC"}),
    ],
    ids=["8 kHz", "44.1 kHz", "stereo", "8 bit", "24 bit", "float", "flac"],
)
def test_other_kinds_of_sound_are_refused(tmp_path, rate, channels, options):
    path = tmp_path / "sound.wav"
    soundfile.write(str(path), np.zeros((1000, channels)), rate, **{"format": "WAV", **options})
    message = refused(path)
    assert "16000" in message  # what was expected
    if rate != 16000:
        assert str(rate) in message  # what was found


@pytest.mark.parametrize("content", [b"", b"not a wav\n", b"RIFF", bytes(1000)])
def test_files_that_are_no_wav(tmp_path, content):
    path = tmp_path / "sound.wav"
    path.write_bytes(content)
    refused(path)


def test_missing_wav(tmp_path):
    refused(tmp_path / "nobody.wav")


@pytest.mark.parametrize("share", [0.3, 0.9, 0.9999])
def test_wav_cut_off_in_the_middle(tmp_path, share):
    path = tmp_path / "sound.wav"
    write_wav(path, [noise(16000)])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path)


def test_an_empty_wav_is_one(tmp_path):
    """A track of a single row has a slice without samples."""
    path = tmp_path / "sound.wav"
    write_wav(path, [])
    assert wav_length(path) == 0
    assert len(read_wav(path)) == 0
