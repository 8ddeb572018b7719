"""Baselines that see one clue alone: what where a face is, how large it is, or the sound tells of who speaks.

Annotations in which one of them comes near the networks give the answer away.
"""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from core.annotations import SPEAKING_AUDIBLE, FaceTable
from core.config import STE_FEATURES
from core.evaluation import average_precision
from core.io import FeatureStore

_HIDDEN, _EPOCHS, _BATCH, _RATE, _DECAY = 64, 20, 256, 1e-3, 1e-2


def positions(table: FaceTable) -> np.ndarray:
    """(N, 2): centres of the boxes, as shares of the frame."""
    return (table.box[:, :2] + table.box[:, 2:]) / 2


def sizes(table: FaceTable) -> np.ndarray:
    """(N, 2): width and height of the boxes, as shares of the frame."""
    return table.box[:, 2:] - table.box[:, :2]


def sound(store: FeatureStore) -> np.ndarray:
    """(N, 512): the audio half of the short-term encoder's features, the same for all faces at a moment."""
    return store.gather(np.arange(len(store.table)))[:, : STE_FEATURES // 2]


def score_clue(clues: dict[str, np.ndarray], tables: dict[str, FaceTable], seed: int) -> float:
    """AP on `val` of a perceptron that learned on `train` who speaks from the clue (N, C) of each row alone.

    One hidden layer of 64, Adam with weight decay, 20 epochs; inputs are scaled to mean 0 and deviation 1.
    """
    mean, deviation = clues["train"].mean(axis=0), clues["train"].std(axis=0) + 1e-6
    inputs = {split: torch.from_numpy((clue - mean) / deviation).float() for split, clue in clues.items()}
    label = torch.from_numpy(tables["train"].label == SPEAKING_AUDIBLE).float()
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
    return average_precision(scores, tables["val"].label == SPEAKING_AUDIBLE)
