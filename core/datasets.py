"""What the networks see: clips of face tracks with their sound (STE), contexts of speakers (ASC).

Every draw is a pure function of (seed, epoch, index), so nothing depends on the number of workers, and a resumed run
draws what an undisturbed one would have.
"""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from core import contexts as clip_utils
from core.config import MAX_MISSING_SECONDS, SAMPLE_RATE, STE_FEATURES
from core.contexts import Contexts
from core.formats.annotations import FaceTable
from core.formats.clips import crop_path, read_crop, read_wav, wav_path
from core.formats.features import FeatureStore
from core.mfcc import clip_bounds, clip_mfccs
from core.runtime.device import free_device_memory
from core.runtime.errors import InputError
from core.runtime.progress import progress
from core.transforms import evaluation_clip, training_clip

ROWS_PER_ITEM = 512  # a longer track is read in pieces, so that memory does not grow with it
_ROWS_PER_COPY = 1 << 14  # features copied to a device at a time


class ClipReader:
    """Crops and sound of the tracks of a table, from the directories that the data stages filled."""

    def __init__(self, table: FaceTable, audio_dir: Path, video_dir: Path, clip_length: int):
        self.table, self.audio_dir, self.video_dir = table, audio_dir, video_dir
        self.clip_length = clip_length

    def images(self, rows: np.ndarray) -> list:
        """The crop of each row; one that stands several times is opened once."""
        table, opened = self.table, {}
        for row in rows.tolist():
            if row not in opened:
                path = crop_path(self.video_dir, table.entity_ids[table.entity[row]], table.timestamp[row])
                opened[row] = read_crop(path)
        return [opened[row] for row in rows.tolist()]

    def mfccs(self, entity: int, windows: np.ndarray) -> np.ndarray:
        """(clips, 13, W) float32 for windows (clips, T) of positions in the track; only their sound is read."""
        timestamps = self.table.timestamp[self.table.rows_of_track(entity)]
        starts, stops = clip_bounds(timestamps, windows, self.table.audio_start[entity])
        first = starts.min()
        path = wav_path(self.audio_dir, self.table.entity_ids[entity])
        samples = read_wav(path, first, stops.max())
        if (stops.max() - first - len(samples)) / SAMPLE_RATE > MAX_MISSING_SECONDS:
            raise InputError(f"{path}: ends before its track does; make it again with data/slice_audio_tracks.py")
        return clip_mfccs(samples, starts - first, stops - first, windows.shape[1])


class STEDataset(Dataset):
    """One clip per track at a random row: item (epoch, index) -> dictionary of

    video (3T, 144, 144) uint8, audio (1, 13, W) float32, label and audio_label (somebody speaks at this moment), int64.
    """

    def __init__(self, reader: ClipReader, seed: int, augment: bool):
        self.reader, self.seed, self.augment = reader, seed, augment
        self.tracks = np.unique(reader.table.entity)

    def __len__(self) -> int:
        return len(self.tracks)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        reader, entity = self.reader, self.tracks[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        rows = reader.table.rows_of_track(entity)
        middle = rng.integers(len(rows))
        positions = clip_utils.window(middle, len(rows), reader.clip_length)
        images = reader.images(rows[positions])
        video = training_clip(images, rng) if self.augment else evaluation_clip(images)
        row = rows[middle]
        return {
            "video": torch.from_numpy(video).flatten(0, 1),
            "audio": torch.from_numpy(reader.mfccs(entity, positions[None])),
            "label": torch.tensor(int(reader.table.is_speaking[row])),
            "audio_label": torch.tensor(int(reader.table.anyone_speaking[row])),
        }


class STETrackDataset(Dataset):
    """Every row of a table, a piece of a track at a time, each crop opened once: item -> tuple of

    rows (n,), crops (n + T - 1, 3, 144, 144) uint8, mfccs (n, 13, W) float32. Row i sees crops i .. i + T - 1.
    """

    def __init__(self, reader: ClipReader):
        self.reader = reader
        table = reader.table
        lengths = np.diff(table.track_offsets)
        pieces = [(e, start) for e in np.flatnonzero(lengths) for start in range(0, lengths[e], ROWS_PER_ITEM)]
        video = table.track_video()
        self.pieces = sorted(pieces, key=lambda piece: (video[piece[0]], piece))  # the films in order
        self.video = [int(video[entity]) for entity, _ in self.pieces]

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        entity, start = self.pieces[index]
        rows = self.reader.table.rows_of_track(entity)
        positions = np.arange(start, min(start + ROWS_PER_ITEM, len(rows)))
        windows = clip_utils.window(positions, len(rows), self.reader.clip_length)
        needed, places = np.unique(np.concatenate((windows[:, 0], windows[-1, 1:])), return_inverse=True)
        crops = evaluation_clip(self.reader.images(rows[needed]))[places]
        mfccs = self.reader.mfccs(entity, windows)
        return torch.from_numpy(rows[positions]), torch.from_numpy(crops), torch.from_numpy(mfccs)


class ASCDataset(Dataset):
    """A context per row of a feature store, assembled a batch at a time: items (epoch, row) -> dictionary of

    features (B, 1024, L, S) float32 and label (B,) int64. Drawn anew each epoch if `redraw`.
    """

    def __init__(self, store: FeatureStore, clips: int, stride: int, speakers: int, seed: int, redraw: bool = False):
        self.store, self.seed, self.redraw = store, seed, redraw
        self.contexts = Contexts(store.table, clips, stride, speakers)
        self.device_features: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        """Of all features."""
        return 4 * STE_FEATURES * len(self)

    def cache_on(self, device: torch.device) -> None:
        """Keep all features, 4 kB a row, in the device's memory from now on, and assemble batches there."""
        self.device_features = torch.empty(len(self), STE_FEATURES, device=device)
        for start in progress(range(0, len(self), _ROWS_PER_COPY), desc=f"features to {device}", unit="", leave=False):
            rows = np.arange(start, min(start + _ROWS_PER_COPY, len(self)))
            self.device_features[rows[0] : rows[-1] + 1] = torch.from_numpy(self.store.gather(rows))

    def require_finite(self) -> None:
        """Read all features; InputError with file and row where one is not finite."""
        for video in progress(
            range(len(self.store.table.video_ids)), desc="looking for NaN", unit="video", leave=False
        ):
            self.store.require_finite(video)

    def __len__(self) -> int:
        return len(self.store.table)

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        rows = np.array([row for _, row in keys])
        seed = int(clip_utils.mix(np.uint64(self.seed)) >> np.uint64(1)) + 1 + keys[0][0] if self.redraw else self.seed
        context = self.contexts.draw(rows, seed)  # (B, L, S)
        if self.device_features is None:
            features = torch.from_numpy(self.store.gather(context))  # (B, L, S, 1024)
        else:
            features = self.device_features[
                torch.from_numpy(context).to(self.device_features.device, non_blocking=True)
            ]
        label = self.store.table.is_speaking[rows].astype(np.int64)
        return {"features": features.permute(0, 3, 1, 2), "label": torch.from_numpy(label)}


def context_datasets(
    stores: dict[str, FeatureStore], shape: tuple[int, int, int], seed: int, workers: int, device: torch.device
) -> dict[str, ASCDataset]:
    """Contexts of the stores `train`, drawn anew each epoch, and `val`; shape is clips, stride and speakers.

    Features are held on a CUDA device that has room for them, unless workers are to read them.
    """
    datasets = {split: ASCDataset(store, *shape, seed, redraw=split == "train") for split, store in stores.items()}
    if workers == 0 and 2 * sum(dataset.bytes for dataset in datasets.values()) < free_device_memory(device):
        for dataset in datasets.values():
            dataset.cache_on(device)
    return datasets
