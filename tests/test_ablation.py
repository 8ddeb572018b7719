"""The ablation: networks without refinements, training, baselines, the table, and scripts/ablation.py."""

import json
import re
import subprocess
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from conftest import assert_refused, printed
from tiny_inputs import (
    Track,
    digests,
    faces_of,
    noise_features,
    read_json,
    run_here,
    succeed,
    write_annotations,
    write_store,
)

from core import ablation
from core.config import ASC_optimization_params
from core.formats.features import FeatureStore
from core.models import ASC_Net, active_speakers_context

PAPER = ablation.Variant()
TRACKS = [
    Track("one:a", "0110" * 5, 0.4, "one"),
    Track("one:b", "2200011" * 3, 0.52, "one"),
    Track("two:a", "1" * 30, 0.0, "two"),
    Track("two:b", "011" * 4, 1.0, "two"),
]
PARAMS = {**ASC_optimization_params, "epochs": 2, "batch_size": 8, "learning_rate": 1e-3}
FLAGS = ("--epochs", 2, "--batch-size", 8, "--learning-rate", 1e-3)
CPU = torch.device("cpu")
# The networks of most runs of the script
FEW = {"refinement": {"none": ablation.Variant(pairwise=False, temporal=False), "both": PAPER}}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Directory of `features`, as STE_forward.py writes them, and `annotations.csv` of the same rows."""
    root = tmp_path_factory.mktemp("ablation")
    write_store(root / "features", faces_of(TRACKS), noise_features)
    write_annotations(root / "annotations.csv", faces_of(TRACKS))
    return root


@pytest.fixture(scope="module")
def stores(root) -> dict[str, FeatureStore]:
    return {split: FeatureStore(root / "features") for split in ("train", "val")}


@pytest.mark.parametrize(("pairwise", "temporal"), [(True, False), (False, True), (False, False)])
def test_network_without_refinements(pairwise, temporal):
    """The others have the same parameters and compute the same; without any, the network is a linear layer."""
    torch.manual_seed(0)
    paper = active_speakers_context(5, 2).eval()
    model = ASC_Net(5, 2, pairwise=pairwise, temporal=temporal).eval()
    off = [part for part, on in (("sat.", pairwise), ("lstm.", temporal), ("fc_final.", False)) if not on]
    shared = {name: value for name, value in paper.state_dict().items() if not name.startswith(tuple(off))}
    own = {name: value for name, value in model.state_dict().items() if name.startswith("fc_final.")}
    model.load_state_dict({**shared, **own})
    x = torch.randn(3, 1024, 5, 2)
    with torch.inference_mode():
        refined = (paper.sat(x) if pairwise else x).permute(0, 2, 3, 1).flatten(1, 2)  # the speaker varies fastest
        refined = paper.lstm(refined)[0] if temporal else refined
        torch.testing.assert_close(model(x), model.fc_final(refined.flatten(1)), rtol=0, atol=1e-5)


class TestVariants:
    def test_axes_are_those_of_the_paper(self):
        assert {axis: list(settings) for axis, settings in ablation.AXES.items()} == {
            "refinement": ["none", "pairwise", "temporal", "both"],
            "speakers S": ["1", "2", "3"],
            "steps L": ["1", "5", "11"],
            "stride": ["1", "2", "4", "8"],
            "no context": ["S = 1, L = 1"],
        }
        for axis, last in (("refinement", "both"), ("speakers S", "3"), ("steps L", "11"), ("stride", "4")):
            assert ablation.AXES[axis][last] == PAPER

    def test_names_are_unique(self):
        names = [variant.name for variant in ablation.VARIANTS]
        assert len(set(names)) == len(names) == len(set(ablation.VARIANTS)) == 12
        assert PAPER.name == "ASC_len_11_stride_4_speakers_3"


class TestTraining:
    def test_weights_and_map_are_those_of_the_stages(self, root, stores, tmp_path):
        """The same weights as those of ASC_train.py, and the mAP of stages 8 and 9."""
        variant, shape = ablation.Variant(5, 2, 2), (5, 2, 2, "cpu")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in `run_here`: with more threads sums differ in their last bits
        expected = ablation.train_variant(variant, stores, tmp_path / "ablation", PARAMS, 3, CPU)
        torch.set_num_threads(threads)
        train = ("--features-train-full", root / "features", "--models-out", tmp_path, *FLAGS)
        val, seed = ("--features-val-full", root / "features"), ("--seed", 3)
        weights, out = tmp_path / variant.name / "2.pth", tmp_path / "predictions"
        files = ("--predictions-csv", tmp_path / "p" / "p.csv", "--ground-truth-csv", tmp_path / "p" / "t.csv")
        truth = ("--ground-truth", root / "annotations.csv")
        for command in (
            ("ASC_train.py", *shape, *train, *val, *seed),
            ("ASC_forward.py", *shape, *val, "--weights", weights, "--output-dir", out, *seed),
            ("ASC_prediction_postprocessing.py", "--predictions-dir", out, *truth, *files),
        ):
            succeed(*command)
        ours, theirs = torch.load(tmp_path / "ablation" / "seed_3" / variant.name / "2.pth"), torch.load(weights)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert read_json(tmp_path / "p" / "p.json")["mAP"] == pytest.approx(expected, abs=1e-6)

    def test_finished_runs_are_not_repeated(self, stores, tmp_path):
        variant = ablation.Variant(context_length=1, num_speakers=1, temporal=False)
        first = ablation.train_variant(variant, stores, tmp_path, PARAMS, 0, CPU)
        before = digests(tmp_path)
        assert ablation.train_variant(variant, stores, tmp_path, PARAMS, 0, CPU) == first
        assert digests(tmp_path) == before


class TestBaselines:
    @pytest.mark.parametrize("informative", [True, False])
    def test_baseline_learns_an_informative_cue_only(self, informative):
        faces = faces_of([Track("one:a", "0110" * 100, 0.4, "one"), Track("one:b", "10" * 200, 0.4, "one")])
        label = np.array([face.label == 1 for face in faces])
        rng = np.random.default_rng(0)
        cues = {split: rng.random((len(faces), 2)) for split in ("train", "val")}
        if informative:
            for cue in cues.values():
                cue[:, 0] = 100 + 0.3 * cue[:, 0] + 0.1 * label
        speaking = dict.fromkeys(cues, label)
        state = torch.get_rng_state()
        found = ablation.single_cue_ap(cues, speaking, 0)
        assert (found > 0.7) if informative else (abs(found - 0.5) < 0.06)
        assert torch.equal(torch.get_rng_state(), state)  # networks trained later do not depend on it
        assert ablation.single_cue_ap(cues, speaking, 0) == found


def test_table_has_mean_deviation_and_difference_to_the_encoder():
    references = [("chance", [0.25]), ("audio alone", [0.3, 0.5]), (ablation.STE, [0.5])]
    results = {(variant, seed): 0.6 + 0.1 * seed for variant in ablation.VARIANTS for seed in (0, 1)}
    table = ablation.tabulate(references, results, [0, 1])
    assert len(table) == 3 + 4 + 3 + 3 + 4 + 1
    columns = ["axis", "setting", "mean", "deviation", "above_ste"]
    assert table[columns].iloc[0].tolist() == ["", "chance", 0.25, pytest.approx(np.nan, nan_ok=True), -0.25]
    expected = ["refinement", "both", pytest.approx(0.65), pytest.approx(0.1 / 2**0.5), pytest.approx(0.15)]
    assert table[columns].iloc[6].tolist() == expected
    lines = ablation.markdown(table).splitlines()
    assert len(lines) == 2 + len(table)
    assert lines[2] == "|  | chance | 25.0 | -25.0 |  |"
    assert lines[5] == "| refinement | none | 65.0 ± 7.1 | +15.0 | 60.0, 70.0 |"
    assert lines[6] == "|  | pairwise | 65.0 ± 7.1 | +15.0 | 60.0, 70.0 |"


def ablate(root: Path, out: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    """Run the script on features, with two networks of two seeds."""
    features = ("--features-train-full", root / "features", "--features-val-full", root / "features")
    csvs = ("--csv-train-full", root / "annotations.csv", "--csv-val-full", root / "annotations.csv")
    return run_few("--output-dir", out, *features, *csvs, "--seeds", 2, *FLAGS, *flags)


def run_few(*flags: object) -> subprocess.CompletedProcess[str]:
    with mock.patch.multiple(ablation, AXES=FEW, VARIANTS=list(FEW["refinement"].values())):
        return run_here("scripts/ablation.py", "cpu", *flags)


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory) -> tuple[Path, str]:
    """Output directory and printed text of a finished ablation."""
    out = tmp_path_factory.mktemp("finished")
    return out, printed(ablate(root, out))


class TestScript:
    def test_results_are_those_of_the_runs(self, finished):
        """The mAPs of the last epochs in their logs."""
        out, text = finished
        assert (out / "ablation.md").read_text() in text
        table = json.loads((out / "ablation.json").read_text(), parse_constant=pytest.fail)["table"]  # without NaN
        assert len(table) == 6 + 2
        found = {row["setting"]: row["mAP"] for row in table if row["axis"] == "refinement"}
        for setting, variant in FEW["refinement"].items():
            logs = [out / f"seed_{seed}" / variant.name / f"{variant.name}_logs.csv" for seed in (0, 1)]
            last = [float(log.read_text().splitlines()[-1].split(",")[-1]) for log in logs]
            assert found[setting] == pytest.approx(last, abs=1e-12)
        assert min(cv2.imread(str(out / "ablation.png")).shape[:2]) > 300

    def test_interrupted_ablation_resumes(self, root, finished, tmp_path):
        out, _ = finished
        half = tmp_path / "half"
        printed(ablate(root, half, "--seeds", 1))
        assert len(digests(half, "seed_0/*/2.pth")) == 2
        for path in (half / "seed_0" / PAPER.name).iterdir():  # as if killed before this run
            path.unlink()
        again = printed(ablate(root, half))
        assert digests(half, "seed_*/*/2.pth") == digests(out, "seed_*/*/2.pth")
        assert (half / "ablation.md").read_bytes() == (out / "ablation.md").read_bytes()
        assert len(re.findall(r"^epoch ", again, re.M)) == 2 * 3  # one run of seed 0, both of seed 1

    def test_other_settings_are_refused(self, root, finished):
        assert_refused(ablate(root, finished[0], "--learning-rate", 1e-4), "learning_rate 0.001, now 0.0001")

    def test_annotations_of_other_rows_or_labels_are_refused(self, root, tmp_path):
        faces = faces_of(TRACKS)
        other = write_annotations(tmp_path / "other.csv", faces[1:])
        assert_refused(ablate(root, tmp_path / "out", "--csv-train-full", other), "have no row in the ground truth")
        other = write_annotations(tmp_path / "other.csv", [faces[0]._replace(label=1), *faces[1:]])
        result = ablate(root, tmp_path / "out", "--csv-val-full", other)
        assert_refused(result, "1 labels differ from the annotations")
        assert not (tmp_path / "out").exists()

    def test_features_of_two_encoders_are_refused(self, root, tmp_path):
        other = write_store(tmp_path / "other", faces_of(TRACKS), noise_features)
        others = write_store(tmp_path / "others", faces_of(TRACKS), noise_features)
        for directory, sha256 in ((other, "0123"), (others, "4567")):
            (directory / "STE_forward_cfg.json").write_text(json.dumps({"weights_sha256": sha256}))
        flags = ("--features-train-full", other, "--features-val-full", others)
        assert_refused(ablate(root, tmp_path / "out", *flags), "two encoders")

    @pytest.mark.parametrize("flag", ["--features-train-full", "--csv-val-full"])
    def test_incomplete_arguments_are_refused(self, tmp_path, flag):
        assert_refused(run_few("--output-dir", tmp_path / "out", flag, "x"), "pass both")
        assert not (tmp_path / "out").exists()

    def test_ablation_on_a_mini_ava(self, tmp_path):
        """Videos, training of a real encoder, features and context networks, each stage in its own process."""
        size = ("--videos", 2, "--seconds", 2, "--clip-length", 1, "--ste-epochs", 1, "--seeds", 1, "--epochs", 1)
        printed(run_few("--output-dir", tmp_path / "out", *size))
        assert "| both |" in (tmp_path / "out" / "ablation.md").read_text()
        assert (tmp_path / "out" / "mini_ava" / "ste_features" / "val" / "STE_forward_cfg.json").exists()

    def test_a_failed_stage_ends_the_script(self, tmp_path):
        (tmp_path / "mini_ava").mkdir()
        (tmp_path / "mini_ava" / "csv").write_text("not a directory")
        result = run_few("--output-dir", tmp_path)
        assert result.returncode == 2
        assert "run_stages.py" not in result.stdout
