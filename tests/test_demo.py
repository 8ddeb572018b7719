"""The README's demo as it is: every stage on drawn films, networks that have learned, and who speaks when."""

import json
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, run_script

from core.detection.tracks import box_iou
from core.formats.annotations import read_annotations
from core.formats.features import FeatureStore

STE, ASC = "models/ste_encoder/24.pth", "models/ASC_len_11_stride_4_speakers_3/3.pth"


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """The root, with the README's pictures in `pictures`, and what was printed."""
    root = tmp_path_factory.mktemp("demo") / "ava"
    command = ["bash", str(ROOT / "scripts" / "demo.sh"), "--root", str(root), "--pictures", str(root / "pictures")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEMO_")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return root, result.stdout


def test_ends_with_a_table_and_a_picture(demo):
    root, output = demo
    saved = json.loads((root / "results" / "val.json").read_text())
    ste, asc = (saved["predictions"][f"{name}_predictions_val"]["mAP"] for name in ("ste", "asc"))
    table = output[output.rindex("official mAP (%)") :]
    assert "face width (pixels)" in table
    assert f"{100 * saved['positives'] / saved['rows']:.2f}" in table
    assert f"{100 * ste:.2f}" in table
    assert f"{100 * asc:.2f}" in table
    worst = saved["predictions"]["asc_predictions_val"]["worst"]
    assert 1 <= len(worst) <= 5
    scores = {path.name for path in (root / "results").glob("scores_*.png")}
    assert scores == {f"scores_{video}.png" for video in worst}
    for name in (*scores, "precision_recall.png", "breakdown.png", "score_histograms.png"):
        image = cv2.imread(str(root / "results" / name))
        assert min(image.shape[:2]) > 150
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20  # something is drawn


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_row_goes_through_every_stage(demo, split):
    root, _ = demo
    table = read_annotations(root / "csv" / split)
    for entity in range(len(table.entity_ids)):
        directory = root / "instance_crops_time" / split / table.entity_ids[entity]
        expected = {f"{float(t)}.jpg" for t in table.timestamp[table.rows_of_track(entity)]}
        assert {file.name for file in directory.iterdir()} == expected
        assert (root / "instance_wavs_time" / split / f"{table.entity_ids[entity]}.wav").stat().st_size > 44
    store = FeatureStore(root / "ste_features" / split)
    assert len(store.table) == len(table)
    assert store.table.timestamp.tolist() == table.timestamp.tolist()
    assert np.isfinite(store.gather(np.arange(len(table)))).all()


def test_final_predictions_stand_beside_their_ground_truth(demo):
    root, _ = demo
    truth = pd.read_csv(root / "results" / "ground_truth_val.csv", header=None)
    annotated = pd.concat(pd.read_csv(file, header=None) for file in sorted((root / "csv" / "val").iterdir()))
    assert truth.to_numpy().tolist() == annotated.to_numpy().tolist()
    for name in ("ste", "asc"):
        final = pd.read_csv(root / "results" / f"{name}_predictions_val.csv", header=None)
        assert final[[0, 1, 7]].equals(truth[[0, 1, 7]])
        assert set(final[6]) == {"SPEAKING_AUDIBLE"}
        assert final[8].between(0, 1).all()


def test_weights_are_bare_state_dicts(demo):
    root, _ = demo
    for name in (STE, ASC):
        state = torch.load(root / name, weights_only=True)
        assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_both_networks_have_learned(demo):
    """Far above chance, which another machine's rounding does not change."""
    root, _ = demo
    saved = json.loads((root / "results" / "val.json").read_text())
    for name in ("ste", "asc"):
        assert saved["predictions"][f"{name}_predictions_val"]["mAP"] > saved["chance"] + 0.2


def spoken(root: Path, found: Path, entity_of: dict[str, str] | None = None) -> tuple[float, float]:
    """Seconds of speech that the segments in `found` and the film's annotations have in common, and in either.

    `entity_of` tells which annotated face a track follows; without it they have the same name.
    """
    speakers = json.loads((found / "speakers.json").read_text())
    table = read_annotations(root / "csv" / "val" / f"{speakers['video']['id']}-activespeaker.csv")
    said = np.zeros(len(table), bool)
    for track in speakers["tracks"]:
        name = (entity_of or {}).get(track["id"], track["id"])
        if name in table.entity_ids:
            mine = table.entity == table.entity_ids.index(name)
            for part in track["speaking"]:
                said |= mine & (table.timestamp >= part["start"] - 1e-6) & (table.timestamp < part["end"] - 1e-6)
    true = table.is_speaking
    return float((said & true).sum() / 25), float((said | true).sum() / 25)


def test_segments_of_given_tracks_overlap_the_truth(demo):
    root, _ = demo
    common, either = spoken(root, root / "own_video")
    assert either > 2
    assert common / either > 0.4


def followed(root: Path, found: Path, video: str) -> dict[str, str]:
    """Track -> the annotated face that it covers most."""
    table = read_annotations(root / "csv" / "val" / f"{video}-activespeaker.csv")
    tracks = read_annotations(found / "tracks.csv")
    result = {}
    for track, name in enumerate(tracks.entity_ids):
        rows = tracks.rows_of_track(track)
        votes = np.zeros(len(table.entity_ids))
        for row in rows:
            here = np.flatnonzero(table.timestamp == tracks.timestamp[row])
            np.add.at(votes, table.entity[here], box_iou(tracks.box[row][None], table.box[here])[0])
        if votes.max() > 0.4 * len(rows):
            result[name] = table.entity_ids[votes.argmax()]
    return result


def test_faces_that_are_found_are_heard_to_speak(demo, test_data, tmp_path):
    """Films of the mini AVA without their annotations: faces are found again, and their speech."""
    root, _ = demo
    total = np.zeros(2)
    for film in sorted((root / "csv" / "val").iterdir())[:2]:
        video = film.name.removesuffix("-activespeaker.csv")
        found = tmp_path / video
        weights = ("--ste-weights", root / STE, "--asc-weights", root / ASC)
        detector = ("--face-detector", test_data / "models" / "yunet_n_640_640.onnx")
        path = root / "videos" / "trainval" / f"{video}.mp4"
        result = run_script("scripts/detect_speakers.py", path, "cpu", "--output-dir", found, *weights, *detector)
        assert result.returncode == 0, result.stderr
        entity_of = followed(root, found, video)
        annotated = read_annotations(film).entity_ids
        assert len(set(entity_of.values())) > 0.6 * len(annotated)
        total += spoken(root, found, entity_of)
    assert total[0] / total[1] > 0.4


def test_pictures_of_the_readme(demo):
    root, _ = demo
    for name in ("demo_precision_recall.png", "demo_scores.png", "demo_timeline.png", "demo_frame.jpg"):
        image = cv2.imread(str(root / "pictures" / name))
        assert min(image.shape[:2]) >= 360
        assert (ROOT / "docs" / "images" / name).is_file()
