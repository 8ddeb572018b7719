"""Datasets: clips of face tracks for the short-term encoder, contexts of features for the context network.

Every draw is a pure function of (seed, epoch, index), so nothing depends on the number of workers, and a resumed run
continues exactly like an uninterrupted one.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from core.config import MAX_MISSING_SECONDS, SAMPLE_RATE
from core.contexts import Contexts, epoch_seed, window
from core.formats.annotations import FaceTable
from core.formats.clips import crop_path, read_crop, read_wav, slice_bounds, wav_path
from core.formats.features import FeatureStore
from core.mfcc import clip_bounds, clip_mfccs, track_mfccs
from core.runtime.device import single_thread
from core.runtime.errors import InputError
from core.runtime.progress import progress
from core.transforms import augment, draw_augmentation, evaluation_clip, grey_frame, training_clip

CPU = torch.device("cpu")
ROWS_PER_ITEM = 512  # longer tracks are read in parts, which limits memory


class ClipReader:
    """Reader of crops and audio in the directories that the data stages wrote."""

    def __init__(self, table: FaceTable, audio_dir: Path, video_dir: Path, clip_length: int):
        self.table, self.audio_dir, self.video_dir = table, audio_dir, video_dir
        self.clip_length = clip_length

    def images(self, rows: np.ndarray) -> list[Image.Image]:
        """Crops of the rows; a row that appears several times is read once. Raises InputError."""
        table, images = self.table, {}
        for row in rows.tolist():
            if row not in images:
                path = crop_path(self.video_dir, table.entity_ids[table.entity[row]], table.timestamp[row])
                images[row] = read_crop(path)
        return [images[row] for row in rows.tolist()]

    def mfccs(self, entity: int, windows: np.ndarray) -> np.ndarray:
        """MFCCs (clips, 13, W) float32 of clips of one track, given as windows (clips, T) of positions in the track.

        Raises InputError if the track's wav is missing, broken or too short.
        """
        timestamps = self.table.timestamp[self.table.rows_of_track(entity)]
        starts, stops = clip_bounds(timestamps, windows, self.table.audio_start[entity])
        first = starts.min()
        samples = self.samples(entity, first, stops.max())
        return clip_mfccs(samples, starts - first, stops - first, windows.shape[1])

    def samples(self, entity: int, start: int, stop: int) -> np.ndarray:
        """Samples start:stop of a track's wav, (n,) int16; its end may lack up to half a second. Raises InputError."""
        path = wav_path(self.audio_dir, self.table.entity_ids[entity])
        samples = read_wav(path, start, stop)
        if (stop - start - len(samples)) / SAMPLE_RATE > MAX_MISSING_SECONDS:
            raise InputError(f"{path}: shorter than its track; recreate it with data/slice_audio_tracks.py")
        return samples


class STEDataset(Dataset):
    """Training samples of the encoder: one clip per track, at a random row (released behaviour).

    Items are indexed by (epoch, index) and are dictionaries of
      video        (T, 3, 144, 144) uint8
      audio        (1, 13, W) float32
      label        int64: the person of the middle crop is speaking
      audio_label  int64: anyone is speaking in the middle frame
    With `augment`, clips are augmented here for training on the CPU. For a GPU, which does this itself, they come with
    what `draw_augmentation` returns.
    """

    def __init__(self, reader: ClipReader, seed: int, augment: bool, device: torch.device = CPU):
        self.reader, self.seed, self.augment, self.device = reader, seed, augment, device
        self.tracks = np.unique(reader.table.entity)

    def __len__(self) -> int:
        return len(self.tracks)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        table, entity = self.reader.table, self.tracks[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        rows = table.rows_of_track(entity)
        middle = rng.integers(len(rows))
        positions = window(middle, len(rows), self.reader.clip_length)
        images = self.reader.images(rows[positions])
        item = {
            "video": torch.from_numpy(training_clip(images) if self.augment else evaluation_clip(images)),
            "audio": torch.from_numpy(self.reader.mfccs(entity, positions[None])),
            "label": torch.tensor(int(table.is_speaking[rows[middle]])),
            "audio_label": torch.tensor(int(table.anyone_speaking[rows[middle]])),
        }
        if self.augment:
            draws = {name: torch.from_numpy(value) for name, value in draw_augmentation(len(images), rng).items()}
            if self.device == CPU:
                with single_thread():
                    video = augment(item["video"][None], **{name: draw[None] for name, draw in draws.items()})
                item["video"] = video[0]
            else:
                item |= draws
        return item

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """A batch: the items of a list of (epoch, index), stacked."""
        items = [self[key] for key in keys]
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}


class STETrackDataset(Dataset):
    """Every row of a table for the forward pass, one part of a track per item, so that each crop is read once.

    Items are arrays: rows (n,), crops (n + T - 1, 3, 144, 144) uint8 and MFCCs (n, 13, W) float32. The clip of row i
    consists of crops i .. i + T - 1. Items are sorted by video.
    """

    def __init__(self, reader: ClipReader):
        self.reader = reader
        table = reader.table
        lengths = np.diff(table.track_offsets)
        parts = [(e, start) for e in np.flatnonzero(lengths) for start in range(0, lengths[e], ROWS_PER_ITEM)]
        video = table.track_video()
        self.parts = sorted(parts, key=lambda part: (video[part[0]], part))
        self.video = [int(video[entity]) for entity, _ in self.parts]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        entity, start = self.parts[index]
        rows = self.reader.table.rows_of_track(entity)
        positions = np.arange(start, min(start + ROWS_PER_ITEM, len(rows)))
        windows = window(positions, len(rows), self.reader.clip_length)
        needed, inverse = np.unique(np.concatenate((windows[:, 0], windows[-1, 1:])), return_inverse=True)
        crops = evaluation_clip(self.reader.images(rows[needed]))[inverse]
        mfccs = self.reader.mfccs(entity, windows)
        return rows[positions], crops, mfccs


class WholeTrackDataset(Dataset):
    """Every row of a table for an encoder that takes whole tracks, one track per item.

    Items are arrays: rows (n,), MFCCs (4n, 13) float32 and grey frames (n, 112, 112) uint8. Items are sorted by video.
    """

    def __init__(self, reader: ClipReader):
        self.reader = reader
        video = reader.table.track_video()
        self.tracks = sorted(np.unique(reader.table.entity).tolist(), key=lambda entity: (video[entity], entity))
        self.video = video[self.tracks].tolist()

    def __len__(self) -> int:
        return len(self.tracks)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        table, entity = self.reader.table, self.tracks[index]
        rows = table.rows_of_track(entity)
        timestamps = table.timestamp[rows]
        start, stop = slice_bounds(*(timestamps[[0, -1]] - table.audio_start[entity]))
        mfccs = track_mfccs(self.reader.samples(entity, start, stop), timestamps)
        frames = [grey_frame(*self.reader.images(row)) for row in rows[:, None]]  # one image in memory at a time
        return rows, mfccs, np.stack(frames)


class ASCDataset(Dataset):
    """One context per row of a feature store, assembled a whole batch at a time.

    A list of (epoch, row) gives a dictionary of
      features  (B, 1024, L, S) float32
      label     (B,) int64: the reference speaker is speaking
    With `redraw`, the other speakers are drawn again in each epoch.
    """

    def __init__(
        self,
        store: FeatureStore,
        context_length: int,
        context_stride: int,
        num_speakers: int,
        seed: int,
        redraw: bool = False,
    ):
        self.store, self.seed, self.redraw = store, seed, redraw
        self.context_rows = Contexts(store.table, context_length, context_stride, num_speakers)

    def require_finite(self) -> None:
        """Read all features. Raises InputError with file and row if one is not finite."""
        videos = range(len(self.store.table.video_ids))
        for video in progress(videos, desc="checking features", unit="video", leave=False):
            self.store.require_finite(video)

    def __len__(self) -> int:
        return len(self.store.table)

    def contexts(self, rows: np.ndarray, seed: int) -> torch.Tensor:
        """Features (B, D, L, S) of the contexts of rows (B,)."""
        context = self.context_rows.draw(rows, seed)  # (B, L, S)
        return self.store.tensor(context).permute(0, 3, 1, 2)

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        epoch, rows = keys[0][0], np.array([row for _, row in keys])
        seed = epoch_seed(self.seed, epoch) if self.redraw else self.seed
        label = torch.from_numpy(self.store.table.is_speaking[rows].astype(np.int64))
        return {"features": self.contexts(rows, seed), "label": label}


def require_trainable(tables: dict[str, FaceTable], sources: dict[str, str]) -> None:
    """Check the labels of `train` and `val`, and print a note if they share videos or if val has no positive rows.

    Raises InputError if a row has no label or if no training row is SPEAKING_AUDIBLE.
    """
    for split, table in tables.items():
        table.require_labels(sources[split])
    if not tables["train"].is_speaking.any():
        raise InputError(f"{sources['train']}: no row is labelled SPEAKING_AUDIBLE, so there is nothing to learn")
    if not tables["val"].is_speaking.any():
        print(f"note: {sources['val']}: no row is labelled SPEAKING_AUDIBLE, so there will be no validation AP")
    videos = [{table.video_ids[video] for video in np.unique(table.video)} for table in tables.values()]
    if common := set.intersection(*videos):
        print(
            f"note: {len(common)} videos are in train and in val, such as {min(common)}: validation is too optimistic"
        )


def context_datasets(
    stores: dict[str, FeatureStore], shape: tuple[int, int, int], seed: int, device: torch.device
) -> dict[str, ASCDataset]:
    """Datasets of the stores `train` (redrawn in each epoch) and `val`; shape is (L, stride, S).

    Their features are copied to a CUDA device if they fit into its free memory. Raises InputError if the stores have
    features of different widths.
    """
    sizes = {str(store.directory): store.feature_size for store in stores.values()}
    if len(set(sizes.values())) > 1:
        found = ", but ".join(f"{size} in {directory}" for directory, size in sizes.items())
        raise InputError(f"features of different encoders: {found} features per row")
    datasets = {split: ASCDataset(store, *shape, seed, redraw=split == "train") for split, store in stores.items()}
    for store in stores.values():
        store.cache_on(device, np.arange(len(store.table)))
    return datasets
