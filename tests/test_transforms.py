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


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(generator(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8))


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


def test_draws_of_training_clips():
    """Flip and box are drawn once per clip; for every crop three factors from U(0.6, 1.4), and their order."""
    draws = [draw_augmentation(8, generator(seed)) for seed in range(400)]
    names = ("flip", "box", "factors", "order")
    flip, box, factors, order = (np.array([draw[name] for draw in draws]) for name in names)
    assert abs(flip.sum() - 200) < 50  # within five standard deviations, as are the correlations
    assert abs(np.corrcoef(flip, box[:, 0])[0, 1]) < 0.25
    assert factors.shape == order.shape == (400, 8, 3)
    for factor in factors.reshape(-1, 3).T:
        assert kstest(factor, "uniform", args=(0.6, 0.8)).pvalue > ONE_IN_A_MILLION
    assert np.abs(np.corrcoef(factors.reshape(400, -1).T) - np.eye(24)).max() < 0.25
    assert len(np.unique(order.reshape(-1, 3), axis=0)) == 6
