"""MFCCs of one clip, step by step as in section 5 of the specification, to check the fast ones against."""

import numpy as np
import python_speech_features
from tiny_inputs import RATE


def plain_mfcc(samples: np.ndarray, first: float, last: float, start: float, clip_length: int) -> np.ndarray:
    """MFCCs (13, W) of a clip from `first` to `last`, in samples that begin at `start`; all in seconds."""
    audio = samples[int((first - start) * RATE) : int((last - start) * RATE)]
    if len(audio) < 0.08 * RATE:
        audio = np.zeros(int(RATE * clip_length / 25))
    missing = int((RATE * clip_length / 27 - len(audio)) / 2)
    if missing > 0:
        audio = np.pad(audio, missing, mode="reflect")
    elif missing < 0:
        audio = audio[-missing:missing]
    return python_speech_features.mfcc(audio, RATE).T
