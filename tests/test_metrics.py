"""Average precision, ROC AUC, ranking errors, scores and smoothing."""

import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plain_metrics import plain_auc, plain_average_precision
from tiny_inputs import Face, Track, faces_of, read_csv, write_annotations

from core.formats.annotations import FaceTable, read_annotations
from core.metrics import average_precision, roc_auc, smooth_tracks, speaking_score
from core.runtime.errors import InputError


def arrays(scores: list[float], positive: list) -> tuple[np.ndarray, np.ndarray]:
    return np.array(scores, float), np.array(positive, bool)


untied = st.lists(st.tuples(st.floats(-10, 10), st.booleans()), min_size=1, max_size=40, unique_by=lambda row: row[0])
tied = st.lists(st.tuples(st.integers(0, 3).map(float), st.booleans()), min_size=1, max_size=30)
scored_rows = st.one_of(untied, tied).map(lambda rows: tuple(map(list, zip(*rows, strict=True))))  # scores, positive


class TestAveragePrecision:
    @pytest.mark.parametrize("case", range(4))
    def test_equals_the_official_tool(self, test_data, case):
        golden = json.loads((GOLDEN / "evaluator.json").read_text())[case]
        uniform = runpy.run_path(str(GOLDEN / "fill.py"))["uniform"]
        labels = [line[6] for line in read_csv(test_data / "ava_csv" / "val" / golden["ground_truth"])]
        assert len(labels) == golden["rows"]
        positive = np.array(labels) == "SPEAKING_AUDIBLE"
        weight = golden["label_weight"]
        scores = (1 - weight) * uniform(f"score{weight}", len(labels)) + weight * positive
        assert abs(average_precision(scores, positive) - golden["average_precision"]) < 1e-9

    def test_tied_scores_share_a_threshold(self):
        assert average_precision(*arrays([1, 1, 0], [1, 0, 1])) == pytest.approx(2 / 3)
        assert average_precision(*arrays([5, 5, 5, 5], [0, 1, 0, 0])) == pytest.approx(1 / 4)

    @settings(max_examples=100, deadline=None)
    @given(scored_rows, st.randoms())
    def test_equals_the_definition_in_any_row_order(self, rows, random):
        scores, positive = rows
        assume(any(positive))
        value = average_precision(*arrays(scores, positive))
        assert value == pytest.approx(plain_average_precision(scores, positive), abs=1e-12)
        order = random.sample(range(len(scores)), len(scores))
        assert average_precision(*arrays([scores[i] for i in order], [positive[i] for i in order])) == value

    def test_no_positives_is_an_error(self):
        with pytest.raises(InputError, match="SPEAKING_AUDIBLE"):
            average_precision(*arrays([0.1, 0.2], [0, 0]))


@settings(max_examples=100, deadline=None)
@given(scored_rows)
def test_auc_counts_pairs(rows):
    scores, positive = arrays(*rows)
    assume(positive.any() and not positive.all())
    assert roc_auc(scores, positive) == pytest.approx(plain_auc(*rows), abs=1e-12)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_auc(label):
    assert math.isnan(roc_auc(*arrays([1, 2], [label, label])))


def test_score_is_the_softmax_of_class_1():
    """Also for logits whose exponentials overflow."""
    logits = np.array([[0, 0], [1, 3], [-40, 0], [0, -700], [800, -800], [-800, 800]], np.float32)
    expected = [0.5, 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-40)), math.exp(-700), 0, 1]
    np.testing.assert_allclose(speaking_score(logits), expected, rtol=1e-12)


def table_of(directory: Path, faces: list[Face]) -> FaceTable:
    return read_annotations(write_annotations(directory / "table.csv", faces))


def test_smoothing_is_a_median_along_each_track(tmp_path):
    """The rows of two tracks alternate; at the ends of a track, its first and last rows are repeated."""
    table = table_of(tmp_path, sorted(faces_of([Track("a", "0" * 7), Track("b", "0" * 7)]), key=lambda face: face.time))
    values = np.array([1.0, 9.0, 2.0, 3.0, -5.0, 4.0, 4.0])
    both = np.stack([values, 100 + values], axis=1).ravel()
    assert smooth_tracks(both, table, 3)[::2].tolist() == [1, 2, 3, 2, 3, 4, 4]
    assert smooth_tracks(both, table, 3)[1::2].tolist() == [101, 102, 103, 102, 103, 104, 104]
    assert smooth_tracks(both, table, 5)[::2].tolist() == [1, 2, 2, 3, 3, 4, 4]
    assert both[::2].tolist() == values.tolist()
    assert smooth_tracks(np.stack([both, -both], axis=1), table, 3)[2].tolist() == [2, -2]
