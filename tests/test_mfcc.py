"""Audio of clips: its length, its MFCCs as in the released code, and wav files."""

import json
import wave
from pathlib import Path

import numpy as np
import pytest
import python_speech_features
import soundfile
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_mfcc import plain_mfcc

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


def track_mfccs(samples: np.ndarray, timestamps: np.ndarray, windows: np.ndarray, start: float) -> np.ndarray:
    """MFCCs of clips of a track, whose wav starts at `start` seconds."""
    return clip_mfccs(samples, *clip_bounds(timestamps, windows, start), windows.shape[1])


def noise(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8000, 8000, length).astype(np.int16)


# Numbers of the released code


@pytest.mark.parametrize("name", CASES)
def test_mfccs_are_those_of_the_released_code(name, chirp, golden):
    timestamps = np.array(CASES[name]["timestamps"])
    found = track_mfccs(chirp, timestamps, np.arange(len(timestamps))[None], 10.0)
    assert found.shape == golden[name].shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, golden[name], rtol=0, atol=1e-4)


# Whole tracks


def track(fps: float, rows: int, start: float) -> np.ndarray:
    """Timestamps in hundredths of a second, as in AVA."""
    return np.round(start + np.arange(rows) / fps, 2)


@pytest.mark.parametrize(("fps", "clip_length"), [(24, 11), (25, 1), (25, 11), (30, 21)])
def test_clips_of_a_track_equal_single_ones(fps, clip_length):
    timestamps = track(fps, 40, 902.13)
    first, last = slice_bounds(timestamps[0], timestamps[-1])
    samples = noise(int(last - first), seed=fps)
    windows = window(np.arange(40), np.full(40, 40), clip_length)
    together = track_mfccs(samples, timestamps, windows, timestamps[0])
    for row, positions in enumerate(windows):
        first, last = timestamps[positions[0]], timestamps[positions[-1]]
        expected = plain_mfcc(samples, first, last, timestamps[0], clip_length)
        np.testing.assert_allclose(together[row], expected, rtol=0, atol=1e-4)


def test_long_tracks_are_processed_in_parts():
    timestamps, samples = track(25, 304, 1000.0), noise(13 * RATE)
    windows = window(np.arange(304), np.full(304, 304), 11)
    together = track_mfccs(samples, timestamps, windows, 1000.0)
    for row in (0, 127, 128, 303):
        alone = track_mfccs(samples, timestamps, windows[row : row + 1], 1000.0)
        np.testing.assert_allclose(together[row], alone[0], rtol=0, atol=1e-5)


def test_audio_starts_with_the_annotated_track():
    """Not with its first usable row: rows may be left out at the start of a track."""
    samples = noise(3 * RATE)
    timestamps = track(25, 76, 10.0)
    whole = track_mfccs(samples, timestamps, window(np.array([40]), np.array([76]), 11), 10.0)
    rest = track_mfccs(samples, timestamps[30:], window(np.array([10]), np.array([46]), 11), 10.0)
    np.testing.assert_array_equal(whole, rest)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9000), st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 30, 32767]))
def test_mfccs_equal_those_of_python_speech_features(length, seed, amplitude):
    clip = np.random.default_rng(seed).integers(-amplitude, amplitude + 1, length).astype(np.int16)
    expected = python_speech_features.mfcc(clip, RATE).T
    np.testing.assert_allclose(mfccs([clip])[0], expected, rtol=0, atol=1e-9)


# Length of clips


def test_padding_longer_than_the_audio_is_reflected_repeatedly():
    audio = np.arange(1, 1281, dtype=np.int16)
    fitted = fit_clip(audio, 11)  # to 6518.52 samples: 2619 are missing at each end
    period = np.concatenate((audio, audio[-2:0:-1]))  # 2558 samples
    np.testing.assert_array_equal(fitted, period[(np.arange(len(fitted)) - 2619) % 2558])


@pytest.mark.parametrize("length", [0, 1, 1279])
def test_audio_shorter_than_80_ms_is_silence(length):
    fitted = fit_clip(np.full(length, 1000, np.int16), 3)
    assert len(fitted) > 0
    assert not fitted.any()
    assert fit_clip(np.full(1280, 1000, np.int16), 3).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40000), st.sampled_from(ODD))
def test_all_clips_have_the_same_number_of_frames(length, clip_length):
    fitted = fit_clip(np.ones(length, np.int16), clip_length)
    target = RATE * clip_length / 27
    assert abs(len(fitted) - target) < 2
    assert np.ceil((len(fitted) - 400) / 160) == np.ceil((target - 400) / 160)


def test_sample_numbers_are_truncated():
    start, stop = slice_bounds(np.array([0.0, 1.03, 902.04]), np.array([0.04, 1.03, 904.0]))
    assert start.tolist() == [0, int(1.03 * RATE), int(902.04 * RATE)]
    assert stop.tolist() == [int(0.04 * RATE), int(1.03 * RATE), 904 * RATE]
    assert int(slice_bounds(0.0, 1000.04 - 1000.0)[1]) == 639  # the difference is slightly less than 0.04


# Wav files


def test_wav_round_trip(tmp_path):
    path, samples = tmp_path / "a" / "-id:with.dots.wav", noise(12345)
    write_wav(path, [samples])
    assert wav_length(path) == 12345
    np.testing.assert_array_equal(read_wav(path), samples)
    assert read_wav(path).dtype == np.int16
    with wave.open(str(path)) as file:  # an independent reader
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        np.testing.assert_array_equal(np.frombuffer(file.readframes(12345), "<i2"), samples)


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 10), (500, 1000), (990, 2000), (1000, 1001), (5000, 6000), (7, 7), (0, None), (300, None)]
)
def test_part_of_a_wav(tmp_path, start, stop):
    path, samples = tmp_path / "part.wav", noise(1000)
    write_wav(path, [samples])
    np.testing.assert_array_equal(read_wav(path, start, stop), samples[start:stop])


def assert_wav_refused(path: Path, *words: str) -> None:
    """Assert that `wav_length` and `read_wav` raise an InputError of one line with the path and the words."""
    for function in (wav_length, read_wav):
        with pytest.raises(InputError) as error:
            function(path)
        message = str(error.value)
        assert all(word in message for word in (str(path), *words)), message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("rate", "channels", "options"),
    [
        (44100, 1, {"subtype": "PCM_16"}),
        (16000, 2, {"subtype": "PCM_16"}),
        (16000, 1, {"subtype": "FLOAT"}),
        (16000, 1, {"subtype": "PCM_16", "format": "FLAC"}),
    ],
    ids=["44.1 kHz", "stereo", "float", "flac"],
)
def test_other_audio_formats_are_refused(tmp_path, rate, channels, options):
    path = tmp_path / "audio.wav"
    soundfile.write(str(path), np.zeros((1000, channels)), rate, **{"format": "WAV", **options})
    assert_wav_refused(path, "16000", str(rate))  # expected and found


def test_missing_truncated_and_other_files_are_refused(tmp_path):
    path = tmp_path / "audio.wav"
    assert_wav_refused(path)
    write_wav(path, [noise(16000)])
    content = path.read_bytes()
    for damaged in (b"", b"not a wav\n", b"RIFF", bytes(1000), content[:10000], content[:-2]):
        path.write_bytes(damaged)
        assert_wav_refused(path)


def test_a_wav_may_be_empty(tmp_path):
    """A track of one row has no audio."""
    path = tmp_path / "audio.wav"
    write_wav(path, [])
    assert wav_length(path) == 0
    assert len(read_wav(path)) == 0
