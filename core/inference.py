"""Forward passes of both networks, over batches and over whole videos. Call them without gradients."""

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
from core.runtime.device import autocast, input_dtype, tune_malloc
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
    """Write logits and features of every row of the reader's table, `<video_id>.csv` and `<video_id>.npy` per video."""
    table, dataset = reader.table, STETrackDataset(reader)
    loader = item_loader(dataset, workers)
    tune_malloc()
    with progress(total=len(table), desc="encoder", unit="row") as bar:
        for video, group in groupby(zip(dataset.video, loader, strict=True), key=lambda pair: pair[0]):
            rows_of_video = table.rows_of_video(video)
            with feature_writer(output_dir, table, rows_of_video, text_features) as (all_logits, all_features):
                batches = clip_batches((item for _, item in group), batch_size, device, input_dtype(precision))
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
) -> None:
    """Write the context network's logits of every row of some videos, `<video_id>.csv` per video."""
    store, table = dataset.store, dataset.store.table
    rows_of = {video: table.rows_of_video(video) for video in videos}
    tune_malloc()
    with progress(total=sum(map(len, rows_of.values())), desc="context", unit="row") as bar:
        for video, rows in rows_of.items():
            store.require_finite(video)
            parts = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
            batches = ((part, network(dataset.contexts(part, dataset.seed).to(device))) for part in parts)
            outputs = []
            for part, output in async_to_cpu(batches, device):
                outputs.append(output)
                bar.update(len(part))
            logits = np.concatenate(outputs)
            require_finite(table, rows, logits, str(store.directory))
            write_predictions(output_dir, table, rows, logits)


def encode(
    encoder: nn.Module, batches: Iterable[tuple], device: torch.device, precision: str
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Yield rows (B,), logits (B, 2) and features (B, 1024) of the batches of `core.loaders.clip_batches`."""
    for rows, audio, video in batches:
        with autocast(device, precision):
            logits, _, _, features = encoder(audio, video)
        yield rows, logits, features


def async_to_cpu(batches: Iterable[tuple], device: torch.device) -> Iterator[tuple]:
    """Turn batches of (rows, tensor, ...) into (rows, float32 array, ...).

    Each batch is yielded once the next one has been sent to the device, so that a GPU computes while results are copied
    and written.
    """
    pending: tuple | None = None
    for rows, *tensors in batches:
        tensors = [tensor.float().to("cpu", non_blocking=True) for tensor in tensors]
        copied = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        if pending:
            yield _wait_to_numpy(*pending)
        pending = (copied, rows, tensors)
    if pending:
        yield _wait_to_numpy(*pending)


def _wait_to_numpy(copied: torch.cuda.Event | None, rows: np.ndarray, tensors: list[torch.Tensor]) -> tuple:
    if copied is not None:
        copied.synchronize()
    return rows, *(tensor.numpy() for tensor in tensors)
