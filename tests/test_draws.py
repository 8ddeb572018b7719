"""Index arithmetic: clips, time windows, and who joins a context."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from conftest import GOLDEN, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from core.contexts import draw_keys, draw_speakers, name_keys, window

GOLDEN_INDEX = json.loads((GOLDEN / "index.json").read_text())


# Windows


def test_golden_clips_and_contexts():
    kinds = {"clip": 0, "context": 0}
    for case in GOLDEN_INDEX:
        kinds[case["kind"]] += 1
        length = case["clip_length"] if case["kind"] == "clip" else case["length"]
        found = window(case["mid"], case["track_length"], length, case.get("stride", 1))
        assert found.tolist() == case["index"], case
    assert min(kinds.values()) > 50


@pytest.mark.parametrize(
    ("position", "rows", "length", "stride", "expected"),
    [
        (5, 20, 5, 1, [3, 4, 5, 6, 7]),
        (0, 20, 5, 1, [0, 0, 0, 1, 2]),
        (19, 20, 5, 1, [17, 18, 19, 19, 19]),
        (9, 20, 5, 4, [1, 5, 9, 13, 17]),
        (2, 6, 5, 4, [0, 0, 2, 5, 5]),
        (0, 1, 3, 9, [0, 0, 0]),
        (3, 7, 1, 4, [3]),
    ],
)
def test_windows_by_hand(position, rows, length, stride, expected):
    assert window(position, rows, length, stride).tolist() == expected


tracks = st.integers(1, 400).flatmap(lambda rows: st.tuples(st.integers(0, rows - 1), st.just(rows)))


@given(tracks, st.integers(0, 20).map(lambda n: 2 * n + 1), st.integers(1, 20))
def test_window(track, length, stride):
    position, rows = track
    found = window(position, rows, length, stride)
    assert found.shape == (length,)
    steps = range(-(length // 2), length // 2 + 1)
    assert found.tolist() == [min(max(position + k * stride, 0), rows - 1) for k in steps]
    # Read from the other end of the track, it is the same window.
    assert (rows - 1 - window(rows - 1 - position, rows, length, stride)[::-1]).tolist() == found.tolist()


@given(st.lists(tracks, min_size=1, max_size=12), st.sampled_from([1, 3, 11]), st.sampled_from([1, 4]))
def test_many_windows_at_once_equal_single_ones(many, length, stride):
    positions, rows = np.array(many).T
    together = window(positions, rows, length, stride)
    assert together.dtype.kind == "i"
    for one, found in zip(many, together, strict=True):
        assert found.tolist() == window(*one, length, stride).tolist()
    table = window(positions[:, None].repeat(2, 1), rows[:, None].repeat(2, 1), length, stride)
    assert table.shape == (len(many), 2, length)
    np.testing.assert_array_equal(table[:, 1], together)


# Speakers of a context

PEOPLE = name_keys([f"film_0900_0960:{n}" for n in range(8)])


def keys_of_rows(
    rows: int = 12_000, seed: int = 0, video: str = "film", entity: str = "film_0900_0960:99", begin: float = 900.0
) -> np.ndarray:
    """Keys of the rows of one track: all that differs between them is the timestamp."""
    timestamps = np.round(begin + np.arange(rows) / 25, 2)
    return draw_keys(seed, name_keys([video])[0], name_keys([entity])[0], timestamps)


def draw(candidates: int, speakers: int, keys: np.ndarray) -> np.ndarray:
    """Draws among the first of PEOPLE, all of them present."""
    shape = (len(keys), candidates)
    return draw_speakers(keys, np.broadcast_to(PEOPLE[:candidates], shape), np.ones(shape, bool), speakers)


def assert_uniform(outcomes: np.ndarray, expected: list[tuple[int, ...]]) -> None:
    """Chi-square test, at one in a million: draws are functions of their keys, so it passes always or never."""
    found = Counter(map(tuple, outcomes.tolist()))
    assert set(found) <= set(expected), "there are outcomes that cannot be"
    mean = len(outcomes) / len(expected)
    assert mean > 20
    statistic = sum((found[outcome] - mean) ** 2 / mean for outcome in expected)
    assert statistic < chi2.ppf(1 - 1e-6, max(len(expected) - 1, 1)), found


def test_the_test_of_uniformity_can_fail():
    rng = np.random.default_rng(0)
    assert_uniform(rng.integers(0, 6, (12_000, 1)), [(n,) for n in range(6)])
    with pytest.raises(AssertionError):  # the last of six outcomes a tenth less likely than the others
        assert_uniform(rng.choice(6, (12_000, 1), p=[0.17, 0.17, 0.17, 0.17, 0.17, 0.15]), [(n,) for n in range(6)])


@pytest.mark.parametrize(("candidates", "places"), [(1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 2), (5, 3), (8, 2)])
def test_enough_candidates_make_a_uniform_choice_in_uniform_order(candidates, places):
    chosen = draw(candidates, places + 1, keys_of_rows())
    assert chosen.shape == (12_000, places)
    assert_uniform(chosen, list(itertools.permutations(range(candidates), places)))


@pytest.mark.parametrize(("candidates", "places"), [(1, 2), (2, 3), (2, 4), (3, 4), (3, 5)])
def test_too_few_candidates_all_come_and_uniform_draws_among_them_fill_the_rest(candidates, places):
    orders = list(itertools.permutations(range(candidates)))
    fills = list(itertools.product(range(candidates), repeat=places - candidates))
    chosen = draw(candidates, places + 1, keys_of_rows())
    assert_uniform(chosen, [(*order, *fill) for order in orders for fill in fills])


def test_nobody_else_is_minus_one():
    keys = keys_of_rows(5)
    nobody = draw_speakers(keys, np.zeros((5, 0), np.uint64), np.zeros((5, 0), bool), 3)
    assert nobody.tolist() == [[-1, -1]] * 5
    absent = draw_speakers(keys, np.broadcast_to(PEOPLE, (5, 8)), np.zeros((5, 8), bool), 3)
    assert absent.tolist() == [[-1, -1]] * 5
    present = np.zeros((5, 8), bool)
    present[2, 6] = True  # rows with and without candidates in one batch
    mixed = draw_speakers(keys, np.broadcast_to(PEOPLE, (5, 8)), present, 3)
    assert mixed.tolist() == [[-1, -1], [-1, -1], [6, 6], [-1, -1], [-1, -1]]


def test_a_context_of_one_speaker_draws_nobody():
    assert draw(3, 1, keys_of_rows(7)).shape == (7, 0)


masks = st.integers(1, 9).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=6)
)


@settings(deadline=None)
@given(masks, st.integers(1, 6), st.randoms(use_true_random=False))
def test_draws_by_what_they_must_be(present, speakers, random):
    present = np.array(present)
    batch, width = present.shape
    keys = np.array([random.getrandbits(64) for _ in range(batch)], np.uint64)
    candidates = np.array([[random.getrandbits(64) for _ in range(width)] for _ in range(batch)], np.uint64)
    candidates[~present] = candidates.max(initial=0)  # what stands in the place of the absent is of no account
    chosen = draw_speakers(keys, candidates, present, speakers)
    assert chosen.shape == (batch, speakers - 1)
    for row, mask in zip(chosen, present, strict=True):
        there = set(np.flatnonzero(mask).tolist())
        if not there:
            assert (row == -1).all()
            continue
        distinct = row[: len(there)].tolist()
        assert set(row.tolist()) <= there
        assert len(set(distinct)) == len(distinct)


def test_where_candidates_stand_in_memory_does_not_matter():
    keys, rng = keys_of_rows(300), np.random.default_rng(0)
    for speakers in (2, 3, 6):
        people = PEOPLE[:4]
        expected = people[draw(4, speakers, keys)]
        shuffled = np.array([rng.permutation(people) for _ in keys])
        found = draw_speakers(keys, shuffled, np.ones(shuffled.shape, bool), speakers)
        np.testing.assert_array_equal(np.take_along_axis(shuffled, found, axis=1), expected)
        # With places of absent people among them, as in a batch where another row has more candidates.
        padded = np.concatenate((np.broadcast_to(PEOPLE[5:7], (300, 2)), shuffled, keys[:, None]), axis=1)
        present = np.broadcast_to([False, False, True, True, True, True, False], padded.shape)
        found = draw_speakers(keys, padded, present, speakers)
        np.testing.assert_array_equal(np.take_along_axis(padded, found, axis=1), expected)


def test_draws_do_not_depend_on_the_batch():
    keys = keys_of_rows(200)
    together = draw(5, 4, keys)
    np.testing.assert_array_equal(draw(5, 4, keys[::-1]), together[::-1])
    for row in (0, 1, 77, 199):
        np.testing.assert_array_equal(draw(5, 4, keys[row : row + 1]), together[row : row + 1])


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"seed": 2**63 - 1},
        {"video": "another film"},
        {"entity": "film_0900_0960:100"},
        {"begin": 900.04},  # every row beside the next one of its track
        {"begin": 1900.0},
    ],
    ids=lambda other: str(other),
)
def test_rows_that_differ_in_anything_draw_independently(other):
    """Whatever one of two rows draws says nothing about the other: all pairs of outcomes are as likely."""
    one, two = draw(3, 3, keys_of_rows()), draw(3, 3, keys_of_rows(**other))
    orders = list(itertools.permutations(range(3), 2))
    assert_uniform(np.concatenate((one, two), axis=1), [a + b for a in orders for b in orders])


def test_people_who_stand_in_each_others_contexts_draw_independently():
    names = ["a", "b", "c", "d"]
    people = name_keys(names)
    drawn = []
    for me in (0, 1):
        keys = keys_of_rows(entity=names[me])
        others = np.delete(np.arange(4), me)
        shape = (len(keys), 3)
        chosen = draw_speakers(keys, np.broadcast_to(people[others], shape), np.ones(shape, bool), 2)
        drawn.append(others[chosen])
    assert_uniform(np.concatenate(drawn, axis=1), list(itertools.product((1, 2, 3), (0, 2, 3))))


def test_the_same_people_elsewhere_draw_differently():
    """Among other candidates, the same rows make other choices: who comes first is not fixed by the row alone."""
    keys = keys_of_rows()
    shape = (len(keys), 2)
    one = draw_speakers(keys, np.broadcast_to(PEOPLE[:2], shape), np.ones(shape, bool), 2)
    two = draw_speakers(keys, np.broadcast_to(PEOPLE[2:4], shape), np.ones(shape, bool), 2)
    assert_uniform(np.concatenate((one, two), axis=1), list(itertools.product(range(2), repeat=2)))


def test_keys_are_all_different():
    names = name_keys([f"film_{part:04d}:{n}" for part in range(300) for n in range(100)])
    assert len(np.unique(names)) == 30_000
    rows = [keys_of_rows(), keys_of_rows(seed=1), keys_of_rows(video="a"), keys_of_rows(entity="a")]
    assert len(np.unique(np.concatenate(rows))) == 4 * 12_000
    # The video and the entity do not change places.
    one = keys_of_rows(10, video="a", entity="b")
    assert not np.isin(keys_of_rows(10, video="b", entity="a"), one).any()


def test_keys_are_the_same_in_every_process():
    code = (
        "from core.contexts import name_keys, draw_keys\n"
        "a, b = name_keys(['film', '\u00e4 -:7'])\n"
        "print(a, b, draw_keys(7, a, b, 1299.1))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    a, b = name_keys(["film", "\u00e4 -:7"])
    assert outputs == [f"{a} {b} {draw_keys(7, a, b, 1299.1)}\n"] * 2
