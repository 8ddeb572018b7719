"""Both training stages: what a run leaves behind, that it can be repeated and resumed, and what goes into a step."""

import contextlib
import math
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from conftest import assert_refused
from PIL import Image
from python_speech_features import mfcc
from scipy.stats import chisquare
from tiny_inputs import (
    RATE,
    Face,
    Track,
    digests,
    faces_of,
    files_under,
    noise_features,
    read_csv,
    read_json,
    read_wav,
    run_here,
    write_annotations,
    write_crops,
    write_encoder_inputs,
    write_store,
    write_wav,
)
from torch import nn

import core.datasets
from core.datasets import ClipReader, STEDataset, STETrackDataset
from core.formats.annotations import read_annotations
from core.formats.clips import drop_missing
from core.loaders import EpochSampler, batch_loader, clip_batches
from core.models import ASC_Net, TwoStreamResNet
from core.runtime.checkpoint import TrainingRun
from core.runtime.errors import RunError
from core.training import asc_losses, evaluate, fit, ste_losses, train_one_epoch
from core.transforms import to_input

CPU = torch.device("cpu")
TRAIN = [
    Track("t:1", "0110101", 10.0),
    Track("t:2", "2200", 10.04),
    Track("t:3", "1", 20.0),
    Track("t:4", "00111", 10.0, "movie"),
    Track("t:5", "100", 10.04, "movie"),
]
VAL = [Track("v:1", "0011", 10.0, "val1"), Track("v:2", "10", 10.04, "val1"), Track("v:3", "01", 10.0, "val2")]


def in_a_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as printed:
        return processes.run(Path(printed), *arguments)


def succeed(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def weights(path: Path) -> dict[str, bytes]:
    """The bits of every parameter of a bare state_dict."""
    return {name: value.numpy().tobytes() for name, value in torch.load(path, weights_only=True).items()}


def log_of(run: Path) -> list[dict[str, float]]:
    (path,) = run.glob("*_logs.csv")
    header, *lines = read_csv(path)
    return [dict(zip(header, map(float, line), strict=True)) for line in lines]


# The context network, whose runs take seconds

EPOCHS = 6
ASC_NAME = "ASC_len_3_stride_2_speakers_2"


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("features")
    write_store(root / "train", faces_of(TRAIN), noise_features)
    write_store(root / "val", faces_of(VAL), noise_features)
    return root


def asc_arguments(features: Path, out: Path, *flags: object) -> list[object]:
    stores = ["--features-train-full", features / "train", "--features-val-full", features / "val"]
    tuned = ["--batch-size", 8, "--learning-rate", 1e-3, "--workers", 0]
    return ["ASC_train.py", 3, 2, 2, "cpu", *stores, "--models-out", out, *tuned, *flags]


@pytest.fixture(scope="module")
def asc_run(features, tmp_path_factory) -> Path:
    """The directory of an undisturbed run."""
    out = tmp_path_factory.mktemp("asc")
    output = succeed(in_a_process(*asc_arguments(features, out, "--epochs", EPOCHS)))
    assert str(out / ASC_NAME) in output
    return out / ASC_NAME


class TestRunOfTheContextNetwork:
    def test_files(self, asc_run):
        epochs = [f"{epoch}.pth" for epoch in range(1, EPOCHS + 1)]
        assert files_under(asc_run) == sorted(
            [".lock", *epochs, "last.ckpt", f"{ASC_NAME}_logs.csv", f"{ASC_NAME}_cfg.json"]
        )

    def test_weights_of_every_epoch_are_bare_and_fit(self, asc_run):
        for epoch in range(1, EPOCHS + 1):
            state = torch.load(asc_run / f"{epoch}.pth", weights_only=True)
            assert all(isinstance(value, torch.Tensor) for value in state.values())
            ASC_Net(3, 2).load_state_dict(state, strict=True)

    def test_every_epoch_learns(self, asc_run):
        states = [torch.load(asc_run / f"{epoch}.pth", weights_only=True) for epoch in range(1, EPOCHS + 1)]
        for before, after in pairwise(states):
            still = {name for name, value in after.items() if torch.equal(value, before[name])}
            # A bias before a batch norm has no gradient to speak of
            assert not {name for name in still if name.startswith(("lstm", "fc_final"))}

    def test_log(self, asc_run):
        log = log_of(asc_run)
        assert [row["epoch"] for row in log] == list(range(1, EPOCHS + 1))
        assert {row["learning_rate"] for row in log} == {1e-3}
        for split in ("train", "val"):
            losses = [name for name in log[0] if name.startswith(f"{split}_loss")]
            assert len(losses) == 1
            for row in log:
                assert math.isfinite(row[losses[0]])
                assert 0 <= row[f"{split}_auc"] <= 1
                assert 0 < row[f"{split}_ap"] <= 1
        assert set(log[0]) == {"epoch", "learning_rate", *(n for n in log[0] if n.startswith(("train_", "val_")))}

    def test_settings(self, asc_run, features):
        settings = read_json(asc_run / f"{ASC_NAME}_cfg.json")
        expected = {
            "clip_length": 3,
            "skip_frames": 2,
            "speakers": 2,
            "cuda_device": "cpu",
            "features_train_full": str(features / "train"),
            "features_val_full": str(features / "val"),
            "epochs": EPOCHS,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "seed": 0,
            "precision": "fp32",
            "step_size": 10,
            "gamma": 0.1,
        }
        assert {name: settings.get(name) for name in expected} == expected

    def test_last_checkpoint_is_plain(self, asc_run):
        state = torch.load(asc_run / "last.ckpt", weights_only=True)
        assert {"model", "optimizer", "scheduler"} <= set(state)


class TestRepeating:
    def test_one_seed_gives_one_result_whatever_the_workers(self, asc_run, features, tmp_path):
        succeed(in_a_process(*asc_arguments(features, tmp_path, "--epochs", 2, "--workers", 2)))
        again = tmp_path / ASC_NAME
        assert weights(again / "1.pth") == weights(asc_run / "1.pth")
        assert weights(again / "2.pth") == weights(asc_run / "2.pth")
        assert log_of(again) == log_of(asc_run)[:2]

    def test_another_seed_gives_another(self, asc_run, features, tmp_path):
        succeed(run_here(*asc_arguments(features, tmp_path, "--epochs", 1, "--seed", 1)))
        assert weights(tmp_path / ASC_NAME / "1.pth") != weights(asc_run / "1.pth")
        assert log_of(tmp_path / ASC_NAME)[0]["train_loss_av"] != log_of(asc_run)[0]["train_loss_av"]

    def test_the_same_weights_make_the_same_file(self, tmp_path):
        """Byte for byte, so that a checksum means something: nothing of the machine or the process is in it."""
        model = nn.Linear(2, 2)
        for name in ("once", "again"):
            TrainingRun(tmp_path, name, {}, resume=False).save({"model": model}, {"epoch": 1, "val_ap": 1.0})
        assert (tmp_path / "once" / "1.pth").read_bytes() == (tmp_path / "again" / "1.pth").read_bytes()


class TestResuming:
    def test_checkpoints_are_on_the_disk_before_they_have_their_name(self, tmp_path, monkeypatch):
        events = []
        sync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda file: events.append(("sync", os.fstat(file).st_size)) or sync(file))
        monkeypatch.setattr(os, "replace", lambda a, b: events.append(("name", Path(b).name)) or replace(a, b))
        model = nn.Linear(2, 2)
        run = TrainingRun(tmp_path, "run", {}, resume=False)
        run.save({"model": model}, {"epoch": 1})
        sizes = {path.name: path.stat().st_size for path in (tmp_path / "run").iterdir()}
        assert events[:4] == [
            event for name in ("1.pth", "last.ckpt") for event in (("sync", sizes[name]), ("name", name))
        ]

    def test_a_finished_run_has_nothing_left_to_do(self, asc_run, features):
        before = digests(asc_run, "*.pth")
        succeed(run_here(*asc_arguments(features, asc_run.parent, "--epochs", EPOCHS, "--resume")))
        assert digests(asc_run, "*.pth") == before
        assert len(log_of(asc_run)) == EPOCHS

    def test_of_nothing_is_a_new_run(self, asc_run, features, tmp_path):
        succeed(run_here(*asc_arguments(features, tmp_path, "--epochs", 1, "--resume")))
        assert [row["epoch"] for row in log_of(tmp_path / ASC_NAME)] == [1]

    def test_is_never_by_accident(self, asc_run, features):
        before = digests(asc_run)
        result = run_here(*asc_arguments(features, asc_run.parent, "--epochs", EPOCHS))
        assert_refused(result, asc_run, "--resume")
        assert digests(asc_run) == before

    @pytest.mark.parametrize(
        ("flag", "value", "old"),
        [("learning-rate", 2e-3, "0.001"), ("batch-size", 4, "8"), ("seed", 1, "0"), ("precision", "bf16", "fp32")],
    )
    def test_with_other_settings_is_refused(self, asc_run, features, flag, value, old):
        before = digests(asc_run)
        result = run_here(
            *asc_arguments(features, asc_run.parent, "--epochs", EPOCHS + 1, "--resume", f"--{flag}", value)
        )
        assert_refused(result, flag.replace("-", "_"), old, value)
        assert digests(asc_run) == before

    def test_with_rows_that_have_changed_is_refused(self, asc_run, features, tmp_path):
        """Behind the same path: a film less, or another label."""
        shutil.copytree(features / "train", tmp_path / "train")
        stores = ["--features-train-full", tmp_path / "train"]
        arguments = asc_arguments(features, tmp_path / "out")
        succeed(run_here(*arguments, *stores, "--epochs", 1))
        (tmp_path / "train" / "movie.csv").unlink()
        result = run_here(*arguments, *stores, "--epochs", 2, "--resume")
        assert_refused(result, "last.ckpt", "the rows to train have changed")
        shutil.copy(features / "train" / "movie.csv", tmp_path / "train")
        succeed(run_here(*arguments, *stores, "--epochs", 2, "--resume"))

    def test_brings_back_the_weights_of_its_last_epoch(self, features, tmp_path):
        arguments = asc_arguments(features, tmp_path, "--epochs", 2)
        succeed(run_here(*arguments))
        path = tmp_path / ASC_NAME / "2.pth"
        before = path.read_bytes()
        path.unlink()
        succeed(run_here(*arguments, "--resume"))
        assert path.read_bytes() == before

    def test_with_other_data_is_refused(self, asc_run, features):
        result = run_here(
            *asc_arguments(
                features, asc_run.parent, "--epochs", EPOCHS, "--resume", "--features-val-full", features / "train"
            )
        )
        assert_refused(result, "features_val_full", features / "train")

    @pytest.mark.parametrize("content", ["cut off", "weights", "text"])
    def test_from_a_broken_checkpoint_is_refused(self, asc_run, features, tmp_path, content):
        run = tmp_path / ASC_NAME
        run.mkdir()
        whole = (asc_run / "last.ckpt").read_bytes()
        other = {"cut off": whole[: len(whole) // 2], "weights": (asc_run / "1.pth").read_bytes(), "text": b"hello\n"}
        (run / "last.ckpt").write_bytes(other[content])
        result = run_here(*asc_arguments(features, tmp_path, "--epochs", 2, "--resume"))
        assert_refused(result, run / "last.ckpt")
        assert [name for name in files_under(run) if name.endswith(".pth")] == []


class TestLossThatIsNotFinite:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_names_the_features_that_are_not_either(self, features, tmp_path, value):
        def broken(faces: list[Face]) -> np.ndarray:
            values = noise_features(faces)
            values[5, 100] = value
            return values

        store = write_store(tmp_path / "train", faces_of(TRAIN), broken)
        arguments = asc_arguments(features, tmp_path / "out", "--epochs", 2)
        result = run_here(*arguments, "--features-train-full", store)
        assert_refused(result, store / "film.npy", "feature 6 is not")
        assert not list((tmp_path / "out").glob("*/*.pth"))

    def test_stops_the_run(self, features, tmp_path):
        result = run_here(*asc_arguments(features, tmp_path / "out", "--epochs", 2, "--learning-rate", 1e36))
        assert result.returncode == 1
        (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
        assert "not finite" in line
        assert "av nan" in line
        assert "Traceback" not in result.stderr
        made = files_under(tmp_path / "out")
        assert [name for name in made if name.endswith((".pth", ".ckpt"))] == []

    def test_names_every_part(self):
        """Of the encoder's three losses the audio's alone is broken."""

        class Heads(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(2))

            def forward(self, audio, video):
                logits = self.weight.expand(len(audio), 2)
                return logits, logits * math.inf, logits, None

        class Clips(torch.utils.data.Dataset):
            def __getitem__(self, key):
                clip = torch.zeros(1, 3, 144, 144, dtype=torch.uint8)
                return {"video": clip, "audio": torch.zeros(1, 13, 3), "label": key[1], "audio_label": 0}

        model = Heads()
        loader = batch_loader(Clips(), EpochSampler(2, 0), 2, 0, CPU)
        optimizer = torch.optim.Adam(model.parameters())
        with pytest.raises(RunError, match="not finite") as caught:
            train_one_epoch(model, loader, ste_losses, optimizer, CPU, "fp32")
        assert "av 0.69" in str(caught.value)
        assert "audio nan" in str(caught.value)
        assert "video 0.69" in str(caught.value)


class TestLearningRate:
    """fit() on a network of one layer: the rate in the log and the one that the weights feel."""

    class Rows(torch.utils.data.Dataset):
        def __getitems__(self, keys):
            return {"features": torch.ones(len(keys), 4), "label": torch.tensor([i % 2 for _, i in keys])}

    @pytest.mark.parametrize(("step_size", "epochs"), [(2, 5), (3, 7)])
    def test_is_a_tenth_after_every_step_size_epochs(self, tmp_path, step_size, epochs):
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        nn.init.constant_(model.weight, 1.0)
        nn.init.constant_(model.bias, 0.0)
        model.bias.data[0] = 3.0  # far from the optimum, so that the gradient stays what it is
        first = {name: value.clone() for name, value in model.state_dict().items()}
        params = {"learning_rate": 1e-4, "step_size": step_size, "gamma": 0.1, "epochs": epochs, "precision": "fp32"}
        loader = batch_loader(self.Rows(), EpochSampler(6, 0), 6, 0, CPU)
        run = TrainingRun(tmp_path, "tiny", params, resume=False)
        fit(run, model, asc_losses, loader, loader, params, CPU)

        expected = [1e-4 * 0.1 ** (epoch // step_size) for epoch in range(epochs)]
        assert [row["learning_rate"] for row in log_of(run.directory)] == pytest.approx(expected, rel=1e-9)
        states = [first, *(torch.load(run.directory / f"{e}.pth", weights_only=True) for e in range(1, epochs + 1))]
        steps = [float((b["bias"].double() - a["bias"].double()).abs().max()) for a, b in pairwise(states)]
        assert steps == pytest.approx(expected, rel=0.05)  # Adam's step under a steady gradient is its rate


# The short-term encoder


def ste_arguments(inputs: Path, out: Path, *flags: object) -> list[object]:
    csvs = ["--csv-train-full", inputs / "train.csv", "--csv-val-full", inputs / "val.csv"]
    directories = ["--audio-dir", inputs / "wavs", "--video-dir", inputs / "crops", "--models-out", out]
    return ["STE_train.py", 1, "cpu", *csvs, *directories, "--no-pretrained", "--batch-size", 3, *flags]


@pytest.fixture(scope="module")
def encoder_inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("encoder")
    write_encoder_inputs(root, "train", TRAIN)
    return write_encoder_inputs(root, "val", VAL)


@contextlib.contextmanager
def thrown_away(run: Path):
    """An encoder's epoch takes 350 MB, which no later look at a temporary directory is worth."""
    try:
        yield run
    finally:
        for path in (*run.glob("*.pth"), *run.glob("*.ckpt")):
            path.unlink()


@pytest.fixture(scope="module")
def ste_run(encoder_inputs, tmp_path_factory):
    """The directory of an undisturbed run of two epochs."""
    out = tmp_path_factory.mktemp("ste")
    with thrown_away(out / "ste_encoder") as run:
        succeed(in_a_process(*ste_arguments(encoder_inputs, out, "--epochs", 2, "--workers", 0)))
        yield run


class TestRunOfTheEncoder:
    def test_files(self, ste_run):
        expected = [".lock", "1.pth", "2.pth", "last.ckpt", "ste_encoder_cfg.json", "ste_encoder_logs.csv"]
        assert files_under(ste_run) == expected

    def test_weights_fit(self, ste_run):
        state = torch.load(ste_run / "2.pth", weights_only=True)
        TwoStreamResNet(1).load_state_dict(state, strict=True)
        assert int(state["a_bn1.num_batches_tracked"]) == 4  # five tracks in batches of three, twice

    def test_log(self, ste_run):
        log = log_of(ste_run)
        assert [row["epoch"] for row in log] == [1, 2]
        for split in ("train", "val"):
            names = {name.removeprefix(f"{split}_") for name in log[0] if name.startswith(f"{split}_")}
            assert names == {"loss_av", "loss_audio", "loss_video", "auc", "ap"}
            assert all(math.isfinite(row[f"{split}_loss_{part}"]) for row in log for part in ("av", "audio", "video"))
        assert log[0]["learning_rate"] == 3e-4

    def test_settings(self, ste_run, encoder_inputs):
        settings = read_json(ste_run / "ste_encoder_cfg.json")
        expected = {"clip_length": 1, "batch_size": 3, "no_pretrained": True, "step_size": 40, "seed": 0}
        assert {name: settings.get(name) for name in expected} == expected
        assert settings["audio_dir"] == str(encoder_inputs / "wavs")

    def test_resumed_run_equals_it(self, ste_run, encoder_inputs, tmp_path):
        """One epoch, then another with workers: bit for bit what two epochs in one go give."""
        arguments = ste_arguments(encoder_inputs, tmp_path)
        with thrown_away(tmp_path / "ste_encoder") as run:
            succeed(in_a_process(*arguments, "--epochs", 1, "--workers", 0))
            assert [row["epoch"] for row in log_of(run)] == [1]
            succeed(in_a_process(*arguments, "--epochs", 2, "--workers", 2, "--resume"))
            assert weights(run / "1.pth") == weights(ste_run / "1.pth")
            assert weights(run / "2.pth") == weights(ste_run / "2.pth")
            assert log_of(run) == log_of(ste_run)


class TestMissingInputs:
    @pytest.fixture
    def holes(self, tmp_path) -> Path:
        """Inputs of which two crops and one wav are not there: five rows lack something."""
        write_encoder_inputs(tmp_path, "train", [Track("t:1", "0101"), Track("t:2", "1001"), Track("t:3", "001")])
        write_encoder_inputs(tmp_path, "val", [Track("v:1", "01"), Track("v:2", "10")])
        (tmp_path / "crops" / "train" / "t:1" / "10.04.jpg").unlink()
        (tmp_path / "crops" / "train" / "t:2" / "10.0.jpg").unlink()
        (tmp_path / "wavs" / "train" / "t:3.wav").unlink()
        return tmp_path

    def test_are_an_error_before_the_first_step(self, holes):
        result = run_here(*ste_arguments(holes, holes / "out", "--epochs", 1, "--workers", 0))
        first = holes / "crops" / "train" / "t:1" / "10.04.jpg"
        assert_refused(result, "2 of 11", "1 wav", first, holes / "wavs" / "train" / "t:3.wav", "--skip-missing")
        assert [name for name in files_under(holes / "out") if name.endswith((".pth", ".ckpt", ".csv"))] == []

    def test_wrong_audio_directory_is_an_error(self, holes):
        """The mistake that once went unnoticed for weeks: every clip silent."""
        arguments = ste_arguments(holes, holes / "out", "--epochs", 1, "--workers", 0)
        assert_refused(run_here(*arguments, "--audio-dir", holes / "nowhere"), "3 wavs", holes / "nowhere" / "train")

    @pytest.mark.parametrize("length", [0, 100])
    def test_sound_that_is_too_short_is_an_error_and_not_silence(self, tmp_path, length):
        tracks = [Track("t:1", "01" * 20), Track("t:2", "10" * 20)]
        for split in ("train", "val"):
            write_encoder_inputs(tmp_path, split, tracks)
        path = write_wav(tmp_path / "wavs" / "train" / "t:1.wav", np.zeros(length))
        arguments = ste_arguments(tmp_path, tmp_path / "out", "--epochs", 1, "--workers", 0)
        arguments[1] = 31  # crops in a clip, so that every one of them lacks more than half a second
        assert_refused(run_here(*arguments), path, "shorter than its track")

    def test_are_left_out_on_demand(self, holes):
        arguments = ste_arguments(holes, holes / "out", "--epochs", 1, "--workers", 0, "--skip-missing")
        with thrown_away(holes / "out" / "ste_encoder") as run:
            output = succeed(run_here(*arguments))
            assert (run / "1.pth").exists()
        assert "5 rows" in output
        assert "2 tracks to train" in output

    def test_everything_missing_is_an_error_all_the_same(self, holes):
        arguments = ste_arguments(holes, holes / "out", "--epochs", 1, "--workers", 0, "--skip-missing")
        assert_refused(run_here(*arguments, "--video-dir", holes / "nowhere"), holes / "nowhere")

    @pytest.mark.parametrize("workers", [0, 1])
    def test_crop_that_breaks_in_the_middle_of_a_run(self, holes, workers):
        """Found by whoever reads it, a process of the loader too; still one line that names the file."""
        broken = holes / "crops" / "val" / "v:1"
        for path in broken.iterdir():
            path.write_bytes(path.read_bytes()[:40])
        arguments = ste_arguments(holes, holes / "out", "--epochs", 1, "--workers", workers, "--skip-missing")
        result = run_here(*arguments)
        assert_refused(result, broken)
        assert [name for name in files_under(holes / "out") if name.endswith((".pth", ".ckpt"))] == []

    def test_the_rest_stays_as_it_was(self, holes):
        """Rows that go missing move neither the sound of the others nor who speaks at their moment."""
        write_encoder_inputs(holes, "whole", TRAIN)
        table = read_annotations(holes / "whole.csv")
        audio, video = holes / "wavs" / "whole", holes / "crops" / "whole"
        whole = clips_by_row(ClipReader(table, audio, video, 3))
        for name in ("10.0", "10.04"):
            (video / "t:1" / f"{name}.jpg").unlink()
        part = drop_missing(table, audio, video, skip_missing=True)
        assert len(part) == len(table) - 2
        clips = clips_by_row(ClipReader(part, audio, video, 3))
        key = ("t:1", 10.16)
        assert (clips[key][0] == whole[key][0]).all()
        assert (clips[key][1] == whole[key][1]).all()
        kept = [(face.time, face.video) for face in faces_of(TRAIN) if face[1:3] not in (("t:1", 10.0), ("t:1", 10.04))]
        speaking = {(face.time, face.video) for face in faces_of(TRAIN) if face.label == 1}
        assert part.anyone_speaking.tolist() == [moment in speaking for moment in kept]


# One sample, built as the specification says and with nothing of the project's


def naive_audio(wavs: Path, track: list[Face], positions: list[int], clip_length: int) -> np.ndarray:
    """(13, W)"""
    samples = read_wav(wavs / f"{track[0].entity}.wav")
    first, last, offset = track[positions[0]].time, track[positions[-1]].time, track[0].time
    sound = samples[int((first - offset) * 16000) : int((last - offset) * 16000)]
    if len(sound) < 0.08 * 16000:
        sound = np.zeros(int(16000 * clip_length / 25), np.int16)
    distance = int((16000 * clip_length / 27 - len(sound)) / 2)
    if distance > 0:
        sound = np.pad(sound, distance, mode="reflect")
    elif distance < 0:
        sound = sound[-distance:distance]
    return mfcc(sound, 16000).T


def naive_video(crops: Path, track: list[Face], positions: list[int]) -> np.ndarray:
    """(3T, 144, 144)"""
    frames = []
    for face in (track[position] for position in positions):
        with Image.open(crops / face.entity / f"{face.time}.jpg") as image:
            resized = image.convert("RGB").resize((144, 144), Image.BICUBIC)
        pixels = np.asarray(resized).transpose(2, 0, 1) / 255
        mean, std = np.array([0.2324, 0.2721, 0.3448]), np.array([0.1987, 0.2172, 0.2403])
        frames.append((pixels - mean[:, None, None]) / std[:, None, None])
    return np.concatenate(frames)


def naive_clip(inputs: Path, split: str, face: Face, tracks: list[Track], clip_length: int):
    track = next(track.faces for track in tracks if track.entity == face.entity)
    middle, half = track.index(face), clip_length // 2
    positions = [min(max(middle + k, 0), len(track) - 1) for k in range(-half, half + 1)]
    audio = naive_audio(inputs / "wavs" / split, track, positions, clip_length)
    return naive_video(inputs / "crops" / split, track, positions), audio


def clips_by_row(reader: ClipReader, batch_size: int = 4) -> dict[tuple[str, float], tuple[np.ndarray, np.ndarray]]:
    """Video and audio of every row as forward feeds them to the network; each row once, in full batches."""
    table, found, sizes = reader.table, {}, []
    dataset = STETrackDataset(reader)
    for rows, audio, video in clip_batches((dataset[i] for i in range(len(dataset))), batch_size, CPU, torch.float32):
        sizes.append(len(rows))
        for row, sound, pixels in zip(rows.tolist(), audio.numpy(), video.numpy(), strict=True):
            key = (table.entity_ids[table.entity[row]], float(table.timestamp[row]))
            assert key not in found
            found[key] = (pixels, sound[0])
    assert len(found) == len(table)
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    return found


class TestClipsOfTheForwardPass:
    @pytest.mark.parametrize("clip_length", [1, 3, 5])
    @pytest.mark.parametrize("rows_at_once", [512, 4, 3], ids=lambda rows: f"pieces of {rows}")
    def test_equal_single_clips(self, encoder_inputs, monkeypatch, clip_length, rows_at_once):
        """Across tracks, and for tracks longer than what is read at once."""
        monkeypatch.setattr(core.datasets, "ROWS_PER_ITEM", rows_at_once)
        table = read_annotations(encoder_inputs / "train.csv")
        directories = encoder_inputs / "wavs" / "train", encoder_inputs / "crops" / "train"
        clips = clips_by_row(ClipReader(table, *directories, clip_length))
        assert set(clips) == {face[1:3] for face in faces_of(TRAIN)}
        for face in faces_of(TRAIN):
            video, audio = clips[face[1:3]]
            naive = naive_clip(encoder_inputs, "train", face, TRAIN, clip_length)
            assert video.shape == (3 * clip_length, 144, 144)
            np.testing.assert_allclose(video, naive[0], atol=1e-5)
            np.testing.assert_allclose(audio, naive[1], atol=1e-4)

    def test_longer_sound_than_the_clip_is_cut_at_both_ends(self, tmp_path):
        """A gap of 0.17 s between two rows makes more sound than T/27 s."""
        faces = [Face("film", "gap", moment, 0) for moment in (5.0, 5.17, 5.34, 5.4, 5.44)]
        write_annotations(tmp_path / "gap.csv", faces)
        write_crops(tmp_path / "crops", faces)
        length = int(5.44 * RATE) - int(5.0 * RATE)
        write_wav(tmp_path / "gap.wav", np.random.default_rng(0).normal(0, 1000, length))
        reader = ClipReader(read_annotations(tmp_path / "gap.csv"), tmp_path, tmp_path / "crops", 3)
        clips = clips_by_row(reader)
        for middle, face in enumerate(faces):
            positions = [min(max(middle + k, 0), 4) for k in (-1, 0, 1)]
            expected = naive_audio(tmp_path, faces, positions, 3)
            np.testing.assert_allclose(clips[face[1:3]][1], expected, atol=1e-4)


@pytest.fixture(scope="module")
def reader(encoder_inputs) -> ClipReader:
    table = read_annotations(encoder_inputs / "train.csv")
    return ClipReader(table, encoder_inputs / "wavs" / "train", encoder_inputs / "crops" / "train", 1)


@pytest.fixture(scope="module")
def pictures(encoder_inputs) -> dict[bytes, Face]:
    """What a clip of one crop looks like -> the row that it is of."""
    pictures = {}
    for face in faces_of(TRAIN):
        with Image.open(encoder_inputs / "crops" / "train" / face.entity / f"{face.time}.jpg") as image:
            resized = image.convert("RGB").resize((144, 144), Image.BICUBIC)
        pictures[np.asarray(resized).transpose(2, 0, 1).tobytes()] = face
    assert len(pictures) == len(faces_of(TRAIN))
    return pictures


class TestTrainingSamples:
    def test_one_of_each_track_with_its_targets(self, reader, pictures):
        """The row's own label, audible or not, and whether anyone is heard at this moment of this film."""
        dataset, targets = STEDataset(reader, seed=0, augment=False), set()
        heard = {(face.video, face.time) for face in faces_of(TRAIN) if face.label == 1}
        for epoch in range(12):
            samples = [dataset[epoch, index] for index in range(len(dataset))]
            drawn = [pictures[sample["video"].numpy().tobytes()] for sample in samples]
            assert sorted(face.entity for face in drawn) == sorted(track.entity for track in TRAIN)
            for sample, face in zip(samples, drawn, strict=True):
                assert int(sample["label"]) == (face.label == 1)
                assert int(sample["audio_label"]) == ((face.video, face.time) in heard)
                assert sample["audio"].dtype == torch.float32
                targets.add((face.label, int(sample["audio_label"])))
        assert targets == {(0, 0), (0, 1), (1, 1), (2, 1)}  # every case was there

    def test_rows_are_drawn_evenly(self, reader, pictures):
        dataset = STEDataset(reader, seed=3, augment=False)
        index = next(i for i in range(len(dataset)) if len(self.track_of(dataset, i, pictures)) == 7)
        drawn = Counter(pictures[dataset[epoch, index]["video"].numpy().tobytes()] for epoch in range(210))
        assert len(drawn) == 7
        assert chisquare(list(drawn.values())).pvalue > 1e-3

    @staticmethod
    def track_of(dataset: STEDataset, index: int, pictures: dict[bytes, Face]) -> list[Face]:
        entity = pictures[dataset[0, index]["video"].numpy().tobytes()].entity
        return next(track.faces for track in TRAIN if track.entity == entity)

    def test_sound_is_that_of_the_row(self, encoder_inputs):
        table = read_annotations(encoder_inputs / "train.csv")
        reader = ClipReader(table, encoder_inputs / "wavs" / "train", encoder_inputs / "crops" / "train", 5)
        dataset = STEDataset(reader, seed=0, augment=False)
        for index in range(len(dataset)):
            sample = dataset[4, index]
            video = to_input(sample["video"]).flatten(0, 1).numpy()
            matches = []
            for face in faces_of(TRAIN):
                naive = naive_clip(encoder_inputs, "train", face, TRAIN, 5)
                if np.allclose(video, naive[0], atol=1e-5):
                    matches.append(naive[1])
            assert any(np.allclose(sample["audio"][0].numpy(), audio, atol=1e-4) for audio in matches)

    def test_are_others_in_every_epoch_and_the_same_again(self, reader):
        dataset, again = (STEDataset(reader, seed=5, augment=True) for _ in range(2))

        def draw(dataset: STEDataset, epoch: int) -> list[bytes]:
            return [dataset[epoch, index]["video"].numpy().tobytes() for index in range(len(dataset))]

        assert draw(dataset, 1) == draw(again, 1)
        assert all(one != two for one, two in zip(draw(dataset, 1), draw(dataset, 2), strict=True))
        assert draw(dataset, 1) != draw(STEDataset(reader, seed=6, augment=True), 1)

    def test_validation_draws_the_same_in_every_epoch(self, reader):
        dataset = STEDataset(reader, seed=5, augment=False)
        loader = batch_loader(dataset, EpochSampler(len(dataset), 5, shuffle=False), 2, 0, CPU)
        passes = [[batch["video"].numpy().tobytes() for batch in loader] for _ in range(2)]
        assert passes[0] == passes[1]

    def test_every_sample_once_an_epoch_in_another_order(self):
        sampler, orders = EpochSampler(50, seed=9), []
        for epoch in (1, 2, 1):
            sampler.epoch = epoch
            orders.append(list(sampler))
            assert sorted(orders[-1]) == [(epoch, index) for index in range(50)]
        assert orders[0] == orders[2]
        assert [index for _, index in orders[0]] != [index for _, index in orders[1]]
        assert list(EpochSampler(3, seed=9, shuffle=False)) == [(0, 0), (0, 1), (0, 2)]

    def test_last_batch_of_one_clip(self, reader):
        """Three tracks in batches of two: the last one is alone, and short clips leave it a single position."""
        model = TwoStreamResNet(1)
        loader = batch_loader(STEDataset(reader, 0, augment=True), EpochSampler(3, 0), 2, 0, CPU)
        optimizer = torch.optim.Adam(model.parameters(), 1e-4)
        metrics = train_one_epoch(model, loader, ste_losses, optimizer, CPU, "fp32")
        assert all(math.isfinite(value) for name, value in metrics.items() if name.startswith("loss"))


def test_metrics_are_means_over_samples_and_not_over_batches():
    """Five rows in batches of two: the last one weighs as much as any other."""

    class Rows(torch.utils.data.Dataset):
        def __getitems__(self, keys):
            index = torch.tensor([index for _, index in keys])
            return {"features": index[:, None].float(), "label": index % 2}

    class Margin(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return torch.cat((torch.zeros_like(x), x + self.weight), dim=1)

    loader = batch_loader(Rows(), EpochSampler(5, 0, shuffle=False), 2, 0, CPU)
    metrics = evaluate(Margin(), loader, asc_losses, CPU, "fp32")
    losses = [math.log(1 + math.exp(i)) - (i % 2) * i for i in range(5)]
    assert metrics["loss_av"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert metrics["auc"] == pytest.approx(3 / 6)  # 3 > 2, 3 > 0, 1 > 0 of six pairs
    assert metrics["ap"] == pytest.approx(1 / 2)  # ranks of the positives: 2 and 4
    assert set(metrics) == {"loss_av", "auc", "ap"}
