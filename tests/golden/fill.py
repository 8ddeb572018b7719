"""Deterministic weights and inputs, the same on every machine: the golden numbers were made with them."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


def uniform(name: str, n: int) -> np.ndarray:
    """n values in [0, 1), float64, that depend on the name alone."""
    i = np.arange(n, dtype=np.float64)
    x = np.sin(i * 12.9898 + zlib.crc32(name.encode()) % 1000) * 43758.5453
    return x - np.floor(x)


def tensor(name: str, *shape: int, scale: float = 4.0) -> torch.Tensor:
    """Float32 input of the given shape, values in [-scale/2, scale/2)."""
    return torch.from_numpy(((uniform(name, math.prod(shape)) - 0.5) * scale).reshape(shape)).float()


def filled(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """State dict with the given names and shapes."""
    state = {}
    for name, shape in shapes.items():
        u = uniform(name, math.prod(shape)).reshape(shape)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        if name.endswith("running_mean"):
            value = (u - 0.5) * 0.2
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):  # the latter: batch norm
            value = 0.5 + u
        elif len(shape) == 1:  # any bias
            value = (u - 0.5) * 0.2
        else:
            value = (u - 0.5) * 2 * math.sqrt(3 / math.prod(shape[1:]))
        state[name] = torch.from_numpy(value).float()
    return state


def ste_state(clip_length: int = 11) -> dict[str, torch.Tensor]:
    shapes = json.loads((HERE / "state_dict_keys.json").read_text())["ste"]
    shapes["video_conv1.weight"] = [64, 3 * clip_length, 7, 7]
    return filled(shapes)


def asc_state(clips: int = 11, speakers: int = 3) -> dict[str, torch.Tensor]:
    shapes = json.loads((HERE / "state_dict_keys.json").read_text())["asc"]
    shapes["fc_final.weight"] = [2, 128 * clips * speakers]
    return filled(shapes)
