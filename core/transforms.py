"""Image transforms of the short-term encoder: face crops -> network input, for evaluation and for training."""

from functools import lru_cache

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from core.config import CROP_MEAN, CROP_SIZE, CROP_STD, TRACK_FRAME_SIZE
from core.runtime.device import exact_products

JITTER = 0.4  # brightness, contrast and saturation are scaled by 1 - JITTER .. 1 + JITTER
MIN_CROP = 0.5  # minimum side of the random crop, as a fraction of the image
AUGMENTATION = ("flip", "box", "factors", "order")  # what `draw_augmentation` returns
_CLIPS_AT_ONCE = 32  # limits the memory of temporary values
_GREY = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # weights of red, green and blue


def to_input(crops: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normalise crops (..., 3, 144, 144), 0 to 255, by mean and standard deviation of AVA's faces, on their device."""
    mean, std = _statistics(crops.device)
    return (crops / 255).sub_(mean).div_(std).to(dtype)


@lru_cache
def _statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation, (3, 1, 1) each. Cached: copying them to a GPU synchronises with it."""
    return tuple(torch.tensor(values, device=device)[:, None, None] for values in (CROP_MEAN, CROP_STD))


def evaluation_clip(images: list[Image.Image]) -> np.ndarray:
    """T crops of any size -> (T, 3, 144, 144) uint8, by Pillow's bicubic filter, as the released weights expect."""
    resized = [np.asarray(image.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BICUBIC)) for image in images]
    return np.ascontiguousarray(np.stack(resized).transpose(0, 3, 1, 2))


def grey_frame(image: Image.Image) -> np.ndarray:
    """Crop of any size -> (112, 112) uint8, by OpenCV's bilinear filter, as LR-ASD's weights expect."""
    return cv2.resize(cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY), (TRACK_FRAME_SIZE, TRACK_FRAME_SIZE))


def training_clip(images: list[Image.Image]) -> np.ndarray:
    """T crops of any size -> (T, 3, 144, 144) uint8, the input of `augment`."""
    return np.stack([fast_resize(np.array(image)) for image in images])


def fast_resize(image: np.ndarray) -> np.ndarray:
    """Resize (h, w, 3) uint8 to (3, 144, 144) with torch's bicubic filter, three times as fast as Pillow's.

    torch rounds the filter weights to 16 bits and always resizes rows first, which Pillow 13 does not for tall images,
    so a few values are one grey level off Pillow's. For training only.
    """
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    return interpolate(batch, (CROP_SIZE, CROP_SIZE), mode="bicubic", antialias=True)[0].numpy()


def draw_augmentation(num_crops: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw the augmentation of a clip: flip and crop for the clip, colour jitter for each of its T crops.

    Returns
      flip     () bool
      box      (4,) int64: left, upper, right and lower edge of the crop, see `random_box`
      factors  (T, 3) float32: factors of brightness, contrast and saturation
      order    (T, 3) int64: the order in which these are applied
    """
    flip, box = rng.random() < 0.5, random_box(rng)
    jitter = [(rng.uniform(1 - JITTER, 1 + JITTER, size=3), rng.permutation(3)) for _ in range(num_crops)]
    factors, order = map(np.stack, zip(*jitter, strict=True))
    return {"flip": np.array(flip), "box": np.array(box), "factors": factors.astype(np.float32), "order": order}


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


def augment(
    clips: torch.Tensor, flip: torch.Tensor, box: torch.Tensor, factors: torch.Tensor, order: torch.Tensor
) -> torch.Tensor:
    """Flip, crop, resize and jitter clips (B, T, 3, 144, 144) uint8 on their device.

    The other arguments are those of `draw_augmentation` for each clip, on the CPU. Returns uint8 of the same shape.
    """
    device = clips.device
    left, upper, right, lower = box.T
    left, right = torch.where(flip, CROP_SIZE - right, left), torch.where(flip, CROP_SIZE - left, right)
    box = torch.stack((left, right, upper, lower))  # in the image before the flip
    columns, rows = (resize_weights(*edges.to(device, non_blocking=True)) for edges in (box[:2], box[2:]))
    columns = torch.where(flip.to(device, non_blocking=True)[:, None, None], columns.flip(1), columns)
    factors, order = factors.to(device, non_blocking=True), order.to(device, non_blocking=True)
    result = torch.empty_like(clips)
    for start in range(0, len(clips), _CLIPS_AT_ONCE):
        part = slice(start, start + _CLIPS_AT_ONCE)
        crops = crop_and_resize(clips[part], columns[part], rows[part], box[:, part]).flatten(0, 1)
        crops = jitter(crops, factors[part].flatten(0, 1), order[part].flatten(0, 1))
        result[part] = crops.view_as(result[part])
    return result


def crop_and_resize(clips: torch.Tensor, columns: torch.Tensor, rows: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Resize clips (B, T, 3, 144, 144) by the weights (B, 144, 144) of their columns and rows, and round to bytes.

    Weights are zero outside the box (4, B) of each clip: its left, right, upper and lower edge, on the CPU. Returns
    float32, equal to cutting the boxes and `fast_resize`.
    """
    left, right, upper, lower = box
    x, y = slice(int(left.min()), int(right.max())), slice(int(upper.min()), int(lower.max()))
    with exact_products():
        clips = round_to_bytes(clips[..., y, x].float() @ columns[:, None, None, :, x].mT)
        return round_to_bytes(rows[:, None, None, :, y] @ clips)


def resize_weights(start: torch.Tensor, stop: torch.Tensor) -> torch.Tensor:
    """Weights (B, 144, 144) float32 that enlarge pixels start (B,) to stop (B,) of a line to 144 pixels.

    Bicubic, rounded to 16 bits as in torch. Products with bytes are exact in float32, in any order of summation.
    """
    start, stop = start[:, None, None], stop[:, None, None]
    pixels = torch.arange(CROP_SIZE, device=start.device)
    center = start + (pixels[:, None].double() + 0.5) * (stop - start) / CROP_SIZE
    distance = (pixels + 0.5 - center).abs()
    near = (1.5 * distance - 2.5) * distance**2 + 1  # of the cubic with a = -0.5
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0))
    weights *= (pixels >= start) & (pixels < stop)
    weights /= weights.sum(dim=2, keepdim=True)
    scale = torch.where(weights.amax(dim=(1, 2), keepdim=True) * 2**15 + 0.5 < 2**15, 2**15, 2**14)
    return ((weights.abs() * scale + 0.5).floor() * weights.sign() / scale).float()


def round_to_bytes(values: torch.Tensor) -> torch.Tensor:
    """Round to whole numbers from 0 to 255, in place."""
    return values.add_(0.5).floor_().clamp_(0, 255)


def jitter(crops: torch.Tensor, factors: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Scale brightness, contrast and saturation of crops (N, 3, h, w) by `factors` (N, 3), in the `order` (N, 3).

    Crops are whole numbers as float32, and so is the result. Equal to torchvision's `adjust_*` functions on Pillow
    images: a crop is blended with black, with its mean grey value, or with its greyscale version.
    """
    for index in order.T:
        index, factor = index[:, None, None, None], factors.gather(1, index[:, None])[..., None, None]
        image = grey(crops)
        pixels = image[0].numel()
        total = image.sum(dim=(1, 2, 3), keepdim=True)  # below 2^24, so exact
        mean = ((total + pixels / 2) / pixels).floor_()
        base = torch.where(index == 2, image, torch.where(index == 1, mean, 0))
        crops = (crops - base).mul_(factor).add_(base).clamp_(0, 255).floor_()
    return crops


def grey(crops: torch.Tensor) -> torch.Tensor:
    """Greyscale (N, 1, h, w) of crops (N, 3, h, w), whole numbers as float32, rounded like Pillow's mode L."""
    red, green, blue = crops.split(1, dim=1)
    return (red * _GREY[0]).add_(green * _GREY[1]).add_(blue * _GREY[2]).add_(0.5).floor_()
