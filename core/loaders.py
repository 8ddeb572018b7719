"""From items of datasets to batches: the order of an epoch, its parts for each rank, worker processes."""

import argparse
import itertools
import multiprocessing.queues
import os
import signal
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from core.runtime import distributed
from core.runtime.errors import InputError, RunError
from core.transforms import normalise


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


class DistributedBatchSampler(Sampler):
    """DistributedBatchSampler of a sampler, of which each rank takes its part: none twice, none left out.

    A last batch that would leave a rank without its share of two samples joins the batch before, as batch norm needs
    min_last_batch.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int):
        self.sampler = sampler
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        self.bounds = [*range(0, len(sampler), batch_size), len(sampler)]
        min_last_batch = self.world_size * min(2, batch_size // self.world_size)
        if len(self.bounds) > 2 and self.bounds[-1] - self.bounds[-2] < min_last_batch:
            del self.bounds[-2]

    def local_size(self, size: int) -> int:
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
        return sum(self.local_size(stop - start) > 0 for start, stop in itertools.pairwise(self.bounds))

    def loss_scale(self, index: int) -> float:
        """What this rank's mean over a batch counts in the mean of the ranks, for that to be the mean over all samples.

        1 but for a last batch of which the ranks have unequal parts.
        """
        size = self.bounds[index + 1] - self.bounds[index]
        return self.local_size(size) * self.world_size / size


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
    distributed.end_with_parent()
    # Where a batch does not fit into shared memory, the queue drops it and the main process waits for ever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(lambda error, item: os._exit(1))


def batch_loader(
    dataset: Dataset, sampler: EpochSampler, batch_size: int, workers: int, device: torch.device
) -> Loader:
    """DistributedBatchSampler of a dataset, for training and validation; datasets with `__getitems__` assemble their own."""
    return Loader(
        dataset,
        batch_sampler=DistributedBatchSampler(sampler, batch_size),
        num_workers=workers,
        collate_fn=identity if hasattr(dataset, "__getitems__") else None,
        pin_memory=device.type == "cuda" and getattr(dataset, "device_features", None) is None,
    )


def split_loaders(datasets: dict[str, Dataset], args: argparse.Namespace, device: torch.device) -> dict[str, Loader]:
    """DistributedBatchSampler of the datasets `train`, shuffled, and `val`, in order, by the flags that both training stages have.

    Raises InputError where there is too little to train on for every rank to have a part.
    """
    world_size, size = distributed.get_world_size(), len(datasets["train"])
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


def identity(batch):
    return batch


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
