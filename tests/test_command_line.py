"""Command lines: help, defaults, argument types, errors for unusable inputs, repeated runs of the forward stages."""

import argparse
import os
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_refused
from stages import FORWARD, TRACKS, command, results
from tiny_inputs import (
    Face,
    SmallEncoder,
    digests,
    faces_of,
    files_under,
    noise_features,
    read_csv,
    read_json,
    run_here,
    write_annotations,
    write_store,
    write_text,
)

from core import config
from core.models import ASC_Net
from core.runtime import cli

FOLDERS = (ROOT, ROOT / "data", ROOT / "scripts")
SCRIPTS = sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in folder.glob("*.py"))
RELEASED = {"STE_train.py": "11 0", "STE_forward.py": "11 0", "ASC_train.py": "11 4 3 0", "ASC_forward.py": "11 4 3 0"}
FACES = faces_of(TRACKS)


def parser_of(script: str) -> argparse.ArgumentParser:
    return runpy.run_path(str(ROOT / script))["get_args_parser"]()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_has_an_example_and_one_default_per_argument(script):
    result = run_here(script, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"    python {script}" in result.stdout
    assert all(action.help for action in parser_of(script)._actions)
    entries = re.split(r"^  (?=\S)", result.stdout, flags=re.M)
    assert [entry for entry in entries if entry.count("(default:") > 1] == []


class TestDefaults:
    @pytest.mark.parametrize(("script", "positionals"), RELEASED.items())
    def test_released_command_lines_parse(self, script, positionals):
        parser = parser_of(script)
        args = vars(parser.parse_args(positionals.split()))
        names = [action.dest for action in parser._actions if not action.option_strings]
        assert [str(args[name]) for name in names] == positionals.split()

    def test_recipe_of_the_paper(self):
        names = ("epochs", "batch_size", "learning_rate")
        ste, asc = (vars(parser_of(script).parse_args(RELEASED[script].split())) for script in list(RELEASED)[::2])
        assert [ste[name] for name in names] == [100, 128, 3e-4]
        assert [asc[name] for name in names] == [15, 64, 3e-6]
        steps = config.STE_optimization_params, config.ASC_optimization_params
        assert [(params["step_size"], params["gamma"]) for params in steps] == [(40, 0.1), (10, 0.1)]

    @pytest.mark.parametrize(
        ("script", "settings"),
        [
            ("STE_train.py", {**config.STE_inputs, **config.STE_optimization_params}),
            ("ASC_train.py", {**config.ASC_inputs, **config.ASC_optimization_params}),
            ("STE_forward.py", {**config.STE_forward_params, "audio_dir": config.STE_inputs["audio_dir"]}),
            ("ASC_forward.py", {**config.ASC_inputs_forward, **config.ASC_forward_params}),
        ],
    )
    def test_flags_are_named_after_settings(self, script, settings):
        parser = parser_of(script)
        for name, value in settings.items():
            if name not in ("step_size", "gamma", "output_dir"):
                assert parser.get_default(name) == value

    def test_paths_are_below_the_data_root(self, monkeypatch):
        monkeypatch.setenv("ASC_DATA_ROOT", "/some/where")
        reloaded = runpy.run_path(str(ROOT / "core" / "config.py"))
        names = ("STE_inputs", "ASC_inputs", "ASC_inputs_forward", "STE_forward_params", "ASC_forward_params")
        values = [value for name in names for value in reloaded[name].values() if isinstance(value, str)]
        paths = [value for value in values if value not in ("fp32", "bf16")]
        assert len(paths) >= 12
        assert [path for path in paths if not path.startswith("/some/where/")] == []
        assert reloaded["STE_inputs"]["csv_val_full"] == "/some/where/csv/ava_activespeaker_val_augmented.csv"


# Arguments


@pytest.mark.parametrize(
    ("name", "valid", "invalid"),
    [
        ("odd_positive", {"11": 11}, ["10", "0", "-1", "eleven", "11.0", "1e1", "", "\u0661"]),
        ("odd_window", {"0": 0, "11": 11}, ["2", "-1"]),
        ("worker_count", {"0": 0}, ["-1", "two"]),
        ("seed", {str(2**63 - 1): 2**63 - 1}, ["-1", "1.0", str(2**63)]),
        ("positive_float", {"3e-4": 3e-4}, ["0", "-1", "nan", "inf", "fast"]),
        ("fraction", {"0": 0, "1": 1}, ["-0.1", "1.1", "nan"]),
        ("device_name", {"cpu": "cpu", "1": "1", "cuda:0": "0"}, ["gpu", "cuda", "cuda:x", "-1", "1.0", ""]),
    ],
)
def test_argument_types(name, valid, invalid):
    parse = getattr(cli, name)
    assert {text: parse(text) for text in valid} == valid
    for text in invalid:
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(f"not {text!r}")):
            parse(text)


@pytest.mark.parametrize(
    ("script", "arguments", "word"),
    [
        ("data/extract_audio_tracks.py", "--workers=0", "--workers"),
        ("data/slice_audio_tracks.py", "--split=trainval", "--split"),
        ("data/extract_face_crops_time.py", "more", "more"),
        ("STE_train.py", "10 cpu", "clip_length"),
        ("STE_forward.py", "11 gpu", "cuda_device"),
        ("STE_postprocessing.py", "--smoothing=2", "--smoothing"),
        ("ASC_train.py", "11 0 3 cpu", "skip_frames"),
        ("ASC_forward.py", "11 4 3", "cuda_device"),
        ("ASC_prediction_postprocessing.py", "--no-such-flag", "--no-such-flag"),
        ("scripts/evaluate.py", "--plot=plots", "--plot"),  # flags cannot be shortened
        ("scripts/plot_training.py", "", "LOG"),
        ("scripts/ablation.py", "cpu --seconds=nan", "--seconds"),
        ("scripts/detect_speakers.py", "video.mp4 cpu --threshold=2", "--threshold"),
    ],
)
def test_invalid_argument_is_an_error(script, arguments, word):
    assert_refused(run_here(script, *arguments.split()), word)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda_device_is_an_error(tmp_path):
    result = run_here("ASC_forward.py", 11, 4, 3, 0, "--output-dir", tmp_path)
    assert_refused(result, "cuda_device 0", "pass cpu")
    assert files_under(tmp_path) == []


# Missing and broken inputs


@pytest.fixture(scope="module")
def broken(inputs, tmp_path_factory) -> Path:
    """Broken inputs."""
    root = tmp_path_factory.mktemp("broken")
    (root / "empty").mkdir()
    lines = (inputs / "val.csv").read_text().splitlines(keepends=True)
    write_text(root / "label.csv", "".join([*lines[:2], lines[2].replace("SPEAKING", "SINGING"), *lines[3:]]))
    write_text(root / "columns.csv", "".join([*lines[:4], "one,10.2,0.1,0.1,0.5\n", *lines[4:]]))
    write_text(root / "scores.csv", "".join(f"{line.strip()},high\n" for line in lines))
    write_annotations(root / "more.csv", [*FACES, Face("five", "five:a", 10.0, 0)])
    write_store(root / "nan", FACES, lambda faces: np.full((len(faces), 1024), np.nan, np.float32))
    write_store(root / "short", FACES)
    np.save(root / "short" / "two.npy", np.zeros((1, 1024), np.float32))
    write_text(root / "predictions" / "one.csv", "one:a,10.0,0.5\n")
    shutil.copy(inputs / "ASC.pth", root / "asc.pth")
    return root


@pytest.mark.parametrize(
    ("script", "flag", "name", "words"),
    [
        ("data/extract_audio_tracks.py", "--ava-video-dir", "empty", "empty"),
        ("data/slice_audio_tracks.py", "--csv", "label.csv", "label.csv, line 3"),
        ("data/slice_audio_tracks.py", "--ava-audio-dir", "missing", "missing"),
        ("data/extract_face_crops_time.py", "--ava-video-dir", "missing", "missing"),
        ("STE_train.py", "--csv-train-full", "missing.csv", "missing.csv"),
        ("STE_train.py", "--csv-val-full", "columns.csv", "columns.csv, line 5"),
        ("STE_train.py", "--audio-dir", "empty", "empty/train/one:a.wav"),
        ("STE_forward.py", "--csv", "more.csv", f"1 of {len(FACES) + 1} crops"),
        ("STE_forward.py", "--weights", "asc.pth", "asc.pth"),
        ("STE_postprocessing.py", "--forward-dir", "empty", "empty"),
        ("STE_postprocessing.py", "--ava-video-dir", "empty", "empty"),
        ("ASC_train.py", "--features-train-full", "missing", "missing"),
        ("ASC_train.py", "--features-val-full", "short", "two.npy"),
        ("ASC_forward.py", "--features-val-full", "predictions", "one.csv, line 1"),
        ("ASC_prediction_postprocessing.py", "--predictions-dir", "predictions", "one.csv, line 1"),
        ("scripts/evaluate.py", "--predictions", "scores.csv", "scores.csv, line 1"),
        ("scripts/evaluate.py", "--ground-truth", "more.csv", "five:a"),
        ("scripts/ablation.py", "--features-train-full", "missing", "missing"),
    ],
)
def test_unusable_input_is_an_error_and_leaves_no_output(inputs, broken, tmp_path, script, flag, name, words):
    assert_refused(run_here(*command(script, inputs, tmp_path / "out"), flag, broken / name), words)
    assert files_under(tmp_path) == []


def test_features_that_are_not_finite_are_an_error(inputs, broken, tmp_path):
    result = run_here(*command("ASC_forward.py", inputs, tmp_path), "--features-val-full", broken / "nan")
    assert_refused(result, f"{broken / 'nan'}/", ".npy", "feature 1 is", "not finite")
    assert not list(tmp_path.glob("*.csv"))


# Forward stages


@pytest.fixture(params=FORWARD)
def script(request) -> str:
    return request.param


class TestRepeatedForward:
    """Both forward stages keep finished videos, unless they were made with other settings or inputs."""

    @pytest.fixture
    def stage(self, script, inputs):
        """Run the stage: stage(out, *flags)."""
        return lambda out, *flags: run_here(*command(script, inputs, out), *flags)

    @pytest.fixture
    def other_weights(self, script, tmp_path) -> tuple:
        torch.manual_seed(1)
        network = SmallEncoder(1) if script == "STE_forward.py" else ASC_Net(3, 2)
        torch.save(network.state_dict(), tmp_path / "other.pth")
        return "--weights", tmp_path / "other.pth"

    @pytest.fixture
    def copy(self, script, inputs, tmp_path) -> tuple[Path, tuple]:
        """A copy of the stage's input, and its flag: annotations or features."""
        if script == "STE_forward.py":
            path = Path(shutil.copy(inputs / "val.csv", tmp_path / "val.csv"))
            return path, ("--csv", path)
        path = shutil.copytree(inputs / "features", tmp_path / "features")
        return path, ("--features-val-full", path)

    def test_finished_videos_are_kept(self, script, stage, inputs, tmp_path):
        assert stage(tmp_path).returncode == 0
        settings = read_json(next(tmp_path.glob("*.json")))
        assert settings["weights"] == str(inputs / f"{script[:3]}.pth")
        before = results(tmp_path)
        times = {name: (tmp_path / name).stat().st_mtime_ns for name in before}
        (tmp_path / "one.csv").unlink()
        assert stage(tmp_path).returncode == 0
        assert results(tmp_path) == before
        assert stage(tmp_path).returncode == 0
        repeated = {name for name in before if (tmp_path / name).stat().st_mtime_ns != times[name]}
        assert "one.csv" in repeated
        assert {Path(name).stem for name in repeated} == {"one"}

    def test_other_weights_need_overwrite(self, stage, other_weights, tmp_path):
        assert stage(tmp_path / "out").returncode == 0
        before = digests(tmp_path / "out")
        assert_refused(stage(tmp_path / "out", *other_weights), tmp_path / "out", "weights", "--overwrite")
        assert digests(tmp_path / "out") == before

        result = stage(tmp_path / "out", *other_weights, "--overwrite")
        assert result.returncode == 0, result.stderr
        assert stage(tmp_path / "new", *other_weights).returncode == 0
        assert results(tmp_path / "out") == results(tmp_path / "new")
        assert not set(results(tmp_path / "out").values()) & set(before.values())

    def test_videos_with_changed_rows_are_repeated(self, script, stage, copy, tmp_path):
        """A corrected label counts, since the features' csv contains it."""
        path, flags = copy
        assert stage(tmp_path / "out", *flags).returncode == 0
        before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in ("one.csv", "two.csv")}
        faces = list(FACES)
        assert faces[1].video == "one"
        if script == "STE_forward.py":
            faces[1] = faces[1]._replace(label=0)
            write_annotations(path, faces)
        else:
            del faces[1]
            other = (path / "two.npy").stat().st_mtime_ns
            write_store(path, faces, noise_features)
            os.utime(path / "two.npy", ns=(other, other))
        result = stage(tmp_path / "out", *flags)
        assert result.returncode == 0, result
        assert (tmp_path / "out" / "one.csv").stat().st_mtime_ns != before["one.csv"]
        if script == "STE_forward.py":
            assert (tmp_path / "out" / "two.csv").stat().st_mtime_ns == before["two.csv"]
        lines = read_csv(tmp_path / "out" / "one.csv")
        assert len(lines) == sum(face.video == "one" for face in faces) + (script == "STE_forward.py")

    def test_directory_of_another_stage_is_refused(self, script, stage, inputs, tmp_path):
        (other,) = set(FORWARD) - {script}
        assert run_here(*command(other, inputs, tmp_path / "out")).returncode == 0
        before = digests(tmp_path / "out")
        assert_refused(stage(tmp_path / "out", "--overwrite"), tmp_path / "out", "another stage", other[:3])
        assert digests(tmp_path / "out") == before


@pytest.fixture(scope="module")
def encoded(inputs, tmp_path_factory) -> Path:
    """Features of all videos, written by STE_forward.py."""
    out = tmp_path_factory.mktemp("encoded")
    assert run_here(*command("STE_forward.py", inputs, out)).returncode == 0
    return out


class TestForwardResults:
    def test_features_cover_every_row(self, encoded):
        for video in ("one", "two"):
            lines = read_csv(encoded / f"{video}.csv")[1:]
            keys = [(video, face.time, face.entity, face.label == 1) for face in FACES if face.video == video]
            assert [(line[0], float(line[1]), line[2], float(line[3]) == 1) for line in lines] == keys
            features = np.load(encoded / f"{video}.npy")
            assert np.isfinite(features).all()
            assert len(np.unique(features, axis=0)) == len(keys)

    @pytest.mark.parametrize("script", ["ASC_train.py", "ASC_forward.py"])
    def test_features_of_some_videos_are_refused(self, encoded, inputs, tmp_path, script):
        """An unfinished STE_forward.py leaves them."""
        features = shutil.copytree(encoded, tmp_path / "features")
        (features / "two.csv").unlink()
        flags = ("--features-train-full", features) if script == "ASC_train.py" else ("--features-val-full", features)
        result = run_here(*command(script, inputs, tmp_path / "out"), *flags)
        assert_refused(result, features, "3 of 4 videos", "STE_forward.py")

    def test_predictions_do_not_depend_on_batches_and_other_videos(self, inputs, tmp_path):
        def predict(name: str, *flags: object) -> dict[tuple[str, str], list[float]]:
            assert run_here(*command("ASC_forward.py", inputs, tmp_path / name), *flags).returncode == 0
            lines = [line for path in (tmp_path / name).glob("*.csv") for line in read_csv(path)]
            return {(line[0], line[1]): list(map(float, line[2:])) for line in lines}

        expected = predict("expected")
        assert expected.keys() == {(face.entity, str(face.time)) for face in FACES}
        for name in ("one.csv", "one.npy"):
            (tmp_path / "features").mkdir(exist_ok=True)
            shutil.copy(inputs / "features" / name, tmp_path / "features" / name)
        some = predict("some", "--features-val-full", tmp_path / "features")
        assert len(some) == sum(face.video == "one" for face in FACES)
        for logits in (predict("batches", "--batch-size", 1), some):
            assert logits == {key: pytest.approx(expected[key], abs=1e-5) for key in logits}
