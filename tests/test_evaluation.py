"""Average precision as the official tool has it, the join by key, smoothing, and the scripts that lead there."""

import json
import math
import re
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import GOLDEN, assert_refused, run_script
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mini import (
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
from PIL import Image

from core.annotations import FaceTable, read_annotations
from core.errors import InputError
from core.evaluation import (
    average_precision,
    faces_group,
    join,
    roc_auc,
    smooth_tracks,
    speaking_score,
    width_group,
)
from core.io import read_logits


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

    def test_pictures_can_be_read(self, files, tmp_path):
        plots = tmp_path / "plots"
        both = ["--predictions", files["first"], files["second"]]
        result = run_here(self.SCRIPT, *both, "--ground-truth", files["truth"], "--plots", plots)
        assert result.returncode == 0, result.stderr
        made = files_under(plots)
        assert "evaluate_cfg.json" in made
        pictures = [name for name in made if name.endswith(".png")]
        assert len(pictures) == len(made) - 1 >= 3
        for name in pictures:
            assert str(plots / name) in result.stdout
            with Image.open(plots / name) as picture:
                assert min(picture.size) >= 200
                assert len(picture.convert("RGB").getcolors(1 << 24)) > 10

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
