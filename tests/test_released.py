"""Real clips through the numbered stages, against what the released implementation gave for them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import GOLDEN, run_script
from golden import fill

from core.formats.annotations import read_annotations

KEY = ["entity_id", "frame_timestamp"]
VIDEOS = ("clearvoice_002_2faces", "face_recognition_short_hamilton")


def run(script: str, *arguments: object) -> None:
    result = run_script(script, *arguments)
    assert result.returncode == 0, result.stderr


def to_crops(clips: Path, csv: Path, work: Path) -> None:
    run("data/extract_audio_tracks.py", "--ava-video-dir", clips / "videos", "--target-audios", work / "tracks")
    common = ("--csv", csv, "--split", "val")
    run("data/slice_audio_tracks.py", *common, "--ava-audio-dir", work / "tracks", "--output-dir", work / "wavs")
    run("data/extract_face_crops_time.py", *common, "--ava-video-dir", clips / "videos", "--output-dir", work / "crops")


def to_predictions(csv: Path, work: Path, speakers: int, *flags: str) -> None:
    torch.save(fill.ste_state(11), work / "STE.pth")
    torch.save(fill.asc_state(11, speakers), work / "ASC.pth")
    run(
        "STE_forward.py", 11, "cpu", "--csv", csv, "--audio-dir", work / "wavs", "--video-dir", work / "crops",
        "--weights", work / "STE.pth", "--output-dir", work / "features", "--batch-size", 32, *flags,
    )  # fmt: skip
    features = ("--features-val-full", work / "features", "--output-dir", work / "asc")
    run("ASC_forward.py", 11, 4, speakers, "cpu", *features, "--weights", work / "ASC.pth")


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    error = np.abs(got - want)
    assert (error <= 0.02).mean() >= 0.99
    assert error.max() <= 0.2


def test_the_released_numbers(test_data, tmp_path):
    clips = test_data / "real_clips"
    csv = tmp_path / "csv"
    csv.mkdir()
    for video in VIDEOS:
        name = f"{video}-activespeaker.csv"
        (csv / name).write_bytes((clips / "csv" / "val" / name).read_bytes())
    to_crops(clips, csv, tmp_path)
    to_predictions(csv, tmp_path, 2)
    for video in VIDEOS:
        want = pd.read_csv(GOLDEN / "end_to_end" / f"{video}.csv")
        got = pd.read_csv(tmp_path / "features" / f"{video}.csv")
        features = np.load(tmp_path / "features" / f"{video}.npy")
        order = want[KEY].merge(got.reset_index(), on=KEY, how="left", validate="one_to_one")
        assert len(order) == len(got) == len(features)
        logits = order[["logit_0", "logit_1"]].to_numpy()
        assert_close(logits, want[["ste_logit_0", "ste_logit_1"]].to_numpy())
        assert order["label_id"].tolist() == want["label_id"].tolist()
        golden = np.load(GOLDEN / "end_to_end" / f"{video}_features.npz")["features"]
        assert_close(features[order["index"]][:, ::16], golden)
        if "asc_logit_0" in want:
            asc = pd.read_csv(tmp_path / "asc" / f"{video}.csv", header=None, names=[*KEY, "logit_0", "logit_1"])
            asc = want[KEY].merge(asc, on=KEY, how="left")
            assert_close(asc[["logit_0", "logit_1"]].to_numpy(), want[["asc_logit_0", "asc_logit_1"]].to_numpy())


@pytest.mark.slow
def test_all_real_clips_with_three_speakers(test_data, tmp_path):
    clips = test_data / "real_clips"
    csv = clips / "ava_activespeaker_val_augmented.csv"
    to_crops(clips, csv, tmp_path)
    to_predictions(csv, tmp_path, 3, "--precision", "bf16")
    truth = ("--ground-truth", csv, "--ground-truth-csv", tmp_path / "truth.csv")
    ste, asc = tmp_path / "ste.csv", tmp_path / "asc.csv"
    run("STE_postprocessing.py", "--forward-dir", tmp_path / "features", *truth, "--predictions-csv", ste)
    run("ASC_prediction_postprocessing.py", "--predictions-dir", tmp_path / "asc", *truth, "--predictions-csv", asc)
    for file in (ste, asc):
        assert len(pd.read_csv(file, header=None)) == len(read_annotations(csv)) == 4220
