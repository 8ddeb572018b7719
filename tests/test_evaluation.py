"""Average precision as the official tool has it, the join by key, smoothing, and the scripts that lead there."""

import itertools
import json
import math
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import GOLDEN, ROOT, assert_refused, run_script
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numbered_videos import make_video
from PIL import Image
from tiny_inputs import (
    LABELS,
    Face,
    Track,
    digests,
    faces_of,
    files_under,
    official_line,
    read_csv,
    read_json,
    run_here,
    write_annotations,
    write_predictions,
    write_store,
    write_text,
)

from core import config
from core.formats.annotations import FaceTable, read_annotations
from core.formats.predictions import join, read_logits
from core.metrics import average_precision, ranking_errors, roc_auc, smooth_tracks, speaking_score
from core.reports import plots
from core.reports.report import breakdown, faces_group, width_group
from core.runtime.errors import InputError


def plain_average_precision(scores: list[float], positive: list[bool]) -> float:
    """The definition, one threshold after the other: each positive gains the best precision at its rank or below."""
    precision, recall = [], []
    for threshold in sorted(set(scores), reverse=True):
        chosen = [truth for score, truth in zip(scores, positive, strict=True) if score >= threshold]
        precision.append(sum(chosen) / len(chosen))
        recall.append(sum(chosen) / sum(positive))
    area, before = 0.0, 0.0
    for index, here in enumerate(recall):
        area += (here - before) * max(precision[index:])
        before = here
    return area


def plain_auc(scores: list[float], positive: list[bool]) -> float:
    """Share of (positive, negative) pairs in the right order, a tie counted half."""
    yes = [score for score, truth in zip(scores, positive, strict=True) if truth]
    no = [score for score, truth in zip(scores, positive, strict=True) if not truth]
    return sum((a > b) + (a == b) / 2 for a in yes for b in no) / (len(yes) * len(no))


def arrays(scores: list[float], positive: list) -> tuple[np.ndarray, np.ndarray]:
    return np.array(scores, float), np.array(positive, bool)


untied = st.lists(st.floats(-10, 10), min_size=1, max_size=40, unique=True)
tied = st.lists(st.integers(0, 3).map(float), min_size=1, max_size=30)


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

    @pytest.mark.parametrize(
        ("positive", "expected"),
        [
            ([1], 1),
            ([1, 0, 0], 1),
            ([0, 0, 1], 1 / 3),
            ([0, 1, 1, 0], 2 / 3),  # precision 0, 1/2, 2/3, 1/2: monotone, both positives gain 2/3
            ([1, 0, 1, 0, 0], 1 / 2 + 1 / 3),
            ([1, 0, 0, 1, 1], 1 / 3 + 2 * 3 / 15),
        ],
    )
    def test_by_hand(self, positive, expected):
        """Labels in order of falling score."""
        scores = -np.arange(len(positive), dtype=float)
        assert average_precision(scores, np.array(positive, bool)) == pytest.approx(expected, abs=1e-12)

    def test_ties_share_a_threshold(self):
        """One of two at the first threshold, two of three at the second."""
        assert average_precision(*arrays([1, 1, 0], [1, 0, 1])) == pytest.approx(2 / 3)
        assert average_precision(*arrays([5, 5, 5, 5], [0, 1, 0, 0])) == pytest.approx(1 / 4)

    @settings(max_examples=200, deadline=None)
    @given(untied, st.data())
    def test_equals_the_definition_on_untied_scores(self, scores, data):
        positive = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)).filter(any))
        expected = plain_average_precision(scores, positive)
        assert average_precision(*arrays(scores, positive)) == pytest.approx(expected, abs=1e-12)

    @settings(max_examples=200, deadline=None)
    @given(tied, st.data())
    def test_ties_make_nothing_depend_on_the_order(self, scores, data):
        positive = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)).filter(any))
        order = data.draw(st.permutations(range(len(scores))))
        value = average_precision(*arrays(scores, positive))
        assert value == pytest.approx(plain_average_precision(scores, positive), abs=1e-12)
        assert average_precision(*arrays([scores[i] for i in order], [positive[i] for i in order])) == value

    def test_without_positives_is_an_error(self):
        with pytest.raises(InputError, match="SPEAKING_AUDIBLE"):
            average_precision(*arrays([0.1, 0.2], [0, 0]))

    def test_does_not_change_its_arguments(self):
        scores, positive = arrays([0.3, 0.1, 0.2], [0, 1, 1])
        average_precision(scores, positive)
        roc_auc(scores, positive)
        assert (scores.tolist(), positive.tolist()) == ([0.3, 0.1, 0.2], [False, True, True])


class TestAreaUnderTheCurve:
    @settings(max_examples=200, deadline=None)
    @given(st.one_of(untied, tied), st.data())
    def test_equals_counting_pairs(self, scores, data):
        positive = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
        assume(any(positive) and not all(positive))
        assert roc_auc(*arrays(scores, positive)) == pytest.approx(plain_auc(scores, positive), abs=1e-12)

    @pytest.mark.parametrize("label", [0, 1])
    def test_of_one_class_is_undefined(self, label):
        assert math.isnan(roc_auc(*arrays([1, 2], [label, label])))


class TestRankingErrors:
    def test_by_hand(self):
        """Positives at 3 and 1, others at 4, 3 and 0: the tie counts half."""
        errors = ranking_errors(*arrays([3, 1, 4, 3, 0], [1, 1, 0, 0, 0]))
        assert errors.tolist() == pytest.approx([(1 + 1 / 2) / 3, 2 / 3, 1, (1 + 1 / 2) / 2, 0])

    @settings(max_examples=100, deadline=None)
    @given(st.one_of(untied, tied), st.data())
    def test_their_mean_over_either_class_is_what_auc_lacks(self, scores, data):
        positive = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
        assume(any(positive) and not all(positive))
        scores, positive = arrays(scores, positive)
        errors, lacking = ranking_errors(scores, positive), 1 - roc_auc(scores, positive)
        assert errors[positive].mean() == pytest.approx(lacking, abs=1e-12)
        assert errors[~positive].mean() == pytest.approx(lacking, abs=1e-12)

    @pytest.mark.parametrize("label", [0, 1])
    def test_of_one_class_there_are_none(self, label):
        assert ranking_errors(*arrays([1, 2], [label, label])).tolist() == [0, 0]


def test_score_is_the_softmax_of_class_1_even_far_out():
    logits = np.array([[0, 0], [1, 3], [-40, 0], [0, -700], [800, -800], [-800, 800]], np.float32)
    expected = [0.5, 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-40)), math.exp(-700), 0, 1]
    np.testing.assert_allclose(speaking_score(logits), expected, rtol=1e-12)


# A cast of two films: timestamps meet, tracks have any labels
CAST = [
    Track("one:1", "0111002", 900.0, "one"),
    Track("one:2", "00010", 900.08, "one"),
    Track("one:3", "1", 900.12, "one"),
    Track("two:1", "1101", 900.0, "two"),
]
FACES = faces_of(CAST)


def logits_of(face: Face) -> tuple[float, float]:
    """Something for every row, untied, right more often than not; float32 takes these numbers as they are."""
    noise = np.random.default_rng(list(f"{face.entity}{face.time}".encode())).integers(-4096, 4096) / 1024
    return float(-noise / 2), float(noise / 2 + 2 * (face.label == 1))


def score_of(face: Face) -> float:
    zero, one = logits_of(face)
    return 1 / (1 + math.exp(zero - one))


def expected_map(score: Callable[[Face], float] = score_of, faces: list[Face] = FACES) -> float:
    return plain_average_precision([score(face) for face in faces], [face.label == 1 for face in faces])


@pytest.fixture
def table(tmp_path) -> FaceTable:
    return read_annotations(write_annotations(tmp_path / "ground_truth.csv", FACES))


class TestJoin:
    @staticmethod
    def frame(faces: list[Face]) -> pd.DataFrame:
        rows = [(face.video, face.time, face.entity, score_of(face)) for face in faces]
        return pd.DataFrame(rows, columns=["video_id", "frame_timestamp", "entity_id", "score"])

    def test_takes_the_order_of_the_ground_truth(self, table):
        shuffled = self.frame(FACES).sample(frac=1, random_state=3)
        joined = join(shuffled, table, "here")
        assert joined["score"].tolist() == [score_of(face) for face in FACES]
        assert joined["entity_id"].tolist() == [face.entity for face in FACES]

    def test_timestamps_are_numbers(self, tmp_path):
        """Whatever way a file spells them: 1080, 1080.0, 1080.50."""
        truth = "".join(
            f"film,{text},0.1,0.1,0.5,0.5,{LABELS[1]},me\n" for text in ("1080", "1080.04", "1080.1", "1080.5")
        )
        table = read_annotations(write_text(tmp_path / "truth.csv", truth))
        lines = [f"me,{text},0,{i}\n" for i, text in enumerate(("1080.0", "1080.040", "1080.10", "1080.50"))]
        write_text(tmp_path / "predictions" / "film.csv", "".join(lines))
        assert join(read_logits(tmp_path / "predictions"), table, "here")["logit_1"].tolist() == [0, 1, 2, 3]

    def test_same_timestamp_and_entity_in_another_film_is_another_row(self, tmp_path):
        faces = [Face("one", "a:1", 900.0, 0), Face("two", "b:1", 900.0, 1)]
        table = read_annotations(write_annotations(tmp_path / "truth.csv", faces))
        swapped = [face._replace(video="two" if face.video == "one" else "one") for face in faces]
        with pytest.raises(InputError):
            join(self.frame(swapped), table, "here")

    @pytest.mark.parametrize("count", [1, 4])
    def test_rows_without_a_prediction(self, table, count):
        self.assert_lost(FACES[count:], table, FACES[:count])

    @pytest.mark.parametrize("count", [1, 4])
    def test_predictions_of_no_row(self, table, count):
        strangers = [Face("one", "one:9", 900.0 + i, 0) for i in range(count)]
        self.assert_lost(FACES + strangers, table, strangers)

    @pytest.mark.parametrize("count", [1, 4])
    def test_predictions_that_stand_twice(self, table, count):
        self.assert_lost(FACES + FACES[:count], table, FACES[:count])

    def assert_lost(self, faces: list[Face], table: FaceTable, lost: list[Face]) -> None:
        """The message has the count and, as an example, one of the rows with all that it is known by."""
        with pytest.raises(InputError) as caught:
            join(self.frame(faces), table, "some/directory")
        message = str(caught.value)
        assert "\n" not in message
        assert "some/directory" in message
        assert re.search(rf"\b{len(lost)} ", message)
        named = [face for face in lost if all(str(part) in message for part in face[:3])]
        assert named


class TestSmoothing:
    def test_median_along_a_track(self, tmp_path):
        table = read_annotations(write_annotations(tmp_path / "t.csv", faces_of([Track("a", "0" * 7)])))
        values = np.array([1.0, 9.0, 2.0, 3.0, -5.0, 4.0, 4.0])
        assert smooth_tracks(values, table, 3)[1:-1].tolist() == [2, 3, 2, 3, 4]
        assert smooth_tracks(values, table, 5)[2:-2].tolist() == [2, 3, 3]
        assert values.tolist() == [1, 9, 2, 3, -5, 4, 4]

    def test_each_logit_by_itself(self, tmp_path):
        table = read_annotations(write_annotations(tmp_path / "t.csv", faces_of([Track("a", "000")])))
        values = np.array([[1.0, 30.0], [3.0, 10.0], [2.0, 20.0]])
        assert smooth_tracks(values, table, 3)[1].tolist() == [2, 20]

    @pytest.mark.parametrize("width", [3, 5, 11])
    def test_never_crosses_tracks(self, tmp_path, width):
        """Tracks of one value each, rows of different tracks side by side in the file."""
        faces = sorted(FACES, key=lambda face: face.time)
        table = read_annotations(write_annotations(tmp_path / "t.csv", faces))
        names = [track.entity for track in CAST]
        values = np.array([10.0 * names.index(face.entity) + 1 for face in faces])
        assert (smooth_tracks(values, table, width) == values).all()

    def test_rows_of_a_track_may_stand_apart(self, tmp_path):
        faces = faces_of([Track("a", "00000"), Track("b", "00000")])
        values = dict(zip(faces, [5.0, 1.0, 4.0, 2.0, 3.0, 0.0, 0.0, 7.0, 0.0, 0.0], strict=True))
        mixed = sorted(faces, key=lambda face: (face.time, face.entity))
        table = read_annotations(write_annotations(tmp_path / "t.csv", mixed))
        smooth = dict(zip(mixed, smooth_tracks(np.array([values[f] for f in mixed]), table, 3), strict=True))
        assert [smooth[face] for face in faces[1:4]] == [4, 2, 3]
        assert [smooth[face] for face in faces[6:9]] == [0, 0, 0]

    @pytest.mark.parametrize("width", ["2", "4", "-3", "1.5", "wide"])
    def test_only_odd_widths(self, width):
        result = run_here("STE_postprocessing.py", "--smoothing", width)
        assert_refused(result, "smoothing", "odd and positive")


class TestBreakdowns:
    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=40))
    def test_each_group_by_itself(self, rows):
        """Whatever the order of the rows, and also of groups without rows or without positives."""
        group, label, score = (np.array(column) for column in zip(*rows, strict=True))
        table = FaceTable([], [], group, group, score.astype(float), label)
        found = breakdown(score / 7, table, group, "abcd")
        assert list(found) == list("abcd")
        for index, name in enumerate("abcd"):
            mine = [(value / 7, which == 1) for own, which, value in rows if own == index]
            positives = sum(truth for _, truth in mine)
            assert (found[name]["rows"], found[name]["positives"]) == (len(mine), positives)
            expected = plain_average_precision(*zip(*mine, strict=True)) if positives else None
            assert found[name]["mAP"] == (expected if expected is None else pytest.approx(expected, abs=1e-12))

    def test_faces_in_the_frame(self, tmp_path):
        """Counted per film and moment, also where a track has begun or ended."""
        tracks = [Track(f"a:{i}", "00", 10.0 + 0.04 * (i == 4)) for i in range(5)]
        faces = faces_of([*tracks, Track("b:1", "0", 10.0, "other")])
        groups = faces_group(read_annotations(write_annotations(tmp_path / "t.csv", faces)))
        # At 10.00 s four faces (0 to 3), at 10.04 s all five, at 10.08 s the last alone
        assert groups.tolist() == [3, 3] * 4 + [3, 0] + [0]

    @pytest.mark.parametrize(
        ("share", "film", "expected"), [(0.25, 252, 0), (0.25, 256, 1), (0.25, 512, 1), (0.25, 516, 2), (0.5, 120, 0)]
    )
    def test_face_width(self, tmp_path, share, film, expected):
        """Under 64 pixels, 64 to 128, over 128."""
        line = official_line(Face("film", "a", 1.0, 1), (0.25, 0.1, 0.25 + share, 0.2))
        assert width_group(read_annotations(write_text(tmp_path / "t.csv", line)), np.array([film])).tolist() == [
            expected
        ]


SCRIPTS = {
    "STE_postprocessing.py": ("--forward-dir", write_store),
    "ASC_prediction_postprocessing.py": ("--predictions-dir", write_predictions),
}


class PostProcessing:
    """One of the two scripts, its inputs and its outputs in a directory."""

    def __init__(self, script: str, root: Path):
        self.script, self.root = script, root
        self.flag, self.write = SCRIPTS[script]
        write_annotations(root / "truth.csv", FACES)

    def run(
        self, faces: list[Face] = FACES, *flags: object, truth: str = "truth.csv", out: str = "out", logits=logits_of
    ) -> subprocess.CompletedProcess[str]:
        directory = self.root / f"{out}_logits"
        self.write(directory, faces, logits=logits)
        self.predictions, self.truth = self.root / out / "predictions.csv", self.root / out / "truth.csv"
        inputs = [self.flag, directory, "--ground-truth", self.root / truth]
        outputs = ["--predictions-csv", self.predictions, "--ground-truth-csv", self.truth]
        return run_here(self.script, *inputs, *outputs, *flags)


@pytest.fixture(params=sorted(SCRIPTS))
def stage(request, tmp_path) -> PostProcessing:
    return PostProcessing(request.param, tmp_path)


def printed_map(output: str) -> float:
    """The percentage that a script printed, which must be there once."""
    (value,) = re.findall(r"mAP\W+(\d+\.\d+)", output)
    return float(value)


class TestPostProcessing:
    def test_final_predictions(self, stage):
        result = stage.run()
        assert result.returncode == 0, result.stderr
        lines = read_csv(stage.predictions)
        truth = [line.split(",") for line in map(str.rstrip, map(official_line, FACES))]
        assert [len(line) for line in lines] == [9] * len(FACES)
        for line, face, official in zip(lines, FACES, truth, strict=True):
            assert line[0] == face.video
            assert list(map(float, line[1:6])) == list(map(float, official[1:6]))
            assert line[6:8] == ["SPEAKING_AUDIBLE", face.entity]
            assert float(line[8]) == pytest.approx(score_of(face), rel=1e-9, abs=0)

    def test_ground_truth_beside_them(self, stage):
        assert stage.run().returncode == 0
        lines = read_csv(stage.truth)
        assert [len(line) for line in lines] == [8] * len(FACES)
        assert [(line[0], line[7], float(line[1]), LABELS.index(line[6])) for line in lines] == FACES
        assert [line[:6] for line in lines] == [line[:6] for line in read_csv(stage.predictions)]
        assert read_annotations(stage.truth).label.tolist() == [face.label for face in FACES]

    def test_never_writes_over_what_it_reads(self, stage):
        """Nor two files into one."""
        stage.run()
        truth, inputs = stage.root / "truth.csv", digests(stage.root)
        for flag, path in (
            ("--ground-truth-csv", truth),
            ("--predictions-csv", truth),
            ("--predictions-csv", stage.truth),
            ("--predictions-csv", stage.predictions.with_suffix(".json")),
            ("--predictions-csv", stage.root / "out_logits" / "final.csv"),
        ):
            assert_refused(stage.run(FACES, flag, path), "both")
            assert digests(stage.root) == inputs

    @pytest.mark.parametrize("name", ["STE_forward_cfg.json", "one.csv"])
    def test_writes_nothing_among_the_logits(self, stage, name):
        """A stage that goes on there would take it for its own."""
        stage.run()
        before = digests(stage.root)
        assert_refused(stage.run(FACES, "--json", stage.root / "out_logits" / name), "both", "--json")
        assert_refused(stage.run(FACES, "--plots", stage.root / "out_logits"), "both", "--plots")
        assert digests(stage.root) == before

    def test_report_equals_that_of_the_evaluation(self, stage):
        """Numbers, tables and pictures are those that scripts/evaluate.py makes of the file that is written."""
        ours, theirs = stage.root / "ours", stage.root / "theirs"
        result = stage.run(FACES, "--plots", ours, "--json", stage.root / "ours.json")
        assert result.returncode == 0, result.stderr
        again = run_here(
            "scripts/evaluate.py", "--predictions", stage.predictions, "--ground-truth", stage.truth,
            "--plots", theirs, "--json", stage.root / "theirs.json",
        )  # fmt: skip
        assert again.returncode == 0, again.stderr
        mine, other = (read_json(stage.root / f"{name}.json") for name in ("ours", "theirs"))
        assert mine.pop("settings")["smoothing"] == 0
        assert other.pop("settings")["plots"] == str(theirs)
        assert mine == other
        tables = again.stdout[again.stdout.index("official mAP (%)") : again.stdout.index("numbers: ")]
        assert tables in result.stdout
        pictures = digests(ours, "*.png")
        assert pictures == digests(theirs, "*.png")
        assert set(files_under(ours)) - set(pictures) == {"postprocessing_cfg.json"}
        assert printed_map(result.stdout) == pytest.approx(100 * expected_map(), abs=0.00501)

    def test_small_scores_keep_their_digits(self, stage):
        """Scores of 1e-12 and the like: nine digits after the zeros, not after the point."""
        margins = [27.5 + face.time % 1 for face in FACES]
        assert stage.run(logits=lambda face: (27.5 + face.time % 1, 0.0)).returncode == 0
        scores = [float(line[8]) for line in read_csv(stage.predictions)]
        assert scores == pytest.approx([1 / (1 + math.exp(margin)) for margin in margins], rel=1e-9, abs=0)
        assert max(scores) < 1e-11

    def test_map_is_printed(self, stage):
        result = stage.run()
        assert printed_map(result.stdout) == pytest.approx(100 * expected_map(), abs=0.00501)
        assert "mAP" in "".join(result.stdout.splitlines()[-2:])

    def test_order_of_the_logits_does_not_matter(self, stage):
        assert stage.run().returncode == 0
        straight = [stage.predictions.read_bytes(), stage.truth.read_bytes()]
        order = np.random.default_rng(1).permutation(len(FACES))
        assert stage.run([FACES[i] for i in order], out="again").returncode == 0
        assert [stage.predictions.read_bytes(), stage.truth.read_bytes()] == straight

    def test_order_of_the_ground_truth_is_kept(self, stage):
        mixed = sorted(FACES, key=lambda face: (face.time, face.entity))
        write_annotations(stage.root / "mixed.csv", mixed)
        result = stage.run(truth="mixed.csv")
        assert [(line[7], float(line[1])) for line in read_csv(stage.predictions)] == [face[1:3] for face in mixed]
        assert [(line[7], float(line[1])) for line in read_csv(stage.truth)] == [face[1:3] for face in mixed]
        assert printed_map(result.stdout) == pytest.approx(100 * expected_map(), abs=0.00501)

    def test_ground_truth_may_be_a_directory(self, stage):
        for video in ("one", "two"):
            faces = [face for face in FACES if face.video == video]
            write_annotations(stage.root / "official" / f"{video}-activespeaker.csv", faces)
        result = stage.run(truth="official")
        assert result.returncode == 0, result.stderr
        assert printed_map(result.stdout) == pytest.approx(100 * expected_map(), abs=0.00501)

    def test_smoothing_comes_before_the_softmax(self, stage):
        """Logits are filtered, each by itself; the first track's inner rows are told by hand."""
        assert stage.run(FACES, "--smoothing", 3).returncode == 0
        lines = read_csv(stage.predictions)
        for index in range(1, 6):
            window = np.array([logits_of(face) for face in FACES[index - 1 : index + 2]])
            zero, one = np.median(window, axis=0)
            assert float(lines[index][8]) == pytest.approx(1 / (1 + math.exp(zero - one)), rel=1e-9)
        assert float(lines[12][8]) == pytest.approx(score_of(FACES[12]), rel=1e-9)  # a track of one row

    @pytest.mark.parametrize("lost", ["prediction", "ground truth", "film"])
    def test_rows_missing_on_a_side(self, stage, lost):
        faces = {
            "prediction": FACES[:3] + FACES[4:],
            "ground truth": [*FACES, Face("two", "two:9", 950.0, 0)],
            "film": FACES[:13],
        }[lost]
        result = stage.run(faces)
        assert_refused(result, {"prediction": "one:1", "ground truth": "two:9", "film": "two:1"}[lost])
        assert re.search({"prediction": r"\b1 ", "ground truth": r"\b1 ", "film": r"\b4 "}[lost], result.stderr)
        assert not stage.predictions.exists()
        assert not stage.truth.exists()

    def test_no_positives(self, stage):
        write_annotations(stage.root / "silent.csv", [face._replace(label=2) for face in FACES])
        assert_refused(stage.run(truth="silent.csv"), "SPEAKING_AUDIBLE")
        assert not stage.predictions.exists()

    def test_settings_are_kept(self, stage):
        assert stage.run(FACES, "--smoothing", 3).returncode == 0
        (saved,) = (path for path in stage.predictions.parent.iterdir() if path.suffix == ".json")
        assert read_json(saved)["smoothing"] == 3


def test_post_processing_with_the_default_layout(tmp_path):
    """A root laid out as documented needs no flag; the utility file may be missing."""
    for video in ("one", "two"):
        faces = [face for face in FACES if face.video == video]
        write_annotations(tmp_path / "csv" / "val" / f"{video}-activespeaker.csv", faces)
    write_predictions(tmp_path / "asc_predictions", FACES, logits_of)
    result = run_script("ASC_prediction_postprocessing.py", ASC_DATA_ROOT=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert printed_map(result.stdout) == pytest.approx(100 * expected_map(), abs=0.00501)
    made = [name for name in files_under(tmp_path / "results") if name.endswith(".csv")]
    assert [len(read_csv(tmp_path / "results" / name)) for name in made] == [len(FACES)] * 2


class TestEvaluate:
    SCRIPT = "scripts/evaluate.py"

    @staticmethod
    def other_score(face: Face) -> float:
        return (face.time * 100 % 7 + face.label % 2) / 10

    @pytest.fixture
    def files(self, tmp_path) -> dict[str, Path]:
        """Ground truth, final predictions in its order, and others in another order."""
        paths = {name: tmp_path / f"{name}.csv" for name in ("truth", "first", "second")}
        write_annotations(paths["truth"], FACES)
        self.write_scores(paths["first"], FACES, score_of)
        self.write_scores(paths["second"], FACES[::-1], self.other_score)
        return paths

    @staticmethod
    def write_scores(path: Path, faces: list[Face], score: Callable[[Face], float]) -> Path:
        lines = [f"{official_line(face._replace(label=1)).strip()},{score(face)!r}\n" for face in faces]
        return write_text(path, "".join(lines))

    def test_map_is_a_fraction_in_full(self, files, tmp_path):
        numbers = tmp_path / "made" / "numbers.json"
        result = run_script(
            self.SCRIPT, "--predictions", files["first"], "--ground-truth", files["truth"], "--json", numbers
        )
        assert result.returncode == 0, result.stderr
        value = read_json(numbers)["mAP"]
        assert value == pytest.approx(expected_map(), abs=1e-12)
        assert f"{100 * value:.2f}" in result.stdout

    def test_two_predictions_in_one_table(self, files, tmp_path):
        numbers = tmp_path / "numbers.json"
        both = ["--predictions", files["first"], files["second"]]
        result = run_here(self.SCRIPT, *both, "--ground-truth", files["truth"], "--json", numbers)
        assert result.returncode == 0, result.stderr
        for name, score in (("first", score_of), ("second", self.other_score)):
            positive = [face.label == 1 for face in FACES]
            area = plain_auc([score(face) for face in FACES], positive)
            (line,) = (line for line in result.stdout.splitlines() if re.match(rf"{name}\s+\d+\.\d+\s+\d+\.\d+$", line))
            assert line.split()[1:] == [f"{100 * expected_map(score):.2f}", f"{100 * area:.2f}"]
            assert read_json(numbers)["predictions"][name]["mAP"] == pytest.approx(expected_map(score), abs=1e-12)
        assert read_json(numbers)["mAP"] == pytest.approx(expected_map(), abs=1e-12)  # the first one's

    def test_breakdown_by_faces(self, files, tmp_path):
        numbers = tmp_path / "numbers.json"
        run_here(self.SCRIPT, "--predictions", files["first"], "--ground-truth", files["truth"], "--json", numbers)
        (groups,) = (part for part in read_json(numbers)["predictions"]["first"].values() if isinstance(part, dict))
        together = [sum(face[::2] == other[::2] for other in FACES) for face in FACES]
        assert [groups[name]["rows"] for name in ("1", "2", "3", "more")] == [
            together.count(1), together.count(2), together.count(3), 0
        ]  # fmt: skip
        for count in (1, 2, 3):
            mine = [face for face, number in zip(FACES, together, strict=True) if number == count]
            assert groups[str(count)]["mAP"] == pytest.approx(expected_map(faces=mine), abs=1e-12)
        assert groups["more"]["mAP"] is None

    def evaluate(self, tmp_path, *predictions: Path, truth: Path, more: tuple = ()) -> tuple[dict, str]:
        """The numbers of some files, and what was printed."""
        numbers = tmp_path / "numbers.json"
        result = run_here(self.SCRIPT, "--predictions", *predictions, "--ground-truth", truth, "--json", numbers, *more)
        assert result.returncode == 0, result.stderr
        return read_json(numbers), result.stdout

    def test_chance_and_shares(self, files, tmp_path):
        numbers, output = self.evaluate(tmp_path, files["first"], truth=files["truth"])
        count = sum(face.label == 1 for face in FACES)
        assert (numbers["rows"], numbers["positives"]) == (len(FACES), count)
        assert numbers["chance"] == pytest.approx(count / len(FACES), abs=1e-12)
        assert re.search(rf"^chance +{100 * count / len(FACES):.2f} +50\.00$", output, re.M)
        shares = next(line for line in output.splitlines() if re.match(r"share of positive rows.*none", line))
        groups = numbers["predictions"]["first"]["faces in the frame"].values()
        assert shares.split()[4:] == [f"{100 * g['positives'] / g['rows']:.2f}" for g in groups if g["rows"]] + ["none"]

    @staticmethod
    def films(count: int, silent: int = 0) -> list[Face]:
        """Videos of 20 rows; of the first `silent` ones nobody is heard."""
        labels = ["".join(str((video * 7 + row) % 9 % 3) for row in range(20)) for video in range(count)]
        tracks = [Track(f"film{i}:1", text, 10.0, f"film{i}") for i, text in enumerate(labels)]
        tracks[:silent] = [Track(t.entity, t.labels.replace("1", "2"), 10.0, t.video) for t in tracks[:silent]]
        return faces_of(tracks)

    def test_ap_of_each_video(self, tmp_path):
        """By the definition; none of those where nobody is heard, which are counted and named."""
        faces = self.films(9, silent=2)
        truth = write_annotations(tmp_path / "truth.csv", faces)
        # rows of a video stand apart
        path = self.write_scores(tmp_path / "p.csv", sorted(faces, key=lambda face: face.time), score_of)
        numbers, output = self.evaluate(tmp_path, path, truth=truth)
        assert list(numbers["videos"]) == [f"film{i}" for i in range(9)]
        expected = {}
        for video, found in numbers["videos"].items():
            mine = [face for face in faces if face.video == video]
            positives = sum(face.label == 1 for face in mine)
            assert (found["rows"], found["positives"]) == (20, positives)
            if positives:
                expected[video] = expected_map(faces=mine)
                assert found["AP"] == {"p": pytest.approx(expected[video], abs=1e-12)}
            else:
                assert found["AP"] == {"p": None}
        assert len(expected) == 7
        worst = sorted(expected, key=expected.get)
        assert numbers["predictions"]["p"]["worst"] == worst[:5]
        named = re.findall(r"^(film\d) +(\d+) +(\d+) +(\S+)$", output, re.M)
        counts = {video: found["positives"] for video, found in numbers["videos"].items()}
        assert named == [(v, "20", str(counts[v]), f"{100 * expected[v]:.2f}") for v in worst[:5]]
        values = [100 * expected[video] for video in worst]
        summary = re.search(r"^AP \(%\) by video, 7 videos .*\np +(\S+) +(\S+) +(\S+)$", output, re.M)
        assert summary.groups() == tuple(f"{value:.2f}" for value in (values[0], values[3], values[6]))
        assert "2 of 9 videos have no positive rows and so no AP: film0, film1\n" in output

    def test_worst_videos_of_two_files(self, tmp_path):
        """Those of either, in the order of the last file, each file's own marked."""
        faces = self.films(12)
        truth = write_annotations(tmp_path / "truth.csv", faces)
        paths = [
            self.write_scores(tmp_path / "first.csv", faces, score_of),
            self.write_scores(tmp_path / "second.csv", faces, self.other_score),
        ]
        numbers, output = self.evaluate(tmp_path, *paths, truth=truth)
        first, second = (numbers["predictions"][name]["worst"] for name in ("first", "second"))
        assert first != second
        lines = [line.split() for line in output.splitlines() if re.match(r"film\d+ ", line)]
        assert {line[0] for line in lines} == {*first, *second}
        assert [float(line[4].lstrip("*")) for line in lines] == sorted(float(line[4].lstrip("*")) for line in lines)
        for column, own in ((3, first), (4, second)):
            assert [line[0] for line in lines if line[column].startswith("*")] == [x[0] for x in lines if x[0] in own]

    def test_one_video_is_enough(self, tmp_path):
        faces = faces_of(CAST[:3])
        truth = write_annotations(tmp_path / "truth.csv", faces)
        path = self.write_scores(tmp_path / "p.csv", faces, score_of)
        numbers, output = self.evaluate(tmp_path, path, truth=truth, more=("--plots", tmp_path / "plots"))
        assert numbers["videos"]["one"]["AP"]["p"] == numbers["mAP"]
        assert numbers["predictions"]["p"]["worst"] == ["one"]
        assert "no positive rows" not in output

    def test_auc_of_rows_that_all_speak_is_null(self, tmp_path):
        """NaN is no JSON."""
        faces = faces_of([Track("a", "111")])
        truth = write_annotations(tmp_path / "truth.csv", faces)
        path = self.write_scores(tmp_path / "p.csv", faces, score_of)
        more = ("--plots", tmp_path / "plots")
        numbers, output = self.evaluate(tmp_path, path, truth=truth, more=more)
        assert (numbers["mAP"], numbers["auc"], numbers["chance"]) == (1, None, 1)
        assert "NaN" not in (tmp_path / "numbers.json").read_text()
        assert re.search(r"^p +100\.00 +none$", output, re.M)

    def test_breakdown_by_width_of_the_film(self, files, tmp_path, monkeypatch):
        """Films of 128 pixels, faces of a quarter and of three quarters of it. In the configured place they are found
        unasked; where one is missing the breakdown is left out, with the reason, unless it was asked for.
        """
        lines = [official_line(face, (0.1, 0.1, 0.85 if face.entity == "one:1" else 0.35, 0.5)) for face in FACES]
        write_text(files["truth"], "".join(lines))
        for video in ("one", "two"):
            (tmp_path / "films").mkdir(exist_ok=True)
            make_video(tmp_path / "films" / f"{video}.mp4", seconds=0.2)
        asked = ("--ava-video-dir", tmp_path / "films")
        numbers, output = self.evaluate(tmp_path, files["first"], truth=files["truth"], more=asked)
        groups = numbers["predictions"]["first"]["face width (pixels)"]
        assert {name: group["rows"] for name, group in groups.items()} == {"< 64": 10, "64 to 128": 7, "> 128": 0}
        wide = [face for face in FACES if face.entity == "one:1"]
        assert groups["64 to 128"]["mAP"] == pytest.approx(expected_map(faces=wide), abs=1e-12)
        assert "no breakdown" not in output

        monkeypatch.setitem(config.data_inputs, "ava_video_dir", str(tmp_path / "films"))
        unasked, output = self.evaluate(tmp_path, files["first"], truth=files["truth"])
        assert unasked["predictions"] == numbers["predictions"]
        (tmp_path / "films" / "two.mp4").unlink()
        without, output = self.evaluate(tmp_path, files["first"], truth=files["truth"])
        assert list(without["left out"]) == ["face width (pixels)"]
        (reason,) = re.findall(r"^no breakdown by face width .*", output, re.M)
        assert f"{tmp_path / 'films'}: no film two" in reason
        assert "--ava-video-dir" in reason
        command = ("--predictions", files["first"], "--ground-truth", files["truth"], *asked)
        assert_refused(run_here(self.SCRIPT, *command), tmp_path / "films", "no film two")
        write_text(tmp_path / "films" / "two.mp4", "no film\n")
        assert_refused(run_here(self.SCRIPT, *command), "two.mp4")
        without, output = self.evaluate(tmp_path, files["first"], truth=files["truth"])
        assert "two.mp4: cannot be opened" in output

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ("--json {root}/truth.csv", "--ground-truth"),
            ("--json {root}/second.csv", "number 2"),
            ("--ground-truth {root}/official --json {root}/official/one-activespeaker.csv", "--ground-truth"),
            ("--json {root}/plots/evaluate_cfg.json --plots {root}/plots", "settings"),
            ("--json {root}/plots/breakdown.png --plots {root}/plots", "pictures"),
            ("--predictions {root}/plots/a.png --plots {root}/plots", "pictures"),
            ("--ava-video-dir {root}/films --json {root}/films/one.mp4", "films"),
        ],
    )
    def test_never_writes_over_what_it_reads(self, files, tmp_path, flags, words):
        for video in ("one", "two"):
            faces = [face for face in FACES if face.video == video]
            write_annotations(tmp_path / "official" / f"{video}-activespeaker.csv", faces)
            write_text(tmp_path / "films" / f"{video}.mp4", "a film\n")
        (tmp_path / "plots").mkdir()
        shutil.copy(files["first"], tmp_path / "plots" / "a.png")
        before = digests(tmp_path)
        both = ["--predictions", files["first"], files["second"], "--ground-truth", files["truth"]]
        result = run_here(self.SCRIPT, *both, *flags.format(root=tmp_path).split())
        assert_refused(result, "both", words)
        assert digests(tmp_path) == before

    def test_pictures_need_a_directory(self, files, tmp_path):
        command = ("--predictions", files["first"], "--ground-truth", files["truth"], "--plots", files["second"])
        assert_refused(run_here(self.SCRIPT, *command), files["second"], "expected a directory")

    def test_pictures_can_be_read(self, files, tmp_path):
        plots = tmp_path / "plots"
        both = ["--predictions", files["first"], files["second"]]
        result = run_here(self.SCRIPT, *both, "--ground-truth", files["truth"], "--plots", plots)
        assert result.returncode == 0, result.stderr
        made = files_under(plots)
        assert "evaluate_cfg.json" in made
        pictures = [name for name in made if name.endswith(".png")]
        assert len(pictures) == len(made) - 1
        assert set(pictures) == {
            "precision_recall.png", "breakdown.png", "score_histograms.png", "scores_one.png", "scores_two.png"
        }  # fmt: skip
        for name in pictures:
            assert str(plots / name) in result.stdout
            with Image.open(plots / name) as picture:
                assert min(picture.size) >= 200
                assert len(picture.convert("RGB").getcolors(1 << 24)) > 10

    def test_pictures_of_the_last_files_worst_videos(self, tmp_path):
        faces = self.films(7)
        truth = write_annotations(tmp_path / "truth.csv", faces)
        first = self.write_scores(tmp_path / "first.csv", faces, score_of)
        second = self.write_scores(tmp_path / "second.csv", faces, self.other_score)
        numbers, _ = self.evaluate(tmp_path, first, second, truth=truth, more=("--plots", tmp_path / "plots"))
        worst = numbers["predictions"]["second"]["worst"]
        assert len(worst) == 5
        assert {path.name for path in (tmp_path / "plots").glob("scores_*")} == {f"scores_{v}.png" for v in worst}

    def test_matplotlib_is_loaded_for_pictures_only(self):
        check = "import sys, core.reports.report, core.reports.postprocessing; sys.exit('matplotlib' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0

    def test_numbers_do_not_depend_on_the_order_of_rows(self, files, tmp_path):
        order = np.random.default_rng(2).permutation(len(FACES))
        self.write_scores(tmp_path / "shuffled" / "first.csv", [FACES[i] for i in order], score_of)
        made = []
        for index, path in enumerate((files["first"], tmp_path / "shuffled" / "first.csv")):
            numbers = tmp_path / f"{index}.json"
            run_here(self.SCRIPT, "--predictions", path, "--ground-truth", files["truth"], "--json", numbers)
            made.append({name: value for name, value in read_json(numbers).items() if name != "settings"})
        assert made[0] == made[1]

    def test_rows_missing(self, files, tmp_path):
        self.write_scores(files["first"], FACES[1:], score_of)
        numbers = tmp_path / "numbers.json"
        result = run_here(
            self.SCRIPT, "--predictions", files["first"], "--ground-truth", files["truth"], "--json", numbers
        )
        assert_refused(result, files["first"], "1 ", "one:1", "900.0")
        assert not numbers.exists()

    def test_no_positives(self, files, tmp_path):
        write_annotations(files["truth"], [face._replace(label=0) for face in FACES])
        result = run_here(self.SCRIPT, "--predictions", files["first"], "--ground-truth", files["truth"])
        assert_refused(result, "SPEAKING_AUDIBLE")


class TestPictures:
    """What is drawn, looked at before it becomes pixels."""

    @pytest.fixture
    def figures(self, monkeypatch) -> dict:
        """name -> figure of every picture from here on, which is drawn but not written."""
        made = {}

        def save(figure, path: Path) -> Path:
            figure.canvas.draw()
            made[path.name] = figure
            plots.plt.close(figure)
            return path

        monkeypatch.setattr(plots, "save", save)
        return made

    @staticmethod
    def table(tmp_path, faces: list[Face]) -> FaceTable:
        return read_annotations(write_annotations(tmp_path / "t.csv", faces))

    @staticmethod
    def texts(figure) -> list[str]:
        return [text.get_text() for text in figure.legends[0].get_texts()]

    def lanes(self, figures, tmp_path, faces: list[Face], scores: np.ndarray):
        table = self.table(tmp_path, faces)
        plots.plot_scores(Path("lanes.png"), 0, {"p": scores}, table, {"p": "p"})
        return figures["lanes.png"]

    def test_a_pause_of_a_track_is_not_bridged(self, figures, tmp_path):
        times = [1.0, 1.04, 1.5, 2.1, 2.14, 5.0]  # pauses of 0.46, 0.6 and 2.86 s
        faces = [Face("film", "a", time, index % 2) for index, time in enumerate(times)]
        axes = self.lanes(figures, tmp_path, faces, np.arange(6) / 10).axes[0]
        drawn = [line.get_xdata().tolist() for line in axes.lines]
        assert drawn == [[1.0, 1.04, 1.5], [2.1, 2.14], [5.0]]
        assert [line.get_marker() for line in axes.lines] == ["None", "None", "."]
        assert [line.get_ydata().tolist() for line in axes.lines] == [[0, 0.1, 0.2], [0.3, 0.4], [0.5]]

    def test_the_truth_is_shaded_row_by_row(self, figures, tmp_path):
        """A row reaches half way to its neighbours, and as far beyond the ends."""
        faces = [Face("film", "a", time, label) for time, label in ((1, 0), (1.1, 1), (1.2, 1), (1.4, 2))]
        axes = self.lanes(figures, tmp_path, faces, np.arange(4) / 10).axes[0]
        shades = [[path.get_extents().intervalx.tolist() for path in found.get_paths()] for found in axes.collections]
        assert [len(spans) for spans in shades] == [1, 1, 1]
        expected = [(0.95, 1.05), (1.05, 1.3), (1.3, 1.45)]
        assert [pytest.approx(span) for span in expected] == [spans[0] for spans in shades]
        assert self.texts(figures["lanes.png"]) == ["not speaking", "speaking, audible", "speaking, not audible", "p"]

    def test_the_faces_with_the_largest_errors_in_the_order_of_time(self, figures, tmp_path):
        """Twenty faces; the right ones are scored right, the wrong ones, begun last first, wrong."""
        tracks = [Track(f"face{i:02}", "01", 100.0 - i) for i in range(20)]
        faces = faces_of(tracks)
        right = {f"face{i:02}" for i in (0, 3, 4, 8, 9, 13, 17, 19)}
        scores = np.array([face.label if face.entity in right else 1 - face.label for face in faces], float)
        figure = self.lanes(figures, tmp_path, faces, scores)
        shown = [axes.get_title(loc="left").split()[0] for axes in figure.axes]
        assert shown == [f"face{i:02}" for i in reversed(range(20)) if f"face{i:02}" not in right]
        assert len(shown) == plots.MAX_LANES
        assert "12 faces with the largest errors, 8 left out" in figure.get_suptitle()
        assert {axes.get_title(loc="left").split("error ")[1] for axes in figure.axes} == {"80 %"}  # 12 and 4 of 20

    def test_time_without_faces_is_left_out(self, figures, tmp_path):
        """Two faces that meet have one axis of time, one much later its own."""
        tracks = [Track("a", "01" * 50, 10.0), Track("b", "01" * 50, 12.0), Track("c", "01" * 50, 900.0)]
        figure = self.lanes(figures, tmp_path, faces_of(tracks), np.zeros(300))
        limits = [axes.get_xlim() for axes in figure.axes]
        assert limits[0] == limits[1]
        assert 9.9 < limits[0][0] < 10 < 15.96 < limits[0][1] < 16.1
        assert 899.9 < limits[2][0] < 900 < 903.96 < limits[2][1] < 904.1
        assert [axes.xaxis.get_tick_params()["labelbottom"] for axes in figure.axes] == [False, True, True]

    def test_curve_of_precision_and_recall(self, figures, tmp_path):
        table = self.table(tmp_path, faces_of([Track("a", "0101")]))
        scores = {"one": np.array([0.1, 0.9, 0.8, 0.7]), "_two": np.array([0.0, 1.0, 0.0, 1.0])}
        plots.plot_precision_recall(Path("p.png"), scores, table, {"one": "first", "_two": "_second"})
        one, two, chance = figures["p.png"].axes[0].lines
        assert one.get_xdata().tolist() == [0.5, 0.5, 1, 1]
        assert one.get_ydata().tolist() == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
        assert two.get_ydata().tolist() == [1, 0.5]
        assert set(chance.get_ydata()) == {0.5}
        assert [text.strip() for text in self.texts(figures["p.png"])][:2] == ["first", "_second"]

    def test_a_long_curve_is_thinned_without_being_moved(self, figures, tmp_path):
        rng = np.random.default_rng(0)
        positive = rng.random(50_000) < 0.3
        table = FaceTable(["film"], ["a"], *np.zeros((2, 50_000), np.int32), np.arange(50_000.0), positive.astype(int))
        scores = rng.normal(size=50_000) + positive
        plots.plot_precision_recall(Path("p.png"), {"p": scores}, table, {"p": "p"})
        line = figures["p.png"].axes[0].lines[0]
        assert len(line.get_xdata()) < 5000
        area = np.sum(np.diff(line.get_xdata(), prepend=0) * line.get_ydata())
        assert area == pytest.approx(average_precision(scores, positive), abs=1e-3)
        assert line.get_xdata()[-1] == 1

    def test_histograms_count_each_label_for_itself(self, figures, tmp_path):
        table = self.table(tmp_path, faces_of([Track("a", "00001122")]))
        scores = np.array([0.01, 0.01, 0.01, 0.99, 0.99, 0.5, 0.02, 0.02])
        plots.plot_histograms(Path("h.png"), {"p": scores}, table, {"p": "p"})
        heights = [patch.get_data().values for patch in figures["h.png"].axes[0].patches]
        assert [height.sum() for height in heights] == pytest.approx([100, 100, 100])
        assert [height[0] for height in heights] == pytest.approx([75, 0, 100])
        assert [height[-1] for height in heights] == pytest.approx([25, 50, 0])
        assert [text.split("(")[1] for text in self.texts(figures["h.png"])] == ["4 rows)", "2 rows)", "2 rows)"]

    def test_bars_with_and_without_a_value(self, figures):
        result = {"1": {"rows": 4, "positives": 1, "mAP": 0.5}, "more": {"rows": 0, "positives": 0, "mAP": None}}
        plots.plot_breakdown(Path("b.png"), {"faces": {"a": result, "b": result}}, {"a": "A", "b": "B"})
        (axes,) = figures["b.png"].axes
        assert [bar.get_height() for bars in axes.containers for bar in bars] == [50, 0, 50, 0]
        assert [text.get_text() for text in axes.texts] == ["50.0", "none"] * 2
        assert [lines.get_segments()[0][0][1] for lines in axes.collections] == [25]
        assert self.texts(figures["b.png"]) == ["A", "B", "chance: share of positive rows"]

    @pytest.mark.filterwarnings("ignore:Glyph")  # which the real save keeps to itself
    @pytest.mark.parametrize("count", [1, 6])
    def test_nothing_overlaps_and_odd_names_are_drawn(self, figures, tmp_path, count):
        """Legends below the panels and within the picture, whatever the files are called and however many they are."""
        names = ["a" * 90, "_under", "$x^$ \\frac", "日本語", "%d {0}", "plain"][:count]
        faces = faces_of([Track("b" * 90, "0120", 1.0), Track("c", "10", 900.0)])
        lines = (f"{official_line(face._replace(label=1)).strip()},{100 * score_of(face) - 50}\n" for face in faces)
        text, truth = "".join(lines), write_annotations(tmp_path / "t.csv", faces)
        paths = [write_text(tmp_path / f"{name}.csv", text) for name in names]
        result = run_here("scripts/evaluate.py", "--predictions", *paths, "--ground-truth", truth, "--plots", tmp_path)
        assert result.returncode == 0, result.stderr
        assert len(figures) == 4
        for name, figure in figures.items():
            box = figure.legends[0].get_window_extent()
            assert box.x0 >= 0, name
            assert box.x1 <= figure.bbox.x1, name
            panels = [axes.get_tightbbox() for axes in figure.axes if axes.get_visible()]
            assert all(panel.y0 >= box.y1 for panel in panels), name
            assert all(not one.overlaps(other) for one, other in itertools.combinations(panels, 2)), name
            shown = [text for text in self.texts(figure) if "chance" not in text and "speaking" not in text]
            if name != "score_histograms.png":
                assert len(shown) == count
                assert all("(ranks)" in text for text in shown)
