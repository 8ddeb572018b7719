"""The networks over batches: predictions on the host, without the device waiting for them. Call without gradients."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn

from core.util import autocast


def encode(
    encoder: nn.Module, batches: Iterable[tuple], device: torch.device, precision: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows (B,), logits (B, 2) and features (B, 1024) float32 of what `core.dataset.clip_batches` makes."""

    def outputs() -> Iterator[tuple]:
        for rows, audio, video in batches:
            with autocast(device, precision):
                logits, _, _, features = encoder(audio, video)
            yield rows, logits, features

    return on_host(outputs(), device)


def predict(
    network: nn.Module, batches: Iterable[tuple[np.ndarray, torch.Tensor]], device: torch.device
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows (B,) and logits (B, 2) float32 of rows and their contexts (B, 1024, L, S)."""
    return on_host(((rows, network(contexts.to(device))) for rows, contexts in batches), device)


def on_host(batches: Iterable[tuple], device: torch.device) -> Iterator[tuple]:
    """Batches of (key, tensor, ...) as (key, float32 array, ...), each given out once the next one is under way.

    So a GPU has the next batch to work on while the last one travels, and nobody waits.
    """
    held: tuple | None = None
    for key, *tensors in batches:
        tensors = [tensor.float().to("cpu", non_blocking=True) for tensor in tensors]  # to pinned memory
        arrived = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        if held:
            yield _arrived(*held)
        held = (arrived, key, tensors)
    if held:
        yield _arrived(*held)


def _arrived(arrived: torch.cuda.Event | None, key: object, tensors: list[torch.Tensor]) -> tuple:
    if arrived is not None:
        arrived.synchronize()
    return key, *(tensor.numpy() for tensor in tensors)
