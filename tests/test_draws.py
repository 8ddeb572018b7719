"""Index arithmetic: windows of clips and contexts, and draws of the other speakers of a context."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from conftest import GOLDEN
from scipy.stats import chi2

from core.contexts import draw_keys, draw_speakers, name_keys, window

GOLDEN_INDEX = json.loads((GOLDEN / "index.json").read_text())


# Windows


def test_windows_are_those_of_the_released_code():
    kinds = {"clip": 0, "context": 0}
    for case in GOLDEN_INDEX:
        kinds[case["kind"]] += 1
        length = case["clip_length"] if case["kind"] == "clip" else case["length"]
        found = window(case["mid"], case["track_length"], length, case.get("stride", 1))
        assert found.tolist() == case["index"], case
    assert min(kinds.values()) > 50


# Speakers of a context

SPEAKERS = name_keys([f"video_0900_0960:{n}" for n in range(8)])


def row_keys(
    rows: int = 12_000, seed: int = 0, video: str = "video", entity: str = "video_0900_0960:99", first: float = 900.0
) -> np.ndarray:
    """Keys of the rows of one track, which differ only in the timestamp."""
    timestamps = np.round(first + np.arange(rows) / 25, 2)
    return draw_keys(seed, name_keys([video])[0], name_keys([entity])[0], timestamps)


def draw(num_candidates: int, num_speakers: int, keys: np.ndarray) -> np.ndarray:
    """Draw among the first of SPEAKERS."""
    shape = (len(keys), num_candidates)
    return draw_speakers(keys, np.broadcast_to(SPEAKERS[:num_candidates], shape), np.ones(shape, bool), num_speakers)


def assert_uniform(outcomes: np.ndarray, expected: list[tuple[int, ...]]) -> None:
    """Chi-square test at a level of one in a million. Draws are functions of their keys, so results are fixed."""
    found = Counter(map(tuple, outcomes.tolist()))
    assert set(found) <= set(expected)
    mean = len(outcomes) / len(expected)
    assert mean > 20
    statistic = sum((found[outcome] - mean) ** 2 / mean for outcome in expected)
    assert statistic < chi2.ppf(1 - 1e-6, max(len(expected) - 1, 1)), found


@pytest.mark.parametrize(("candidates", "others"), [(1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 2), (5, 3), (8, 2)])
def test_enough_candidates_are_drawn_uniformly_in_uniform_order(candidates, others):
    chosen = draw(candidates, others + 1, row_keys())
    assert chosen.shape == (12_000, others)
    assert_uniform(chosen, list(itertools.permutations(range(candidates), others)))


@pytest.mark.parametrize(("candidates", "others"), [(1, 2), (2, 3), (2, 4), (3, 4), (3, 5)])
def test_too_few_candidates_all_come_first_and_are_then_drawn_uniformly(candidates, others):
    orders = list(itertools.permutations(range(candidates)))
    refills = list(itertools.product(range(candidates), repeat=others - candidates))
    chosen = draw(candidates, others + 1, row_keys())
    assert_uniform(chosen, [(*order, *refill) for order in orders for refill in refills])


def test_rows_without_candidates_are_minus_one():
    keys, candidates = row_keys(5), np.broadcast_to(SPEAKERS, (5, 8))
    assert draw_speakers(keys, np.zeros((5, 0), np.uint64), np.zeros((5, 0), bool), 3).tolist() == [[-1, -1]] * 5
    present = np.zeros((5, 8), bool)
    assert draw_speakers(keys, candidates, present, 3).tolist() == [[-1, -1]] * 5
    present[2, 6] = True  # rows with and without candidates in one batch
    assert draw_speakers(keys, candidates, present, 3).tolist() == [[-1, -1]] * 2 + [[6, 6]] + [[-1, -1]] * 2


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"seed": 2**63 - 1},
        {"video": "another video"},
        {"entity": "video_0900_0960:100"},
        {"first": 900.04},  # each row and the next one of its track
        {"first": 1900.0},
    ],
    ids=str,
)
def test_draws_of_different_rows_are_independent(other):
    """All pairs of outcomes are equally likely."""
    one, two = draw(3, 3, row_keys()), draw(3, 3, row_keys(**other))
    orders = list(itertools.permutations(range(3), 2))
    assert_uniform(np.concatenate((one, two), axis=1), [a + b for a in orders for b in orders])


def test_draws_of_two_rows_of_a_frame_are_independent():
    """Each of the two is a candidate of the other."""
    names = ["a", "b", "c", "d"]
    candidate_keys = name_keys(names)
    drawn = []
    for reference in (0, 1):
        keys = row_keys(entity=names[reference])
        others = np.delete(np.arange(4), reference)
        shape = (len(keys), 3)
        chosen = draw_speakers(keys, np.broadcast_to(candidate_keys[others], shape), np.ones(shape, bool), 2)
        drawn.append(others[chosen])
    assert_uniform(np.concatenate(drawn, axis=1), list(itertools.product((1, 2, 3), (0, 2, 3))))


def test_keys_are_unique():
    names = name_keys([f"video_{part:04d}:{n}" for part in range(300) for n in range(100)])
    assert len(np.unique(names)) == 30_000
    rows = [row_keys(), row_keys(seed=1), row_keys(video="a"), row_keys(entity="a")]
    assert len(np.unique(np.concatenate(rows))) == 4 * 12_000
    assert not np.isin(row_keys(10, video="b", entity="a"), row_keys(10, video="a", entity="b")).any()


def test_keys_are_the_same_on_every_machine():
    video, entity = name_keys(["video", "\u00e4 -:7"])
    assert (video, entity) == (18294195224859926310, 9721710182613923150)
    assert draw_keys(7, video, entity, 1299.1) == 7107132422410967088
