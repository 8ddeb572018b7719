"""Contexts: their speakers, steps and layout, and that draws are reproducible."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_inputs import Face, Track, faces_of, write_store

from core.contexts import Contexts
from core.datasets import ASCDataset
from core.formats.annotations import FaceTable
from core.formats.features import FeatureStore
from core.loaders import EpochSampler, batch_loader

CPU = torch.device("cpu")
# Two videos with the same timestamps, and tracks of different lengths whose rows are mixed
CROWD = sorted(
    faces_of(
        [
            Track("a", "0120120120", 10.0, "one"),
            Track("b", "11111", 10.08, "one"),
            Track("c", "0000000", 10.12, "one"),
            Track("d", "010", 10.16, "one"),
            Track("e", "1", 11.0, "one"),
            Track("a", "222111", 10.0, "two"),
            Track("z", "000000000", 10.0, "two"),
        ]
    ),
    key=lambda face: (face.video, face.time),
)


# A plain implementation of the specification


def plain_window(faces: list[Face], row: int, length: int, stride: int) -> list[int]:
    """Rows of the steps around a row, in its own track."""
    track = [index for index, face in enumerate(faces) if face[:2] == faces[row][:2]]
    track.sort(key=lambda index: faces[index].time)
    middle, half = track.index(row), length // 2
    return [track[min(max(middle + k * stride, 0), len(track) - 1)] for k in range(-half, half + 1)]


def assert_context(faces: list[Face], row: int, context: np.ndarray, stride: int) -> None:
    """Assert that the specification allows a context (L, S) of row indices for this row."""
    length, num_speakers = context.shape
    speakers = context[length // 2].tolist()
    assert speakers[0] == row
    for index, speaker in enumerate(speakers):
        assert context[:, index].tolist() == plain_window(faces, speaker, length, stride)
    reference, drawn = faces[row], speakers[1:]
    others = {
        index
        for index, face in enumerate(faces)
        if (face.video, face.time) == (reference.video, reference.time) and face.entity != reference.entity
    }
    if not others:
        assert drawn == [row] * (num_speakers - 1)
    elif len(others) >= num_speakers - 1:
        assert len(set(drawn)) == num_speakers - 1
        assert set(drawn) <= others
    else:
        assert set(drawn[: len(others)]) == set(drawn) == others


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


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore(write_store(tmp_path / "features", CROWD))


class TestSteps:
    @settings(max_examples=50, deadline=None)
    @given(
        tracks=st.lists(st.tuples(st.sampled_from("uv"), st.integers(0, 6), st.integers(1, 9)), min_size=1, max_size=8),
        length=st.sampled_from([1, 3, 5]),
        stride=st.integers(1, 5),
        num_speakers=st.integers(1, 5),
        seed=st.integers(0, 2**63 - 1),
        random=st.randoms(use_true_random=False),
    )
    def test_contexts_of_any_tracks_follow_the_specification(self, tracks, length, stride, num_speakers, seed, random):
        faces = faces_of(
            Track(f"face {i}", "0" * rows, round(10 + 0.04 * start, 2), video)
            for i, (video, start, rows) in enumerate(tracks)
        )
        random.shuffle(faces)
        faces.sort(key=lambda face: face.time)  # rows of different tracks are mixed, those of each are in order
        rows = np.array([random.randrange(len(faces)) for _ in range(6)])
        contexts = Contexts(table_of(faces), length, stride, num_speakers).draw(rows, seed)
        assert contexts.shape == (6, length, num_speakers)
        for row, context in zip(rows.tolist(), contexts, strict=True):
            assert_context(faces, row, context, stride)


class TestDataset:
    def test_features_of_each_step_and_speaker(self, store):
        """Input[c, l, s] is feature c of speaker s at step l. The features identify their row."""
        dataset, rows = ASCDataset(store, 3, 2, 4, seed=3), np.arange(len(CROWD))
        values = dataset.contexts(rows, 3).numpy()
        assert values.dtype == np.float32
        assert values.shape == (len(CROWD), 1024, 3, 4)
        source = values[:, 0] // 1024  # (B, L, S) rows
        assert (values == 1024 * source[:, None] + np.arange(1024)[:, None, None]).all()
        for row in rows:
            assert_context(CROWD, row, source[row].astype(int), 2)

    def test_batch_has_features_and_label_of_each_reference(self, store):
        dataset, rows = ASCDataset(store, 1, 1, 2, seed=5), np.arange(len(CROWD))
        batch = dataset.__getitems__([(0, row) for row in rows])
        assert torch.equal(batch["features"], dataset.contexts(rows, 5))
        assert batch["label"].dtype == torch.int64
        assert batch["label"].tolist() == [int(face.label == 1) for face in CROWD]


def contexts_by_row(
    store: FeatureStore, workers: int = 0, batch_size: int = 4, epoch: int = 1, shuffle: bool = False, **options
) -> dict[int, bytes]:
    """Features of the context of every row, from a loader. The reference's first feature identifies the row."""
    dataset = ASCDataset(store, 3, 2, 3, **{"seed": 0, **options})
    sampler = EpochSampler(len(dataset), seed=17, shuffle=shuffle)
    sampler.epoch = epoch
    result = {}
    for batch in batch_loader(dataset, sampler, batch_size, workers, CPU):
        for features in batch["features"]:
            result[int(features[0, 1, 0]) // 1024] = features.contiguous().numpy().tobytes()
    assert len(result) == len(CROWD)
    return result


class TestReproducibility:
    @pytest.mark.parametrize(
        "options",
        [{"batch_size": 1}, {"batch_size": 1000}, {"shuffle": True}, {"workers": 2, "batch_size": 3, "shuffle": True}],
        ids=str,
    )
    @pytest.mark.parametrize("redraw", [False, True])
    def test_draws_do_not_depend_on_batches_order_and_workers(self, store, options, redraw):
        assert contexts_by_row(store, redraw=redraw, **options) == contexts_by_row(store, redraw=redraw)

    def test_draws_do_not_depend_on_other_videos_and_order_of_rows(self, tmp_path):
        def contexts_of(faces: list[Face]) -> dict[Face, list[Face]]:
            table = FeatureStore(write_store(tmp_path / str(len(list(tmp_path.iterdir()))), faces)).table
            stored = [face for video in table.video_ids for face in faces if face.video == video]
            contexts = Contexts(table, 3, 2, 3).draw(np.arange(len(table)), 0).reshape(len(table), -1)
            return {face: [stored[row] for row in context] for face, context in zip(stored, contexts, strict=True)}

        expected = contexts_of(CROWD)
        reordered = CROWD[::-1]
        reordered.sort(key=lambda face: face.time)
        assert reordered != sorted(CROWD, key=lambda face: face.time)
        assert contexts_of(reordered) == expected
        more = contexts_of([*faces_of([Track("q", "0000", 10.0, "more"), Track("b", "0000", 10.0, "more")]), *CROWD])
        assert {face: context for face, context in more.items() if face.video != "more"} == expected

    def test_training_draws_differ_between_epochs_and_are_repeatable(self, store):
        assert contexts_by_row(store, epoch=1) == contexts_by_row(store, epoch=2)  # validation
        drawn = {
            (seed, epoch): contexts_by_row(store, redraw=True, seed=seed, epoch=epoch)
            for seed, epoch in product(range(3), range(1, 5))
        }
        assert contexts_by_row(store, redraw=True, seed=1, epoch=3) == drawn[1, 3]
        different = {tuple(sorted(contexts.items())) for contexts in drawn.values()}
        assert len(different) == len(drawn)  # epoch 2 of one seed is not epoch 1 of the next
