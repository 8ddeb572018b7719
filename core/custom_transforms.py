"""Image transforms of the short-term encoder: one for evaluation, one, drawn at random, for training."""

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from core.config import CROP_MEAN, CROP_SIZE, CROP_STD

JITTER = 0.4  # brightness, contrast and saturation are scaled by 1 - JITTER .. 1 + JITTER
MIN_CROP = 0.5  # smallest share of the width and height that the random crop is drawn with


def resize(image: Image.Image) -> Image.Image:
    """To 144 x 144 with Pillow's bicubic filter, which the released weights were trained with."""
    return image.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BICUBIC)


def to_array(images: list[Image.Image]) -> np.ndarray:
    """n RGB images of 144 x 144 as (n, 3, 144, 144) uint8."""
    return np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)


def normalise(crops: torch.Tensor) -> torch.Tensor:
    """(..., 3, 144, 144) uint8 to float32 with the mean and deviation of AVA's faces, on the tensor's device."""
    mean = torch.tensor(CROP_MEAN, device=crops.device)[:, None, None]
    std = torch.tensor(CROP_STD, device=crops.device)[:, None, None]
    return (crops.float() / 255 - mean) / std


def evaluation_clip(images: list[Image.Image]) -> np.ndarray:
    """T crops of any size as (T, 3, 144, 144) uint8."""
    return to_array([resize(image) for image in images])


def training_clip(images: list[Image.Image], rng: np.random.Generator) -> np.ndarray:
    """T crops of any size as (T, 3, 144, 144) uint8: flip and crop drawn per clip, colour jitter per crop."""
    flip = rng.random() < 0.5
    left, upper, right, lower = random_box(rng)
    augmented = []
    for image in images:
        image = resize(image)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        augmented.append(jitter(resize(image.crop((left, upper, right, lower))), rng))
    return to_array(augmented)


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


def jitter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation scaled at random, in random order."""
    adjustments = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    factors = rng.uniform(1 - JITTER, 1 + JITTER, size=3)
    for index in rng.permutation(3):
        image = adjustments[index](image, float(factors[index]))
    return image
