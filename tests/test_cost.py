"""What made the stages fast, guarded by counting and not by timing; and that the faster ways give the same numbers."""

import json
import runpy
import wave
from collections import Counter
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, run_script, write_lines
from scipy.ndimage import median_filter
from tiny_inputs import (
    Face,
    Track,
    digests,
    faces_of,
    run_here,
    write_annotations,
    write_encoder_inputs,
    write_store,
    write_wav,
)
from torchvision.transforms.v2 import functional as F

from core import datasets, metrics
from core.datasets import ASCDataset, ClipReader, STEDataset, STETrackDataset
from core.formats.annotations import FaceTable, read_annotations
from core.formats.features import FeatureStore
from core.loaders import EpochSampler, batch_loader, clip_batches
from core.media import crops
from core.media.reader import VideoReader
from core.metrics import smooth_tracks
from core.runtime.files import write_csv
from core.runtime.jobs import Outcome
from core.transforms import JITTER, fast_resize, jitter, resize

CPU = torch.device("cpu")
LABELS = "0110210110"
TRACKS = [Track(f"film:{index}", LABELS[index:] + LABELS, first=10 + index / 5) for index in range(4)]
BOX = (0.25, 0.125, 0.5, 0.75)


class CountedFilm:
    """A film of 200 frames in place of OpenCV's, which counts what is asked of it."""

    calls: ClassVar[Counter] = Counter()

    def __init__(self, *_):
        self.calls["open"] += 1
        self.next = 0

    def isOpened(self) -> bool:
        return True

    def release(self) -> None:
        pass

    def get(self, what: int) -> float:
        size = {cv2.CAP_PROP_FRAME_WIDTH: 160.0, cv2.CAP_PROP_FRAME_HEIGHT: 90.0}
        return {cv2.CAP_PROP_FPS: 25.0, cv2.CAP_PROP_POS_MSEC: 40.0 * (self.next - 1), **size}[what]

    def set(self, what: int, value: float) -> None:
        self.calls["seek"] += 1
        self.next = int(value)

    def grab(self) -> bool:
        self.calls["grab"] += 1
        self.next += 1
        return self.next <= 200

    def retrieve(self) -> tuple[bool, np.ndarray]:
        self.calls["retrieve"] += 1
        return True, np.full((90, 160, 3), self.next % 256, np.uint8)


class TestCrops:
    @pytest.fixture
    def cut(self, monkeypatch, tmp_path):
        """Cut the faces at some moments of the film, two at each; what was asked of the film, and what came of it."""
        monkeypatch.setattr(CountedFilm, "calls", Counter())
        monkeypatch.setattr(cv2, "VideoCapture", CountedFilm)

        def cut(times: np.ndarray, seek_gap: float) -> tuple[Counter, Outcome]:
            monkeypatch.setattr(crops, "SEEK_GAP_SECONDS", seek_gap)
            rows = len(times) * 2
            entity = np.repeat(np.arange(2, dtype=np.int32), len(times))
            table = FaceTable(
                ["film"], ["a", "b"], np.zeros(rows, np.int32), entity, np.tile(times, 2), np.zeros(rows, np.int8),
                np.tile(BOX, (rows, 1)),
            )  # fmt: skip
            (tmp_path / "film.mp4").touch()
            with VideoReader(tmp_path / "film.mp4") as film:
                outcome = Outcome()
                crops.extract_crops(table, np.arange(rows), film, tmp_path / "out", outcome, lambda _: None)
            return CountedFilm.calls, outcome

        return cut

    def test_every_frame_is_decoded_once_whatever_the_faces_in_it(self, cut):
        calls, outcome = cut(np.arange(10, 150) / 25, seek_gap=1e9)
        assert outcome.done == 280
        assert calls == {"open": 1, "grab": 150, "retrieve": 140}

    def test_frames_without_faces_are_passed_and_long_gaps_jumped(self, cut):
        calls, outcome = cut(np.array([0, 2, 180, 181]) / 25, seek_gap=2)
        assert outcome.done == 8
        assert calls == {"open": 1, "grab": 5, "retrieve": 4, "seek": 1}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return write_encoder_inputs(tmp_path_factory.mktemp("inputs"), "train", TRACKS)


@pytest.fixture
def reader(inputs) -> ClipReader:
    return ClipReader(read_annotations(inputs / "train.csv"), inputs / "wavs" / "train", inputs / "crops" / "train", 5)


@pytest.fixture
def opened(monkeypatch) -> list[Path]:
    """Every crop that is opened from now on."""
    paths: list[Path] = []
    original = datasets.read_crop
    monkeypatch.setattr(datasets, "read_crop", lambda path: paths.append(path) or original(path))
    return paths


@pytest.fixture
def samples_read(monkeypatch) -> list[int]:
    """How many samples every reading of a wav takes from now on."""
    lengths: list[int] = []
    original = wave.Wave_read.readframes

    def counted(self, count):
        lengths.append(count)
        return original(self, count)

    monkeypatch.setattr(wave.Wave_read, "readframes", counted)
    return lengths


class TestEncoder:
    def test_forward_opens_every_crop_and_every_wav_once(self, reader, opened, samples_read):
        pieces = STETrackDataset(reader)
        batches = list(clip_batches((pieces[index] for index in range(len(pieces))), 8, CPU, torch.float32))
        assert sum(len(rows) for rows, _, _ in batches) == len(reader.table)
        assert Counter(Counter(opened).values()) == {1: len(reader.table)}
        assert len(samples_read) == len(TRACKS)

    def test_forward_makes_full_batches_across_tracks_in_the_layout_of_the_network(self, reader):
        pieces = STETrackDataset(reader)
        batches = list(clip_batches((pieces[index] for index in range(len(pieces))), 8, CPU, torch.float32))
        sizes = [len(rows) for rows, _, _ in batches]
        assert set(sizes[:-1]) == {8}
        for _, _, clips in batches:
            assert clips.is_contiguous(memory_format=torch.channels_last)

    def test_a_training_clip_opens_its_own_crops_only(self, reader, opened):
        STEDataset(reader, seed=0, augment=True)[1, 0]
        assert 3 <= len(opened) == len(set(opened)) <= 5

    def test_a_training_clip_reads_its_own_sound_only(self, reader, samples_read):
        clips = STEDataset(reader, seed=0, augment=False)
        for index in range(len(clips)):
            clips[1, index]
        longest = round(4 * 0.04 * 16000)
        assert len(samples_read) == len(clips)
        assert 0 < max(samples_read) <= longest + 1


def test_slices_read_what_they_hold_and_no_more_of_a_film(tmp_path, samples_read):
    faces = faces_of([Track("a", "0" * 26, first=3), Track("b", "0" * 51, first=50)])
    csv = write_annotations(tmp_path / "film-activespeaker.csv", faces)
    write_wav(tmp_path / "audio" / "film.wav", np.arange(60 * 16000) % 1000)
    paths = ("--csv", csv, "--ava-audio-dir", tmp_path / "audio", "--output-dir", tmp_path / "out")
    assert run_here("data/slice_audio_tracks.py", *paths).returncode == 0
    assert sorted(samples_read) == [16000, 32000]


class TestContexts:
    @pytest.fixture
    def contexts(self, tmp_path) -> ASCDataset:
        return ASCDataset(FeatureStore(write_store(tmp_path, faces_of(TRACKS))), 5, 2, 3, seed=0)

    def test_one_gather_a_batch(self, contexts, monkeypatch):
        shapes = []
        original = FeatureStore.gather
        monkeypatch.setattr(
            FeatureStore, "gather", lambda self, rows: shapes.append(rows.shape) or original(self, rows)
        )
        batches = list(batch_loader(contexts, EpochSampler(len(contexts), 0), 16, 0, CPU))
        assert [shape[1:] for shape in shapes] == [(5, 3)] * len(batches)
        assert sum(shape[0] for shape in shapes) == len(contexts)

    def test_features_held_on_a_device_make_the_same_batches(self, contexts, monkeypatch):
        monkeypatch.setattr(datasets, "_ROWS_PER_COPY", 7)
        keys = [(0, row) for row in range(len(contexts))]
        before = contexts.__getitems__(keys)
        contexts.cache_on(CPU)
        contexts.store._arrays.clear()  # nothing is read any more
        after = contexts.__getitems__(keys)
        assert torch.equal(before["features"], after["features"])
        assert torch.equal(before["label"], after["label"])


# Equal numbers by another way


def test_jitter_equals_that_of_pillow_images():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        spread = rng.uniform(1, 80)
        pixels = rng.normal(rng.uniform(0, 255, 3), spread, (48, 40, 3)).clip(0, 255).astype(np.uint8)
        rng, expected = np.random.default_rng(seed), F.to_pil_image(pixels)
        factors = rng.uniform(1 - JITTER, 1 + JITTER, size=3)
        for index in rng.permutation(3):
            adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)[index]
            expected = adjust(expected, float(factors[index]))
        found = jitter(pixels.transpose(2, 0, 1), np.random.default_rng(seed))
        assert (found.transpose(1, 2, 0) == np.asarray(expected)).all()


@pytest.mark.parametrize("size", [(144, 144), (90, 40), (60, 60), (200, 150), (300, 299), (1, 1)])
def test_resizing_for_training_is_a_grey_level_off_at_most(size):
    """Where Pillow, too, goes over the rows first: for tall images it may begin with the columns."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    found = fast_resize(np.ascontiguousarray(pixels.transpose(2, 0, 1))).transpose(1, 2, 0)
    difference = np.abs(found.astype(int) - np.asarray(resize(F.to_pil_image(pixels))))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("width", [3, 5, 101])
def test_smoothing_equals_a_median_filter_of_every_track(width, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_VALUES_PER_STEP", 150)  # so that it takes several pieces
    faces = sorted(faces_of(TRACKS), key=lambda face: face.time)
    table = read_annotations(write_annotations(tmp_path / "film-activespeaker.csv", faces))
    values = np.random.default_rng(0).normal(size=(len(table), 2)).astype(np.float32)
    smooth = smooth_tracks(values, table, width)
    for entity in range(len(TRACKS)):
        rows = table.rows_of_track(entity)
        assert (smooth[rows] == median_filter(values[rows], size=(width, 1), mode="nearest")).all()


def test_csv_is_written_as_pandas_would(tmp_path):
    numbers = np.array([0.1, -1e-7, 3e20, 1 / 3, np.nan, 5])
    names = ["a", "b,c", 'd"e', "ä", " ", "-"]
    frame = pd.DataFrame({"name": names, "double": numbers, "single": numbers.astype(np.float32), "whole": range(6)})
    for header in (True, False):
        write_csv(tmp_path / "ours.csv", frame, header)
        frame.to_csv(tmp_path / "theirs.csv", header=header, index=False, lineterminator="\n")
        assert (tmp_path / "ours.csv").read_bytes() == (tmp_path / "theirs.csv").read_bytes()


def test_ids_of_digits_stay_text_where_others_follow_far_below(tmp_path):
    """The csv is parsed in pieces, and a whole piece of this one looks like numbers."""
    names = [f"{index:05d}" for index in range(2500)] + ["x"]
    rows = (f"film,{k / 25:g},0.1,0.1,0.2,0.2,NOT_SPEAKING,{name}" for name in names for k in range(20))
    assert read_annotations(write_lines(tmp_path / "film-activespeaker.csv", rows)).entity_ids == names


def test_ids_of_digits_alone_stay_text(tmp_path):
    lines = [f"007,{k},0.1,0.1,0.2,0.2,NOT_SPEAKING,0{name}" for name in (1, 2) for k in range(3)]
    table = read_annotations(write_lines(tmp_path / "007-activespeaker.csv", lines))
    assert (table.video_ids, table.entity_ids) == (["007"], ["01", "02"])


def test_rows_of_a_video_are_those_of_a_search(tmp_path):
    faces = [Face(f"v{index % 3}", f"v{index % 3}:{index % 6}", 10 + index / 25, 0) for index in range(60)]
    table = read_annotations(write_annotations(tmp_path / "all.csv", faces))
    for code in range(3):
        assert table.rows_of_video(code).tolist() == np.flatnonzero(table.video == code).tolist()


# The benchmark


@pytest.fixture(scope="module")
def benchmark() -> dict:
    return runpy.run_path(str(ROOT / "scripts" / "benchmark.py"))


class TestBenchmark:
    def test_growth_tells_a_linear_stage_from_a_quadratic_one(self, benchmark):
        figure = benchmark["Figure"]
        assert figure("x", "rows", [10, 40, 160], [3.1, 3.4, 4.6]).growth == pytest.approx(1)
        assert figure("x", "rows", [10, 40, 160], [1, 16, 256]).growth == pytest.approx(4)

    def test_table(self, benchmark):
        figure = benchmark["Figure"](
            "STE forward", "rows", [10, 40, 160], [1, 2, 4], [2 * 10**9] * 3, 80.0, "a bare tool"
        )
        figure.remarks.append("a remark")
        lines = benchmark["markdown"]([figure]).splitlines()
        assert lines[2].split(" | ")[1:] == [
            "160",
            "4.0 s",
            "40.0 rows/s",
            "60",
            "2.00 GB",
            "80 (a bare tool)",
            "0.50",
            "0.50 |",
        ]
        assert lines[-1] == "STE forward: a remark"
        assert len({line.count("|") for line in lines[:3]}) == 1

    def test_its_annotations_are_valid_and_of_the_size_asked_for(self, benchmark, tmp_path):
        assert sum(map(len, benchmark["annotation_lines"](3125, 120))) == 3125
        assert all(benchmark["annotation_lines"](3125, 120))
        lines = benchmark["annotation_lines"](3000, 4)
        benchmark["write_official"](tmp_path / "official", lines)
        benchmark["write_augmented"](tmp_path / "augmented.csv", lines)
        tables = [read_annotations(tmp_path / name) for name in ("official", "augmented.csv")]
        assert [len(table) for table in tables] == [3000, 3000]
        assert len(tables[0].video_ids) == 4
        assert (tables[0].timestamp == tables[1].timestamp).all()
        assert len(read_annotations(benchmark["film_csv"](tmp_path / "film.csv", 1234))) == 1234

    def test_memory_of_a_process_and_its_children(self, benchmark):
        seconds, memory = benchmark["measure_script"]("scripts/evaluate.py", "--help")
        assert seconds > 0.2
        assert 10**7 < memory < 10**9

    def test_a_stage_that_fails_ends_it_in_one_line(self, benchmark):
        with pytest.raises(Exception, match=r"STE_train.py: exit status 2: error: .*clip_length"):
            benchmark["measure_script"]("STE_train.py", 4, "cpu")

    @pytest.mark.slow
    def test_every_stage(self, tmp_path):
        sizes = ("--minutes", 1, "--clips", 4, "--contexts", 100, "--store-rows", 1000)
        rows = ("--annotation-rows", 48_000, "--score-rows", 16_000)
        result = run_script("scripts/benchmark.py", "--work", tmp_path, *sizes, *rows, timeout=900)
        assert result.returncode == 0, result.stderr
        figures = json.loads((tmp_path / "benchmark.json").read_text())["stages"]
        assert len(figures) == 15
        assert all(figure["ceiling"] > 0 and figure["share"] > 0 for figure in figures)
        assert {len(figure["seconds"]) for figure in figures} == {3}
        assert "60 of 60 equal" in result.stdout
        assert digests(tmp_path, "crops/train/*/*.jpg")
