"""Tone mapping: frames of high dynamic range as those of standard videos."""

from functools import lru_cache

import cv2
import numpy as np

SDR_WHITE = 203  # cd/m2 of the white of standard videos (ITU-R BT.2408)
# RGB of BT.2020 to BGR of BT.709
BT2020_TO_BGR = np.array(
    [[-0.0182, -0.1006, 1.1187], [-0.1246, 1.1329, -0.0083], [1.6605, -0.5876, -0.0728]], np.float32
)


@lru_cache
def _light(transfer: str) -> np.ndarray:
    """Return the light (65536,) of each code of PQ or HLG (ITU-R BT.2100), in units of the white of standard videos."""
    code = np.linspace(0, 1, 1 << 16)
    if transfer == "PQ":
        power = code ** (32 / 2523)
        light = 10_000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (8192 / 1305)
    else:
        scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        light = 1000 * scene**1.2
    return (light / SDR_WHITE).astype(np.float32)


def tone_map(image: np.ndarray, transfer: str) -> np.ndarray:
    """Return an RGB image (H, W, 3) uint16 of BT.2020, by PQ or HLG, as BGR (H, W, 3) uint8 of BT.709.

    Up to three quarters of the white of standard videos, light is kept; highlights are compressed.
    """
    steps = 1 << 14  # per unit of light
    levels = np.arange(4 * steps) / steps
    levels = np.where(levels <= 0.75, levels, 1 - 0.25 * np.exp(3 - 4 * levels))
    table = np.rint(255 * levels ** (1 / 2.4)).astype(np.uint8)
    linear = cv2.transform(_light(transfer)[image], BT2020_TO_BGR)
    return table[(linear * steps).clip(0, len(table) - 1).astype(np.uint16)]
