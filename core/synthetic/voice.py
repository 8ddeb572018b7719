"""Audio of a synthetic video: a formant synthesiser, background noise and music."""

import numpy as np
from scipy.signal import lfilter, sosfilt

from core.synthetic.plan import FPS, Person, Turn, VideoPlan

FORMANTS = np.array(  # three frequencies in Hz for each vowel
    [
        (730.0, 1090.0, 2440.0),  # a
        (530.0, 1840.0, 2480.0),  # e
        (300.0, 2290.0, 3010.0),  # i
        (570.0, 840.0, 2410.0),  # o
        (320.0, 870.0, 2240.0),  # u
    ]
)
BANDWIDTHS = np.array([80.0, 100.0, 140.0])  # Hz, one for each formant


def synthesise_audio(video: VideoPlan, sample_rate: int) -> np.ndarray:
    """Return samples (N,) in [-1, 1]: all audible turns over quiet noise, and music in some shots."""
    rng, num_samples = video.rng, video.num_frames * sample_rate // FPS
    audio = lfilter([0.1], [1, -0.9], rng.standard_normal(num_samples)) * rng.uniform(0.004, 0.012)
    for shot in video.shots:
        for turn in shot.turns:
            add_turn(rng, audio, video.cast[turn.person], turn, sample_rate)
        if rng.random() < 0.4:
            begin, end = (frame * sample_rate // FPS for frame in (shot.first, shot.last + 1))
            time = np.arange(end - begin) / sample_rate
            notes = rng.choice([110, 131, 165, 196, 220, 262, 330, 392], 3, replace=False)
            beat = rng.uniform(0.002, 0.006) * np.exp(-3 * (time % rng.uniform(0.3, 0.6)))
            audio[begin:end] += beat * np.sin(2 * np.pi * np.outer(notes, time)).sum(axis=0)
    return audio / max(1.0, np.abs(audio).max() / 0.95)


def add_turn(rng: np.random.Generator, audio: np.ndarray, speaker: Person, turn: Turn, sample_rate: int) -> None:
    """Add a turn to the audio in place. Each syllable is pulses and breath through three resonators."""
    for start, length, vowel, loudness in turn.syllables:
        begin = int(start * sample_rate)
        count = min(int(length * sample_rate), len(audio) - begin)
        position = np.linspace(0, 1, count)  # within the syllable
        intonation = 1.1 - 0.25 * (start + length * position - turn.start) / max(turn.end - turn.start, 1.0)
        pulses = np.diff(np.floor(np.cumsum(speaker.pitch * intonation) / sample_rate), prepend=0.0)
        source = lfilter([1], [1, -0.9], pulses) + speaker.breath * rng.standard_normal(count)
        voice = sosfilt(resonators(FORMANTS[int(vowel)] * speaker.formant_scale, sample_rate), source)
        voice *= np.sin(np.pi * position**0.8) ** 0.7 / max(np.sqrt(np.mean(voice**2)), 1e-9)
        consonant = np.diff(rng.standard_normal(count + 1)) * np.exp(-(((position - 0.08) / 0.06) ** 2))
        audio[begin : begin + count] += speaker.level * loudness * (voice + 0.25 * consonant)


def resonators(formants: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the second-order sections (3, 6) of resonators at three frequencies in Hz."""
    radius = np.exp(-np.pi * BANDWIDTHS / sample_rate)
    middle = -2 * radius * np.cos(2 * np.pi * formants / sample_rate)
    ones, zeros = np.ones(3), np.zeros(3)
    return np.stack([1 + middle + radius**2, zeros, zeros, ones, middle, radius**2], axis=1)
