"""scripts/demo.sh as in the README: all stages on synthetic videos, and active speakers in one of them."""

import json
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, run_script

from core.detection.tracks import box_iou
from core.formats.annotations import read_annotations
from core.formats.features import FeatureStore

pytestmark = pytest.mark.slow
STE, ASC = "models/ste_encoder/24.pth", "models/ASC_len_11_stride_4_speakers_3/3.pth"
ROWS_PER_SECOND = 25


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """Returns the output directory and the printed text."""
    root = tmp_path_factory.mktemp("demo") / "ava"
    command = ["bash", str(ROOT / "scripts" / "demo.sh"), "--root", str(root)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEMO_")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=2400, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return root, result.stdout


def is_drawing(path: Path) -> bool:
    image = cv2.imread(str(path))
    return min(image.shape[:2]) > 150 and len(np.unique(image.reshape(-1, 3), axis=0)) > 20


def test_table_and_plots_of_both_networks(demo):
    root, output = demo
    saved = json.loads((root / "results" / "val.json").read_text())
    predictions = [saved["predictions"][f"{name}_predictions_val"] for name in ("ste", "asc")]
    table = output[output.rindex("official mAP (%)") :]
    for value in (saved["positives"] / saved["rows"], *(prediction["mAP"] for prediction in predictions)):
        assert f"{100 * value:.2f}" in table
    worst = predictions[1]["worst"]
    assert 1 <= len(worst) <= 5
    scores = {path.name for path in (root / "results").glob("scores_*.png")}
    assert scores == {f"scores_{video}.png" for video in worst}
    for name in (*scores, "precision_recall.png", "breakdown.png"):
        assert is_drawing(root / "results" / name)


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_row_has_a_crop_and_features(demo, split):
    root, _ = demo
    table = read_annotations(root / "csv" / split)
    for track, name in enumerate(table.entity_ids):
        crops = {path.name for path in (root / "instance_crops_time" / split / name).iterdir()}
        assert crops == {f"{float(timestamp)}.jpg" for timestamp in table.timestamp[table.rows_of_track(track)]}
        assert (root / "instance_wavs_time" / split / f"{name}.wav").stat().st_size > 44
    store = FeatureStore(root / "ste_features" / split)
    assert store.table.timestamp.tolist() == table.timestamp.tolist()
    assert np.isfinite(store.gather(np.arange(len(table)))).all()


def test_both_networks_are_far_above_chance(demo):
    root, _ = demo
    saved = json.loads((root / "results" / "val.json").read_text())
    for name in ("ste", "asc"):
        assert saved["predictions"][f"{name}_predictions_val"]["mAP"] > saved["chance"] + 0.2


def speech_overlap(root: Path, output: Path, entities: dict[str, str] | None = None) -> np.ndarray:
    """Return the intersection and the union, in seconds, of detected and annotated speech.

    `entities` maps detected tracks to annotated tracks; the default is the same name.
    """
    speakers = json.loads((output / "speakers.json").read_text())
    table = read_annotations(root / "csv" / "val" / f"{speakers['video']['id']}-activespeaker.csv")
    detected = np.zeros(len(table), bool)
    for track in speakers["tracks"]:
        name = (entities or {}).get(track["id"], track["id"])
        if name in table.entity_ids:
            rows = table.entity == table.entity_ids.index(name)
            for segment in track["speaking"]:
                start, end = segment["start"] - 1e-6, segment["end"] - 1e-6
                detected |= rows & (table.timestamp >= start) & (table.timestamp < end)
    annotated = table.is_speaking
    return np.array([(detected & annotated).sum(), (detected | annotated).sum()]) / ROWS_PER_SECOND


def test_speech_segments_on_annotated_tracks(demo):
    root, _ = demo
    intersection, union = speech_overlap(root, root / "own_video")
    assert union > 2
    assert intersection / union > 0.4


def match_tracks(root: Path, output: Path, video: str) -> dict[str, str]:
    """Map each detected track to the annotated track that it overlaps most."""
    table = read_annotations(root / "csv" / "val" / f"{video}-activespeaker.csv")
    tracks = read_annotations(output / "tracks.csv")
    matches = {}
    for track, name in enumerate(tracks.entity_ids):
        rows = tracks.rows_of_track(track)
        overlap = np.zeros(len(table.entity_ids))
        for row in rows:
            same_time = np.flatnonzero(table.timestamp == tracks.timestamp[row])
            np.add.at(overlap, table.entity[same_time], box_iou(tracks.box[row][None], table.box[same_time])[0])
        if overlap.max() > 0.4 * len(rows):
            matches[name] = table.entity_ids[overlap.argmax()]
    return matches


def test_speech_segments_on_detected_tracks(demo, test_data, tmp_path):
    root, _ = demo
    total = np.zeros(2)
    for csv in sorted((root / "csv" / "val").iterdir())[:2]:
        video = csv.name.removesuffix("-activespeaker.csv")
        path, output = root / "videos" / "trainval" / f"{video}.mp4", tmp_path / video
        weights = ("--ste-weights", root / STE, "--asc-weights", root / ASC)
        detector = ("--face-detector", test_data / "models" / "yunet_n_640_640.onnx")
        result = run_script("scripts/detect_speakers.py", path, "cpu", "--output-dir", output, *weights, *detector)
        assert result.returncode == 0, result.stderr
        matches = match_tracks(root, output, video)
        assert len(set(matches.values())) > 0.6 * len(read_annotations(csv).entity_ids)
        total += speech_overlap(root, output, matches)
    assert total[0] / total[1] > 0.4
