"""Transforms of face crops, for evaluation and for training."""

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from PIL import Image
from scipy.stats import chi2, kstest
from torchvision.transforms.v2 import functional as F

from core import transforms
from core.formats.clips import read_crop
from core.transforms import (
    augment,
    draw_augmentation,
    evaluation_clip,
    fast_resize,
    random_box,
    to_input,
    training_clip,
)

SIZE = 144
ONE_IN_A_MILLION = 1e-6


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def uniform(colour: tuple[int, int, int], size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    return Image.new("RGB", size, colour)


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(generator(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8))


@pytest.fixture
def no_jitter(monkeypatch):
    """Leaves flip and crop."""
    monkeypatch.setattr(transforms, "JITTER", 0.0)


def augmented_clip(images: list[Image.Image], rng: np.random.Generator) -> np.ndarray:
    """T crops of any size -> (T, 3, 144, 144) uint8, as in training."""
    draws = {name: torch.from_numpy(value)[None] for name, value in draw_augmentation(len(images), rng).items()}
    return augment(torch.from_numpy(training_clip(images))[None], **draws)[0].numpy()


# Evaluation


def test_evaluation_clip_has_the_released_values():
    with np.load(GOLDEN / "face.npz") as arrays:
        expected = arrays["tensor"]
    clip = evaluation_clip([read_crop(GOLDEN / "face.jpg")])
    assert clip.dtype == np.uint8
    assert clip.shape == (1, 3, SIZE, SIZE)
    found = to_input(torch.from_numpy(clip))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=1e-5)


def test_crops_are_normalised_with_mean_and_standard_deviation():
    crops = torch.zeros(2, 5, 3, SIZE, SIZE, dtype=torch.uint8)
    crops[1, 4, 0], crops[1, 4, 1], crops[1, 4, 2] = 255, 51, 102
    found = to_input(crops)
    assert found.shape == crops.shape
    assert found[0, 0, :, 7, 7].tolist() == pytest.approx([-0.2324 / 0.1987, -0.2721 / 0.2172, -0.3448 / 0.2403])
    assert found[1, 4, :, 143, 0].tolist() == pytest.approx(
        [(1 - 0.2324) / 0.1987, (0.2 - 0.2721) / 0.2172, (0.4 - 0.3448) / 0.2403], rel=1e-5
    )
    assert torch.equal(to_input(crops, torch.bfloat16), found.bfloat16())


def test_images_of_any_size_are_resized_as_by_pillow():
    sizes = [(30, 40), (144, 144), (300, 200), (1, 1), (1, 500), (97, 13)]
    images = [noise(size, seed) for seed, size in enumerate(sizes)]
    clip = evaluation_clip(images)
    assert clip.shape == (6, 3, SIZE, SIZE)
    assert clip.dtype == np.uint8
    for found, image in zip(clip, images, strict=True):
        expected = np.asarray(image.resize((144, 144), Image.BICUBIC))
        np.testing.assert_array_equal(found, expected.transpose(2, 0, 1))


# The box of the training crop


@pytest.fixture(scope="module")
def boxes() -> np.ndarray:
    """(n, 4) boxes: left, upper, right, lower."""
    rng = generator()
    return np.array([random_box(rng) for _ in range(40_000)])


def test_right_and_lower_edge_are_the_drawn_size(boxes):
    """The released code cuts columns j..w and rows i..h, where w = h = int(144 f) with f from U(0.5, 1)."""
    left, upper, right, lower = boxes.T
    assert (left >= 0).all() and (upper >= 0).all()
    assert (left < right).all() and (upper < lower).all()
    np.testing.assert_array_equal(right, lower)
    # A crop of this size fits into the image.
    assert (left <= SIZE - right).all() and (upper <= SIZE - lower).all()
    sizes, counts = np.unique(right, return_counts=True)
    assert sizes.tolist() == list(range(72, 144))
    mean = len(boxes) / 72
    assert ((counts - mean) ** 2 / mean).sum() < chi2.ppf(1 - ONE_IN_A_MILLION, 71)


@pytest.mark.parametrize("size", [73, 140])
def test_left_and_upper_edge_are_uniform(boxes, size):
    selected = boxes[boxes[:, 2] == size]
    positions = SIZE - size + 1
    for edge in selected[:, :2].T:
        counts = np.bincount(edge, minlength=positions)
        assert len(counts) == positions
        mean = len(selected) / positions
        assert ((counts - mean) ** 2 / mean).sum() < chi2.ppf(1 - ONE_IN_A_MILLION, positions - 1)


# Training clips


def test_training_clip_of_images_of_any_size():
    """All draws are from the given generator."""
    images = [noise(size, seed) for seed, size in enumerate([(30, 40), (144, 144), (300, 200), (1, 1)])]
    before = [image.tobytes() for image in images]
    clip = augmented_clip(images, generator(5))
    assert clip.shape == (4, 3, SIZE, SIZE)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    np.testing.assert_array_equal(augmented_clip(images, generator(5)), clip)
    assert not np.array_equal(augmented_clip(images, generator(6)), clip)
    assert [image.tobytes() for image in images] == before


def test_augmentation_equals_torchvision():
    """Flip, crop and resize of torch, and the colour jitter of torchvision on Pillow images, in every value."""
    images = [noise((50, 60), seed) for seed in range(3)]
    for seed in range(20):
        draws = draw_augmentation(3, generator(seed))
        left, upper, right, lower = draws["box"]
        found = augmented_clip(images, generator(seed))
        for crop, image, factors, order in zip(found, images, draws["factors"], draws["order"], strict=True):
            pixels = fast_resize(np.array(image)).transpose(1, 2, 0)
            pixels = pixels[:, ::-1] if draws["flip"] else pixels
            pixels = fast_resize(np.ascontiguousarray(pixels[upper:lower, left:right])).transpose(1, 2, 0)
            expected = F.to_pil_image(np.ascontiguousarray(pixels))
            for index in order:
                adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)[index]
                expected = adjust(expected, float(factors[index]))
            np.testing.assert_array_equal(crop.transpose(1, 2, 0), np.asarray(expected))


def test_clips_of_a_batch_are_augmented_as_single_ones(monkeypatch):
    clips = torch.from_numpy(generator().integers(0, 256, (5, 2, 3, SIZE, SIZE)).astype(np.uint8))
    draws = [draw_augmentation(2, generator(seed)) for seed in range(5)]
    batch = {name: torch.from_numpy(np.stack([draw[name] for draw in draws])) for name in draws[0]}
    together = augment(clips, **batch)
    monkeypatch.setattr(transforms, "_CLIPS_AT_ONCE", 1)
    assert torch.equal(together, augment(clips, **batch))


def geometry(crop: np.ndarray) -> tuple[bool, list[int]]:
    """Flip and box of a crop (3, 144, 144) of RAMPS, whose red is the column and whose green is the row.

    The box (left, upper, right, lower) is that in the flipped image, within a pixel.
    """
    edges = []
    flipped = False
    for channel, axis in ((0, 0), (1, 1)):
        line = crop[channel].mean(axis=axis)
        slope, start = np.polyfit(np.arange(20, 124), line[20:124], 1)
        low, high = sorted((start - slope / 2 + 0.5, start + slope * (SIZE - 0.5) + 0.5))
        if channel == 0 and slope < 0:
            flipped = True
            low, high = SIZE - high, SIZE - low
        edges.append((round(low), round(high)))
    return flipped, [edges[0][0], edges[1][0], edges[0][1], edges[1][1]]


RAMPS = Image.fromarray(
    np.stack(np.broadcast_arrays(np.arange(SIZE)[None], np.arange(SIZE)[:, None], 50), axis=2).astype(np.uint8)
)


def test_flip_and_box_are_drawn_once_per_clip(no_jitter):
    flips, found = [], []
    for seed in range(200):
        clip = augmented_clip([RAMPS] * 2, generator(seed))
        np.testing.assert_array_equal(clip[1], clip[0])
        flip, box = geometry(clip[0])
        flips.append(flip)
        found.append(box)
    assert abs(sum(flips) - 100) < 36  # half of the clips, within five standard deviations
    # The image is flipped, then cut: in the flipped image the right and the lower edge are the drawn size.
    left, upper, right, lower = np.array(found).T
    assert np.abs(right - lower).max() <= 1
    assert (left <= SIZE - right + 1).all() and (upper <= SIZE - lower + 1).all()
    assert abs(np.corrcoef(flips, left)[0, 1]) < 0.35  # five standard deviations


def test_without_jitter_a_training_crop_is_cut_and_resized(no_jitter):
    image = noise((SIZE, SIZE))
    flip, box = geometry(augmented_clip([RAMPS], generator(11))[0])
    expected = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
    candidates = [
        evaluation_clip([expected.crop((left, upper, size, size))])[0].astype(int)
        for left in range(box[0] - 1, box[0] + 2)
        for upper in range(box[1] - 1, box[1] + 2)
        for size in range(box[2] - 1, box[2] + 2)
    ]
    found = augmented_clip([image], generator(11))[0].astype(int)
    assert min(np.abs(found - candidate).max() for candidate in candidates) <= 1


TEXTURE = Image.fromarray(generator().integers(100, 140, (9, 9)).astype(np.uint8)).convert("RGB").resize((SIZE, SIZE))


@pytest.fixture(scope="module")
def grey_levels() -> np.ndarray:
    """(clips, T) levels of uniformly grey crops of level 100, which contrast and saturation do not change."""
    clips = [augmented_clip([uniform((100, 100, 100))] * 8, generator(seed)) for seed in range(60)]
    assert all((clip.min(axis=(1, 2, 3)) == clip.max(axis=(1, 2, 3))).all() for clip in clips)
    return np.array([clip[:, 0, 0, 0] for clip in clips])


def test_brightness_differs_between_the_crops_of_a_clip(grey_levels):
    """Factors are uniform from 0.6 to 1.4."""
    assert grey_levels.min() >= 60 and grey_levels.max() <= 140
    assert kstest(grey_levels.ravel() / 100, "uniform", args=(0.6, 0.8)).statistic < 0.1
    # Eight independent draws per clip have 7/8 of the total variance within clips; one draw per clip would have none.
    within = grey_levels.var(axis=1).mean()
    assert within / grey_levels.var() == pytest.approx(7 / 8, abs=0.1)


def test_contrast_differs_between_the_crops_of_a_clip():
    """Standard deviation over mean changes neither with brightness nor, in a grey image, with saturation."""
    spread = []
    for seed in range(20):
        clip = augmented_clip([TEXTURE] * 8, generator(seed))[:, 0].reshape(8, -1).astype(float)
        contrast = clip.std(axis=1) / clip.mean(axis=1)
        assert contrast.max() / contrast.min() < 1.4 / 0.6 * 1.1
        spread.append(contrast.std() / contrast.mean())
    assert np.mean(spread) == pytest.approx(0.23, abs=0.06)  # 0.231 for U(0.6, 1.4)


def test_saturation_differs_between_the_crops_of_a_clip():
    """In a uniform colour, contrast and saturation both scale the distance to its grey, by 0.6 to 1.4 each."""
    colour = (150, 88, 100)  # 0.299 r + 0.587 g + 0.114 b = 107.9
    variances = []
    for seed in range(30):
        clip = augmented_clip([uniform(colour)] * 8, generator(seed))[:, :, 70, 70].astype(float)
        luminance = clip @ [0.299, 0.587, 0.114]
        saturation = (clip[:, 0] - clip[:, 1]) / luminance * 107.9 / 62
        assert saturation.min() > 0.36 * 0.95 and saturation.max() < 1.96 * 1.05
        variances.append(saturation.var(ddof=1))
    # A factor from U(0.6, 1.4) has variance 0.64 / 12 = 0.0533, the product of two 1.0533 ** 2 - 1 = 0.1095.
    assert np.mean(variances) == pytest.approx(0.1095, abs=0.025)
