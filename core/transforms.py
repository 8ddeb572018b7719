"""Image transforms of the short-term encoder: one for evaluation, one, drawn at random, for training."""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from core.config import CROP_MEAN, CROP_SIZE, CROP_STD

JITTER = 0.4  # brightness, contrast and saturation are scaled by 1 - JITTER .. 1 + JITTER
MIN_CROP = 0.5  # smallest share of the width and height that the random crop is drawn with
_GREY = np.array([19595, 38470, 7471], np.float32) / 65536  # shares of red, green and blue


def resize(image: Image.Image) -> Image.Image:
    """To 144 x 144 with Pillow's bicubic filter, which the released weights were trained with."""
    return image.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BICUBIC)


def to_array(images: list[Image.Image]) -> np.ndarray:
    """n RGB images of 144 x 144 as (n, 3, 144, 144) uint8."""
    return np.ascontiguousarray(np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2))


def normalise(crops: torch.Tensor) -> torch.Tensor:
    """(..., 3, 144, 144) uint8 to float32 with the mean and deviation of AVA's faces, on the tensor's device."""
    mean, std = _statistics(crops.device)
    return crops.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)


@lru_cache
def _statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation, (3, 1, 1) each; kept, because sending them to a GPU waits for it."""
    return tuple(torch.tensor(values, device=device)[:, None, None] for values in (CROP_MEAN, CROP_STD))


def evaluation_clip(images: list[Image.Image]) -> np.ndarray:
    """T crops of any size as (T, 3, 144, 144) uint8."""
    return to_array([resize(image) for image in images])


def training_clip(images: list[Image.Image], rng: np.random.Generator) -> np.ndarray:
    """T crops of any size as (T, 3, 144, 144) uint8: flip and crop drawn per clip, colour jitter per crop."""
    flip = rng.random() < 0.5
    left, upper, right, lower = random_box(rng)
    clip = np.empty((len(images), 3, CROP_SIZE, CROP_SIZE), np.uint8)
    for place, image in zip(clip, images, strict=True):
        image = fast_resize(np.array(image).transpose(2, 0, 1))
        image = image[:, :, ::-1] if flip else image
        place[:] = jitter(fast_resize(image[:, upper:lower, left:right].copy()), rng)
    return clip


def fast_resize(image: np.ndarray) -> np.ndarray:
    """(3, h, w) uint8 to (3, 144, 144): the filter of `resize` as torch has it, in a third of the time.

    Its weights are rounded to 16 bits, and it always takes the rows first, which Pillow 13 does not for tall images:
    here and there a value is off Pillow's. For training only.
    """
    batch = torch.from_numpy(image)[None]
    return interpolate(batch, (CROP_SIZE, CROP_SIZE), mode="bicubic", antialias=True)[0].numpy()


def random_box(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge of the training crop, in pixels of the 144 x 144 image.

    Kept from the released code, because the published weights were trained with it: it draws a crop of w x h at
    (j, i), then cuts from (j, i) to (w, h), which is smaller and never at the right or lower edge. An empty box is
    drawn again.
    """
    while True:
        size = int(CROP_SIZE * rng.uniform(MIN_CROP, 1))
        upper, left = rng.integers(0, CROP_SIZE - size + 1, size=2).tolist()
        if left < size and upper < size:
            return left, upper, size, size


def jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation of an image (3, h, w) uint8 scaled at random, in random order.

    Equal to torchvision's `adjust_*` of a Pillow image: it is mixed with black, with its mean grey, with its grey self.
    """
    values = image.astype(np.float32)  # whole numbers throughout
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
    """(h, w) of an image (3, h, w), both whole numbers as float32, weighted and rounded as Pillow's mode L."""
    red, green, blue = image
    return np.floor(red * _GREY[0] + green * _GREY[1] + blue * _GREY[2] + np.float32(0.5))
