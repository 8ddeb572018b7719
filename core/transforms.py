"""Image transforms of the short-term encoder: face crops -> network input, for evaluation and for training."""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from core.config import CROP_MEAN, CROP_SIZE, CROP_STD

JITTER = 0.4  # brightness, contrast and saturation are scaled by 1 - JITTER .. 1 + JITTER
MIN_CROP = 0.5  # minimum side of the random crop, as a fraction of the image
_GREY = np.array([19595, 38470, 7471], np.float32) / 65536  # weights of red, green and blue


def to_input(crops: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normalise crops (..., 3, 144, 144) uint8 with the mean and standard deviation of AVA's faces, on their device."""
    mean, std = _statistics(crops.device)
    return crops.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std).to(dtype)


@lru_cache
def _statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation, (3, 1, 1) each. Cached: copying them to a GPU synchronises with it."""
    return tuple(torch.tensor(values, device=device)[:, None, None] for values in (CROP_MEAN, CROP_STD))


def evaluation_clip(images: list[Image.Image]) -> np.ndarray:
    """T crops of any size -> (T, 3, 144, 144) uint8, by Pillow's bicubic filter, as the released weights expect."""
    resized = [np.asarray(image.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BICUBIC)) for image in images]
    return np.ascontiguousarray(np.stack(resized).transpose(0, 3, 1, 2))


def training_clip(images: list[Image.Image], rng: np.random.Generator) -> np.ndarray:
    """T crops of any size -> (T, 3, 144, 144) uint8. Flip and crop are drawn per clip, colour jitter per crop."""
    flip = rng.random() < 0.5
    left, upper, right, lower = random_box(rng)
    clip = np.empty((len(images), 3, CROP_SIZE, CROP_SIZE), np.uint8)
    for target, image in zip(clip, images, strict=True):
        image = fast_resize(np.array(image).transpose(2, 0, 1))
        image = image[:, :, ::-1] if flip else image
        target[:] = jitter(fast_resize(image[:, upper:lower, left:right].copy()), rng)
    return clip


def fast_resize(image: np.ndarray) -> np.ndarray:
    """Resize (3, h, w) uint8 to (3, 144, 144) with torch's bicubic filter, three times as fast as Pillow's.

    torch rounds the filter weights to 16 bits and always resizes rows first, which Pillow 13 does not for tall images,
    so a few values are one grey level off Pillow's. For training only.
    """
    batch = torch.from_numpy(image)[None]
    return interpolate(batch, (CROP_SIZE, CROP_SIZE), mode="bicubic", antialias=True)[0].numpy()


def random_box(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw the left, upper, right and lower edge of the training crop, in pixels of the 144 x 144 image.

    As in the released code, which the published weights were trained with: it draws a crop of w x h pixels at (j, i)
    but cuts from (j, i) to (w, h), so the crop is smaller and never reaches the right or the lower edge. Unlike there,
    an empty box is drawn again.
    """
    while True:
        size = int(CROP_SIZE * rng.uniform(MIN_CROP, 1))
        upper, left = rng.integers(0, CROP_SIZE - size + 1, size=2).tolist()
        if left < size and upper < size:
            return left, upper, size, size


def jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale brightness, contrast and saturation of an image (3, h, w) uint8 by random factors, in random order.

    Equal to torchvision's `adjust_*` functions on Pillow images: the image is blended with black, with its mean grey
    value, or with its greyscale version.
    """
    values = image.astype(np.float32)  # integers at every step
    factors = rng.uniform(1 - JITTER, 1 + JITTER, size=3).astype(np.float32)
    for index in rng.permutation(3):
        base = np.float32(0) if index == 0 else grey(values)
        if index == 1:
            base = np.floor(base.mean(dtype=np.float64) + 0.5).astype(np.float32)
        values -= base
        values *= factors[index]
        values += base
        np.floor(values.clip(0, 255, out=values), out=values)
    return values.astype(np.uint8)


def grey(image: np.ndarray) -> np.ndarray:
    """Greyscale (h, w) of an image (3, h, w), both integers as float32, rounded like Pillow's mode L."""
    red, green, blue = image
    return np.floor(red * _GREY[0] + green * _GREY[1] + blue * _GREY[2] + np.float32(0.5))
