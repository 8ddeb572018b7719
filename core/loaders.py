"""Batches from dataset items: order of an epoch, batches of each rank, worker processes, copies to the device."""

import argparse
import itertools
import multiprocessing.queues
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from core.datasets import ASCDataset
from core.runtime import distributed
from core.runtime.errors import InputError, RunError
from core.runtime.threads import map_in_threads
from core.transforms import AUGMENTATION, augment, to_input

VALIDATION_CONTEXTS = 1024  # minimum of a batch
# Space in /dev/shm, in bytes
_QUEUE_BYTES = 1 << 17  # more than the queues of a worker take
_BATCHES_BYTES = 3 << 30  # enough for two batches of 128 clips per worker, with sixteen workers


class EpochSampler(Sampler):
    """Yields (epoch, index) once for every index, shuffled by (seed, epoch)."""

    def __init__(self, size: int, seed: int, shuffle: bool = True):
        self.size, self.seed, self.shuffle, self.epoch = size, seed, shuffle, 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = range(self.size)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        return ((self.epoch, int(index)) for index in order)


class DistributedBatchSampler(Sampler):
    """This rank's part of each batch of a sampler. Over all ranks, every sample appears exactly once.

    A last batch with fewer than two samples per rank is merged into the previous one (batch norm needs two).
    """

    def __init__(self, sampler: EpochSampler, batch_size: int):
        self.sampler = sampler
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        self.bounds = [*range(0, len(sampler), batch_size), len(sampler)]
        min_last_batch = self.world_size * min(2, batch_size // self.world_size)
        if len(self.bounds) > 2 and self.bounds[-1] - self.bounds[-2] < min_last_batch:
            del self.bounds[-2]

    def local_size(self, size: int) -> int:
        """Number of this rank's samples in a batch of `size` samples."""
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
        """Weight of this rank's mean loss so that the average over ranks equals the mean over all samples.

        1, except for a last batch that does not split evenly.
        """
        size = self.bounds[index + 1] - self.bounds[index]
        return self.local_size(size) * self.world_size / size


class Loader(DataLoader):
    """A DataLoader with forked workers. Errors of a worker are raised without its traceback."""

    def __init__(self, dataset: Dataset, workers: int, **options):
        if workers and _free_shared_memory() < workers * _QUEUE_BYTES:
            print("note: /dev/shm is full: no worker processes read data")
            workers = 0
        if workers:
            # Forked workers share the table of all rows with the main process.
            options |= {"multiprocessing_context": "fork", "persistent_workers": True}
        super().__init__(dataset, num_workers=workers, worker_init_fn=_start_worker, **options)

    def __iter__(self) -> Iterator:
        try:
            yield from super().__iter__()
        except (ConnectionError, EOFError):
            time.sleep(1)  # torch's signal handler raises an error with the reason
            raise RuntimeError("DataLoader worker exited while it sent a batch") from None
        except (InputError, OSError) as error:
            lines = str(error).strip().splitlines() or [""]
            if "DataLoader worker" not in lines[0]:
                raise
            if isinstance(error, InputError):
                raise InputError(lines[-1].partition(": ")[2]) from None
            raise RunError(lines[-1]) from None


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    distributed.end_with_parent()
    # If a batch does not fit into shared memory, the queue would drop it and the main process would wait forever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(lambda error, item: os._exit(1))


def _free_shared_memory() -> int:
    """Return this rank's share of the free space of /dev/shm in bytes."""
    return shutil.disk_usage("/dev/shm").free // distributed.get_world_size()


def clip_loader(dataset: Dataset, sampler: EpochSampler, batch_size: int, workers: int, device: torch.device) -> Loader:
    """Loader of batches of clips: dictionaries of tensors or arrays, see `to_device`.

    Tensors of workers pass through /dev/shm. Where it is small, as in a default container with 64 MB, workers send
    arrays instead, which pass through a pipe.
    """
    is_small = workers > 0 and _free_shared_memory() < _BATCHES_BYTES
    if is_small:
        print("note: /dev/shm is small: workers send batches through pipes, which takes longer")
    return Loader(
        dataset,
        workers,
        batch_sampler=DistributedBatchSampler(sampler, batch_size),
        collate_fn=_dict_of_arrays if is_small else identity,
        pin_memory=device.type == "cuda",
    )


class ContextLoader:
    """Batches of contexts, assembled ahead by threads, or with 0 threads when they are needed.

    Threads share the features, which processes would have to send to each other.
    """

    def __init__(self, dataset: ASCDataset, sampler: EpochSampler, batch_size: int, threads: int, device: torch.device):
        self.dataset, self.threads, self.device = dataset, threads, device
        self.batch_sampler = DistributedBatchSampler(sampler, batch_size)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return map_in_threads(self._load, self.batch_sampler, self.threads)

    def _load(self, keys: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        batch = self.dataset.__getitems__(keys)
        if self.device.type == "cuda":
            batch = {key: value if value.is_cuda else value.pin_memory() for key, value in batch.items()}
        return batch


def item_loader(dataset: Dataset, workers: int) -> Loader:
    """Loader of single items, in order and read ahead by the workers. Items are tuples of arrays."""
    return Loader(dataset, workers, batch_size=None, collate_fn=identity)


def _dict_of_arrays(batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in batch.items()}


def identity(batch):
    return batch


def clip_loaders(datasets: dict[str, Dataset], args: argparse.Namespace, device: torch.device) -> dict[str, Loader]:
    """Loaders of the clips `train` (shuffled) and `val`, configured by the flags of STE_train.py. Raises InputError."""
    require_batches(len(datasets["train"]), args.batch_size)
    return {
        split: clip_loader(
            dataset, EpochSampler(len(dataset), args.seed, split == "train"), args.batch_size, args.workers, device
        )
        for split, dataset in datasets.items()
    }


def context_loaders(
    datasets: dict[str, ASCDataset], args: argparse.Namespace, device: torch.device
) -> dict[str, ContextLoader]:
    """Loaders of the contexts `train` (shuffled) and `val`, configured by the flags of ASC_train.py.

    Batches of `val` have at least 1,024 contexts, because its metrics do not depend on their size. Raises InputError.
    """
    require_batches(len(datasets["train"]), args.batch_size)
    sizes = {"train": args.batch_size, "val": max(args.batch_size, VALIDATION_CONTEXTS)}
    return {
        split: ContextLoader(
            dataset, EpochSampler(len(dataset), args.seed, split == "train"), sizes[split], args.workers, device
        )
        for split, dataset in datasets.items()
    }


def require_batches(num_samples: int, batch_size: int) -> None:
    """Raise InputError if batches cannot be split evenly over the ranks, or if there are too few training samples."""
    world_size = distributed.get_world_size()
    if batch_size % world_size:
        problem = f"a batch of {batch_size} samples does not split evenly over {world_size} ranks"
        raise InputError(f"{problem}; pass a --batch-size that is a multiple of {world_size}")
    if world_size > 1 and num_samples < world_size * min(2, batch_size // world_size):
        raise InputError(f"{num_samples} training samples are too few for {world_size} ranks; start fewer ranks")


def to_device(
    batch: dict[str, torch.Tensor | np.ndarray], device: torch.device, memory_format: torch.memory_format
) -> dict[str, torch.Tensor]:
    """Copy a training batch to the device, where clips are augmented if the batch has draws of an augmentation.

    Clips of crops (B, T, 3, 144, 144) become input (B, 3T, 144, 144).
    """
    batch = {key: torch.as_tensor(value) for key, value in batch.items()}
    draws = [batch.pop(name) for name in AUGMENTATION if name in batch]
    batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    if "video" in batch:
        crops = augment(batch["video"], *draws) if draws else batch["video"]
        batch["video"] = to_input(crops).flatten(1, 2).contiguous(memory_format=memory_format)
    return batch


def clip_batches(
    items: Iterable[Sequence[np.ndarray]],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Full batches of clips, across tracks, from the items of `STETrackDataset`.

    Yields rows (B,), audio (B, 1, 13, W) float32 and video (B, 3T, 144, 144) of the dtype and format, on the device.
    Each crop is copied to the device once, as bytes; the overlapping clips are cut there.
    """
    pending: list[tuple[torch.Tensor, ...]] = []
    free = batch_size
    for item in items:
        rows, crops, mfccs = map(torch.from_numpy, item)
        if device.type == "cuda":
            crops, mfccs = crops.pin_memory(), mfccs.pin_memory()
        crops = to_input(crops.to(device, non_blocking=True), dtype)
        audio = mfccs.to(device, non_blocking=True)[:, None]
        clip_length = len(crops) - len(rows) + 1
        video = crops.unfold(0, clip_length, 1).permute(0, 4, 1, 2, 3).flatten(1, 2)  # a view, no copy
        start = 0
        while start < len(rows):
            part = slice(start, start + free)
            pending.append((rows[part], audio[part], video[part]))
            free -= len(rows[part])
            start += len(rows[part])
            if not free:
                yield _join(pending, memory_format)
                pending, free = [], batch_size
    if pending:
        yield _join(pending, memory_format)


def track_batches(
    items: Iterable[Sequence[np.ndarray]], device: torch.device
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Copy the items of `WholeTrackDataset` to the device: rows (n,), MFCCs (4n, 13), frames (n, 112, 112) uint8."""
    for rows, mfccs, frames in items:
        yield rows, torch.from_numpy(mfccs).to(device), torch.from_numpy(frames).to(device)


def _join(
    pending: list[tuple[torch.Tensor, ...]], memory_format: torch.memory_format
) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    rows, audio, parts = zip(*pending, strict=True)
    size = (sum(map(len, rows)), *parts[0].shape[1:])
    video = torch.empty(size, dtype=parts[0].dtype, device=parts[0].device, memory_format=memory_format)
    for target, part in zip(video.split([len(part) for part in parts]), parts, strict=True):
        target.copy_(part)
    return torch.cat(rows).numpy(), torch.cat(audio), video
