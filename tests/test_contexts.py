"""Contexts of the second stage: who is drawn, which moments, in which layout, and that a draw is nobody's secret."""

from collections import Counter
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tiny_inputs import Face, Track, counting_features, faces_of, write_store

from core.contexts import Contexts
from core.datasets import ASCDataset
from core.formats.annotations import FaceTable
from core.formats.features import FeatureStore
from core.loaders import EpochSampler, batch_loader

CPU = torch.device("cpu")
LIKELY = 1e-4  # p-value: the draws are fixed, so a test that passes once passes always


# What the specification says, row by row and in plain Python


def tracks_by_name(faces: list[Face]) -> dict[tuple[str, str], list[int]]:
    """(video, entity) -> its rows in order of time."""
    rows: dict[tuple[str, str], list[int]] = {}
    for index in sorted(range(len(faces)), key=lambda index: faces[index].time):
        rows.setdefault((faces[index].video, faces[index].entity), []).append(index)
    return rows


def naive_window(faces: list[Face], row: int, clips: int, stride: int) -> list[int]:
    """Rows of the moments round a row, in its own track."""
    track = tracks_by_name(faces)[faces[row].video, faces[row].entity]
    middle = track.index(row)
    half = clips // 2
    return [track[min(max(middle + k * stride, 0), len(track) - 1)] for k in range(-half, half + 1)]


def naive_others(faces: list[Face], row: int) -> set[int]:
    """Rows of the other tracks at the same moment of the same video."""
    me = faces[row]
    return {index for index, face in enumerate(faces) if face[::2] == me[::2] and face.entity != me.entity}


def assert_context(faces: list[Face], row: int, context: np.ndarray, stride: int) -> None:
    """`context` (L, S) of row indices is one that the specification allows for this row."""
    clips, speakers = context.shape
    people = context[clips // 2].tolist()
    assert people[0] == row
    for speaker, person in enumerate(people):
        assert context[:, speaker].tolist() == naive_window(faces, person, clips, stride)
    others = naive_others(faces, row)
    drawn = people[1:]
    if not others:
        assert drawn == [row] * (speakers - 1)
    elif len(others) >= speakers - 1:
        assert len(set(drawn)) == speakers - 1
        assert set(drawn) <= others
    else:
        assert set(drawn[: len(others)]) == others
        assert set(drawn) == others


def table_of(faces: list[Face]) -> FaceTable:
    videos, entities = list(dict.fromkeys(f.video for f in faces)), list(dict.fromkeys(f[:2] for f in faces))
    return FaceTable(
        videos,
        [entity for _, entity in entities],
        np.array([videos.index(face.video) for face in faces], np.int32),
        np.array([entities.index(face[:2]) for face in faces], np.int32),
        np.array([face.time for face in faces]),
        np.array([face.label for face in faces], np.int8),
    )


def people(faces: list[Face], clips: int, stride: int, speakers: int, seed: int = 0) -> list[list[str]]:
    """Names of the speakers of every row's context."""
    contexts = Contexts(table_of(faces), clips, stride, speakers).draw(np.arange(len(faces)), seed)
    return [[faces[row].entity for row in context[clips // 2]] for context in contexts]


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore(write_store(tmp_path / "features", CROWD))


# Two films with the same timestamps, tracks that begin and end at different moments, rows of tracks mixed
CROWD = sorted(
    faces_of(
        [
            Track("a", "0120120120", 10.0, "film1"),
            Track("b", "11111", 10.08, "film1"),
            Track("c", "0000000", 10.12, "film1"),
            Track("d", "010", 10.16, "film1"),
            Track("e", "1", 11.0, "film1"),
            Track("a", "222111", 10.0, "film2"),
            Track("z", "000000000", 10.0, "film2"),
        ]
    ),
    key=lambda face: (face.video, face.time),
)


class TestWhoIsDrawn:
    @pytest.mark.parametrize("speakers", [1, 2, 3, 5])
    def test_alone_one_fills_every_place(self, speakers):
        assert people(faces_of([Track("me", "0110")]), 3, 1, speakers) == [["me"] * speakers] * 4

    @pytest.mark.parametrize("others", [1, 2, 3])
    def test_fewer_than_the_places_all_come_first_and_fill_the_rest(self, others):
        names = "xyz"[:others]
        faces = faces_of([Track("me", "0" * 30), *(Track(name, "0" * 30) for name in names)])
        seen = people(faces, 1, 1, 6)[:30]
        for who in seen:
            assert who[0] == "me"
            assert sorted(who[1 : 1 + others]) == list(names)
            assert set(who[1 + others :]) <= set(names)
        assert len({tuple(who[1 : 1 + others]) for who in seen}) == len(list(permutations(names)))

    def test_as_many_as_the_places_come_in_every_order(self):
        seen = people(faces_of([Track(name, "0" * 30) for name in ("me", "x", "y", "z")]), 1, 1, 4)[:30]
        assert {who[0] for who in seen} == {"me"}
        assert {tuple(who[1:]) for who in seen} == set(permutations("xyz"))

    def test_more_than_the_places_are_drawn_without_repeats(self):
        seen = people(faces_of([Track(name, "0" * 80) for name in ("me", *"stuvw")]), 1, 1, 4)[:80]
        assert all(len(set(who)) == 4 and who[0] == "me" for who in seen)
        assert {name for who in seen for name in who[1:]} == set("stuvw")

    def test_one_speaker_is_the_reference_alone(self):
        faces = faces_of([Track("me", "000"), Track("x", "000")])
        assert people(faces, 1, 1, 1) == [["me"]] * 3 + [["x"]] * 3

    def test_candidates_share_the_video_and_not_only_the_moment(self):
        faces = faces_of([Track("me", "00", 10.0, "film1"), *(Track(f"x{i}", "00", 10.0, "film2") for i in range(9))])
        assert people(faces, 1, 1, 3)[:2] == [["me"] * 3] * 2

    def test_candidates_share_the_moment_and_not_only_the_video(self):
        faces = faces_of([Track("me", "000", 10.0), Track("before", "00000", 9.8), Track("after", "000", 10.12)])
        assert people(faces, 1, 1, 2)[:3] == [["me", "me"]] * 3

    def test_one_name_in_two_films_is_two_people(self, store):
        """Entity `a` is in both films of CROWD: the windows of either stay in its own film."""
        film2 = [row for row, face in enumerate(CROWD) if face.video == "film2" and face.entity == "a"]
        contexts = Contexts(store.table, 5, 2, 1).draw(np.array(film2), 0)
        assert {CROWD[row].video for row in contexts.ravel()} == {"film2"}
        assert [naive_window(CROWD, row, 5, 2) for row in film2] == contexts[:, :, 0].tolist()

    def test_twenty_eight_faces_in_one_frame(self):
        faces = faces_of([Track(f"face {i}", "00") for i in range(28)])
        contexts = Contexts(table_of(faces), 3, 1, 28).draw(np.arange(56), 0)
        for row in range(56):
            assert_context(faces, row, contexts[row], 1)
            assert sorted(faces[other].entity for other in contexts[row, 1]) == sorted(f"face {i}" for i in range(28))


class TestTimeWindow:
    def test_is_clamped_in_the_track_of_each_speaker(self):
        """`short` sits in rows 2 to 4 of `long`: at 10.12 s it is in its position 1 and `long` in 3."""
        faces = faces_of([Track("long", "0" * 10), Track("short", "000", 10.08)])
        contexts = Contexts(table_of(faces), 5, 2, 2).draw(np.array([3]), 0)
        assert contexts[0, :, 0].tolist() == [0, 1, 3, 5, 7]
        assert contexts[0, :, 1].tolist() == [10, 10, 11, 12, 12]

    @pytest.mark.parametrize(("row", "expected"), [(0, [0, 0, 0, 4, 8]), (5, [0, 1, 5, 9, 9]), (9, [1, 5, 9, 9, 9])])
    def test_stride_counts_rows(self, row, expected):
        contexts = Contexts(table_of(faces_of([Track("me", "0" * 10)])), 5, 4, 1).draw(np.array([row]), 0)
        assert contexts[0, :, 0].tolist() == expected

    @settings(max_examples=60, deadline=None)
    @given(
        tracks=st.lists(st.tuples(st.sampled_from("uv"), st.integers(0, 6), st.integers(1, 9)), min_size=1, max_size=8),
        clips=st.sampled_from([1, 3, 5]),
        stride=st.integers(1, 5),
        speakers=st.integers(1, 5),
        seed=st.integers(0, 2**63 - 1),
        mixed=st.randoms(use_true_random=False),
    )
    def test_any_tracks_give_what_plain_python_gives(self, tracks, clips, stride, speakers, seed, mixed):
        faces = faces_of(
            Track(f"face {i}", "0" * length, round(10 + 0.04 * start, 2), video)
            for i, (video, start, length) in enumerate(tracks)
        )
        mixed.shuffle(faces)
        faces.sort(key=lambda face: face.time)  # a track's rows rise in time, whatever stands between them
        rows = np.array([mixed.randrange(len(faces)) for _ in range(6)])
        contexts = Contexts(table_of(faces), clips, stride, speakers).draw(rows, seed)
        assert contexts.shape == (6, clips, speakers)
        for row, context in zip(rows.tolist(), contexts, strict=True):
            assert_context(faces, row, context, stride)


class TestLayout:
    def test_feature_of_a_speaker_at_a_moment(self, store):
        """Input[c, l, s] = feature c of speaker s at moment l, and features say which row they are of."""
        clips, stride, speakers = 3, 2, 4
        dataset = ASCDataset(store, clips, stride, speakers, seed=3)
        batch = dataset.__getitems__([(0, row) for row in range(len(CROWD))])
        values = batch["features"].numpy()
        assert values.dtype == np.float32
        assert values.shape == (len(CROWD), 1024, clips, speakers)
        source = values[:, 0] // 1024  # (B, L, S) rows
        assert (values == 1024 * source[:, None] + np.arange(1024)[:, None, None]).all()
        for row in range(len(CROWD)):
            assert_context(CROWD, row, source[row].astype(int), stride)

    def test_labels_are_those_of_the_reference(self, store):
        batch = ASCDataset(store, 1, 1, 2, seed=0).__getitems__([(0, row) for row in range(len(CROWD))])
        assert batch["label"].dtype == torch.int64
        assert batch["label"].tolist() == [int(face.label == 1) for face in CROWD]


def samples(
    store: FeatureStore, workers: int = 0, batch: int = 4, epoch: int = 1, shuffle: bool = False, **options
) -> dict[int, bytes]:
    """Every row's features as a loader hands them out; rows are told by the reference's first value."""
    dataset = ASCDataset(store, 3, 2, 3, **{"seed": 0, **options})
    sampler = EpochSampler(len(dataset), seed=17, shuffle=shuffle)
    sampler.epoch = epoch
    result = {}
    for part in batch_loader(dataset, sampler, batch, workers, CPU):
        for features in part["features"]:
            result[int(features[0, 1, 0]) // 1024] = features.contiguous().numpy().tobytes()
    return result


class TestDrawsAreReproducible:
    @pytest.mark.parametrize(
        "how",
        [{"batch": 1}, {"batch": 1000}, {"shuffle": True}, {"workers": 2}, {"workers": 2, "batch": 3, "shuffle": True}],
        ids=str,
    )
    @pytest.mark.parametrize("redraw", [False, True])
    def test_whatever_the_batches_order_and_workers(self, store, how, redraw):
        plain = samples(store, redraw=redraw)
        assert len(plain) == len(CROWD)
        assert samples(store, redraw=redraw, **how) == plain

    def test_whatever_else_the_store_holds_and_in_which_order(self, tmp_path):
        """A film more, before the others, and tracks met in another order: the same contexts by name."""

        def named(faces: list[Face]) -> dict[Face, list[Face]]:
            table = FeatureStore(write_store(tmp_path / str(len(list(tmp_path.iterdir()))), faces)).table
            # A store is sorted by film, in each by the order of its file
            stored = [face for video in table.video_ids for face in faces if face.video == video]
            contexts = Contexts(table, 3, 2, 3).draw(np.arange(len(table)), 0).reshape(len(table), -1)
            return {face: [stored[row] for row in context] for face, context in zip(stored, contexts, strict=True)}

        plain = named(CROWD)
        upside_down = CROWD[::-1]
        upside_down.sort(key=lambda face: face.time)
        assert upside_down != sorted(CROWD, key=lambda face: face.time)
        assert named(upside_down) == plain
        more = named([*faces_of([Track("q", "0000", 10.0, "a film"), Track("b", "0000", 10.0, "a film")]), *CROWD])
        assert {face: context for face, context in more.items() if face.video != "a film"} == plain

    def test_another_seed_another_draw(self, store):
        drawn = [samples(store, seed=seed) for seed in (0, 1, 2**63 - 1)]
        assert drawn[0] != drawn[1]
        assert drawn[0] != drawn[2]
        assert drawn[1] != drawn[2]

    def test_validation_draws_the_same_in_every_epoch(self, store):
        assert samples(store, epoch=1) == samples(store, epoch=2)

    def test_training_draws_anew_in_every_epoch_and_the_same_again(self, store):
        drawn = {
            (seed, epoch): samples(store, redraw=True, seed=seed, epoch=epoch)
            for seed, epoch in product(range(3), range(1, 5))
        }
        assert samples(store, redraw=True, seed=1, epoch=3) == drawn[1, 3]
        different = {tuple(sorted(one.items())) for one in drawn.values()}
        assert len(different) == len(drawn)  # nor is epoch 2 of one seed epoch 1 of the next

    def test_rows_of_one_name_in_another_film_draw_otherwise(self):
        cast = [Track(name, "0" * 40) for name in "abcdefgh"]
        other = [Track(track.entity, track.labels, track.first, "another") for track in cast]
        assert people(faces_of(cast), 1, 1, 3) != people(faces_of(other), 1, 1, 3)


ROWS = 6000


def drawn_others(count: int, speakers: int, seed: int = 0) -> np.ndarray:
    """(ROWS, speakers - 1) whom one face draws of `count` others, as numbers from 0."""
    names = [f"film_0900_0960:{i}" for i in range(count + 1)]
    faces = faces_of(Track(name, "0" * ROWS, 900.0) for name in names)
    contexts = Contexts(table_of(faces), 1, 1, speakers).draw(np.arange(ROWS), seed)
    return contexts[:, 0, 1:] // ROWS - 1


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    """(ROWS, 4): four of five others."""
    return drawn_others(5, 5)


class TestDrawsAreUniform:
    """Over thousands of moments; a p-value under one in ten thousand would be no accident."""

    @staticmethod
    def assert_even(outcomes: list, kinds: int) -> None:
        counts = Counter(outcomes)
        assert len(counts) == kinds
        assert chisquare(list(counts.values())).pvalue > LIKELY

    def test_each_place(self, drawn):
        for place in drawn.T:
            self.assert_even(place.tolist(), 5)

    def test_pairs_of_places_in_order(self, drawn):
        self.assert_even(list(map(tuple, drawn[:, :2].tolist())), 5 * 4)
        self.assert_even(list(map(tuple, drawn[:, 2:].tolist())), 5 * 4)

    def test_whole_orders(self, drawn):
        self.assert_even(list(map(tuple, drawn.tolist())), 5 * 4 * 3 * 2)

    def test_one_moment_does_not_tell_the_next(self, drawn):
        self.assert_even(list(zip(drawn[:-1, 0].tolist(), drawn[1:, 0].tolist(), strict=True)), 25)

    def test_one_seed_does_not_tell_the_next(self, drawn):
        following = drawn_others(5, 5, seed=1)
        self.assert_even(list(zip(drawn[:, 0].tolist(), following[:, 0].tolist(), strict=True)), 25)

    def test_one_face_does_not_tell_what_another_draws(self):
        """Whom two faces of one frame draw, of those who stand by for both."""
        faces = faces_of(Track(name, "0" * ROWS, 900.0) for name in "abcde")
        contexts = Contexts(table_of(faces), 1, 1, 2).draw(np.arange(2 * ROWS), 0)[:, 0, 1] // ROWS
        both = [(one, two) for one, two in zip(contexts[:ROWS], contexts[ROWS:], strict=True) if one >= 2 and two >= 2]
        self.assert_even(both, 9)

    def test_places_left_over(self):
        """Two others for five places: three are filled, each by either, whoever came first."""
        drawn = drawn_others(2, 6)
        assert (np.sort(drawn[:, :2], axis=1) == [0, 1]).all()
        self.assert_even(list(map(tuple, drawn[:, [0, 2, 3, 4]].tolist())), 16)

    def test_training_over_epochs(self, tmp_path):
        """One row, many epochs: as even as many rows in one."""
        store = FeatureStore(write_store(tmp_path, faces_of([Track(name, "0") for name in "abcd"]), counting_features))
        dataset = ASCDataset(store, 1, 1, 2, seed=0, redraw=True)
        outcomes = [int(dataset.__getitems__([(epoch, 0)])["features"][0, 0, 0, 1]) // 1024 for epoch in range(1, 2001)]
        self.assert_even(outcomes, 3)
