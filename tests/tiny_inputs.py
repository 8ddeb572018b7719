"""Small inputs of every stage, a small encoder, and scripts run inside the test process.

Inputs are written without the project's own writers, so tests check the formats and not those writers.
"""

import contextlib
import csv
import hashlib
import io
import json
import runpy
import subprocess
import sys
import traceback
import wave
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from conftest import ROOT, printed
from PIL import Image
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

LABELS = ("NOT_SPEAKING", "SPEAKING_AUDIBLE", "SPEAKING_NOT_AUDIBLE")
WIDTH = 1024  # features per row
RATE = 16000  # samples per second


class Face(NamedTuple):
    """One row of annotations."""

    video: str
    entity: str
    time: float  # seconds
    label: int  # index into LABELS


@dataclass(frozen=True)
class Track:
    """One track, with a row every 0.04 s. Each digit of `labels` is the label of a row, an index into LABELS."""

    entity: str
    labels: str
    first: float = 10.0  # seconds
    video: str = "video"

    @property
    def faces(self) -> list[Face]:
        times = [round(self.first + 0.04 * index, 2) for index in range(len(self.labels))]
        return [Face(self.video, self.entity, time, int(label)) for time, label in zip(times, self.labels, strict=True)]


def faces_of(tracks: Iterable[Track]) -> list[Face]:
    """Rows of all tracks, track by track."""
    return [face for track in tracks for face in track.faces]


class SmallEncoder(nn.Module):
    """Stand-in for TwoStreamResNet with the same arguments and outputs, and weights of 0.2 MB instead of 90 MB."""

    def __init__(self, clip_length: int, depth: int = 18, temporal_shift: bool = False):
        super().__init__()
        self.feature_size = WIDTH if depth == 18 else 4 * WIDTH
        width = self.feature_size // 2
        self.audio_layer = nn.Linear(13, width)
        self.video_norm = nn.BatchNorm2d(3 * clip_length)
        self.video_layer = nn.Linear(3 * clip_length * 16, width)
        self.fc_final = nn.Linear(2 * width, 2)
        self.fc_aux_a = nn.Linear(width, 2)
        self.fc_aux_v = nn.Linear(width, 2)

    def forward(self, audio: torch.Tensor, video: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a = self.audio_layer(audio.mean(dim=(1, 3))).relu()
        v = self.video_layer(adaptive_avg_pool2d(self.video_norm(video), 4).flatten(1)).relu()
        features = torch.cat((a, v), dim=1)
        return self.fc_final(features), self.fc_aux_a(a), self.fc_aux_v(v), features


def use_small_encoder() -> "mock._patch":
    """Patch under which every script builds a SmallEncoder."""
    return mock.patch("core.models.TwoStreamResNet", SmallEncoder)


def run_here(script: str | Path, *args: object, small_encoder: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a script's command line inside the test process, which saves the start of a new one.

    Returns the exit status and both streams as a process would have them. It uses one thread, which is fastest for
    steps this small, and a SmallEncoder by default.
    """
    out, err = io.StringIO(), io.StringIO()
    argv, path, threads = sys.argv, list(sys.path), torch.get_num_threads()
    sys.argv = [str(ROOT / script), *map(str, args)]
    status = 0
    torch.set_num_threads(1)
    try:
        patch = use_small_encoder() if small_encoder else contextlib.nullcontext()
        with patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            except SystemExit as end:
                status = end.code or 0
            except Exception:
                status = 1
                traceback.print_exc()
    finally:
        sys.argv, sys.path[:] = argv, path
        torch.set_num_threads(threads)
    return subprocess.CompletedProcess(sys.argv, status, out.getvalue(), err.getvalue())


def succeed(script: str | Path, *args: object, small_encoder: bool = True) -> str:
    """Run a script that must succeed inside the test process. Returns what it printed."""
    return printed(run_here(script, *args, small_encoder=small_encoder))


def files_under(directory: Path) -> list[str]:
    """Relative paths of all files in a directory and below, including hidden ones."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def digests(directory: Path, pattern: str = "**/*") -> dict[str, str]:
    """SHA-256 of all files that match, by relative path."""
    paths = (path for path in directory.glob(pattern) if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def official_line(face: Face, box: tuple[float, ...] = (0.25, 0.125, 0.5, 0.75)) -> str:
    corners = ",".join(f"{corner:g}" for corner in box)
    return f"{face.video},{face.time:g},{corners},{LABELS[face.label]},{face.entity}\n"


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_annotations(path: Path, faces: Iterable[Face]) -> Path:
    """Write an official csv."""
    return write_text(path, "".join(map(official_line, faces)))


# Features and predictions


def counting_features(faces: list[Face]) -> np.ndarray:
    """Features that identify their origin: feature c of row r is 1024 r + c, exact in float32."""
    return np.arange(len(faces) * WIDTH, dtype=np.float32).reshape(len(faces), WIDTH)


def noise_features(faces: list[Face]) -> np.ndarray:
    """Non-negative noise, slightly larger for speaking faces, so that training can reduce the loss."""
    noise = np.random.default_rng(len(faces)).random((len(faces), WIDTH), np.float32)
    return noise + 0.2 * np.array([[face.label == 1] for face in faces], np.float32)


def write_store(
    directory: Path,
    faces: list[Face],
    features: Callable[[list[Face]], np.ndarray] = counting_features,
    logits: Callable[[Face], tuple[float, float]] = lambda face: (0.5, -0.25),
) -> Path:
    """Write a directory like that of STE_forward.py. Features are computed from all rows together."""
    directory.mkdir(parents=True, exist_ok=True)
    values = features(faces)
    for video in {face.video for face in faces}:
        rows = [index for index, face in enumerate(faces) if face.video == video]
        lines = ["video_id,frame_timestamp,entity_id,label_id,logit_0,logit_1"]
        for face in (faces[index] for index in rows):
            numbers = ",".join(map(repr, logits(face)))
            lines.append(f"{video},{face.time!r},{face.entity},{int(face.label == 1)},{numbers}")
        write_text(directory / f"{video}.csv", "\n".join(lines) + "\n")
        np.save(directory / f"{video}.npy", values[rows])
    return directory


def write_predictions(directory: Path, faces: list[Face], logits: Callable[[Face], tuple[float, float]]) -> Path:
    """Write a directory like that of ASC_forward.py."""
    for video in {face.video for face in faces}:
        rows = [face for face in faces if face.video == video]
        lines = [f"{face.entity},{face.time!r},{','.join(map(repr, logits(face)))}\n" for face in rows]
        write_text(directory / f"{video}.csv", "".join(lines))
    return directory


def read_csv(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def read_log(directory: Path) -> list[dict[str, float]]:
    """Rows of the training log in a directory or below."""
    (path,) = directory.rglob("*_logs.csv")
    header, *lines = read_csv(path)
    return [dict(zip(header, map(float, line), strict=True)) for line in lines]


def speakers_json(**more: object) -> dict:
    """A complete speakers.json without `tracks`, and more values."""
    video = {
        **{"id": "video", "file": "video.mp4", "seconds": 6.04, "frame_rate": 29.97, "width": 640, "height": 360},
        **{"rows_per_second": 29.97, "cuts": [0.5, 3]},
    }
    settings = {
        **{"threshold": 0.5, "smoothing": 11, "encoder": "resnet18", "clip_length": 11, "clips": 11, "time_stride": 4},
        **{"speakers": 3, "precision": "fp32", "seed": 0, "ste_weights_sha256": "0" * 64},
        **{"asc_weights_sha256": "a" * 64, "face_detector_sha256": "f" * 64, "video_stream": None, "audio_stream": 1},
        **{"start": 0.0, "duration": None},
    }
    return {"schema_version": 1, "video": video, "settings": settings, **more}


# Crops and wavs


def write_crops(directory: Path, faces: Iterable[Face]) -> None:
    """Write a JPEG of noise per row, each of another size and with other colours."""
    for face in faces:
        rng = np.random.default_rng(list(f"{face.entity} {face.time}".encode()))
        width, height = rng.integers(8, 24, 2)
        path = directory / face.entity / f"{face.time!r}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8)).save(path, quality=95)


def write_wav(path: Path, samples: np.ndarray) -> Path:
    """Write samples (n,) as 16 kHz mono 16-bit PCM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def read_wav(path: Path) -> np.ndarray:
    """Samples (n,) int16."""
    with wave.open(str(path), "rb") as file:
        assert file.getparams()[:3] == (1, 2, RATE)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def write_wavs(directory: Path, tracks: Iterable[Track]) -> None:
    """Write the audio of each track from its first row to its last: noise of increasing volume."""
    for track in tracks:
        first, last = track.faces[0].time, track.faces[-1].time
        length = int(last * RATE) - int(first * RATE)
        noise = np.random.default_rng(list(track.entity.encode())).normal(0, 1, length)
        write_wav(directory / f"{track.entity}.wav", noise * np.linspace(300, 3000, length))


def write_encoder_inputs(root: Path, split: str, tracks: list[Track]) -> Path:
    """Write <root>/<split>.csv, <root>/crops/<split>/ and <root>/wavs/<split>/. Returns the root."""
    write_annotations(root / f"{split}.csv", faces_of(tracks))
    write_crops(root / "crops" / split, faces_of(tracks))
    write_wavs(root / "wavs" / split, tracks)
    return root
