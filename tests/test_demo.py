"""scripts/demo.sh as in the README: all stages on synthetic videos, and active speakers in one of them."""

import json
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, printed

from core.formats.annotations import read_annotations

pytestmark = pytest.mark.slow
ROWS_PER_SECOND = 25


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """Returns the output directory and the printed text."""
    root = tmp_path_factory.mktemp("demo") / "ava"
    command = ["bash", str(ROOT / "scripts" / "demo.sh"), "--root", str(root)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEMO_")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=2400, check=False)
    return root, printed(result)


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


def test_both_networks_are_far_above_chance(demo):
    root, _ = demo
    saved = json.loads((root / "results" / "val.json").read_text())
    for name in ("ste", "asc"):
        assert saved["predictions"][f"{name}_predictions_val"]["mAP"] > saved["chance"] + 0.2


def test_speech_segments_overlap_with_the_labels(demo):
    root, _ = demo
    speakers = json.loads((root / "own_video" / "speakers.json").read_text())
    table = read_annotations(root / "csv" / "val" / f"{speakers['video']['id']}-activespeaker.csv")
    detected = np.zeros(len(table), bool)
    for track in speakers["tracks"]:
        rows = table.entity == table.entity_ids.index(track["id"])
        for segment in track["speaking"]:
            start, end = segment["start"] - 1e-6, segment["end"] - 1e-6
            detected |= rows & (table.timestamp >= start) & (table.timestamp < end)
    annotated = table.is_speaking
    assert annotated.sum() > 2 * ROWS_PER_SECOND
    assert (detected & annotated).sum() / (detected | annotated).sum() > 0.4
