"""The ablation: networks with refinements switched off, what a run trains, its baselines, and scripts/ablation.py."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import assert_refused, run_script
from tiny_inputs import Track, digests, faces_of, noise_features, run_here, write_annotations, write_store

from core import ablation
from core.config import ASC_optimization_params
from core.formats.annotations import read_annotations
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


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """`features` as STE_forward.py leaves them, and `annotations.csv` of the same rows."""
    root = tmp_path_factory.mktemp("ablation")
    write_store(root / "features", faces_of(TRACKS), noise_features)
    write_annotations(root / "annotations.csv", faces_of(TRACKS))
    return root


@pytest.fixture(scope="module")
def stores(root) -> dict[str, FeatureStore]:
    return {split: FeatureStore(root / "features") for split in ("train", "val")}


class TestNetwork:
    def test_released_network_is_the_default(self):
        torch.manual_seed(0)
        default = active_speakers_context(5, 2).state_dict()
        torch.manual_seed(0)
        both = active_speakers_context(5, 2, pairwise=True, temporal=True).state_dict()
        assert list(default) == list(both)
        assert all(torch.equal(default[name], both[name]) for name in default)

    @pytest.mark.parametrize(("pairwise", "temporal"), [(True, False), (False, True), (False, False)])
    def test_what_is_switched_off_has_no_parameters(self, pairwise, temporal):
        paper = {name: list(value.shape) for name, value in ASC_Net(5, 2).state_dict().items()}
        state = ASC_Net(5, 2, pairwise=pairwise, temporal=temporal).state_dict()
        off = [part for part, on in (("sat.", pairwise), ("lstm.", temporal)) if not on]
        expected = {name: shape for name, shape in paper.items() if not name.startswith(tuple(off))}
        if not temporal:
            expected["fc_final.weight"] = [2, 1024 * 5 * 2]
        assert {name: list(value.shape) for name, value in state.items()} == expected

    def test_without_refinements_it_is_one_linear_layer(self):
        model = ASC_Net(5, 2, pairwise=False, temporal=False).eval()
        x = torch.randn(3, 1024, 5, 2)
        weight = model.fc_final.weight.view(2, 5, 2, 1024)  # in time order, the speaker varies fastest
        expected = torch.einsum("bcls,olsc->bo", x, weight) + model.fc_final.bias
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("pairwise", [True, False])
    def test_alone_a_refinement_does_what_it_does_in_the_paper_s_network(self, pairwise):
        torch.manual_seed(0)
        paper = active_speakers_context(5, 2).eval()
        alone = ASC_Net(5, 2, pairwise=pairwise, temporal=not pairwise).eval()
        own = [name for name in alone.state_dict() if not name.startswith("fc_final.")]
        alone.load_state_dict({**alone.state_dict(), **{name: paper.state_dict()[name] for name in own}})
        x = torch.randn(3, 1024, 5, 2)
        with torch.inference_mode():
            refined = (paper.sat(x) if pairwise else x).permute(0, 2, 3, 1).flatten(1, 2)
            refined = refined if pairwise else paper.lstm(refined)[0]
            torch.testing.assert_close(alone(x), alone.fc_final(refined.flatten(1)), rtol=0, atol=1e-5)


class TestVariants:
    def test_axes_are_the_paper_s(self):
        assert {axis: list(settings) for axis, settings in ablation.AXES.items()} == {
            "refinement": ["none", "pairwise", "temporal", "both"],
            "speakers S": ["1", "2", "3"],
            "steps L": ["1", "5", "11"],
            "stride": ["1", "2", "4", "8"],
            "no context": ["S = 1, L = 1"],
        }
        for axis, last in (("refinement", "both"), ("speakers S", "3"), ("steps L", "11"), ("stride", "4")):
            assert ablation.AXES[axis][last] == PAPER

    def test_each_is_trained_once_under_a_name_of_its_own(self):
        names = [variant.name for variant in ablation.VARIANTS]
        assert len(set(names)) == len(names) == len(set(ablation.VARIANTS)) == 12
        assert PAPER.name == "ASC_len_11_stride_4_speakers_3"


class TestTraining:
    def test_is_that_of_the_stages(self, root, stores, tmp_path):
        """The same weights as ASC_train.py's, and the mAP that stages 8 and 9 find for them."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as `run_here` has it: sums of more threads differ in their last bits
        found = ablation.train_variant(PAPER, stores, tmp_path / "ablation", PARAMS, 3, CPU)
        torch.set_num_threads(threads)
        both = ("--features-train-full", root / "features", "--features-val-full", root / "features")
        run = run_here("ASC_train.py", 11, 4, 3, "cpu", *both, "--models-out", tmp_path, "--seed", 3, *FLAGS)
        assert run.returncode == 0, run.stderr
        weights = tmp_path / PAPER.name / "2.pth"
        ours, theirs = torch.load(tmp_path / "ablation" / "seed_3" / PAPER.name / "2.pth"), torch.load(weights)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        out = tmp_path / "predictions"
        run = run_here(
            "ASC_forward.py", 11, 4, 3, "cpu", *both[2:], "--weights", weights, "--output-dir", out, "--seed", 3
        )
        assert run.returncode == 0, run.stderr
        files = ("--predictions-csv", tmp_path / "p" / "p.csv", "--ground-truth-csv", tmp_path / "p" / "t.csv")
        truth = ("--ground-truth", root / "annotations.csv")
        run = run_here("ASC_prediction_postprocessing.py", "--predictions-dir", out, *truth, *files)
        assert run.returncode == 0, run.stderr
        assert json.loads((tmp_path / "p" / "p.json").read_text())["mAP"] == pytest.approx(found, abs=1e-6)

    def test_of_a_finished_run_is_not_repeated(self, stores, tmp_path):
        variant = ablation.Variant(context_length=1, num_speakers=1, temporal=False)
        first = ablation.train_variant(variant, stores, tmp_path, PARAMS, 0, CPU)
        before = digests(tmp_path)
        assert ablation.train_variant(variant, stores, tmp_path, PARAMS, 0, CPU) == first
        assert digests(tmp_path) == before


class TestBaselines:
    def cue(self, tells: bool) -> tuple[dict, dict]:
        """A cue (N, 2) of each row, and the tables."""
        faces = faces_of([Track("one:a", "0110" * 100, 0.4, "one"), Track("one:b", "10" * 200, 0.4, "one")])
        rng = np.random.default_rng(0)
        cues = {split: rng.random((len(faces), 2)) for split in ("train", "val")}
        if tells:
            for cue in cues.values():
                cue[:, 0] = 100 + 0.3 * cue[:, 0] + 0.1 * np.array([face.label == 1 for face in faces])
        return cues, faces

    @pytest.mark.parametrize("tells", [True, False])
    def test_find_what_a_clue_tells_and_no_more(self, tells):
        cues, faces = self.cue(tells)
        speaking = dict.fromkeys(cues, np.array([face.label == 1 for face in faces]))
        state = torch.get_rng_state()
        found = ablation.single_cue_ap(cues, speaking, 0)
        assert (found > 0.7) if tells else (abs(found - 0.5) < 0.06)
        assert torch.equal(torch.get_rng_state(), state)  # networks trained later do not depend on it
        assert ablation.single_cue_ap(cues, speaking, 0) == found

    def test_see_what_they_are_called_after(self, root, stores):
        table = read_annotations(root / "annotations.csv")
        rows = np.array([3, 5, 8])
        assert np.allclose(ablation.positions(table, rows), [[0.375, 0.4375]] * 3)
        assert np.allclose(ablation.sizes(table, rows), [[0.25, 0.625]] * 3)
        assert np.array_equal(ablation.audio_features(stores["val"], rows), stores["val"].gather(rows)[:, :512])


@pytest.fixture(scope="module")
def made(root, tmp_path_factory) -> tuple[Path, str]:
    """The output directory of scripts/ablation.py on features at hand, and what was printed."""
    out = tmp_path_factory.mktemp("made")
    result = ablate(root, out)
    assert result.returncode == 0, result.stderr
    return out, result.stdout


def ablate(root: Path, out: Path, *more: object):
    features = ("--features-train-full", root / "features", "--features-val-full", root / "features")
    csvs = ("--csv-train-full", root / "annotations.csv", "--csv-val-full", root / "annotations.csv")
    return run_here("scripts/ablation.py", "cpu", *features, *csvs, "--output-dir", out, "--seeds", 2, *FLAGS, *more)


class TestScript:
    def test_makes_one_table(self, made):
        out, printed = made
        text = (out / "ablation.md").read_text()
        assert text in printed
        content = json.loads((out / "ablation.json").read_text(), parse_constant=pytest.fail)  # NaN is none
        rows = {(row["axis"], row["setting"]): row for row in content["table"]}
        assert len(rows) == len(content["table"]) == len(text.splitlines()) - 2 == 6 + 4 + 3 + 3 + 4 + 1
        encoder = rows["", "short-term encoder"]
        for row in rows.values():
            assert row["mean"] == pytest.approx(np.mean(row["mAP"]))
            assert row["above_ste"] == pytest.approx(row["mean"] - encoder["mean"])
        for axis, setting in (("refinement", "none"), ("speakers S", "3"), ("no context", "S = 1, L = 1")):
            row = rows[axis, setting]
            assert len(row["mAP"]) == 2
            assert row["deviation"] == pytest.approx(np.std(row["mAP"], ddof=1))
        paper = [
            rows[place] for place in (("refinement", "both"), ("speakers S", "3"), ("steps L", "11"), ("stride", "4"))
        ]
        assert all(row["mAP"] == paper[0]["mAP"] for row in paper)
        line = next(line for line in text.splitlines() if "| both |" in line)
        mean, above = paper[0]["mean"], paper[0]["above_ste"]
        assert f"{100 * mean:.1f} ± {100 * paper[0]['deviation']:.1f} | {100 * above:+.1f} |" in line

    def test_has_the_mean_of_the_runs_that_it_made(self, made):
        """As their logs have them: the last epoch of each."""
        out, _ = made
        rows = {(row["axis"], row["setting"]): row for row in json.loads((out / "ablation.json").read_text())["table"]}
        for axis, settings in ablation.AXES.items():
            for setting, variant in settings.items():
                logs = [out / f"seed_{seed}" / variant.name / f"{variant.name}_logs.csv" for seed in (0, 1)]
                last = [float(log.read_text().splitlines()[-1].split(",")[-1]) for log in logs]
                assert rows[axis, setting]["mAP"] == pytest.approx(last, abs=1e-12)

    def test_draws_a_picture(self, made):
        image = cv2.imread(str(made[0] / "ablation.png"))
        assert min(image.shape[:2]) > 300
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20

    def test_goes_on_where_it_was(self, root, made, tmp_path):
        """A run that was interrupted before its last networks ends with the weights of one that was not."""
        out, _ = made
        half = tmp_path / "half"
        assert ablate(root, half, "--seeds", 1).returncode == 0
        first = digests(half, "seed_0/*/2.pth")
        assert len(first) == 12
        for path in (half / "seed_0" / PAPER.name).iterdir():  # as if killed before it
            path.unlink()
        again = ablate(root, half)
        assert again.returncode == 0, again.stderr
        assert digests(half, "seed_*/*/2.pth") == digests(out, "seed_*/*/2.pth")
        assert (half / "ablation.md").read_bytes() == (out / "ablation.md").read_bytes()
        assert len(re.findall(r"^epoch ", again.stdout, re.M)) == 2 * (1 + 12)  # one of seed 0, all of seed 1

    def test_another_recipe_is_not_mixed_in(self, root, made):
        result = ablate(root, made[0], "--learning-rate", 1e-4)
        assert_refused(result, "learning_rate 0.001, now 0.0001")

    def test_annotations_of_other_rows_or_labels_are_refused(self, root, tmp_path):
        faces = faces_of(TRACKS)
        other = write_annotations(tmp_path / "other.csv", faces[1:])
        assert_refused(ablate(root, tmp_path / "out", "--csv-train-full", other), "for no row of the ground truth")
        other = write_annotations(tmp_path / "other.csv", [faces[0]._replace(label=1), *faces[1:]])
        assert_refused(ablate(root, tmp_path / "out", "--csv-val-full", other), "1 labels are not those")
        assert not (tmp_path / "out").exists()

    def test_features_of_two_encoders_are_refused(self, root, tmp_path):
        other = write_store(tmp_path / "other", faces_of(TRACKS), noise_features)
        (other / "STE_forward_cfg.json").write_text('{"weights_sha256": "0123"}')
        assert_refused(ablate(root, tmp_path / "out", "--features-train-full", other), "two encoders")

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (("--features-train-full", "x"), "pass both"),
            (("--csv-val-full", "x"), "require --features"),
            (("--seeds", "0"), "at least 1"),
        ],
    )
    def test_refuses(self, tmp_path, flags, words):
        assert_refused(run_here("scripts/ablation.py", "cpu", "--output-dir", tmp_path / "out", *flags), words)
        assert not (tmp_path / "out").exists()

    def test_from_nothing(self, tmp_path):
        """Films, encoder, features and all: the short way of what docs/ablation.md reports."""
        size = ("--videos", 2, "--seconds", 2, "--clip-length", 1, "--ste-epochs", 1, "--seeds", 1, "--epochs", 1)
        result = run_script("scripts/ablation.py", "cpu", "--output-dir", tmp_path / "out", *size)
        assert result.returncode == 0, result.stderr
        assert "| both |" in (tmp_path / "out" / "ablation.md").read_text()
        assert (tmp_path / "out" / "mini_ava" / "ste_features" / "val" / "STE_forward_cfg.json").exists()

    def test_a_stage_that_fails_ends_it(self, tmp_path):
        (tmp_path / "mini_ava").mkdir()
        (tmp_path / "mini_ava" / "csv").write_text("not a directory")
        result = run_script("scripts/ablation.py", "cpu", "--output-dir", tmp_path)
        assert result.returncode == 2
        assert "error: scripts/make_mini_ava.py ended with exit status 2" in result.stderr.splitlines()[-1]
