"""Encoders: golden numbers on real clips, features of any width through the stages, encoders of one's own."""

import json
import pickle
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import GOLDEN, ROOT, assert_refused, printed, run_script
from golden import fill
from stages import command
from tiny_inputs import (
    SmallEncoder,
    Track,
    faces_of,
    noise_features,
    read_json,
    run_here,
    succeed,
    write_annotations,
    write_store,
    write_text,
)

from core.datasets import ClipReader
from core.formats.annotations import read_annotations
from core.formats.features import FeatureStore
from core.inference import encode_videos
from core.lr_asd import LR_ASD, mouth_region
from core.media.crops import extract_crops
from core.media.reader import VideoReader
from core.mfcc import track_mfccs
from core.models import ASC_Net, TwoStreamResNet
from core.runtime.errors import InputError
from core.runtime.jobs import Outcome
from core.runtime.weights import load_weights

KEY = ["entity_id", "frame_timestamp"]
LOGITS = ["logit_0", "logit_1"]
VIDEOS = ("clearvoice_002_2faces", "face_recognition_short_hamilton")
SHORT_TRACK = "face_recognition_short_hamilton_0000_0009:1"
SHIFTED = {"resnet18-tsm": 18, "resnet50-tsm": 50}
slow = pytest.mark.slow

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


def assert_close(found: np.ndarray, expected: np.ndarray, most: float = 0.02, all_values: float = 0.2) -> None:
    """Assert that 99 % of the values differ by at most `most`, and all values by at most `all_values`."""
    error = np.abs(found - expected)
    assert (error <= most).mean() >= 0.99
    assert error.max() <= all_values


def assert_golden(found: Path, name: str, *tolerances: float, features: bool = False) -> None:
    """Compare the logits of a feature store, and with `features` every eighth feature, with golden ones."""
    for file in found.glob("*.csv"):
        expected = pd.read_csv(GOLDEN / "encoders" / f"{name}_{file.stem}.csv").reset_index(names="golden_row")
        table = pd.read_csv(file).reset_index(names="row")
        joined = table.merge(expected, on=KEY, suffixes=("", "_golden"), validate="one_to_one")
        assert len(joined) == len(table)
        golden = joined[[f"{column}_golden" for column in LOGITS]].to_numpy()
        assert_close(joined[LOGITS].to_numpy(), golden, *tolerances)
        if features:
            golden = np.load(GOLDEN / "encoders" / f"{name}_{file.stem}_features.npz")["features"]
            array = np.load(file.with_suffix(".npy"))
            assert array.shape[1] == 128
            assert_close(array[joined["row"]][:, ::8], golden[joined["golden_row"]], all_values=np.inf)


def copy_tracks(test_data: Path, csv: Path, videos: Iterable[str], entity: str = "") -> None:
    """Copy the annotations of real clips, or of one of their tracks."""
    for video in videos:
        name = f"{video}-activespeaker.csv"
        lines = (test_data / "real_clips" / "csv" / "val" / name).read_text().splitlines()
        write_text(csv / name, "".join(f"{line}\n" for line in lines if line.endswith(entity)))


def forward_on_real_clips(test_data: Path, work: Path, *encoder: object) -> Path:
    """Run stages 1, 2, 3 and 5 with an encoder on the tracks in work/csv. Returns the features."""
    videos = ("--ava-video-dir", test_data / "real_clips" / "videos")
    common = ("--csv", work / "csv", "--split", "val")
    succeed("data/extract_audio_tracks.py", *videos, "--target-audios", work / "tracks")
    succeed("data/slice_audio_tracks.py", *common, "--ava-audio-dir", work / "tracks", "--output-dir", work / "wavs")
    succeed("data/extract_face_crops_time.py", *common, *videos, "--output-dir", work / "crops")
    succeed(
        "STE_forward.py", 11, "cpu", *common, "--audio-dir", work / "wavs", "--video-dir", work / "crops",
        "--output-dir", work / "features", *encoder, small_encoder=False,
    )  # fmt: skip
    return work / "features"


def lr_asd_weights(test_data: Path, name: str = "pretrain_AVA") -> Path:
    path = test_data / "models" / f"lr_asd_{name}.model"
    if not path.exists():
        pytest.skip(f"no file {path}")
    return path


def test_outputs_are_those_of_the_released_code(test_data, tmp_path):
    """Stages 1, 2, 3, 5 and 8, with filled networks."""
    copy_tracks(test_data, tmp_path / "csv", VIDEOS)
    torch.save(fill.ste_state(11), tmp_path / "STE.pth")
    torch.save(fill.asc_state(11, 2), tmp_path / "ASC.pth")
    store = forward_on_real_clips(test_data, tmp_path, "--weights", tmp_path / "STE.pth", "--batch-size", 32)
    context = ("--weights", tmp_path / "ASC.pth", "--output-dir", tmp_path / "asc")
    succeed("ASC_forward.py", 11, 4, 2, "cpu", "--features-val-full", store, *context)
    for video in VIDEOS:
        expected = pd.read_csv(GOLDEN / "end_to_end" / f"{video}.csv")
        found = pd.read_csv(store / f"{video}.csv")
        features = np.load(store / f"{video}.npy")
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


@pytest.mark.parametrize(
    ("videos", "entity"), [(VIDEOS[1:], SHORT_TRACK), pytest.param(VIDEOS, "", marks=slow)], ids=["a track", "all"]
)
def test_lr_asd_on_real_clips(test_data, tmp_path, videos, entity):
    copy_tracks(test_data, tmp_path / "csv", videos, entity)
    features = forward_on_real_clips(test_data, tmp_path, "--encoder", "lr-asd", "--weights", lr_asd_weights(test_data))
    assert len(list(features.glob("*.csv"))) == len(videos)
    assert_golden(features, "lr_asd", features=True)


def encode_regions(test_data: Path, work: Path) -> Path:
    """Encode the tracks in work/csv from regions of the video frames, with LR-ASD's weights for videos in the wild.

    The audio is that of the stages, as for the golden numbers. scripts/detect_speakers.py aligns it with the video.
    """
    model = LR_ASD().eval()
    load_weights(model, lr_asd_weights(test_data, "finetuning_TalkSet"), "")
    table = read_annotations(work / "csv")
    videos = test_data / "real_clips" / "videos"
    succeed("data/extract_audio_tracks.py", "--ava-video-dir", videos, "--target-audios", work / "tracks")
    audio = ("--ava-audio-dir", work / "tracks", "--output-dir", work / "wavs")
    succeed("data/slice_audio_tracks.py", "--csv", work / "csv", "--split", "val", *audio)
    with VideoReader(next(videos.glob(f"{table.video_ids[0]}.*"))) as reader:
        outcome, region = Outcome(), (mouth_region, work / "regions")
        extract_crops(table, np.arange(len(table)), reader, work / "crops", outcome, lambda _: None, *region)
    reader = ClipReader(table, work / "wavs" / "val", work / "regions", 1)
    options = {"batch_size": 1, "workers": 0, "precision": "fp32", "whole_tracks": True}
    with torch.inference_mode():
        encode_videos(model, reader, work / "features", torch.device("cpu"), **options)
    return work / "features"


@pytest.mark.parametrize("entity", [SHORT_TRACK, pytest.param("", marks=slow)], ids=["a track", "all"])
def test_lr_asd_in_the_wild_on_real_tracks(test_data, tmp_path, entity):
    copy_tracks(test_data, tmp_path / "csv", VIDEOS[1:], entity)
    assert_golden(encode_regions(test_data, tmp_path), "lr_asd_wild", 0.1, 0.5)


@slow
def test_lr_asd_in_the_wild_on_a_real_video(test_data, tmp_path):
    """Through scripts/detect_speakers.py, on given tracks of a video without an offset of its audio."""
    copy_tracks(test_data, tmp_path / "csv", VIDEOS[:1])
    video = test_data / "real_clips" / "videos" / f"{VIDEOS[0]}.avi"
    weights = ("--encoder", "lr-asd-wild", "--encoder-weights", lr_asd_weights(test_data, "finetuning_TalkSet"))
    out = ("--tracks", tmp_path / "csv", "--output-dir", tmp_path / "out")
    succeed("scripts/detect_speakers.py", video, "cpu", *weights, *out)
    assert_golden(tmp_path / "out" / "work" / "ste_features" / "val", "lr_asd_wild", 0.1, 0.5)


# Features of any width, through the command lines of the stages

CONTEXT = "ASC_len_3_stride_2_speakers_2"


def run_small(script: str, root: Path, out: Path, *more: object):
    return run_here(*command(script, root, out), *more)


def encode(inputs: Path, out: Path, *encoder: object) -> tuple[str, Path]:
    """Write features of the inputs' rows. Returns the flag of both splits and their directory."""
    printed(run_small("STE_forward.py", inputs, out, *encoder))
    return ("--features-train-full", out, "--features-val-full", out)


@pytest.mark.parametrize(("name", "width"), [("resnet18-tsm", 1024), ("resnet50-tsm", 4096)])
def test_all_stages_with_another_encoder(inputs, tmp_path, name, width):
    """Train, resume, encode, train on the features and predict."""
    more = ("--encoder", name)
    printed(run_small("STE_train.py", inputs, tmp_path, *more, "--epochs", 1))
    output = printed(run_small("STE_train.py", inputs, tmp_path, *more, "--resume"))
    assert "resuming after epoch 1" in output
    assert f"--encoder {name}" in output.splitlines()[-1]
    weights = tmp_path / "ste_encoder" / "best.pth"
    assert_refused(run_small("STE_train.py", inputs, tmp_path, "--resume"), f"encoder {name}, now resnet18")
    features = encode(inputs, tmp_path / "features", *more, "--weights", weights)
    assert FeatureStore(tmp_path / "features").feature_size == width
    saved = read_json(tmp_path / "features" / "STE_forward_cfg.json")
    assert (saved["encoder"], saved["feature_size"]) == (name, width)
    printed(run_small("ASC_train.py", inputs, tmp_path, *features, "--epochs", 1))
    saved = read_json(tmp_path / CONTEXT / f"{CONTEXT}_cfg.json")
    assert (saved["encoder"], saved["feature_size"]) == (name, width)
    context = ("--weights", tmp_path / CONTEXT / "1.pth")
    printed(run_small("ASC_forward.py", inputs, tmp_path / "asc", *features[2:], *context))
    result = run_small("ASC_forward.py", inputs, tmp_path / "other", "--weights", inputs / "ASC.pth", *features[2:])
    if width == 1024:
        printed(result)
    else:
        assert_refused(result, "ASC.pth", "4096 features per row")


def test_lr_asd_through_the_stages(inputs, tmp_path):
    torch.manual_seed(0)
    torch.save(LR_ASD().state_dict(), tmp_path / "lr_asd.model")
    encoder = ("--encoder", "lr-asd", "--weights", tmp_path / "lr_asd.model")
    features = encode(inputs, tmp_path / "features", *encoder)
    assert FeatureStore(tmp_path / "features").feature_size == 128
    text = encode(inputs, tmp_path / "text", *encoder, "--text-features")
    rows = np.arange(5)
    for directory in (features[1], text[1]):
        assert (FeatureStore(directory).gather(rows) == FeatureStore(features[1]).gather(rows)).all()
    again = printed(run_small("STE_forward.py", inputs, tmp_path / "features", *encoder))
    assert "4 videos already done" in again
    printed(run_small("ASC_train.py", inputs, tmp_path, *features))
    context = ("--weights", tmp_path / CONTEXT / "3.pth")
    printed(run_small("ASC_forward.py", inputs, tmp_path / "asc", *features[2:], *context))


def test_lr_asd_is_not_trained(inputs, tmp_path):
    assert_refused(run_small("STE_train.py", inputs, tmp_path, "--encoder", "lr-asd"), "--encoder lr-asd")


def test_lr_asd_with_weights_of_another_network(inputs, tmp_path):
    result = run_small("STE_forward.py", inputs, tmp_path, "--encoder", "lr-asd")  # with the small encoder's weights
    assert_refused(result, "STE.pth", "another network")


def test_an_encoder_without_published_weights_needs_weights(tmp_path):
    result = run_here("STE_forward.py", 11, "cpu", "--encoder", "resnet18-tsm")
    assert_refused(result, "--weights", "docs/encoders.md")


def test_context_network_of_another_encoder_is_refused_by_name(inputs, tmp_path):
    torch.save(SmallEncoder(1, 50).state_dict(), tmp_path / "wide.pth")
    narrow = encode(inputs, tmp_path / "narrow")
    wide = encode(inputs, tmp_path / "wide", "--encoder", "resnet50-tsm", "--weights", tmp_path / "wide.pth")
    printed(run_small("ASC_train.py", inputs, tmp_path, *narrow))
    weights = tmp_path / CONTEXT / "best.pth"
    result = run_small("ASC_forward.py", inputs, tmp_path / "asc", *wide[2:], "--weights", weights)
    assert_refused(result, "two encoders", "resnet50-tsm with", "resnet18 with")
    result = run_small("ASC_train.py", inputs, tmp_path / "mixed", *narrow[:2], *wide[2:], "--allow-mismatch")
    assert_refused(result, f"1024 in {narrow[1]}, but 4096 in {wide[1]}")


def test_a_store_with_features_of_two_widths_is_refused(tmp_path):
    faces = faces_of([Track("one:a", "0110", video="one"), Track("two:a", "01", video="two")])
    write_store(tmp_path, faces, noise_features)
    np.save(tmp_path / "two.npy", np.zeros((2, 128), np.float32))
    with pytest.raises(InputError, match=r"1024 in .*one\.npy, but 128 in .*two\.npy features per row"):
        FeatureStore(tmp_path)


# Networks of full size

SMALL = ("--clip-length", 3, "--no-pretrained", "--ste-batch-size", 4, "--forward-batch-size", 8, "--asc-epochs", 1)


@pytest.fixture(scope="module")
def mini_ava(tmp_path_factory) -> Path:
    """A data root after stages 1 to 3."""
    root = tmp_path_factory.mktemp("mini_ava")
    for script in (
        ("scripts/make_mini_ava.py", "--root", root, "--videos", 3, "--seconds", 2, "--seed", 1),
        ("scripts/run_stages.py", "cpu", "--stages", "1-3"),
    ):
        printed(run_script(*script, ASC_DATA_ROOT=str(root)))
    return root


@slow
@pytest.mark.parametrize("name", SHIFTED)
def test_all_stages_on_a_mini_ava_and_two_ranks(mini_ava, name):
    """All stages, the same again, one more epoch on two ranks, and features by two ranks, which equal those before."""

    def run(*arguments: object) -> str:
        return printed(run_script(*arguments, timeout=900, ASC_DATA_ROOT=str(mini_ava)))

    stages = ("scripts/run_stages.py", "cpu", "--encoder", name, "--ste-epochs", 1, *SMALL, "--stages", "4-9")
    assert f"asc_predictions_val_{name}.csv" in run(*stages).splitlines()[-1]
    features = mini_ava / f"ste_features_{name}" / "val"
    assert run(*stages).count("already done") == 3

    models = mini_ava / f"models_{name}"
    ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    more = ("--models-out", models, "--no-pretrained", "--batch-size", 4, "--epochs", 2, "--resume")
    assert "resuming after epoch 1" in run(*ranks, "STE_train.py", 3, "cpu", "--encoder", name, *more)
    assert (models / "ste_encoder" / "2.pth").exists()
    weights = ("--weights", models / "ste_encoder" / "1.pth", "--output-dir", mini_ava / "of_ranks")
    options = ("--split", "val", "--encoder", name, "--batch-size", 8, "--overwrite")
    run(*ranks, "STE_forward.py", 3, "cpu", *options, *weights)
    for file in features.glob("*.npy"):
        np.testing.assert_allclose(np.load(mini_ava / "of_ranks" / file.name), np.load(file), atol=1e-4)


# An encoder of one's own


WRAPPER = """
from torch import nn


class Wrapper(nn.Module):
    def __init__(self, clip_length):
        super().__init__()
        self.model = MyEncoder(clip_length)  # a prefix that checkpoints of others have
        self.feature_size = self.model.feature_size

    def forward(self, audio, video):
        return self.model(audio, video)
"""


@pytest.mark.parametrize("name", ["MyEncoder", "Wrapper"])
def test_an_encoder_from_a_module_in_the_working_directory(inputs, tmp_path, monkeypatch, name):
    """The example of docs/encoders.md, outside the project."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "encoders.md").read_text(), re.S)
    write_text(tmp_path / f"my_{name}.py", example + WRAPPER)
    monkeypatch.chdir(tmp_path)
    own = ("--encoder", f"my_{name}:{name}")
    printed(run_small("STE_train.py", inputs, tmp_path, *own, "--epochs", 1))
    features = encode(inputs, tmp_path / "features", *own, "--weights", tmp_path / "ste_encoder" / "best.pth")
    assert FeatureStore(tmp_path / "features").feature_size == 1152
    printed(run_small("ASC_train.py", inputs, tmp_path, *features, "--epochs", 1))
    assert read_json(tmp_path / CONTEXT / f"{CONTEXT}_cfg.json")["encoder"] == own[1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet34", "expected resnet18, resnet18-tsm"),
        ("no_such_module:build", "No module named 'no_such_module'"),
        ("json:build", "no attribute 'build'"),
        ("torch.nn:Identity", "no feature_size"),
    ],
)
def test_unknown_encoders_are_an_error(inputs, tmp_path, name, words):
    result = run_small("STE_forward.py", inputs, tmp_path, "--encoder", name)
    assert_refused(result, f"--encoder {name}", words)


# GraVi-T


def export(tmp_path: Path, **features: Path):
    options = [word for split in ("train", "val") for word in (f"--csv-{split}-full", tmp_path / f"{split}.csv")]
    options += [word for split, path in features.items() for word in (f"--features-{split}-full", path)]
    return run_here("scripts/export_gravit.py", "--name", "NAME", "--output-dir", tmp_path / "gravit", *options)


def read_pickle(path: Path) -> dict:
    return pickle.loads(path.read_bytes())


@pytest.fixture
def stores(tmp_path) -> dict[str, Path]:
    """Features and annotations of train and val, the annotations in another order of rows."""
    tracks = {
        "train": [Track("a:1", "0110", 1080.0, "a"), Track("a:2", "20", 1080.04, "a")],
        "val": [Track("b:1", "01", 900.0, "b"), Track("c:1", "1", 901.0, "c")],
    }
    for split, some in tracks.items():
        write_annotations(tmp_path / f"{split}.csv", faces_of(reversed(some)))
        write_store(tmp_path / f"features_{split}", faces_of(some))
    return {split: tmp_path / f"features_{split}" for split in tracks}


def test_export_has_gravits_format(stores, tmp_path):
    printed(export(tmp_path, **stores))
    root = tmp_path / "gravit" / "features" / "NAME"
    files = {path.relative_to(root).as_posix(): read_pickle(path) for path in root.glob("*/*.pkl")}
    assert sorted(files) == ["train/a.pkl", "val/b.pkl", "val/c.pkl"]
    assert list(files["train/a.pkl"]) == ["1080.04", "1080.08", "1080", "1080.12"]
    two_faces = files["train/a.pkl"]["1080.08"]
    assert [face["person_id"] for face in two_faces] == ["a:2", "a:1"]
    assert [face["label"] for face in two_faces] == [[0], [1]]
    assert two_faces[0]["person_box"] == "0.25,0.125,0.5,0.75"
    feature = two_faces[1]["feature"]  # of row 2, whose features are 2048, 2049, ...
    assert feature.dtype == np.float32
    assert feature[:2].tolist() == [2048 + 512, 2048 + 513]
    assert feature[512:514].tolist() == [2048, 2049]
    ids = [face["global_id"] for file in sorted(files) for faces in files[file].values() for face in faces]
    assert sorted(ids) == list(range(9))


def test_fused_features_are_exported_as_they_are(stores, tmp_path):
    for path in stores.values():
        write_text(path / "STE_forward_cfg.json", '{"encoder": "lr-asd"}')
    printed(export(tmp_path, **stores))
    (faces,) = read_pickle(tmp_path / "gravit" / "features" / "NAME" / "val" / "c.pkl").values()
    assert faces[0]["feature"][:2].tolist() == [2048, 2049]


def test_export_of_incomplete_features_and_long_timestamps_is_refused(stores, tmp_path):
    write_annotations(tmp_path / "train.csv", faces_of([Track("a:1", "011000", 1080.0, "a")]))
    assert_refused(export(tmp_path, **stores), "have no prediction, such as a:1 at 1080.16")
    late = faces_of([Track("a:1", "1", 12345.62, "a")])
    line = write_annotations(tmp_path / "train.csv", late).read_text()
    write_text(tmp_path / "train.csv", line.replace("12345.6,", "12345.62,"))
    write_store(tmp_path / "late", late)
    assert_refused(export(tmp_path, train=tmp_path / "late", val=stores["val"]), "six digits")


def test_predictions_of_gravit_are_evaluated(stores, tmp_path):
    """In the format of its list of predictions: numbers, and SPEAKING_AUDIBLE in every row."""
    faces = faces_of([Track("b:1", "01", 900.0, "b"), Track("c:1", "1", 901.0, "c")])
    predictions = [[f.video, f.time, 0.25, 0.125, 0.5, 0.75, "SPEAKING_AUDIBLE", f.entity, f.label / 3] for f in faces]
    pd.DataFrame(predictions).to_csv(tmp_path / "gravit.csv", header=False, index=False)
    files = ("--predictions", tmp_path / "gravit.csv", "--ground-truth", tmp_path / "val.csv")
    assert "100.0" in succeed("scripts/evaluate.py", *files, "--json", tmp_path / "numbers.json")
