"""Baselines that see one clue alone: what where a face is, how large it is, or the sound tells of who speaks.

Annotations in which one of them comes near the networks give the answer away.
"""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from core.config import STE_FEATURES
from core.evaluation import average_precision
from core.formats.annotations import FaceTable
from core.io import FeatureStore

_HIDDEN, _EPOCHS, _BATCH, _RATE, _DECAY = 64, 20, 256, 1e-3, 1e-2
_ROWS_AT_ONCE = 1 << 14


def positions(table: FaceTable, rows: np.ndarray) -> np.ndarray:
    """(n, 2): centres of the boxes of some rows, as shares of the frame."""
    return (table.box[rows, :2] + table.box[rows, 2:]) / 2


def sizes(table: FaceTable, rows: np.ndarray) -> np.ndarray:
    """(n, 2): width and height of the boxes of some rows, as shares of the frame."""
    return table.box[rows, 2:] - table.box[rows, :2]


def sound(store: FeatureStore, rows: np.ndarray) -> np.ndarray:
    """(n, 512): the audio half of the short-term encoder's features of some rows."""
    clue = np.empty((len(rows), STE_FEATURES // 2), np.float32)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        clue[part] = store.gather(rows[part])[:, : STE_FEATURES // 2]
    return clue


def score_clue(clues: dict[str, np.ndarray], speaking: dict[str, np.ndarray], seed: int) -> float:
    """AP on `val` of a perceptron that learned on `train` which rows speak (N,) from their clues (N, C) alone.

    One hidden layer of 64, Adam with weight decay, 20 epochs; inputs are scaled to mean 0 and deviation 1.
    """
    mean, deviation = clues["train"].mean(axis=0), clues["train"].std(axis=0) + 1e-6
    inputs = {split: torch.from_numpy((clue - mean) / deviation).float() for split, clue in clues.items()}
    label = torch.from_numpy(speaking["train"]).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(len(mean), _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1), nn.Flatten(0))
        optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
        for _ in range(_EPOCHS):
            for rows in torch.randperm(len(label)).split(_BATCH):
                optimizer.zero_grad()
                binary_cross_entropy_with_logits(network(inputs["train"][rows]), label[rows]).backward()
                optimizer.step()
    with torch.inference_mode():
        scores = network(inputs["val"]).numpy()
    return average_precision(scores, speaking["val"])
