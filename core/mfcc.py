"""MFCCs of clips from the wav of a track, computed exactly as for the released weights."""

from functools import lru_cache

import numpy as np
from python_speech_features import base, mfcc, sigproc
from scipy.fft import dct

from core.config import (
    AUDIO_FRAMES_PER_SECOND,
    MFCC_COEFFICIENTS,
    MIN_AUDIO_SECONDS,
    SAMPLE_RATE,
    SILENCE_FRAMES_PER_SECOND,
    TRACK_FRAMES_PER_SECOND,
    TRACK_MFCCS_PER_FRAME,
)
from core.formats.clips import slice_bounds

# The defaults of python_speech_features.mfcc, whose steps `mfccs` applies to many clips at once.
_FRAME, _STEP, _FFT = 400, 160, 512  # samples
_FILTERS, _LIFTER, _PREEMPHASIS = 26, 22, 0.97
_CLIPS_PER_STEP = 128  # limits the memory for long tracks to about 40 MB


def fit_clip(samples: np.ndarray, clip_length: int) -> np.ndarray:
    """Pad (by reflection) or cut samples (n,) at both ends to the length of a clip: 16000 * clip_length / 27, +-1.

    Audio shorter than 0.08 s is replaced by silence.
    """
    if len(samples) < MIN_AUDIO_SECONDS * SAMPLE_RATE:
        samples = np.zeros(int(SAMPLE_RATE * clip_length / SILENCE_FRAMES_PER_SECOND), samples.dtype)
    target = SAMPLE_RATE * clip_length / AUDIO_FRAMES_PER_SECOND
    missing = int((target - len(samples)) / 2)
    if missing > 0:
        return np.pad(samples, missing, mode="reflect")
    return samples[-missing : len(samples) + missing] if missing < 0 else samples


def clip_bounds(timestamps: np.ndarray, windows: np.ndarray, audio_start: float) -> tuple[np.ndarray, np.ndarray]:
    """First and end sample (clips,) of each clip in the wav of its track, which starts at `audio_start` seconds.

    timestamps (N,) are those of the track's rows in seconds; windows (clips, T) are the positions of each clip's rows.
    """
    return slice_bounds(timestamps[windows[:, 0]] - audio_start, timestamps[windows[:, -1]] - audio_start)


def clip_mfccs(samples: np.ndarray, starts: np.ndarray, stops: np.ndarray, clip_length: int) -> np.ndarray:
    """MFCCs (clips, 13, W) float32 of the clips starts:stops (clips,) of samples (n,) int16; W = 40 for T = 11."""
    clips = [fit_clip(samples[start:stop], clip_length) for start, stop in zip(starts, stops, strict=True)]
    parts = [mfccs(clips[i : i + _CLIPS_PER_STEP]) for i in range(0, len(clips), _CLIPS_PER_STEP)]
    return np.concatenate(parts).astype(np.float32)


def track_mfccs(samples: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    """MFCCs (4N, 13) float32 of the samples (n,) of a track whose rows have these timestamps (N,), as LR-ASD expects.

    Windows are longer if the track has fewer than 25 rows per second. Missing frames repeat those at the start.
    """
    rows = len(timestamps)
    stretch = 1.0 if rows == 1 else TRACK_FRAMES_PER_SECOND * (timestamps[-1] - timestamps[0]) / (rows - 1)
    options = {"numcep": MFCC_COEFFICIENTS, "winlen": 0.025 * stretch, "winstep": 0.010 * stretch}
    values = mfcc(samples if len(samples) else np.zeros(1), SAMPLE_RATE, **options)[: TRACK_MFCCS_PER_FRAME * rows]
    missing = TRACK_MFCCS_PER_FRAME * rows - len(values)
    return np.pad(values, ((0, missing), (0, 0)), mode="wrap").astype(np.float32)


def mfccs(clips: list[np.ndarray]) -> np.ndarray:
    """`python_speech_features.mfcc` of many clips at once, transposed: (clips, 13, W) float64.

    The lengths of the clips (n,) may differ by less than one step of 160 samples, so that all have W frames.
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
