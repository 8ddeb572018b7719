"""Stages 1, 2, 3, 5 and 8 on real clips, compared with the outputs of the released code."""

import numpy as np
import pandas as pd
import torch
from conftest import GOLDEN
from golden import fill
from tiny_inputs import run_here

KEY = ["entity_id", "frame_timestamp"]
LOGITS = ["logit_0", "logit_1"]
VIDEOS = ("clearvoice_002_2faces", "face_recognition_short_hamilton")


def run(script: str, *arguments: object) -> None:
    result = run_here(script, *arguments, small_encoder=False)
    assert result.returncode == 0, result.stderr


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    error = np.abs(found - expected)
    assert (error <= 0.02).mean() >= 0.99
    assert error.max() <= 0.2


def test_outputs_are_those_of_the_released_code(test_data, tmp_path):
    clips = test_data / "real_clips"
    csv = tmp_path / "csv"
    csv.mkdir()
    for video in VIDEOS:
        name = f"{video}-activespeaker.csv"
        (csv / name).write_bytes((clips / "csv" / "val" / name).read_bytes())
    work = tmp_path
    run("data/extract_audio_tracks.py", "--ava-video-dir", clips / "videos", "--target-audios", work / "tracks")
    common = ("--csv", csv, "--split", "val")
    run("data/slice_audio_tracks.py", *common, "--ava-audio-dir", work / "tracks", "--output-dir", work / "wavs")
    run("data/extract_face_crops_time.py", *common, "--ava-video-dir", clips / "videos", "--output-dir", work / "crops")
    torch.save(fill.ste_state(11), work / "STE.pth")
    torch.save(fill.asc_state(11, 2), work / "ASC.pth")
    run(
        "STE_forward.py", 11, "cpu", "--csv", csv, "--audio-dir", work / "wavs", "--video-dir", work / "crops",
        "--weights", work / "STE.pth", "--output-dir", work / "features", "--batch-size", 32,
    )  # fmt: skip
    features = ("--features-val-full", work / "features", "--output-dir", work / "asc")
    run("ASC_forward.py", 11, 4, 2, "cpu", *features, "--weights", work / "ASC.pth")
    for video in VIDEOS:
        expected = pd.read_csv(GOLDEN / "end_to_end" / f"{video}.csv")
        found = pd.read_csv(tmp_path / "features" / f"{video}.csv")
        features = np.load(tmp_path / "features" / f"{video}.npy")
        joined = expected[KEY].merge(found.reset_index(), on=KEY, how="left", validate="one_to_one")
        assert len(joined) == len(found) == len(features)
        assert_close(joined[LOGITS].to_numpy(), expected[["ste_logit_0", "ste_logit_1"]].to_numpy())
        assert joined["label_id"].tolist() == expected["label_id"].tolist()
        golden = np.load(GOLDEN / "end_to_end" / f"{video}_features.npz")["features"]  # every 16th feature
        assert_close(features[joined["index"]][:, ::16], golden)
        if "asc_logit_0" in expected:
            asc = pd.read_csv(tmp_path / "asc" / f"{video}.csv", header=None, names=[*KEY, *LOGITS])
            asc = expected[KEY].merge(asc, on=KEY, how="left")
            assert_close(asc[LOGITS].to_numpy(), expected[["asc_logit_0", "asc_logit_1"]].to_numpy())
