"""Encoders other than the paper's: golden numbers, features of any width through the stages, encoders of one's own."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import GOLDEN
from golden import fill
from tiny_inputs import (
    run_here,
    write_text,
)

from core.lr_asd import LR_ASD
from core.mfcc import track_mfccs
from core.models import ASC_Net, TwoStreamResNet

KEY = ["entity_id", "frame_timestamp"]
LOGITS = ["logit_0", "logit_1"]
VIDEOS = ("clearvoice_002_2faces", "face_recognition_short_hamilton")
SHORT_TRACK = "face_recognition_short_hamilton_0000_0009:1"
SHIFTED = {"resnet18-tsm": 18, "resnet50-tsm": 50}

# Networks


@pytest.mark.parametrize("name", SHIFTED)
def test_shifted_resnets_have_spells_parameters_and_outputs(name):
    shapes = json.loads((GOLDEN / "encoders" / "state_dict_keys.json").read_text())[name]
    model = TwoStreamResNet(11, SHIFTED[name], temporal_shift=True).eval()
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == shapes
    model.load_state_dict(fill.filled(shapes))
    with torch.inference_mode():
        outputs = model(fill.tensor("audio", 2, 1, 13, 40), fill.tensor("video", 2, 33, 144, 144))
    golden = np.load(GOLDEN / "encoders" / f"{name}_t11.npz")
    for output, expected in zip(outputs, (golden[key] for key in ("av", "audio", "video", "features")), strict=True):
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert model.feature_size == outputs[3].shape[1] == golden["features"].shape[1]


def test_context_network_of_another_width():
    with torch.device("meta"):
        paper, wide = ASC_Net(5, 2).state_dict(), ASC_Net(5, 2, feature_size=128).state_dict()
    assert list(paper) == list(wide)
    assert ASC_Net(5, 2, feature_size=128)(torch.zeros(1, 128, 5, 2)).shape == (1, 2)


def test_long_tracks_are_encoded_in_parts(monkeypatch):
    torch.manual_seed(0)
    model, frames = LR_ASD().eval(), torch.randint(256, (50, 112, 112)).to(torch.uint8)
    mfccs = torch.randn(200, 13)
    with torch.inference_mode():
        whole = model(mfccs, frames)
        monkeypatch.setattr("core.lr_asd._FRAMES_AT_ONCE", 8)
        parts = model(mfccs, frames)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_mfccs_of_a_track_have_four_frames_per_row():
    samples = np.random.default_rng(0).normal(0, 1000, 16000)
    for rows, step in ((1, 0.04), (25, 0.04), (30, 1 / 30), (40, 0.05)):
        values = track_mfccs(samples, 10 + step * np.arange(rows))
        assert (values.shape, values.dtype) == ((4 * rows, 13), np.float32)
    short = track_mfccs(samples[:1600], 10 + 0.04 * np.arange(25))
    assert (short[9] == short[0]).all()  # continued from the start
    assert track_mfccs(samples[:0], np.zeros(1)).shape == (4, 13)


# Real clips


def run(script: str, *arguments: object):
    result = run_here(script, *arguments, small_encoder=False)
    assert result.returncode == 0, result.stderr
    return result


def assert_golden(found: Path, name: str, tolerances: tuple[float, float], features: bool = False) -> None:
    """Compare the logits of a feature store, and with `features` every eighth feature, with golden ones."""
    most, all_values = tolerances
    for file in found.glob("*.csv"):
        expected = pd.read_csv(GOLDEN / "encoders" / f"{name}_{file.stem}.csv").reset_index(names="golden_row")
        table = pd.read_csv(file).reset_index(names="row")
        joined = table.merge(expected, on=KEY, suffixes=("", "_golden"), validate="one_to_one")
        assert len(joined) == len(table)
        error = np.abs(joined[LOGITS].to_numpy() - joined[[f"{column}_golden" for column in LOGITS]].to_numpy())
        assert (error <= most).mean() >= 0.99
        assert error.max() <= all_values
        if features:
            golden = np.load(GOLDEN / "encoders" / f"{name}_{file.stem}_features.npz")["features"]
            array = np.load(file.with_suffix(".npy"))
            assert array.shape[1] == 128
            error = np.abs(array[joined["row"]][:, ::8] - golden[joined["golden_row"]])
            assert (error <= 0.02).mean() >= 0.99


def copy_tracks(test_data: Path, csv: Path, video: str, entity: str = "") -> None:
    """Copy the annotations of a real clip, or of one of its tracks."""
    name = f"{video}-activespeaker.csv"
    lines = (test_data / "real_clips" / "csv" / "val" / name).read_text().splitlines()
    write_text(csv / name, "".join(f"{line}\n" for line in lines if line.endswith(entity)))


def forward_on_real_clips(test_data: Path, work: Path) -> Path:
    """Run stages 1, 2, 3 and 5 with LR-ASD on the tracks in work/csv. Returns the features."""
    videos = ("--ava-video-dir", test_data / "real_clips" / "videos")
    common = ("--csv", work / "csv", "--split", "val")
    run("data/extract_audio_tracks.py", *videos, "--target-audios", work / "tracks")
    run("data/slice_audio_tracks.py", *common, "--ava-audio-dir", work / "tracks", "--output-dir", work / "wavs")
    run("data/extract_face_crops_time.py", *common, *videos, "--output-dir", work / "crops")
    run(
        "STE_forward.py", 11, "cpu", *common, "--audio-dir", work / "wavs", "--video-dir", work / "crops",
        "--encoder", "lr-asd", "--weights", lr_asd_weights(test_data), "--output-dir", work / "features",
    )  # fmt: skip
    return work / "features"


def lr_asd_weights(test_data: Path, name: str = "pretrain_AVA") -> Path:
    path = test_data / "models" / f"lr_asd_{name}.model"
    if not path.exists():
        pytest.skip(f"no file {path}")
    return path


def test_lr_asd_on_a_real_track(test_data, tmp_path):
    copy_tracks(test_data, tmp_path / "csv", VIDEOS[1], SHORT_TRACK)
    features = forward_on_real_clips(test_data, tmp_path)
    assert_golden(features, "lr_asd", (0.02, 0.2), features=True)


@pytest.mark.slow
def test_lr_asd_on_real_clips(test_data, tmp_path):
    for video in VIDEOS:
        copy_tracks(test_data, tmp_path / "csv", video)
    features = forward_on_real_clips(test_data, tmp_path)
    assert len(list(features.glob("*.csv"))) == len(VIDEOS)
    assert_golden(features, "lr_asd", (0.02, 0.2), features=True)
