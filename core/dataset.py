"""What the networks see: clips of face tracks with their sound (STE), contexts of speakers (ASC).

Every draw is a pure function of (seed, epoch, index), so nothing depends on the number of workers, and a resumed run
draws what an undisturbed one would have.
"""

import argparse
import itertools
import multiprocessing.queues
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from core import contexts as clip_utils
from core.config import MAX_MISSING_SECONDS, SAMPLE_RATE, STE_FEATURES
from core.formats.annotations import SPEAKING_AUDIBLE, FaceTable
from core.io import FeatureStore, crop_path, find_missing, read_crop, read_wav, wav_path
from core.mfcc import clip_bounds, clip_mfccs
from core.runtime import distributed as ranks
from core.runtime.device import spare_memory
from core.runtime.errors import InputError, RunError
from core.runtime.progress import progress
from core.transforms import evaluation_clip, normalise, training_clip

ROWS_AT_ONCE = 512  # a longer track is read in pieces, so that memory does not grow with it
_ROWS_HELD = 1 << 14  # features copied to a device at a time


class EpochSampler(Sampler):
    """Yields (epoch, index) for every index once, shuffled by (seed, epoch)."""

    def __init__(self, size: int, seed: int, shuffle: bool = True):
        self.size, self.seed, self.shuffle, self.epoch = size, seed, shuffle, 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = (
            np.random.default_rng([self.seed, self.epoch]).permutation(self.size) if self.shuffle else range(self.size)
        )
        return ((self.epoch, int(index)) for index in order)


class Batches(Sampler):
    """Batches of a sampler, of which each rank takes its part: none twice, none left out.

    A last batch that would leave a rank without its share of two samples joins the batch before, as batch norm needs
    company.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int):
        self.sampler = sampler
        self.rank, self.world_size = ranks.get_rank(), ranks.get_world_size()
        self.bounds = [*range(0, len(sampler), batch_size), len(sampler)]
        company = self.world_size * min(2, batch_size // self.world_size)
        if len(self.bounds) > 2 and self.bounds[-1] - self.bounds[-2] < company:
            del self.bounds[-2]

    def local(self, size: int) -> int:
        """How many of a batch of that size are this rank's."""
        return len(range(size)[self._part(size)])

    def _part(self, size: int) -> slice:
        return slice(size * self.rank // self.world_size, size * (self.rank + 1) // self.world_size)

    def __iter__(self) -> Iterator[list]:
        keys = iter(self.sampler)
        for start, stop in itertools.pairwise(self.bounds):
            batch = list(itertools.islice(keys, stop - start))
            if part := batch[self._part(len(batch))]:
                yield part

    def __len__(self) -> int:
        return sum(self.local(stop - start) > 0 for start, stop in itertools.pairwise(self.bounds))

    def weight(self, index: int) -> float:
        """What this rank's mean over a batch counts in the mean of the ranks, for that to be the mean over all samples.

        1 but for a last batch of which the ranks have unequal parts.
        """
        size = self.bounds[index + 1] - self.bounds[index]
        return self.local(size) * self.world_size / size


class Loader(DataLoader):
    """A DataLoader whose workers fail in one line, and leave Ctrl-C to the main process.

    What a worker raises about its input comes out without the traceback that travels with it.
    """

    def __init__(self, dataset: Dataset, **options):
        if options["num_workers"]:
            # Forked, as they share the table of all rows.
            options |= {"multiprocessing_context": "fork", "persistent_workers": True}
        super().__init__(dataset, worker_init_fn=_start_worker, **options)

    def __iter__(self) -> Iterator:
        try:
            yield from super().__iter__()
        except (InputError, OSError) as error:
            lines = str(error).strip().splitlines() or [""]
            if "DataLoader worker" not in lines[0]:
                raise
            if isinstance(error, InputError):
                raise InputError(lines[-1].partition(": ")[2]) from None
            raise RunError(lines[-1]) from None


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ranks.end_with_parent()
    # Where a batch does not fit into shared memory, the queue drops it and the main process waits for ever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(lambda error, item: os._exit(1))


def batch_loader(
    dataset: Dataset, sampler: EpochSampler, batch_size: int, workers: int, device: torch.device
) -> Loader:
    """Batches of a dataset, for training and validation; datasets with `__getitems__` assemble their own."""
    return Loader(
        dataset,
        batch_sampler=Batches(sampler, batch_size),
        num_workers=workers,
        collate_fn=_as_it_is if hasattr(dataset, "__getitems__") else None,
        pin_memory=device.type == "cuda" and getattr(dataset, "resident", None) is None,
    )


def split_loaders(datasets: dict[str, Dataset], args: argparse.Namespace, device: torch.device) -> dict[str, Loader]:
    """Batches of the datasets `train`, shuffled, and `val`, in order, by the flags that both training stages have.

    Raises InputError where there is too little to train on for every rank to have a part.
    """
    world_size, size = ranks.get_world_size(), len(datasets["train"])
    if world_size > 1 and size < world_size * min(2, args.batch_size // world_size):
        raise InputError(f"{size} samples to train on are too few for {world_size} ranks; start fewer")
    return {
        split: batch_loader(
            dataset, EpochSampler(len(dataset), args.seed, split == "train"), args.batch_size, args.workers, device
        )
        for split, dataset in datasets.items()
    }


def item_loader(dataset: Dataset, workers: int, device: torch.device) -> Loader:
    """The items of a dataset one by one and in order, read ahead by workers."""
    return Loader(dataset, batch_size=None, num_workers=workers, pin_memory=device.type == "cuda")


def _as_it_is(batch):
    return batch


def drop_missing(table: FaceTable, audio_dir: Path, video_dir: Path, skip_missing: bool) -> FaceTable:
    """The rows of a table whose crop and wav are there.

    Missing ones are dropped and counted with `skip_missing`; without it they are an InputError.
    """
    ranks.require_same("annotations", table.digest)
    missing = ranks.on_main(find_missing)(table, audio_dir, video_dir)
    if not missing.rows.any():
        return table
    examples = ", ".join(map(str, missing.examples))
    counts = f"{missing.crops} of {len(table)} crops and {missing.wavs} wavs are missing, such as {examples}"
    if not skip_missing:
        raise InputError(f"{counts}; make them with the scripts in data/, or leave these rows out with --skip-missing")
    print(f"{counts}: {int(missing.rows.sum())} rows left out")
    if missing.rows.all():
        raise InputError(f"{video_dir}: every row lacks its crop or its wav")
    return table.keep(~missing.rows)


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
        starts, stops = clip_bounds(timestamps, windows, self.table.track_begin[entity])
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
            "label": torch.tensor(int(reader.table.label[row] == SPEAKING_AUDIBLE)),
            "audio_label": torch.tensor(int(reader.table.speech[row])),
        }


class STETrackDataset(Dataset):
    """Every row of a table, a piece of a track at a time, each crop opened once: item -> tuple of

    rows (n,), crops (n + T - 1, 3, 144, 144) uint8, mfccs (n, 13, W) float32. Row i sees crops i .. i + T - 1.
    """

    def __init__(self, reader: ClipReader):
        self.reader = reader
        table = reader.table
        lengths = np.diff(table.track_start)
        pieces = [(e, start) for e in np.flatnonzero(lengths) for start in range(0, lengths[e], ROWS_AT_ONCE)]
        video = table.track_video()
        self.pieces = sorted(pieces, key=lambda piece: (video[piece[0]], piece))  # the films in order
        self.video = [int(video[entity]) for entity, _ in self.pieces]

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        entity, start = self.pieces[index]
        rows = self.reader.table.rows_of_track(entity)
        positions = np.arange(start, min(start + ROWS_AT_ONCE, len(rows)))
        windows = clip_utils.window(positions, len(rows), self.reader.clip_length)
        needed, places = np.unique(np.concatenate((windows[:, 0], windows[-1, 1:])), return_inverse=True)
        crops = evaluation_clip(self.reader.images(rows[needed]))[places]
        mfccs = self.reader.mfccs(entity, windows)
        return torch.from_numpy(rows[positions]), torch.from_numpy(crops), torch.from_numpy(mfccs)


def clip_batches(
    pieces: Iterable[tuple[torch.Tensor, ...]], batch_size: int, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Cut the pieces of `STETrackDataset` into full batches across tracks.

    Yields rows (B,), audio (B, 1, 13, W) float32 and video (B, 3T, 144, 144) of the dtype in channels_last, both on the
    device. Crops travel as bytes, once; the clips, which overlap in time, are cut out of them on the device.
    """
    held: list[tuple[torch.Tensor, ...]] = []
    room = batch_size
    for rows, crops, mfccs in pieces:
        crops = normalise(crops.to(device, non_blocking=True)).to(dtype)
        audio = mfccs.to(device, non_blocking=True)[:, None]
        clip_length = len(crops) - len(rows) + 1
        video = crops.unfold(0, clip_length, 1).permute(0, 4, 1, 2, 3).flatten(1, 2)  # a view, nothing is copied
        start = 0
        while start < len(rows):
            part = slice(start, start + room)
            held.append((rows[part], audio[part], video[part]))
            room -= len(rows[part])
            start += len(rows[part])
            if not room:
                yield _join(held)
                held, room = [], batch_size
    if held:
        yield _join(held)


def _join(held: list[tuple[torch.Tensor, ...]]) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    rows, audio, parts = zip(*held, strict=True)
    size = (sum(map(len, rows)), *parts[0].shape[1:])
    video = torch.empty(size, dtype=parts[0].dtype, device=parts[0].device, memory_format=torch.channels_last)
    for place, part in zip(video.split([len(part) for part in parts]), parts, strict=True):
        place.copy_(part)
    return torch.cat(rows).numpy(), torch.cat(audio), video


class Contexts:
    """Contexts of L moments by S speakers as arrays of row indices into a feature table."""

    def __init__(self, table: FaceTable, clips: int, stride: int, speakers: int):
        self.table, self.clips, self.stride, self.speakers = table, clips, stride, speakers
        self._video_keys = clip_utils.name_keys(table.video_ids)
        self._entity_keys = clip_utils.name_keys(table.entity_ids)
        self._track_length = np.diff(table.track_start)
        self._moment_rows = np.argsort(table.moment, kind="stable")
        self._moment_start = np.searchsorted(table.moment[self._moment_rows], np.arange(table.moment.max() + 2))

    def draw(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """(B, L, S) rows of the contexts of the given rows (B,), a pure function of the seed and who they are."""
        table = self.table
        keys = clip_utils.draw_keys(
            seed, self._video_keys[table.video[rows]], self._entity_keys[table.entity[rows]], table.timestamp[rows]
        )
        start = self._moment_start[table.moment[rows]]
        count = self._moment_start[table.moment[rows] + 1] - start
        slots = np.arange(count.max())
        at = np.minimum(start[:, None] + slots, len(table) - 1)
        candidates = self._moment_rows[at]  # (B, C) rows of everybody at that moment
        present = (slots < count[:, None]) & (candidates != rows[:, None])
        candidate_keys = self._entity_keys[table.entity[candidates]]
        chosen = clip_utils.draw_speakers(keys, candidate_keys, present, self.speakers)
        others = np.where(chosen < 0, rows[:, None], np.take_along_axis(candidates, chosen, axis=1))
        people = np.concatenate((rows[:, None], others), axis=1)  # (B, S)
        entity = table.entity[people]
        positions = clip_utils.window(table.position[people], self._track_length[entity], self.clips, self.stride)
        return table.track_rows[table.track_start[entity][..., None] + positions].transpose(0, 2, 1)


class ASCDataset(Dataset):
    """A context per row of a feature store, assembled a batch at a time: items (epoch, row) -> dictionary of

    features (B, 1024, L, S) float32 and label (B,) int64. Drawn anew each epoch if `redraw`.
    """

    def __init__(self, store: FeatureStore, clips: int, stride: int, speakers: int, seed: int, redraw: bool = False):
        self.store, self.seed, self.redraw = store, seed, redraw
        self.contexts = Contexts(store.table, clips, stride, speakers)
        self.resident: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        """Of all features."""
        return 4 * STE_FEATURES * len(self)

    def hold_on(self, device: torch.device) -> None:
        """Keep all features, 4 kB a row, in the device's memory from now on, and assemble batches there."""
        self.resident = torch.empty(len(self), STE_FEATURES, device=device)
        for start in progress(range(0, len(self), _ROWS_HELD), desc=f"features to {device}", unit="", leave=False):
            rows = np.arange(start, min(start + _ROWS_HELD, len(self)))
            self.resident[rows[0] : rows[-1] + 1] = torch.from_numpy(self.store.gather(rows))

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
        if self.resident is None:
            features = torch.from_numpy(self.store.gather(context))  # (B, L, S, 1024)
        else:
            features = self.resident[torch.from_numpy(context).to(self.resident.device, non_blocking=True)]
        label = (self.store.table.label[rows] == SPEAKING_AUDIBLE).astype(np.int64)
        return {"features": features.permute(0, 3, 1, 2), "label": torch.from_numpy(label)}


def context_datasets(
    stores: dict[str, FeatureStore], shape: tuple[int, int, int], seed: int, workers: int, device: torch.device
) -> dict[str, ASCDataset]:
    """Contexts of the stores `train`, drawn anew each epoch, and `val`; shape is clips, stride and speakers.

    Features are held on a CUDA device that has room for them, unless workers are to read them.
    """
    datasets = {split: ASCDataset(store, *shape, seed, redraw=split == "train") for split, store in stores.items()}
    if workers == 0 and 2 * sum(dataset.bytes for dataset in datasets.values()) < spare_memory(device):
        for dataset in datasets.values():
            dataset.hold_on(device)
    return datasets
