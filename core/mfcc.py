"""From the wav of a track to the MFCCs of its clips, as the released weights heard them."""

from functools import lru_cache

import numpy as np
from python_speech_features import base, sigproc
from scipy.fft import dct

from core.config import (
    AUDIO_FRAMES_PER_SECOND,
    MFCC_COEFFICIENTS,
    MIN_AUDIO_SECONDS,
    SAMPLE_RATE,
    SILENCE_FRAMES_PER_SECOND,
)
from core.formats.clips import slice_bounds

# The defaults of python_speech_features.mfcc, spelt out because `mfccs` takes its steps one by one.
_FRAME, _STEP, _FFT = 400, 160, 512  # samples
_FILTERS, _LIFTER, _PREEMPHASIS = 26, 22, 0.97
_CLIPS_PER_STEP = 128  # bounds the memory of a long track: about 40 MB


def fit_clip(samples: np.ndarray, clip_length: int) -> np.ndarray:
    """Fit (n,) samples to a clip of `clip_length` crops: reflected outwards or cut, the same at both ends.

    The result has `16000 * clip_length / 27` samples, give or take one; sound under 0.08 s is taken as silence.
    """
    if len(samples) < MIN_AUDIO_SECONDS * SAMPLE_RATE:
        samples = np.zeros(int(SAMPLE_RATE * clip_length / SILENCE_FRAMES_PER_SECOND), samples.dtype)
    target = SAMPLE_RATE * clip_length / AUDIO_FRAMES_PER_SECOND
    missing = int((target - len(samples)) / 2)
    if missing > 0:
        return np.pad(samples, missing, mode="reflect")
    return samples[-missing : len(samples) + missing] if missing < 0 else samples


def clip_bounds(timestamps: np.ndarray, windows: np.ndarray, begin: float) -> tuple[np.ndarray, np.ndarray]:
    """Samples start:stop of clips in their track's wav, which begins at `begin` seconds; (clips,) each.

    timestamps (N,) of the track's rows in seconds, windows (clips, T) positions of the rows of each clip.
    """
    return slice_bounds(timestamps[windows[:, 0]] - begin, timestamps[windows[:, -1]] - begin)


def clip_mfccs(samples: np.ndarray, starts: np.ndarray, stops: np.ndarray, clip_length: int) -> np.ndarray:
    """MFCCs of the clips starts:stops (clips,) of samples (n,) int16: (clips, 13, W) float32, W = 40 for T = 11."""
    clips = [fit_clip(samples[start:stop], clip_length) for start, stop in zip(starts, stops, strict=True)]
    parts = [mfccs(clips[i : i + _CLIPS_PER_STEP]) for i in range(0, len(clips), _CLIPS_PER_STEP)]
    return np.concatenate(parts).astype(np.float32)


def mfccs(clips: list[np.ndarray]) -> np.ndarray:
    """`python_speech_features.mfcc` of many clips in one go, transposed: (clips, 13, W) float64.

    The clips (n,) may differ in length by less than one step of 160 samples, so that all have W frames.
    """
    lengths = np.array([len(clip) for clip in clips])
    frames = 1 + max(0, int(np.ceil((lengths.max() - _FRAME) / _STEP)))
    signal = np.zeros((len(clips), (frames - 1) * _STEP + _FRAME))
    for row, clip in zip(signal, clips, strict=True):
        row[: len(clip)] = sigproc.preemphasis(clip, _PREEMPHASIS)
    windows = np.lib.stride_tricks.sliding_window_view(signal, _FRAME, axis=1)[:, ::_STEP]
    power = sigproc.powspec(windows.reshape(-1, _FRAME), _FFT)
    energy = power.sum(axis=1)
    filtered = power @ _filterbank().T
    eps = np.finfo(float).eps
    cepstra = dct(np.log(np.where(filtered == 0, eps, filtered)), type=2, axis=1, norm="ortho")[:, :MFCC_COEFFICIENTS]
    cepstra = base.lifter(cepstra, _LIFTER)
    cepstra[:, 0] = np.log(np.where(energy == 0, eps, energy))
    return cepstra.reshape(len(clips), frames, MFCC_COEFFICIENTS).transpose(0, 2, 1)


@lru_cache(maxsize=1)
def _filterbank() -> np.ndarray:
    """(26, 257) triangular mel filters from 0 to 8 kHz."""
    return base.get_filterbanks(_FILTERS, _FFT, SAMPLE_RATE, 0, SAMPLE_RATE / 2)
