"""Both training stages: what they write, that runs can be repeated and resumed, and the samples of a step."""

import math
import os
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_refused
from PIL import Image
from plain_mfcc import plain_mfcc
from scipy.stats import chisquare
from tiny_inputs import (
    Face,
    SmallEncoder,
    Track,
    digests,
    faces_of,
    files_under,
    noise_features,
    read_log,
    read_wav,
    run_here,
    succeed,
    write_encoder_inputs,
    write_store,
    write_text,
    write_wav,
)
from torch import nn

import core.datasets
from core.datasets import ClipReader, STEDataset, STETrackDataset
from core.formats.annotations import read_annotations
from core.loaders import ContextLoader, EpochSampler, clip_batches
from core.models import ASC_Net
from core.runtime.checkpoint import TrainingRun
from core.runtime.errors import InputError
from core.training import asc_losses, evaluate, fit
from core.transforms import to_input

CPU = torch.device("cpu")
TRAIN = [
    Track("t:1", "0110101", 10.0, "movie"),
    Track("t:2", "2200", 10.04, "movie"),
    Track("t:3", "1", 20.0, "movie"),
    Track("t:4", "00111", 10.0, "series"),
    Track("t:5", "100", 10.04, "series"),
]
VAL = [Track("v:1", "0011", 10.0, "val1"), Track("v:2", "10", 10.04, "val1"), Track("v:3", "01", 10.0, "val2")]


def weights(path: Path) -> dict[str, bytes]:
    """The bits of every parameter of a bare state_dict."""
    return {name: value.numpy().tobytes() for name, value in torch.load(path, weights_only=True).items()}


def saved_epochs(run: Path) -> list[str]:
    return [name for name in files_under(run) if name.endswith((".pth", ".ckpt"))]


# Context network

EPOCHS = 3
ASC_NAME = "ASC_len_3_stride_2_speakers_2"


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("features")
    write_store(root / "train", faces_of(TRAIN), noise_features)
    write_store(root / "val", faces_of(VAL), noise_features)
    return root


def asc_arguments(features: Path, models_out: Path, *flags: object) -> list[object]:
    stores = ["--features-train-full", features / "train", "--features-val-full", features / "val"]
    options = ["--batch-size", 8, "--learning-rate", 1e-3, "--workers", 0, "--epochs", EPOCHS]
    return ["ASC_train.py", 3, 2, 2, "cpu", *stores, "--models-out", models_out, *options, *flags]


@pytest.fixture(scope="module")
def asc_run(features, tmp_path_factory) -> Path:
    """Directory of a finished run."""
    models_out = tmp_path_factory.mktemp("asc")
    assert str(models_out / ASC_NAME) in succeed(*asc_arguments(features, models_out))
    return models_out / ASC_NAME


class TestContextTraining:
    def test_files(self, asc_run):
        epochs = [f"{epoch}.pth" for epoch in range(1, EPOCHS + 1)]
        expected = [".lock", *epochs, "best.pth", "last.ckpt", f"{ASC_NAME}_logs.csv", f"{ASC_NAME}_cfg.json"]
        assert files_under(asc_run) == sorted(expected)

    def test_weights_are_bare_and_change_in_every_epoch(self, asc_run):
        states = [torch.load(asc_run / f"{epoch}.pth", weights_only=True) for epoch in range(1, EPOCHS + 1)]
        for state in states:
            ASC_Net(3, 2).load_state_dict(state, strict=True)
        for before, after in pairwise(states):
            same = {name for name, value in after.items() if torch.equal(value, before[name])}
            # A bias before batch norm has no gradient.
            assert not {name for name in same if name.startswith(("lstm", "fc_final"))}

    def test_log(self, asc_run):
        log = read_log(asc_run)
        assert [row["epoch"] for row in log] == list(range(1, EPOCHS + 1))
        names = ("loss_av", "auc", "ap")
        for row in log:
            assert set(row) == {"epoch", "learning_rate", *(f"{s}_{name}" for s in ("train", "val") for name in names)}
            assert row["learning_rate"] == 1e-3
            assert 0 < row["val_ap"] <= 1

    def test_same_seed_gives_the_same_weights_with_any_number_of_workers(self, asc_run, features, tmp_path):
        succeed(*asc_arguments(features, tmp_path, "--workers", 2))
        again = tmp_path / ASC_NAME
        assert weights(again / f"{EPOCHS}.pth") == weights(asc_run / f"{EPOCHS}.pth")
        assert read_log(again) == read_log(asc_run)


def small_parts(num_features: int = 2) -> dict[str, object]:
    """A small network, its optimizer and scheduler, which a run saves in every epoch."""
    model = nn.Linear(num_features, 2)
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


class TestTrainingRun:
    def open(self, directory: Path, resume: bool = True, **settings) -> TrainingRun:
        return TrainingRun(directory, "run", settings, resume, tuple(settings))

    def test_checkpoints_are_on_disk_before_they_are_renamed(self, tmp_path, monkeypatch):
        events = []
        sync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda file: events.append(("sync", os.fstat(file).st_size)) or sync(file))
        monkeypatch.setattr(os, "replace", lambda a, b: events.append(("rename", Path(b).name)) or replace(a, b))
        self.open(tmp_path).save(small_parts(), {"epoch": 1, "val_ap": 0.5})
        size = {path.name: path.stat().st_size for path in (tmp_path / "run").iterdir()}
        names = ("1.pth", "last.ckpt", "best.pth")
        assert events[:6] == [event for name in names for event in (("sync", size[name]), ("rename", name))]

    def test_other_settings_and_data_are_refused(self, tmp_path):
        run = self.open(tmp_path, seed=0)
        run.set_data({"train_rows": "abc"})
        run.save(small_parts(), {"epoch": 1, "val_ap": 0.5})
        self.open(tmp_path, seed=0).set_data({"train_rows": "abc"})
        with pytest.raises(InputError, match=r"last\.ckpt: the run was started with seed 0, now 1"):
            self.open(tmp_path, seed=1)
        with pytest.raises(InputError, match=r"last\.ckpt: the run was started with train_rows abc, now xyz"):
            self.open(tmp_path, seed=0).set_data({"train_rows": "xyz"})

    def test_runs_of_an_earlier_version_resume(self, tmp_path):
        """Their checkpoints lack settings and digests that were added later."""
        self.open(tmp_path).save(small_parts(), {"epoch": 1, "val_ap": 0.5})
        run = self.open(tmp_path, encoder="resnet18")
        run.set_data({"train_rows": "abc"})
        run.restore(small_parts())
        assert run.epoch == 1

    def test_weights_without_a_checkpoint_are_refused(self, tmp_path):
        write_text(tmp_path / "run" / "1.pth", "")
        assert self.open(tmp_path).epoch == 0  # a run killed in its first epoch
        write_text(tmp_path / "run" / "2.pth", "")
        with pytest.raises(InputError, match="weights without last"):
            self.open(tmp_path)

    def test_checkpoint_of_another_network_is_refused(self, tmp_path):
        self.open(tmp_path).save(small_parts(), {"epoch": 1, "val_ap": 0.5})
        with pytest.raises(InputError, match=r"last\.ckpt: not a checkpoint of this run"):
            self.open(tmp_path).restore(small_parts(3))


class TestResuming:
    def test_finished_run_has_nothing_left_to_do(self, asc_run, features):
        before = digests(asc_run, "*.pth")
        succeed(*asc_arguments(features, asc_run.parent, "--resume"))
        assert digests(asc_run, "*.pth") == before
        assert len(read_log(asc_run)) == EPOCHS

    def test_existing_run_is_continued_only_with_the_flag(self, asc_run, features):
        before = digests(asc_run)
        assert_refused(run_here(*asc_arguments(features, asc_run.parent)), asc_run, "--resume")
        assert digests(asc_run) == before

    @pytest.mark.parametrize("change", ["encoder", "row", "label", "logit"])
    def test_changed_features_are_refused(self, asc_run, features, tmp_path, change):
        data_root = shutil.copytree(features, tmp_path / "data")
        file = data_root / "train" / "series.csv"
        if change == "encoder":
            write_text(data_root / "train" / "STE_forward_cfg.json", '{"weights_sha256": "0123"}')
        elif change == "row":
            file.unlink()
        elif change == "label":
            file.write_text(file.read_text().replace("t:4,0,", "t:4,1,", 1))
        else:
            file.write_text(file.read_text().replace(",0.5,", ",0.75,", 1))
        arguments = asc_arguments(data_root, asc_run.parent, "--epochs", EPOCHS + 1, "--resume")
        name = {"encoder": "encoder_sha256 None, now 0123", "logit": "train_features"}.get(change, "train_rows")
        assert_refused(run_here(*arguments), "last.ckpt: the run was started with", name)

    @pytest.mark.parametrize("content", ["cut off", "weights", "text"])
    def test_broken_checkpoint_is_refused(self, asc_run, features, tmp_path, content):
        checkpoint = (asc_run / "last.ckpt").read_bytes()
        broken = {"cut off": checkpoint[: len(checkpoint) // 2], "weights": (asc_run / "1.pth").read_bytes()}
        run = tmp_path / ASC_NAME
        run.mkdir()
        (run / "last.ckpt").write_bytes(broken.get(content, b"text\n"))
        assert_refused(run_here(*asc_arguments(features, tmp_path, "--resume")), run / "last.ckpt")
        assert saved_epochs(run) == ["last.ckpt"]


class TestLossThatIsNotFinite:
    def test_features_that_cause_it_are_named(self, features, tmp_path):
        def broken(faces: list[Face]) -> np.ndarray:
            values = noise_features(faces)
            values[5, 100] = np.nan
            return values

        store = write_store(tmp_path / "train", faces_of(TRAIN), broken)
        result = run_here(*asc_arguments(features, tmp_path / "out", "--features-train-full", store))
        assert_refused(result, store / "movie.npy", "feature 6 is not")
        assert saved_epochs(tmp_path / "out") == []

    def test_diverged_training_stops(self, features, tmp_path):
        result = run_here(*asc_arguments(features, tmp_path / "out", "--learning-rate", 1e36))
        assert result.returncode == 1
        (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
        assert "loss not finite" in line
        assert "av nan" in line
        assert "Traceback" not in result.stderr
        assert saved_epochs(tmp_path / "out") == []


class Rows(torch.utils.data.Dataset):
    """Given features (N, C); every second row is labelled as speaking."""

    def __init__(self, features: torch.Tensor):
        self.features = features

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        rows = torch.tensor([row for _, row in keys])
        return {"features": self.features[rows], "label": rows % 2}


def test_learning_rate_is_divided_by_ten_every_step_size_epochs(tmp_path):
    step_size, epochs = 2, 5
    model = nn.Linear(4, 2)
    nn.init.constant_(model.weight, 1.0)
    model.bias.data = torch.tensor([3.0, 0.0])  # far from the optimum, so that the gradient is constant
    first = {name: value.clone() for name, value in model.state_dict().items()}
    params = {"learning_rate": 1e-4, "step_size": step_size, "gamma": 0.1, "epochs": epochs, "precision": "fp32"}
    loader = ContextLoader(Rows(torch.ones(6, 4)), EpochSampler(6, 0), 6, 0, CPU)
    run = TrainingRun(tmp_path, "tiny", params, resume=False)
    fit(run, model, asc_losses, loader, loader, params, CPU)

    expected = [1e-4 * 0.1 ** (epoch // step_size) for epoch in range(epochs)]
    assert [row["learning_rate"] for row in read_log(run.directory)] == pytest.approx(expected, rel=1e-9)
    states = [first, *(torch.load(run.directory / f"{e}.pth", weights_only=True) for e in range(1, epochs + 1))]
    steps = [float((b["bias"].double() - a["bias"].double()).abs().max()) for a, b in pairwise(states)]
    assert steps == pytest.approx(expected, rel=0.05)  # with a constant gradient Adam's step is the learning rate


def test_metrics_are_means_over_samples():
    """Not over batches: here five rows in batches of two."""

    class Margin(nn.Module):
        def forward(self, x):
            return torch.cat((torch.zeros_like(x), x), dim=1)

    rows = Rows(torch.arange(5.0)[:, None])
    metrics = evaluate(
        Margin(), ContextLoader(rows, EpochSampler(5, 0, shuffle=False), 2, 0, CPU), asc_losses, CPU, "fp32"
    )
    losses = [math.log(1 + math.exp(i)) - (i % 2) * i for i in range(5)]
    assert metrics == {
        "loss_av": pytest.approx(np.mean(losses), rel=1e-6),
        "auc": pytest.approx(3 / 6),  # 3 > 2, 3 > 0 and 1 > 0 of six pairs
        "ap": pytest.approx(1 / 2),  # the positives are ranked second and fourth
    }


# Short-term encoder


def ste_arguments(inputs: Path, models_out: Path, *flags: object) -> list[object]:
    csvs = ["--csv-train-full", inputs / "train.csv", "--csv-val-full", inputs / "val.csv"]
    directories = ["--audio-dir", inputs / "wavs", "--video-dir", inputs / "crops", "--models-out", models_out]
    options = ["--no-pretrained", "--batch-size", 3, "--epochs", 1, "--workers", 0]
    return ["STE_train.py", 1, "cpu", *csvs, *directories, *options, *flags]


@pytest.fixture(scope="module")
def encoder_inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("encoder")
    write_encoder_inputs(root, "train", TRAIN)
    return write_encoder_inputs(root, "val", VAL)


@pytest.fixture(scope="module")
def ste_run(encoder_inputs, tmp_path_factory) -> Path:
    """Directory of a finished run of two epochs."""
    models_out = tmp_path_factory.mktemp("ste")
    succeed(*ste_arguments(encoder_inputs, models_out, "--epochs", 2))
    return models_out / "ste_encoder"


class TestEncoderTraining:
    def test_files(self, ste_run):
        expected = [".lock", "1.pth", "2.pth", "best.pth", "last.ckpt", "ste_encoder_cfg.json", "ste_encoder_logs.csv"]
        assert files_under(ste_run) == expected
        state = torch.load(ste_run / "2.pth", weights_only=True)
        SmallEncoder(1).load_state_dict(state, strict=True)
        assert int(state["video_norm.num_batches_tracked"]) == 4  # two epochs of five tracks in batches of three

    def test_log(self, ste_run):
        log = read_log(ste_run)
        assert [row["epoch"] for row in log] == [1, 2]
        assert log[0]["learning_rate"] == 3e-4
        names = ("loss_av", "loss_audio", "loss_video", "auc", "ap")
        for row in log:
            assert set(row) - {"epoch", "learning_rate"} == {f"{s}_{name}" for s in ("train", "val") for name in names}
            assert all(math.isfinite(value) for name, value in row.items() if "loss" in name)


class TestMissingInputs:
    @pytest.fixture
    def incomplete(self, tmp_path) -> Path:
        """Inputs without two crops and one wav of the training data: five rows cannot be used."""
        write_encoder_inputs(tmp_path, "train", [Track("t:1", "0101"), Track("t:2", "1001"), Track("t:3", "001")])
        write_encoder_inputs(tmp_path, "val", [Track("v:1", "01"), Track("v:2", "10")])
        (tmp_path / "crops" / "train" / "t:1" / "10.04.jpg").unlink()
        (tmp_path / "crops" / "train" / "t:2" / "10.0.jpg").unlink()
        (tmp_path / "wavs" / "train" / "t:3.wav").unlink()
        return tmp_path

    def test_missing_crops_and_wavs_are_an_error(self, incomplete):
        result = run_here(*ste_arguments(incomplete, incomplete / "out"))
        crop, wav = incomplete / "crops" / "train" / "t:1" / "10.04.jpg", incomplete / "wavs" / "train" / "t:3.wav"
        assert_refused(result, "2 of 11", "1 wav", crop, wav, "--skip-missing")
        assert saved_epochs(incomplete / "out") == []

    @pytest.mark.parametrize("length", [0, 100])
    def test_audio_shorter_than_its_track_is_an_error(self, tmp_path, length):
        tracks = [Track("t:1", "01" * 20), Track("t:2", "10" * 20)]
        for split in ("train", "val"):
            write_encoder_inputs(tmp_path, split, tracks)
        path = write_wav(tmp_path / "wavs" / "train" / "t:1.wav", np.zeros(length))
        arguments = ste_arguments(tmp_path, tmp_path / "out")
        arguments[1] = 31  # clips so long that each lacks more than half a second
        assert_refused(run_here(*arguments), path, "shorter than its track")

    def test_rows_are_left_out_with_skip_missing(self, incomplete):
        output = succeed(*ste_arguments(incomplete, incomplete / "out", "--skip-missing"))
        assert "5 rows" in output
        assert "2 train tracks" in output


# Clips, compared with a plain implementation of the specification


def speaking_frames(tracks: list[Track]) -> set[tuple[str, float]]:
    """Video and timestamp of the frames in which anyone speaks audibly."""
    return {(face.video, face.time) for face in faces_of(tracks) if face.label == 1}


def plain_audio(wavs: Path, track: list[Face], positions: list[int]) -> np.ndarray:
    """MFCCs (13, W) of a clip of the rows at the given positions of a track."""
    samples = read_wav(wavs / f"{track[0].entity}.wav")
    first, last = track[positions[0]].time, track[positions[-1]].time
    return plain_mfcc(samples, first, last, track[0].time, len(positions))


def plain_crop(crops: Path, face: Face) -> np.ndarray:
    """(3, 144, 144) uint8"""
    with Image.open(crops / face.entity / f"{face.time}.jpg") as image:
        return np.asarray(image.convert("RGB").resize((144, 144), Image.BICUBIC)).transpose(2, 0, 1)


def plain_clips(
    inputs: Path, tracks: list[Track], clip_length: int
) -> dict[tuple[str, float], tuple[np.ndarray, np.ndarray]]:
    """Video (3T, 144, 144) and audio (13, W) of every row, by entity and timestamp."""
    mean, std = np.array([0.2324, 0.2721, 0.3448]), np.array([0.1987, 0.2172, 0.2403])
    clips, half = {}, clip_length // 2
    for track in (track.faces for track in tracks):
        crops = [plain_crop(inputs / "crops" / "train", face) for face in track]
        crops = [(crop / 255 - mean[:, None, None]) / std[:, None, None] for crop in crops]
        for middle, face in enumerate(track):
            positions = [min(max(middle + k, 0), len(track) - 1) for k in range(-half, half + 1)]
            audio = plain_audio(inputs / "wavs" / "train", track, positions)
            clips[face[1:3]] = np.concatenate([crops[position] for position in positions]), audio
    return clips


def clips_by_row(reader: ClipReader, batch_size: int = 4) -> dict[tuple[str, float], tuple[np.ndarray, np.ndarray]]:
    """Video and audio of every row as the forward stage assembles them. Asserts that each row appears once."""
    table, found, sizes = reader.table, {}, []
    dataset = STETrackDataset(reader)
    for rows, audio, video in clip_batches((dataset[i] for i in range(len(dataset))), batch_size, CPU, torch.float32):
        sizes.append(len(rows))
        for row, mfccs, crops in zip(rows.tolist(), audio.numpy(), video.numpy(), strict=True):
            key = (table.entity_ids[table.entity[row]], float(table.timestamp[row]))
            assert key not in found
            found[key] = (crops, mfccs[0])
    assert len(found) == len(table)
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    return found


def assert_same_clip(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)


def clip_reader(encoder_inputs: Path, clip_length: int) -> ClipReader:
    table = read_annotations(encoder_inputs / "train.csv")
    return ClipReader(table, encoder_inputs / "wavs" / "train", encoder_inputs / "crops" / "train", clip_length)


class TestForwardClips:
    @pytest.mark.parametrize("clip_length", [1, 3, 5])
    def test_clips_equal_plain_ones(self, encoder_inputs, monkeypatch, clip_length):
        """Also across tracks, and for tracks that are read in parts."""
        expected = plain_clips(encoder_inputs, TRAIN, clip_length)
        for rows_per_item in (512, 4, 3):
            monkeypatch.setattr(core.datasets, "ROWS_PER_ITEM", rows_per_item)
            clips = clips_by_row(clip_reader(encoder_inputs, clip_length))
            assert set(clips) == set(expected)
            for key, clip in clips.items():
                assert_same_clip(clip, expected[key])


@pytest.fixture(scope="module")
def reader(encoder_inputs) -> ClipReader:
    return clip_reader(encoder_inputs, 1)


@pytest.fixture(scope="module")
def face_of(encoder_inputs) -> dict[bytes, Face]:
    """Pixels of each crop -> its row."""
    faces = faces_of(TRAIN)
    face_of = {plain_crop(encoder_inputs / "crops" / "train", face).tobytes(): face for face in faces}
    assert len(face_of) == len(faces)
    return face_of


class TestTrainingSamples:
    @staticmethod
    def draw(dataset: STEDataset, epoch: int) -> list[bytes]:
        samples = [dataset[epoch, index] for index in range(len(dataset))]
        return [b"".join(value.numpy().tobytes() for value in sample.values()) for sample in samples]

    def test_one_row_of_each_track_with_its_labels(self, reader, face_of):
        """The row's own label, and whether anyone speaks audibly in its frame."""
        dataset, labels = STEDataset(reader, seed=0, augment=False), set()
        for epoch in range(12):
            samples = [dataset[epoch, index] for index in range(len(dataset))]
            faces = [face_of[sample["video"].numpy().tobytes()] for sample in samples]
            assert sorted(face.entity for face in faces) == sorted(track.entity for track in TRAIN)
            for sample, face in zip(samples, faces, strict=True):
                assert int(sample["label"]) == (face.label == 1)
                assert int(sample["audio_label"]) == ((face.video, face.time) in speaking_frames(TRAIN))
                assert sample["audio"].dtype == torch.float32
                labels.add((face.label, int(sample["audio_label"])))
        assert labels == {(0, 0), (0, 1), (1, 1), (2, 1)}  # every case was tested

    def test_rows_are_drawn_uniformly(self, reader, face_of):
        dataset = STEDataset(reader, seed=3, augment=False)
        (index,) = np.flatnonzero(np.diff(reader.table.track_offsets) == 7)
        counts = Counter(face_of[dataset[epoch, index]["video"].numpy().tobytes()] for epoch in range(210))
        assert len(counts) == 7
        assert chisquare(list(counts.values())).pvalue > 1e-3

    def test_video_and_audio_are_those_of_the_row(self, encoder_inputs):
        dataset = STEDataset(clip_reader(encoder_inputs, 5), seed=0, augment=False)
        expected = list(plain_clips(encoder_inputs, TRAIN, 5).values())
        for index in range(len(dataset)):
            sample = dataset[4, index]
            video = to_input(sample["video"]).flatten(0, 1).numpy()
            closest = min(expected, key=lambda clip: np.abs(clip[0] - video).max())
            assert_same_clip((video, sample["audio"][0].numpy()), closest)

    def test_draws_depend_on_seed_and_epoch_alone(self, reader):
        dataset, again, other = (STEDataset(reader, seed, augment=True) for seed in (5, 5, 6))
        assert self.draw(dataset, 1) == self.draw(again, 1)
        assert all(one != two for one, two in zip(self.draw(dataset, 1), self.draw(dataset, 2), strict=True))
        assert self.draw(dataset, 1) != self.draw(other, 1)


def test_every_sample_once_per_epoch_in_another_order():
    sampler, orders = EpochSampler(50, seed=9), []
    for epoch in (1, 2, 1):
        sampler.epoch = epoch
        orders.append(list(sampler))
        assert sorted(orders[-1]) == [(epoch, index) for index in range(50)]
    assert orders[0] == orders[2]
    assert [index for _, index in orders[0]] != [index for _, index in orders[1]]
    assert list(EpochSampler(3, seed=9, shuffle=False)) == [(0, 0), (0, 1), (0, 2)]
