"""Cost of reading and assembling inputs: each frame, crop and wav is read at most once; fast versions are exact."""

import wave
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_lines
from numbered_videos import make_video
from tiny_inputs import (
    Face,
    Track,
    faces_of,
    write_annotations,
    write_encoder_inputs,
    write_store,
    write_wav,
)
from torchvision.transforms.v2 import functional as F

from core import datasets
from core.datasets import ASCDataset, ClipReader, STEDataset, STETrackDataset
from core.formats import features
from core.formats.annotations import read_annotations
from core.formats.features import FeatureStore
from core.loaders import ContextLoader, EpochSampler, clip_batches
from core.media import crops
from core.media import reader as video_reader
from core.media.audio import slice_track_audio
from core.media.reader import VideoReader
from core.runtime.jobs import Outcome
from core.transforms import evaluation_clip, fast_resize

CPU = torch.device("cpu")
LABELS = "0110210110"
TRACKS = [Track(f"video:{index}", LABELS[index:] + LABELS, 10 + index / 5, "video") for index in range(4)]


class TestCrops:
    @pytest.fixture
    def extract(self, monkeypatch, tmp_path):
        """Extract two faces at each timestamp of a video of 200 frames; returns the counts and the number of crops."""
        path, calls = make_video(tmp_path / "video.mp4", seconds=8), Counter()
        decode, convert = video_reader.decode, VideoReader._convert

        def counted_decode(*arguments):
            for each in decode(*arguments):
                calls["decoded"] += 1
                yield each

        def counted_convert(*arguments):
            calls["converted"] += 1
            return convert(*arguments)

        monkeypatch.setattr(video_reader, "decode", counted_decode)
        monkeypatch.setattr(VideoReader, "_convert", counted_convert)

        def extract(timestamps: np.ndarray, seek_gap: float) -> tuple[Counter, int]:
            monkeypatch.setattr(crops, "SEEK_GAP_SECONDS", seek_gap)
            faces = [Face("video", entity, time, 0) for entity in "ab" for time in timestamps.tolist()]
            table = read_annotations(write_annotations(tmp_path / "faces.csv", faces))
            with VideoReader(path) as video:
                outcome = Outcome()
                crops.extract_crops(table, np.arange(len(table)), video, tmp_path / "out", outcome, lambda _: None)
            return calls, outcome.done

        return extract

    def test_each_frame_is_decoded_at_most_once(self, extract):
        calls, done = extract(np.arange(10, 150) / 25, seek_gap=1e9)
        assert done == 280
        assert calls["decoded"] <= 151
        assert calls["converted"] <= 140

    def test_long_gaps_are_not_decoded(self, extract):
        calls, done = extract(np.array([0, 2, 180, 181]) / 25, seek_gap=2)
        assert done == 8
        assert calls["decoded"] < 60  # keyframes are 50 frames apart
        assert calls["converted"] <= 4


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_encoder_inputs(tmp_path_factory.mktemp("clips"), "train", TRACKS)


@pytest.fixture
def reader(clips) -> ClipReader:
    return ClipReader(read_annotations(clips / "train.csv"), clips / "wavs" / "train", clips / "crops" / "train", 5)


@pytest.fixture
def opened_crops(monkeypatch) -> list[Path]:
    """Paths of all crops that are opened."""
    paths: list[Path] = []
    original = datasets.read_crop
    monkeypatch.setattr(datasets, "read_crop", lambda path: paths.append(path) or original(path))
    return paths


@pytest.fixture
def read_samples(monkeypatch) -> list[int]:
    """Number of samples of each read from a wav."""
    lengths: list[int] = []
    original = wave.Wave_read.readframes
    monkeypatch.setattr(
        wave.Wave_read, "readframes", lambda self, count: lengths.append(count) or original(self, count)
    )
    return lengths


class TestEncoder:
    def test_forward_opens_each_crop_and_wav_once(self, reader, opened_crops, read_samples):
        """Batches are filled across tracks, in channels last."""
        tracks = STETrackDataset(reader)
        batches = list(clip_batches((tracks[index] for index in range(len(tracks))), 8, CPU, torch.float32))
        assert sum(len(rows) for rows, _, _ in batches) == len(reader.table)
        assert {len(rows) for rows, _, _ in batches[:-1]} == {8}
        assert all(video.is_contiguous(memory_format=torch.channels_last) for _, _, video in batches)
        assert len(opened_crops) == len(set(opened_crops)) == len(reader.table)
        assert len(read_samples) == len(TRACKS)

    def test_training_clip_reads_only_its_crops_and_audio(self, reader, opened_crops, read_samples):
        dataset = STEDataset(reader, seed=0, augment=False)
        dataset[1, 0]
        assert 3 <= len(opened_crops) == len(set(opened_crops)) <= 5
        for index in range(1, len(dataset)):
            dataset[1, index]
        longest = round(4 * 0.04 * 16000)
        assert len(read_samples) == len(dataset)
        assert 0 < max(read_samples) <= longest + 1


def test_slicing_reads_only_the_audio_of_the_tracks(tmp_path, read_samples):
    faces = faces_of([Track("a", "0" * 26, first=3, video="video"), Track("b", "0" * 51, first=50, video="video")])
    csv = write_annotations(tmp_path / "video-activespeaker.csv", faces)
    write_wav(tmp_path / "audio" / "video.wav", np.arange(60 * 16000) % 1000)
    table, wav, outcome = read_annotations(csv), tmp_path / "audio" / "video.wav", Outcome()
    slice_track_audio(table, 0, wav, tmp_path / "out", set(), outcome, lambda _: None)
    assert outcome.done == 2
    assert sorted(read_samples) == [16000, 32000]


class TestContexts:
    @pytest.fixture
    def contexts(self, tmp_path) -> ASCDataset:
        return ASCDataset(FeatureStore(write_store(tmp_path, faces_of(TRACKS))), 5, 2, 3, seed=0)

    def test_features_of_a_batch_are_gathered_at_once(self, contexts, monkeypatch):
        shapes = []
        original = FeatureStore.gather
        monkeypatch.setattr(
            FeatureStore, "gather", lambda self, rows: shapes.append(rows.shape) or original(self, rows)
        )
        batches = list(ContextLoader(contexts, EpochSampler(len(contexts), 0), 16, 0, CPU))
        assert [shape[1:] for shape in shapes] == [(5, 3)] * len(batches)
        assert sum(shape[0] for shape in shapes) == len(contexts)

    def test_features_on_the_device_give_the_same_batches(self, contexts, monkeypatch):
        monkeypatch.setattr(features, "_ROWS_AT_ONCE", 7)
        monkeypatch.setattr(features, "fits_on", lambda device, num_bytes: True)
        keys = [(0, row) for row in range(len(contexts))]
        before = contexts.__getitems__(keys)
        contexts.store.cache_on(CPU, np.arange(len(contexts)))
        monkeypatch.setattr(FeatureStore, "gather", None)  # no further reads
        after = contexts.__getitems__(keys)
        assert torch.equal(before["features"], after["features"])
        assert torch.equal(before["label"], after["label"])

    def test_features_of_some_rows_on_the_device(self, contexts, monkeypatch):
        monkeypatch.setattr(features, "fits_on", lambda device, num_bytes: True)
        rows = np.array([3, 8, 9, 20])
        expected = torch.from_numpy(contexts.store.gather(rows))
        contexts.store.cache_on(CPU, np.arange(5))
        contexts.store.cache_on(CPU, rows)
        monkeypatch.setattr(FeatureStore, "gather", None)
        assert torch.equal(contexts.store.tensor(rows[::-1].copy()), expected.flip(0))


# Fast versions


@pytest.mark.parametrize("size", [(144, 144), (90, 40), (300, 299), (1, 1)])
def test_fast_resize_differs_by_at_most_one_grey_level(size):
    """Sizes for which Pillow resizes rows first as well; for tall images it may start with columns."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    difference = np.abs(fast_resize(pixels).astype(int) - evaluation_clip([F.to_pil_image(pixels)])[0])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_numeric_ids_remain_text_if_other_ids_follow(tmp_path):
    """The csv is parsed in parts, and all ids of the first part look like numbers."""
    names = [f"{index:05d}" for index in range(2500)] + ["x"]
    rows = (f"video,{k / 25:g},0.1,0.1,0.2,0.2,NOT_SPEAKING,{name}" for name in names for k in range(20))
    assert read_annotations(write_lines(tmp_path / "video-activespeaker.csv", rows)).entity_ids == names
