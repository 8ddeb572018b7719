"""The join to the ground truth, post-processing, and the evaluation report."""

import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import assert_refused, run_script
from numbered_videos import make_video
from PIL import Image
from plain_metrics import plain_auc, plain_average_precision
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
from core.formats.predictions import join
from core.reports import plots
from core.reports.report import display_names, faces_group, width_group
from core.runtime.errors import InputError

# Two videos: tracks overlap in time and have any labels
TRACKS = [
    Track("one:1", "0111002", 900.0, "one"),
    Track("one:2", "00010", 900.08, "one"),
    Track("one:3", "1", 900.12, "one"),
    Track("two:1", "1101", 900.0, "two"),
]
FACES = faces_of(TRACKS)


def logits_of(face: Face) -> tuple[float, float]:
    """Distinct logits for every row, right more often than not, exact in float32."""
    noise = np.random.default_rng(list(f"{face.entity}{face.time}".encode())).integers(-4096, 4096) / 1024
    return float(-noise / 2), float(noise / 2 + 2 * (face.label == 1))


def score_of(face: Face) -> float:
    zero, one = logits_of(face)
    return 1 / (1 + math.exp(zero - one))


def other_score(face: Face) -> float:
    return (face.time * 100 % 7 + face.label % 2) / 10


def expected_map(score: Callable[[Face], float] = score_of, faces: list[Face] = FACES) -> float:
    return plain_average_precision([score(face) for face in faces], [face.label == 1 for face in faces])


def table_of(directory: Path, faces: list[Face]) -> FaceTable:
    return read_annotations(write_annotations(directory / "table.csv", faces))


def write_scores(path: Path, faces: list[Face], score: Callable[[Face], float] = score_of) -> Path:
    """Write final predictions."""
    lines = [f"{official_line(face._replace(label=1)).strip()},{score(face)!r}\n" for face in faces]
    return write_text(path, "".join(lines))


def write_official_directory(directory: Path, faces: list[Face]) -> None:
    for video in {face.video for face in faces}:
        rows = [face for face in faces if face.video == video]
        write_annotations(directory / f"{video}-activespeaker.csv", rows)


class TestJoin:
    @staticmethod
    def frame(faces: list[Face]) -> pd.DataFrame:
        rows = [(face.video, face.time, face.entity, score_of(face)) for face in faces]
        return pd.DataFrame(rows, columns=["video_id", "frame_timestamp", "entity_id", "score"])

    def test_the_video_is_part_of_the_key(self, tmp_path):
        faces = [Face("one", "a:1", 900.0, 0), Face("two", "b:1", 900.0, 1)]
        swapped = [face._replace(video="two" if face.video == "one" else "one") for face in faces]
        with pytest.raises(InputError):
            join(self.frame(swapped), table_of(tmp_path, faces), "here")

    @pytest.mark.parametrize("problem", ["missing", "unknown", "duplicate"])
    def test_unmatched_rows_are_an_error(self, tmp_path, problem):
        """The message holds their number and one of them as an example."""
        count = 4
        unknown = [Face("one", "one:9", 900.0 + i, 0) for i in range(count)]
        faces, unmatched = {
            "missing": (FACES[count:], FACES[:count]),
            "unknown": (FACES + unknown, unknown),
            "duplicate": (FACES + FACES[:count], FACES[:count]),
        }[problem]
        with pytest.raises(InputError) as caught:
            join(self.frame(faces), table_of(tmp_path, FACES), "some/directory")
        message = str(caught.value)
        assert "some/directory" in message
        assert re.search(rf"\b{count} ", message)
        assert any(all(str(part) in message for part in face[:3]) for face in unmatched)


class TestBreakdowns:
    def test_faces_in_the_frame(self, tmp_path):
        tracks = [Track(f"a:{i}", "00", 10.0 + 0.04 * (i == 4)) for i in range(5)]
        faces = faces_of([*tracks, Track("b:1", "0", 10.0, "other")])
        # Four faces (0 to 3) at 10.00 s, all five at 10.04 s, the last one at 10.08 s
        assert faces_group(table_of(tmp_path, faces)).tolist() == [3, 3] * 4 + [3, 0] + [0]

    @pytest.mark.parametrize(
        ("fraction", "width", "group"), [(0.25, 252, 0), (0.25, 256, 1), (0.25, 512, 1), (0.25, 516, 2), (0.5, 120, 0)]
    )
    def test_face_width(self, tmp_path, fraction, width, group):
        """Groups: under 64 pixels, 64 to 128, over 128."""
        line = official_line(Face("talk", "a", 1.0, 1), (0.25, 0.1, 0.25 + fraction, 0.2))
        table = read_annotations(write_text(tmp_path / "t.csv", line))
        assert width_group(table, np.array([width])).tolist() == [group]


SCRIPTS = {
    "STE_postprocessing.py": ("--forward-dir", write_store),
    "ASC_prediction_postprocessing.py": ("--predictions-dir", write_predictions),
}


class PostProcessing:
    """A post-processing script with its inputs and outputs in one directory."""

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


def assert_prints_map(result: subprocess.CompletedProcess[str]) -> None:
    """The official mAP of FACES is printed once, among the last two lines."""
    assert result.returncode == 0, result.stderr
    (value,) = re.findall(r"mAP\W+(\d+\.\d+)", result.stdout)
    assert float(value) == pytest.approx(100 * expected_map(), abs=0.00501)
    assert "mAP" in "".join(result.stdout.splitlines()[-2:])


class TestPostProcessing:
    def test_final_predictions_and_ground_truth(self, stage):
        result = stage.run(FACES, "--smoothing", 0)
        assert_prints_map(result)
        lines, truth = read_csv(stage.predictions), read_csv(stage.truth)
        for line, true, face in zip(lines, truth, FACES, strict=True):
            official = official_line(face).strip().split(",")
            assert (line[0], line[6], line[7]) == (face.video, "SPEAKING_AUDIBLE", face.entity)
            assert list(map(float, line[1:6])) == list(map(float, official[1:6]))
            assert float(line[8]) == pytest.approx(score_of(face), rel=1e-9, abs=0)
            assert len(line) == 9
            assert true == [*line[:6], LABELS[face.label], face.entity]
        assert read_annotations(stage.truth).label.tolist() == [face.label for face in FACES]

    def test_inputs_and_outputs_are_never_overwritten(self, stage):
        stage.run()
        truth, before = stage.root / "truth.csv", digests(stage.root)
        for flag, path in (
            ("--ground-truth-csv", truth),
            ("--predictions-csv", truth),
            ("--json", truth),
            ("--predictions-csv", stage.truth),
            ("--json", stage.predictions),
            ("--predictions-csv", stage.predictions.with_suffix(".json")),
            ("--predictions-csv", stage.root / "out_logits" / "final.csv"),
            ("--json", stage.root / "out_logits" / "STE_forward_cfg.json"),
            ("--plots", stage.root / "out_logits"),
        ):
            assert_refused(stage.run(FACES, flag, path), path)
            assert digests(stage.root) == before

    def test_report_equals_that_of_evaluate(self, stage):
        """Numbers, tables and plots equal those of scripts/evaluate.py on the written files."""
        result = stage.run(FACES, "--plots", stage.root / "a", "--json", stage.root / "a.json")
        assert_prints_map(result)
        files = ("--predictions", stage.predictions, "--ground-truth", stage.truth)
        other = run_here("scripts/evaluate.py", *files, "--plots", stage.root / "b", "--json", stage.root / "b.json")
        assert other.returncode == 0, other.stderr
        a, b = (read_json(stage.root / f"{name}.json") for name in ("a", "b"))
        assert (a.pop("settings")["smoothing"], b.pop("settings")["plots"]) == (0, str(stage.root / "b"))
        assert a == b
        tables = other.stdout[other.stdout.index("official mAP (%)") : other.stdout.index("numbers: ")]
        assert tables in result.stdout
        images = digests(stage.root / "a", "*.png")
        assert images == digests(stage.root / "b", "*.png")
        assert set(files_under(stage.root / "a")) - set(images) == {"postprocessing_cfg.json"}

    def test_small_scores_keep_their_digits(self, stage):
        """Scores around 1e-12 have nine significant digits."""
        margins = [27.5 + face.time % 1 for face in FACES]
        assert stage.run(logits=lambda face: (27.5 + face.time % 1, 0.0)).returncode == 0
        scores = [float(line[8]) for line in read_csv(stage.predictions)]
        assert scores == pytest.approx([1 / (1 + math.exp(margin)) for margin in margins], rel=1e-9, abs=0)
        assert max(scores) < 1e-11

    def test_order_of_the_ground_truth_is_kept(self, stage):
        mixed = sorted(FACES, key=lambda face: (face.time, face.entity))
        write_annotations(stage.root / "mixed.csv", mixed)
        assert_prints_map(stage.run(truth="mixed.csv"))
        for path in (stage.predictions, stage.truth):
            assert [(line[7], float(line[1])) for line in read_csv(path)] == [face[1:3] for face in mixed]

    def test_logits_are_smoothed_before_the_softmax(self, stage):
        assert stage.run(FACES, "--smoothing", 3).returncode == 0
        lines = read_csv(stage.predictions)
        for index in range(1, 6):  # inner rows of the first track
            zero, one = np.median([logits_of(face) for face in FACES[index - 1 : index + 2]], axis=0)
            assert float(lines[index][8]) == pytest.approx(1 / (1 + math.exp(zero - one)), rel=1e-9)
        assert float(lines[12][8]) == pytest.approx(score_of(FACES[12]), rel=1e-9)  # a track of one row
        assert read_json(stage.predictions.with_suffix(".json"))["smoothing"] == 3

    def test_missing_rows_are_an_error(self, stage):
        """Here all rows of a video."""
        assert_refused(stage.run(FACES[:13]), "two:1", "4 ")
        assert not stage.predictions.exists()
        assert not stage.truth.exists()

    def test_without_positives_there_are_predictions_and_no_evaluation(self, stage):
        write_annotations(stage.root / "silent.csv", [face._replace(label=2) for face in FACES])
        result = stage.run(truth="silent.csv")
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1] == "no evaluation: no row is labelled SPEAKING_AUDIBLE"
        assert len(read_csv(stage.predictions)) == len(FACES)


def test_post_processing_needs_no_flags_in_the_default_layout(tmp_path):
    """The utility file may be missing."""
    write_official_directory(tmp_path / "csv" / "val", FACES)
    write_predictions(tmp_path / "asc_predictions", FACES, logits_of)
    assert_prints_map(run_script("ASC_prediction_postprocessing.py", ASC_DATA_ROOT=str(tmp_path)))
    written = [name for name in files_under(tmp_path / "results") if name.endswith(".csv")]
    assert [len(read_csv(tmp_path / "results" / name)) for name in written] == [len(FACES)] * 2


def evaluate(directory: Path, faces: list[Face], *predictions: Path, more: tuple = ()) -> tuple[dict, str]:
    """Run scripts/evaluate.py. Returns the numbers of --json and the printed text."""
    truth = write_annotations(directory / "truth.csv", faces)
    command = ("--predictions", *predictions, "--ground-truth", truth, "--json", directory / "numbers.json", *more)
    result = run_here("scripts/evaluate.py", *command)
    assert result.returncode == 0, result.stderr
    assert "NaN" not in (directory / "numbers.json").read_text()  # which is not valid json
    return read_json(directory / "numbers.json"), result.stdout


def cells(output: str, name: str) -> list[list[str]]:
    """Cells of the printed table rows with this name."""
    return [match.split() for match in re.findall(rf"^{re.escape(name)} +(.*)$", output, re.M)]


def videos_of(count: int, silent: int = 0) -> list[Face]:
    """Videos of 20 rows; the first `silent` ones have no positive rows."""
    tracks = []
    for video in range(count):
        labels = "".join(str((video * 7 + row) % 9 % 3) for row in range(20))
        tracks.append(Track(f"v{video}:1", labels.replace("1", "2") if video < silent else labels, 10.0, f"v{video}"))
    return faces_of(tracks)


class TestEvaluate:
    @pytest.fixture
    def files(self, tmp_path) -> list[Path]:
        """Final predictions in the order of the ground truth, and others in reverse order."""
        first = write_scores(tmp_path / "first.csv", FACES)
        return [first, write_scores(tmp_path / "second.csv", FACES[::-1], other_score)]

    def test_numbers_of_two_predictions(self, files, tmp_path):
        numbers, output = evaluate(tmp_path, FACES, *files)
        positive = [face.label == 1 for face in FACES]
        assert (numbers["rows"], numbers["positives"]) == (len(FACES), sum(positive))
        chance = sum(positive) / len(FACES)
        assert numbers["chance"] == pytest.approx(chance, abs=1e-12)
        assert cells(output, "chance") == [[f"{100 * chance:.2f}", "50.00"]]
        for name, score in (("first", score_of), ("second", other_score)):
            own, auc = numbers["predictions"][name], plain_auc([score(face) for face in FACES], positive)
            assert (own["mAP"], own["auc"]) == pytest.approx((expected_map(score), auc), abs=1e-12)
            assert cells(output, name)[0] == [f"{100 * own['mAP']:.2f}", f"{100 * own['auc']:.2f}"]
            groups = own["faces in the frame"]
            assert [group["rows"] for group in groups.values()] == [6, 8, 3, 0]
            assert groups["more"]["mAP"] is None
        assert (numbers["mAP"], numbers["auc"]) == tuple(numbers["predictions"]["first"][key] for key in ("mAP", "auc"))
        assert cells(output, "more") == [["0", "none", "none", "none"]]

    def test_breakdown_by_face_width(self, files, tmp_path, monkeypatch):
        """Videos are 128 pixels wide, faces a quarter and three quarters of it."""
        lines = [official_line(face, (0.1, 0.1, 0.85 if face.entity == "one:1" else 0.35, 0.5)) for face in FACES]
        truth, videos = write_text(tmp_path / "wide.csv", "".join(lines)), tmp_path / "videos"
        videos.mkdir()
        for name in ("one", "two"):
            make_video(videos / f"{name}.mp4", seconds=0.2)
        boxes = dict(zip(FACES, (line.split(",")[2:6] for line in lines), strict=True))
        scored = (
            f"{face.video},{face.time:g},{','.join(boxes[face])},{LABELS[1]},{face.entity},{score_of(face)!r}\n"
            for face in FACES
        )
        predictions = write_text(tmp_path / "first.csv", "".join(scored))
        command = ("--predictions", predictions, "--ground-truth", truth, "--json", tmp_path / "wide.json")

        def run(*flags: object) -> tuple[dict, str]:
            result = run_here("scripts/evaluate.py", *command, *flags)
            assert result.returncode == 0, result.stderr
            return read_json(tmp_path / "wide.json"), result.stdout

        numbers, output = run("--ava-video-dir", videos)
        groups = numbers["predictions"]["first"]["face width (pixels)"]
        assert {name: group["rows"] for name, group in groups.items()} == {"< 64": 10, "64 to 128": 7, "> 128": 0}
        wide = [face for face in FACES if face.entity == "one:1"]
        assert groups["64 to 128"]["mAP"] == pytest.approx(expected_map(faces=wide), abs=1e-12)
        assert "no breakdown" not in output

        # The configured directory is used by default; without all of its videos the breakdown is left out.
        monkeypatch.setitem(config.data_inputs, "ava_video_dir", str(videos))
        assert run()[0]["predictions"] == numbers["predictions"]
        (videos / "two.mp4").unlink()
        assert_refused(run_here("scripts/evaluate.py", *command, "--ava-video-dir", videos), videos, "no video two")
        numbers, output = run()
        assert list(numbers["left out"]) == ["face width (pixels)"]
        (reason,) = re.findall(r"^no breakdown by face width .*", output, re.M)
        assert f"{videos}: no video two" in reason
        assert "--ava-video-dir" in reason

    def test_ap_of_each_video(self, tmp_path):
        """None for videos without positive rows, which are counted. The worst five are those of the last prediction."""
        faces = videos_of(9, silent=2)
        mixed = sorted(faces, key=lambda face: face.time)  # rows of videos alternate
        paths = [write_scores(tmp_path / "p.csv", mixed, other_score), write_scores(tmp_path / "q.csv", mixed)]
        numbers, output = evaluate(tmp_path, faces, *paths, more=("--plots", tmp_path / "plots"))
        assert list(numbers["videos"]) == [f"v{i}" for i in range(9)]
        expected = {}
        for video, found in numbers["videos"].items():
            own = [face for face in faces if face.video == video]
            positives = sum(face.label == 1 for face in own)
            assert (found["rows"], found["positives"]) == (20, positives)
            expected[video] = expected_map(faces=own) if positives else None
            assert found["AP"]["q"] == (pytest.approx(expected[video], abs=1e-12) if positives else None)
        worst = sorted((video for video in expected if expected[video] is not None), key=expected.get)[:5]
        assert numbers["predictions"]["q"]["worst"] == worst
        assert "2 of 9 videos have no positive rows and hence no AP\n" in output
        assert re.findall(r"^(v\d) +20 .* (\S+)$", output, re.M) == [(v, f"{100 * expected[v]:.2f}") for v in worst]
        assert {path.name for path in (tmp_path / "plots").glob("scores_*")} == {f"scores_{v}.png" for v in worst}

    def test_one_video_with_positive_rows_only(self, tmp_path):
        faces = faces_of([Track("a", "111", video="one")])
        path = write_scores(tmp_path / "p.csv", faces)
        numbers, output = evaluate(tmp_path, faces, path, more=("--plots", tmp_path / "plots"))
        assert (numbers["mAP"], numbers["auc"], numbers["chance"]) == (1, None, 1)
        assert cells(output, "p")[0] == ["100.00", "none"]

    @pytest.mark.parametrize(
        "flags",
        [
            "--json {root}/second.csv",
            "--ground-truth {root}/official --json {root}/official/one-activespeaker.csv",
            "--json {root}/plots/evaluate_cfg.json --plots {root}/plots",
            "--ava-video-dir {root}/videos --json {root}/videos/one.mp4",
        ],
    )
    def test_inputs_and_outputs_are_never_overwritten(self, files, tmp_path, flags):
        truth = write_annotations(tmp_path / "truth.csv", FACES)
        write_official_directory(tmp_path / "official", FACES)
        write_text(tmp_path / "videos" / "one.mp4", "a video\n")
        before = digests(tmp_path)
        command = ("--predictions", *files, "--ground-truth", truth, *flags.format(root=tmp_path).split())
        assert_refused(run_here("scripts/evaluate.py", *command), "--json", re.search(r"--json \S+/(\S+)", flags)[1])
        assert digests(tmp_path) == before

    def test_plots_are_written(self, files, tmp_path):
        _, output = evaluate(tmp_path, FACES, *files, more=("--plots", tmp_path / "plots"))
        names = ["breakdown", "precision_recall", "score_histograms", "scores_one", "scores_two"]
        assert files_under(tmp_path / "plots") == sorted([*(f"{name}.png" for name in names), "evaluate_cfg.json"])
        for name in names:
            assert str(tmp_path / "plots" / f"{name}.png") in output
            with Image.open(tmp_path / "plots" / f"{name}.png") as image:
                assert min(image.size) >= 200
                assert len(image.convert("RGB").getcolors(1 << 24)) > 10

    def test_any_file_names_and_score_ranges_are_plotted(self, tmp_path):
        names = ["a" * 90, "_under", "$x^$ \\frac", "日本語", "%d {0}", "chance"]
        faces = faces_of([Track("b" * 90, "0120", 1.0, "one"), Track("c", "10", 900.0, "one")])
        paths = [write_scores(tmp_path / f"{name}.csv", faces, lambda face: 9 * score_of(face) - 5) for name in names]
        numbers, _ = evaluate(tmp_path, faces, *paths, more=("--plots", tmp_path / "plots"))
        assert list(numbers["predictions"]) == names
        assert len(list((tmp_path / "plots").glob("*.png"))) == 4


def test_files_with_equal_names_are_distinguished():
    assert display_names(["x/p.csv", "y/q.csv"]) == ["p", "q"]
    assert display_names(["x/p.csv", "x/a/p.csv"]) == ["p.csv", "a/p.csv"]
    with pytest.raises(InputError, match=r"p\.csv: given twice"):
        display_names(["x/p.csv", "p.csv", "./x/p.csv"])


def test_scores_of_a_video_are_those_of_the_tracks_with_the_largest_errors(monkeypatch, tmp_path):
    """Twenty tracks, the first one latest; the scores of eight are right, those of twelve are wrong.

    Lanes are in order of time. Tracks with a long break between them have different time axes.
    """
    lanes = []
    monkeypatch.setattr(plots, "draw_lanes", lambda path, title, lanes_, *_: lanes.extend(lanes_))
    faces = faces_of([Track(f"face{i:02}", "01", 100.0 - i - 50 * (i > 14)) for i in range(20)])
    right = {f"face{i:02}" for i in (*range(7), 17)}
    scores = np.array([face.label if face.entity in right else 1 - face.label for face in faces], float)
    plots.plot_scores(tmp_path, 0, [scores], table_of(tmp_path, faces), ["p"])
    wrong = [f"face{i:02}" for i in reversed(range(20)) if f"face{i:02}" not in right]
    assert [lane.title.split()[0] for lane in lanes] == wrong
    assert [(lane.states.tolist(), lane.scores[0].tolist()) for lane in lanes] == [([0, 1], [1, 0])] * 12
    assert [lane.limits for lane in lanes] == [pytest.approx(span) for span in [(31, 35.08)] * 4 + [(86, 93.08)] * 8]


def test_long_curves_are_means_of_neighbouring_rows():
    lane = plots.Lane("", np.arange(5000) / 25, [np.tile([0.2, 0.6], 2500)], np.zeros(5000, int), (0, 200))
    _, axes = plots.plt.subplots()
    plots._draw_lane(axes, lane, ["red"])
    curve = axes.lines[0].get_xydata()
    plots.plt.close()
    assert 500 < len(curve) <= 1000
    assert np.allclose(curve[:, 1], 0.4)
