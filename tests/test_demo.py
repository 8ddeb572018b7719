"""Every script once, through the demo at its smallest: two drawn films, one epoch of each network."""

import json
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from core.annotations import read_annotations
from core.io import FeatureStore

SIZES = {"DEMO_VIDEOS": "2", "DEMO_SECONDS": "5", "DEMO_STE_EPOCHS": "1", "DEMO_ASC_EPOCHS": "1"}


def run_demo(root: Path) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "scripts" / "demo.sh"), "--seed", "3", "--root", str(root)]
    return subprocess.run(
        command, env={**os.environ, **SIZES}, capture_output=True, text=True, timeout=400, check=False
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("demo") / "ava"
    result = run_demo(root)
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
    for name in ("ste_encoder", "ASC_len_11_stride_4_speakers_3"):
        state = torch.load(root / "models" / name / "1.pth", weights_only=True)
        assert all(isinstance(value, torch.Tensor) for value in state.values())
