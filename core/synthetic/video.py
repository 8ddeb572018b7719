"""Writing synthetic videos and their official annotations."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from core.formats.annotations import LABELS, NOT_SPEAKING, SPEAKING_AUDIBLE, SPEAKING_NOT_AUDIBLE
from core.media.writer import encode_video
from core.runtime.errors import RunError
from core.runtime.files import write_bytes
from core.synthetic.drawing import draw_frames, head_poses
from core.synthetic.plan import FPS, HEAD_HEIGHT, TrackPlan, VideoPlan
from core.synthetic.voice import synthesise_audio

SEGMENT_SECONDS = 60  # AVA numbers tracks within segments of this length: <video_id>_0900_0960:3
SAMPLE_RATES = (16000, 44100, 48000)  # Hz
ID_LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
AUDIO_BIT_RATE = 96_000


def draw_video_id(rng: np.random.Generator, index: int) -> str:
    """Return 11 characters like those of YouTube. Every fourth id starts with a dash, as some in AVA do."""
    video_id = "".join(rng.choice(ID_LETTERS, 11))
    return f"-{video_id[1:]}" if index % 4 == 1 else video_id


def write_video(path: Path, csv: Path, video: VideoPlan) -> None:
    """Write a video, then its annotations: if the csv exists, the video is complete."""
    sample_rate = int(video.rng.choice(SAMPLE_RATES))
    audio = synthesise_audio(video, sample_rate)
    samples = np.rint(audio * 32767).astype(np.int16)
    try:
        size, options = video.scenario.size, {"bit_rate": AUDIO_BIT_RATE, "threads": 1}
        encode_video(path, draw_frames(video), size, FPS, iter([samples]), sample_rate, **options)
    except ValueError as error:
        raise RunError(f"{path}: {error}") from None
    write_bytes(csv, "".join(annotation_lines(path.stem, video)).encode())


def annotation_lines(video_id: str, video: VideoPlan) -> Iterator[str]:
    """Yield the lines of the official csv, track by track. At 25 fps, two decimals give exact timestamps."""
    tracks_in_segment: Counter[int] = Counter()
    for track in (track for shot in video.shots for track in shot.tracks):
        start = track.first // FPS // SEGMENT_SECONDS * SEGMENT_SECONDS
        tracks_in_segment[start] += 1
        entity_id = f"{video_id}_{start:04d}_{start + SEGMENT_SECONDS:04d}:{tracks_in_segment[start]}"
        rows = zip(track.times, face_boxes(track, video.scenario.size), frame_labels(track), strict=True)
        for time, box, label in rows:
            timestamp = f"{time:.2f}".rstrip("0").rstrip(".")
            yield ",".join([video_id, timestamp, *(f"{edge:.6f}" for edge in box), LABELS[label], entity_id]) + "\n"


def frame_labels(track: TrackPlan) -> np.ndarray:
    """Return the label of each frame, (frames,) indices into LABELS."""
    labels, times = np.full(len(track.times), NOT_SPEAKING), track.times
    for turn in track.turns:
        speaking = (times >= turn.start) & (times < turn.end)
        labels[speaking] = SPEAKING_AUDIBLE if turn.audible else SPEAKING_NOT_AUDIBLE
    return labels


def face_boxes(track: TrackPlan, size: tuple[int, int]) -> np.ndarray:
    """Return boxes (frames, 4) x1, y1, x2, y2 in [0, 1], which vary in size like those of a detector."""
    scale = 1 + 0.03 * np.sin(np.outer(track.times, [1.3, 1.7]) + track.phases[6:8])
    half, centres = scale * track.width * np.array([0.5, HEAD_HEIGHT / 2]), head_poses(track)[0]
    return np.clip(np.concatenate([centres - half, centres + half], axis=1) / np.tile(size, 2), 0, 1)
