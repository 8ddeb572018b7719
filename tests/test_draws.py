"""Index arithmetic: windows of clips and contexts, and draws of the other speakers of a context."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
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


rows_of_tracks = st.integers(1, 400).flatmap(lambda length: st.tuples(st.integers(0, length - 1), st.just(length)))


@settings(max_examples=50, deadline=None)
@given(st.lists(rows_of_tracks, min_size=1, max_size=12), st.sampled_from([1, 3, 11, 21]), st.integers(1, 20))
def test_windows_are_clamped_to_their_tracks(rows, length, stride):
    positions, track_lengths = np.array(rows).T
    found = window(positions, track_lengths, length, stride)
    assert found.shape == (len(rows), length)
    assert found.dtype.kind == "i"
    steps = range(-(length // 2), length // 2 + 1)
    for (position, track_length), one in zip(rows, found.tolist(), strict=True):
        assert one == [min(max(position + k * stride, 0), track_length - 1) for k in steps]
    both = window(positions[:, None].repeat(2, 1), track_lengths[:, None].repeat(2, 1), length, stride)
    assert both.shape == (len(rows), 2, length)
    np.testing.assert_array_equal(both[:, 1], found)


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


def test_a_context_of_one_speaker_has_no_others():
    assert draw(3, 1, row_keys(7)).shape == (7, 0)


masks = st.integers(1, 9).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=6)
)


@settings(max_examples=50, deadline=None)
@given(masks, st.integers(1, 6), st.randoms(use_true_random=False))
def test_only_present_candidates_are_drawn_and_distinct_ones_first(present, num_speakers, random):
    present = np.array(present)
    batch, width = present.shape
    keys = np.array([random.getrandbits(64) for _ in range(batch)], np.uint64)
    candidates = np.array([[random.getrandbits(64) for _ in range(width)] for _ in range(batch)], np.uint64)
    candidates[~present] = candidates.max(initial=0)
    chosen = draw_speakers(keys, candidates, present, num_speakers)
    assert chosen.shape == (batch, num_speakers - 1)
    for row, mask in zip(chosen, present, strict=True):
        allowed = set(np.flatnonzero(mask).tolist())
        if not allowed:
            assert (row == -1).all()
            continue
        distinct = row[: len(allowed)].tolist()
        assert set(row.tolist()) <= allowed
        assert len(set(distinct)) == len(distinct)


def test_order_and_padding_of_candidates_do_not_matter():
    keys, rng = row_keys(300), np.random.default_rng(0)
    for num_speakers in (2, 3, 6):
        names = SPEAKERS[:4]
        expected = names[draw(4, num_speakers, keys)]
        shuffled = np.array([rng.permutation(names) for _ in keys])
        found = draw_speakers(keys, shuffled, np.ones(shuffled.shape, bool), num_speakers)
        np.testing.assert_array_equal(np.take_along_axis(shuffled, found, axis=1), expected)
        # Absent candidates fill the columns of other rows' candidates.
        padded = np.concatenate((np.broadcast_to(SPEAKERS[5:7], (300, 2)), shuffled, keys[:, None]), axis=1)
        present = np.broadcast_to([False, False, True, True, True, True, False], padded.shape)
        found = draw_speakers(keys, padded, present, num_speakers)
        np.testing.assert_array_equal(np.take_along_axis(padded, found, axis=1), expected)


def test_draws_do_not_depend_on_the_batch():
    keys = row_keys(200)
    together = draw(5, 4, keys)
    np.testing.assert_array_equal(draw(5, 4, keys[::-1]), together[::-1])
    for row in (0, 1, 77, 199):
        np.testing.assert_array_equal(draw(5, 4, keys[row : row + 1]), together[row : row + 1])


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
