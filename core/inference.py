"""The networks over batches and over films, without the device waiting for the host. Call without gradients."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import nn

from core.datasets import ASCDataset, ClipReader, STETrackDataset
from core.formats.features import feature_writer, require_finite
from core.formats.predictions import write_predictions
from core.loaders import clip_batches, item_loader
from core.runtime.device import autocast, input_dtype
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
    text_features: bool = False,
) -> None:
    """Write predictions and features of every row of the reader's table, `<video_id>.csv` and `.npy` a film."""
    table, dataset = reader.table, STETrackDataset(reader)
    loader = item_loader(dataset, workers, device)
    with progress(total=len(table), desc="encoder", unit="row") as bar:
        for video, group in groupby(zip(dataset.video, loader, strict=True), key=lambda item: item[0]):
            rows_of_video = table.rows_of_video(video)
            with feature_writer(output_dir, table, rows_of_video, text_features) as (logits, features):
                batches = clip_batches((piece for _, piece in group), batch_size, device, input_dtype(precision))
                for rows, joint, encoded in encode(encoder, batches, device, precision):
                    at = np.searchsorted(rows_of_video, rows)
                    logits[at], features[at] = joint, encoded
                    bar.update(len(rows))


def predict_videos(
    network: nn.Module,
    dataset: ASCDataset,
    videos: Sequence[int],
    output_dir: Path,
    device: torch.device,
    *,
    batch_size: int,
) -> None:
    """Write the context network's predictions of every row of some films, `<video_id>.csv` each."""
    store, table = dataset.store, dataset.store.table
    rows_of = {video: table.rows_of_video(video) for video in videos}
    with progress(total=sum(map(len, rows_of.values())), desc="context", unit="row") as bar:
        for video, rows in rows_of.items():
            store.require_finite(video)
            parts = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
            batches = ((part, dataset.__getitems__([(0, row) for row in part])["features"]) for part in parts)
            outputs = []
            for part, output in predict(network, batches, device):
                outputs.append(output)
                bar.update(len(part))
            logits = np.concatenate(outputs)
            require_finite(table, rows, logits, str(store.directory))
            write_predictions(output_dir, table, rows, logits)


def encode(
    encoder: nn.Module, batches: Iterable[tuple], device: torch.device, precision: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows (B,), logits (B, 2) and features (B, 1024) float32 of what `core.loaders.clip_batches` makes."""

    def outputs() -> Iterator[tuple]:
        for rows, audio, video in batches:
            with autocast(device, precision):
                logits, _, _, features = encoder(audio, video)
            yield rows, logits, features

    return async_to_cpu(outputs(), device)


def predict(
    network: nn.Module, batches: Iterable[tuple[np.ndarray, torch.Tensor]], device: torch.device
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows (B,) and logits (B, 2) float32 of rows and their contexts (B, 1024, L, S)."""
    return async_to_cpu(((rows, network(contexts.to(device))) for rows, contexts in batches), device)


def async_to_cpu(batches: Iterable[tuple], device: torch.device) -> Iterator[tuple]:
    """DistributedBatchSampler of (key, tensor, ...) as (key, float32 array, ...), each given out once the next one is under way.

    So a GPU has the next batch to work on while the last one travels, and nobody waits.
    """
    held: tuple | None = None
    for key, *tensors in batches:
        tensors = [tensor.float().to("cpu", non_blocking=True) for tensor in tensors]  # to pinned memory
        arrived = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        if held:
            yield _wait_to_numpy(*held)
        held = (arrived, key, tensors)
    if held:
        yield _wait_to_numpy(*held)


def _wait_to_numpy(arrived: torch.cuda.Event | None, key: object, tensors: list[torch.Tensor]) -> tuple:
    if arrived is not None:
        arrived.synchronize()
    return key, *(tensor.numpy() for tensor in tensors)
