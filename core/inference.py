"""Forward passes of both networks, over batches and over whole videos. Call them without gradients."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import nn

from core.datasets import ASCDataset, ClipReader, STETrackDataset, WholeTrackDataset
from core.formats.features import feature_writer, require_finite
from core.formats.predictions import write_predictions
from core.loaders import clip_batches, item_loader, track_batches
from core.runtime.device import autocast, input_dtype, memory_format
from core.runtime.malloc import tune_malloc
from core.runtime.progress import progress


def encode_videos(
    encoder: nn.Module,
    reader: ClipReader,
    output_dir: Path,
    device: torch.device,
    *,
    batch_size: int,
    workers: int,
    precision: str,
    whole_tracks: bool = False,
    text_features: bool = False,
) -> None:
    """Write logits and features of every row of the reader's table, `<video_id>.csv` and `<video_id>.npy` per video.

    The encoder takes clips, or with `whole_tracks` all frames of a track at once.
    """
    table = reader.table
    dataset = WholeTrackDataset(reader) if whole_tracks else STETrackDataset(reader)
    loader = item_loader(dataset, workers)
    image_format = memory_format(device, precision)
    tune_malloc()
    with progress(total=len(table), desc="encoder", unit="row") as bar:
        for video, group in groupby(zip(dataset.video, loader, strict=True), key=lambda pair: pair[0]):
            rows_of_video = table.rows_of_video(video)
            writer = feature_writer(output_dir, table, rows_of_video, text_features, encoder.feature_size)
            with writer as (all_logits, all_features):
                items = (item for _, item in group)
                batches = (
                    track_batches(items, device)
                    if whole_tracks
                    else clip_batches(items, batch_size, device, input_dtype(precision), image_format)
                )
                outputs = encode(encoder, batches, device, precision)
                for rows, logits, features in async_to_cpu(outputs, device):
                    index = np.searchsorted(rows_of_video, rows)
                    all_logits[index], all_features[index] = logits, features
                    bar.update(len(rows))


def predict_videos(
    network: nn.Module,
    dataset: ASCDataset,
    videos: Sequence[int],
    output_dir: Path,
    device: torch.device,
    *,
    batch_size: int,
    precision: str,
) -> None:
    """Write the context network's logits of every row of some videos, `<video_id>.csv` per video."""
    store, table = dataset.store, dataset.store.table
    rows_of = {video: table.rows_of_video(video) for video in videos}
    tune_malloc()
    with progress(total=sum(map(len, rows_of.values())), desc="context", unit="row") as bar:
        for video, rows in rows_of.items():
            store.require_finite(video)
            store.cache_on(device, rows)
            parts = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
            batches = ((part, dataset.contexts(part, dataset.seed)) for part in parts)
            outputs = []
            for part, output in async_to_cpu(predict(network, batches, device, precision), device):
                outputs.append(output)
                bar.update(len(part))
            logits = np.concatenate(outputs)
            require_finite(table, rows, logits, str(store.directory))
            write_predictions(output_dir, table, rows, logits)


def encode(
    encoder: nn.Module, batches: Iterable[tuple], device: torch.device, precision: str
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Yield rows (B,), logits (B, 2) and features (B, D) of batches of clips or tracks, see `core.loaders`."""
    for rows, audio, video in batches:
        with autocast(device, precision):
            logits, *_, features = encoder(audio, video)
        yield rows, logits, features


def predict(
    network: nn.Module, batches: Iterable[tuple[np.ndarray, torch.Tensor]], device: torch.device, precision: str
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield rows (B,) and logits (B, 2), given rows and their contexts (B, D, L, S)."""
    for rows, contexts in batches:
        contexts = contexts.to(device)
        with autocast(device, precision):
            logits = network(contexts)
        yield rows, logits


def async_to_cpu(batches: Iterable[tuple], device: torch.device) -> Iterator[tuple]:
    """Turn batches of (rows, tensor, ...) into (rows, float32 array, ...).

    Each batch is yielded once the next one has been sent to the device, so that a GPU computes while results are copied
    and written.
    """
    pending: tuple | None = None
    for rows, *tensors in batches:
        tensors = [tensor.float().to("cpu", non_blocking=True) for tensor in tensors]
        copied = torch.cuda.Event(blocking=True) if device.type == "cuda" else None  # leaves the core to the workers
        if copied:
            copied.record(torch.cuda.current_stream(device))
        if pending:
            yield _wait_to_numpy(*pending)
        pending = (copied, rows, tensors)
    if pending:
        yield _wait_to_numpy(*pending)


def _wait_to_numpy(copied: torch.cuda.Event | None, rows: np.ndarray, tensors: list[torch.Tensor]) -> tuple:
    if copied is not None:
        copied.synchronize()
    return rows, *(tensor.numpy() for tensor in tensors)
