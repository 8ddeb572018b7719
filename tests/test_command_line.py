"""Every script's command line: what --help shows, what is refused and how, and what a refusal leaves behind."""

import os
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_refused, run_script
from tiny_inputs import (
    Face,
    Track,
    digests,
    faces_of,
    files_under,
    noise_features,
    read_csv,
    read_json,
    run_here,
    write_annotations,
    write_encoder_inputs,
    write_predictions,
    write_store,
    write_text,
    write_wav,
)

from core import config
from core.models import ASC_Net, TwoStreamResNet

TRAINING = "--models-out --epochs --batch-size --learning-rate --workers --precision --resume --seed"
REPORT = "--ava-video-dir --plots --json"
POSTPROCESSING = f"--ground-truth --predictions-csv --ground-truth-csv --smoothing {REPORT}"
COMMANDS = {
    "data/extract_audio_tracks.py": ("", "--ava-video-dir --target-audios --align --workers --overwrite"),
    "data/slice_audio_tracks.py": ("", "--csv --ava-audio-dir --output-dir --split --workers --overwrite"),
    "data/extract_face_crops_time.py": ("", "--csv --ava-video-dir --output-dir --split --workers --overwrite"),
    "STE_train.py": (
        "clip_length cuda_device",
        f"--csv-train-full --csv-val-full --audio-dir --video-dir --no-pretrained --skip-missing {TRAINING}",
    ),
    "STE_forward.py": (
        "clip_length cuda_device",
        "--split --csv --audio-dir --video-dir --weights --output-dir --batch-size --workers --precision "
        "--text-features --skip-missing --overwrite",
    ),
    "STE_postprocessing.py": ("", f"--forward-dir {POSTPROCESSING}"),
    "ASC_train.py": (
        "clip_length skip_frames speakers cuda_device",
        f"--features-train-full --features-val-full {TRAINING}",
    ),
    "ASC_forward.py": (
        "clips time_stride speakers cuda_device",
        "--features-val-full --weights --output-dir --batch-size --seed --overwrite",
    ),
    "ASC_prediction_postprocessing.py": ("", f"--predictions-dir {POSTPROCESSING}"),
    "scripts/evaluate.py": ("", f"--predictions --ground-truth {REPORT}"),
    "scripts/plot_training.py": ("LOG", "--output"),
    "scripts/ablation.py": (
        "cuda_device",
        "--output-dir --features-train-full --features-val-full --csv-train-full --csv-val-full --videos --seconds "
        "--clip-length --ste-epochs --epochs --batch-size --learning-rate --workers --precision --seeds --seed",
    ),
    "scripts/detect_speakers.py": (
        "video cuda_device",
        "--output-dir --ste-weights --asc-weights --face-detector --tracks --clip-length --clips --time-stride "
        "--speakers --threshold --smoothing --batch-size --workers --precision --seed --overwrite",
    ),
}
ON_A_DEVICE = {"STE_train.py": "11", "STE_forward.py": "11", "ASC_train.py": "11 4 3", "ASC_forward.py": "11 4 3"}
MORE_ARGUMENTS = {"scripts/plot_training.py", "scripts/detect_speakers.py", "scripts/ablation.py"}
every_script = pytest.mark.parametrize("script", COMMANDS)


def parser_of(script: str):
    return runpy.run_path(str(ROOT / script))["get_args_parser"]()


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """What --help of every script prints."""
    results = {script: run_here(script, "--help") for script in COMMANDS}
    assert {script: result.returncode for script, result in results.items()} == dict.fromkeys(COMMANDS, 0)
    assert {result.stderr for result in results.values()} == {""}
    return {script: result.stdout for script, result in results.items()}


class TestHelp:
    @every_script
    def test_shows_all_there_is_and_no_more(self, texts, script):
        positionals, flags = COMMANDS[script]
        first, _, options = texts[script].partition("\noptions:\n")
        shown = first.partition("\npositional arguments:\n")[2]
        assert re.findall(r"^  (\w+)", shown, re.M) == positionals.split()
        assert sorted(re.findall(r"^  (--[\w-]+)", options, re.M)) == sorted(flags.split())
        assert re.findall(r"^  -\w\b.*", options, re.M) == [re.search(r"^  -h, --help .*", options, re.M)[0]]

    @every_script
    def test_says_what_each_is_for_and_one_default(self, texts, script):
        for action in parser_of(script)._actions:
            assert action.help
        entries = re.split(r"^  (?=\S)", texts[script].partition("\noptions:\n")[2], flags=re.M)
        assert [entry for entry in entries if entry.count("(default:") > 1] == []

    @every_script
    def test_begins_with_a_command_to_copy(self, texts, script):
        assert f"    python {script}" in texts[script]

    def test_choices(self):
        for script, (_, flags) in COMMANDS.items():
            choices = {action.dest: action.choices for action in parser_of(script)._actions}
            if "--split" in flags:
                assert set(choices["split"]) == {"train", "val", "test"}
            if "--precision" in flags:
                assert set(choices["precision"]) == {"fp32", "bf16"}


class TestDefaults:
    @pytest.mark.parametrize(("script", "positionals"), ON_A_DEVICE.items())
    def test_a_released_command_line_parses(self, script, positionals):
        args = vars(parser_of(script).parse_args([*positionals.split(), "0"]))
        numbers = [args[name] for name in COMMANDS[script][0].split()]
        assert numbers == [*map(int, positionals.split()), "0"]

    @pytest.mark.parametrize("script", sorted(set(COMMANDS) - {*ON_A_DEVICE, *MORE_ARGUMENTS}))
    def test_the_other_scripts_need_nothing(self, script):
        parser_of(script).parse_args([])

    def test_are_the_papers(self):
        ste = vars(parser_of("STE_train.py").parse_args(["11", "cpu"]))
        asc = vars(parser_of("ASC_train.py").parse_args(["11", "4", "3", "cpu"]))
        names = ("epochs", "batch_size", "learning_rate")
        assert [ste[name] for name in names] == [100, 128, 3e-4]
        assert [asc[name] for name in names] == [15, 64, 3e-6]
        steps = config.STE_optimization_params, config.ASC_optimization_params
        assert [(params["step_size"], params["gamma"]) for params in steps] == [(40, 0.1), (10, 0.1)]

    @pytest.mark.parametrize(
        ("script", "dictionaries"),
        [
            ("STE_train.py", (config.STE_inputs, config.STE_optimization_params)),
            ("ASC_train.py", (config.ASC_inputs, config.ASC_optimization_params)),
            ("STE_forward.py", (config.STE_forward_params, {"audio_dir": config.STE_inputs["audio_dir"]})),
            ("ASC_forward.py", (config.ASC_inputs_forward, config.ASC_forward_params)),
        ],
    )
    def test_are_those_of_the_configuration(self, script, dictionaries):
        """A flag is named after the key that it overrides."""
        parser = parser_of(script)
        for key, value in {**dictionaries[0], **dictionaries[1]}.items():
            if key not in ("step_size", "gamma", "output_dir"):
                assert parser.get_default(key) == value

    def test_paths_hang_off_one_root(self, monkeypatch):
        monkeypatch.setenv("ASC_DATA_ROOT", "/some/where")
        fresh = runpy.run_path(str(ROOT / "core" / "config.py"))
        dictionaries = ("STE_inputs", "ASC_inputs", "ASC_inputs_forward", "STE_forward_params", "ASC_forward_params")
        values = [value for name in dictionaries for value in fresh[name].values() if isinstance(value, str)]
        paths = [value for value in values if value not in ("fp32", "bf16")]
        assert len(paths) >= 12
        assert [path for path in paths if not path.startswith("/some/where/")] == []
        assert fresh["STE_inputs"]["csv_val_full"] == "/some/where/csv/ava_activespeaker_val_augmented.csv"
        assert fresh["STE_inputs"]["audio_dir"] == "/some/where/instance_wavs_time"


class TestArguments:
    @pytest.mark.parametrize("value", ["10", "0", "-1", "-11", "eleven", "11.0", "1e1", ""])
    @pytest.mark.parametrize("script", ON_A_DEVICE)
    def test_clip_length_is_odd_and_positive(self, script, value):
        positionals = [value, *ON_A_DEVICE[script].split()[1:], "cpu"]
        assert_refused(run_here(script, *positionals), COMMANDS[script][0].split()[0], "odd and positive")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    @pytest.mark.parametrize(("script", "positionals"), ON_A_DEVICE.items())
    def test_a_cuda_device_that_is_not_there(self, script, positionals, tmp_path):
        out = "--models-out" if script.endswith("train.py") else "--output-dir"
        assert_refused(run_here(script, *positionals.split(), "0", out, tmp_path), "cuda_device 0", "pass cpu")
        assert files_under(tmp_path) == []

    @pytest.mark.parametrize("value", ["gpu", "cuda:0", "-1", "1.0", "CPU", ""])
    @pytest.mark.parametrize(("script", "positionals"), ON_A_DEVICE.items())
    def test_a_device_that_is_none(self, script, positionals, value):
        assert_refused(run_here(script, *positionals.split(), value), "cuda_device", "cpu")

    @pytest.mark.parametrize(("script", "positionals"), ON_A_DEVICE.items())
    def test_too_few_and_too_many(self, script, positionals):
        assert_refused(run_here(script, *positionals.split()), "cuda_device")
        assert_refused(run_here(script, *positionals.split(), "cpu", "more"), "more")

    @every_script
    def test_unknown_flag(self, script):
        assert_refused(run_here(script, *ON_A_DEVICE.get(script, "").split(), "--no-such-flag"))

    @pytest.mark.parametrize(
        ("script", "flag", "values"),
        [
            ("STE_train.py", "--epochs", ["0", "-1", "1.5", "many"]),
            ("STE_train.py", "--batch-size", ["0", "-4", "x"]),
            ("STE_train.py", "--learning-rate", ["0", "-1", "nan", "inf", "fast"]),
            ("STE_train.py", "--workers", ["-1", "two"]),
            ("STE_train.py", "--precision", ["fp16"]),
            ("STE_train.py", "--seed", ["-1", "1.0", "9223372036854775808"]),
            ("STE_forward.py", "--split", ["trainval"]),
            ("ASC_train.py", "--epochs", ["0"]),
            ("ASC_forward.py", "--batch-size", ["0"]),
            ("ASC_forward.py", "--seed", ["-1"]),
        ],
    )
    def test_values_out_of_range(self, script, flag, values):
        for value in values:
            result = run_here(script, *ON_A_DEVICE[script].split(), "cpu", f"{flag}={value}")
            assert_refused(result, flag, value)

    @pytest.mark.parametrize("script", ["ASC_train.py", "ASC_forward.py"])
    @pytest.mark.parametrize("positionals", ["11 0 3", "11 4 0", "11 -4 3", "11 4 three"])
    def test_stride_and_speakers_are_positive(self, script, positionals):
        assert_refused(run_here(script, *positionals.split(), "cpu"))


# Inputs that are missing or broken

TRACKS = [Track("one:1", "0110", 10.0, "one"), Track("one:2", "010", 10.04, "one"), Track("two:1", "01", 10.0, "two")]
FACES = faces_of(TRACKS)
VALID = {
    "data/extract_audio_tracks.py": "--ava-video-dir {root}/videos --target-audios {out}",
    "data/slice_audio_tracks.py": "--csv {root}/val.csv --ava-audio-dir {root}/sound --output-dir {out}",
    "data/extract_face_crops_time.py": "--csv {root}/val.csv --ava-video-dir {root}/videos --output-dir {out}",
    "STE_train.py": "1 cpu --csv-train-full {root}/train.csv --csv-val-full {root}/val.csv --audio-dir {root}/wavs "
    "--video-dir {root}/crops --models-out {out} --no-pretrained --epochs 1 --workers 0",
    "STE_forward.py": "1 cpu --split val --csv {root}/val.csv --audio-dir {root}/wavs --video-dir {root}/crops "
    "--weights {root}/ste.pth --output-dir {out} --workers 0",
    "STE_postprocessing.py": "--forward-dir {root}/features --ground-truth {root}/val.csv "
    "--predictions-csv {out}/predictions.csv --ground-truth-csv {out}/truth.csv",
    "ASC_train.py": "3 2 2 cpu --features-train-full {root}/features --features-val-full {root}/features "
    "--models-out {out} --epochs 1 --workers 0",
    "ASC_forward.py": "3 2 2 cpu --features-val-full {root}/features --weights {root}/asc.pth --output-dir {out}",
    "ASC_prediction_postprocessing.py": "--predictions-dir {root}/predictions --ground-truth {root}/val.csv "
    "--predictions-csv {out}/predictions.csv --ground-truth-csv {out}/truth.csv",
    "scripts/evaluate.py": "--predictions {root}/scores.csv --ground-truth {root}/val.csv --json {out}/numbers.json",
    "scripts/plot_training.py": "--output {out}/training.png {root}/run_logs.csv",
    "scripts/ablation.py": "cpu --features-train-full {root}/features --features-val-full {root}/features "
    "--csv-train-full {root}/train.csv --csv-val-full {root}/val.csv --output-dir {out}",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Whole inputs of every stage but films, and broken ones beside them."""
    root = tmp_path_factory.mktemp("root")
    for directory in ("videos", "sound", "empty"):
        (root / directory).mkdir()
    write_encoder_inputs(root, "val", TRACKS)
    write_encoder_inputs(root, "train", TRACKS)
    write_store(root / "features", FACES, noise_features)
    write_predictions(root / "predictions", FACES, lambda face: (0.0, float(face.label)))
    lines = (root / "val.csv").read_text().splitlines(keepends=True)
    write_text(root / "scores.csv", "".join(f"{line.strip()},0.5\n" for line in lines))

    write_text(root / "broken.csv", "".join([*lines[:2], lines[2].replace("SPEAKING_AUDIBLE", "SINGING"), *lines[3:]]))
    write_text(root / "columns.csv", "".join([*lines[:4], "one,10.2,0.1,0.1,0.5\n", *lines[4:]]))
    write_text(root / "blank.csv", "")
    write_text(root / "scores_broken.csv", "".join(f"{line.strip()},high\n" for line in lines))
    write_annotations(root / "more.csv", [*FACES, Face("three", "three:1", 10.0, 0)])
    write_store(root / "features_nan", FACES, lambda faces: np.full((len(faces), 1024), np.nan, np.float32))
    write_store(root / "features_short", FACES)
    np.save(root / "features_short" / "two.npy", np.zeros((1, 1024), np.float32))
    write_text(root / "predictions_broken" / "one.csv", "one:1,10.0,0.5\n")
    write_text(root / "run_logs.csv", "epoch,learning_rate,val_ap\n1,0.1,0.5\n")
    write_text(root / "broken_logs.csv", "epoch,learning_rate,val_ap\n1,0.1,0.5\n2,0.1,high\n")

    write_text(root / "text.pth", "not weights\n")
    torch.save([1, 2], root / "list.pth")
    torch.manual_seed(0)
    torch.save(ASC_Net(3, 2).state_dict(), root / "asc.pth")
    (root / "cut.pth").write_bytes((root / "asc.pth").read_bytes()[:10_000])
    return root


@pytest.fixture(scope="module")
def encoders(root):
    """Two encoders of the same shape beside the rest: ste.pth and ste_other.pth."""
    torch.manual_seed(0)
    state = TwoStreamResNet(1).state_dict()
    torch.save(state, root / "ste.pth")
    torch.save({**state, "fc_final.bias": state["fc_final.bias"] + 1}, root / "ste_other.pth")
    yield
    for name in ("ste.pth", "ste_other.pth"):  # 90 MB each
        (root / name).unlink()


def command(script: str, root: Path, out: Path, more: str = "", positionals: str = "") -> list[str]:
    """The script's whole and valid command line, in which `more` and `positionals` override what they name."""
    words = VALID[script].split()
    if positionals:
        words[: len(COMMANDS[script][0].split())] = positionals.split()
    return [script, *(word.format(root=root, out=out) for word in [*words, *more.split()])]


BROKEN = [
    ("data/extract_audio_tracks.py", "--ava-video-dir {root}/nowhere", "nowhere"),
    ("data/extract_audio_tracks.py", "--ava-video-dir {root}/empty", "empty"),
    ("data/slice_audio_tracks.py", "--csv {root}/nothing.csv", "nothing.csv"),
    ("data/slice_audio_tracks.py", "--csv {root}/broken.csv", "broken.csv, line 3"),
    ("data/slice_audio_tracks.py", "--csv {root}/empty", "empty"),
    ("data/slice_audio_tracks.py", "--ava-audio-dir {root}/nowhere", "nowhere"),
    ("data/extract_face_crops_time.py", "--csv {root}/nothing.csv", "nothing.csv"),
    ("data/extract_face_crops_time.py", "--csv {root}/columns.csv", "columns.csv, line 5"),
    ("data/extract_face_crops_time.py", "--ava-video-dir {root}/nowhere", "nowhere"),
    ("STE_train.py", "--csv-train-full {root}/nothing.csv", "nothing.csv"),
    ("STE_train.py", "--csv-val-full {root}/broken.csv", "broken.csv, line 3"),
    ("STE_train.py", "--csv-val-full {root}/blank.csv", "blank.csv"),
    ("STE_train.py", "--video-dir {root}/nowhere", "nowhere"),
    ("STE_forward.py", "--weights {root}/nothing.pth", "nothing.pth"),
    ("STE_forward.py", "--weights {root}/asc.pth", "asc.pth"),
    ("STE_forward.py", "--weights {root}/text.pth", "text.pth"),
    ("STE_forward.py", "--csv {root}/nothing.csv", "nothing.csv"),
    ("STE_forward.py", "--csv {root}/broken.csv", "broken.csv, line 3"),
    ("STE_forward.py", "--csv {root}/more.csv", "1 of 10 crops"),
    ("STE_postprocessing.py", "--forward-dir {root}/nowhere", "nowhere"),
    ("STE_postprocessing.py", "--forward-dir {root}/empty", "empty"),
    ("STE_postprocessing.py", "--ground-truth {root}/nothing.csv", "nothing.csv"),
    ("STE_postprocessing.py", "--ground-truth {root}/more.csv", "three:1"),
    ("STE_postprocessing.py", "--ava-video-dir {root}/nowhere", "nowhere"),
    ("STE_postprocessing.py", "--ava-video-dir {root}/empty", "no video one"),
    ("STE_postprocessing.py", "--plots {root}/val.csv", "val.csv"),
    ("ASC_train.py", "--features-train-full {root}/nowhere", "nowhere"),
    ("ASC_train.py", "--features-val-full {root}/empty", "empty"),
    ("ASC_train.py", "--features-val-full {root}/features_short", "two.npy"),
    ("ASC_train.py", "--features-val-full {root}/predictions", "one.csv, line 1"),
    ("ASC_forward.py", "--features-val-full {root}/nowhere", "nowhere"),
    ("ASC_forward.py", "--features-val-full {root}/empty", "empty"),
    ("ASC_forward.py", "--features-val-full {root}/features_short", "two.npy"),
    ("ASC_forward.py", "--weights {root}/nothing.pth", "nothing.pth"),
    ("ASC_forward.py", "--weights {root}/empty", "empty"),
    ("ASC_forward.py", "--weights {root}/text.pth", "text.pth"),
    ("ASC_forward.py", "--weights {root}/list.pth", "list.pth"),
    ("ASC_forward.py", "--weights {root}/cut.pth", "cut.pth"),
    ("ASC_prediction_postprocessing.py", "--predictions-dir {root}/empty", "empty"),
    ("ASC_prediction_postprocessing.py", "--predictions-dir {root}/predictions_broken", "one.csv, line 1"),
    ("ASC_prediction_postprocessing.py", "--ground-truth {root}/columns.csv", "columns.csv, line 5"),
    ("scripts/evaluate.py", "--predictions {root}/nothing.csv", "nothing.csv"),
    ("scripts/evaluate.py", "--predictions {root}/scores_broken.csv", "scores_broken.csv, line 1"),
    ("scripts/evaluate.py", "--predictions {root}/val.csv", "val.csv, line 1"),
    ("scripts/evaluate.py", "--ground-truth {root}/more.csv", "three:1"),
    ("scripts/evaluate.py", "--ava-video-dir {root}/nowhere", "nowhere"),
    ("scripts/evaluate.py", "--ava-video-dir {root}/empty", "no video one"),
    ("scripts/plot_training.py", "{root}/nothing.csv", "nothing.csv"),
    ("scripts/plot_training.py", "{root}/broken_logs.csv", "broken_logs.csv, line 3"),
    ("scripts/plot_training.py", "{root}/empty", "empty"),
    ("scripts/plot_training.py", "--output {out}/training.jpg", "training.jpg"),
    ("scripts/ablation.py", "--features-train-full {root}/nowhere", "nowhere"),
    ("scripts/ablation.py", "--features-val-full {root}/predictions", "one.csv, line 1"),
    ("scripts/ablation.py", "--csv-val-full {root}/broken.csv", "broken.csv, line 3"),
]


class TestBrokenInput:
    @pytest.mark.parametrize(("script", "more", "words"), BROKEN, ids=lambda value: value.replace("{root}/", ""))
    def test_is_refused_in_one_line_and_leaves_nothing(self, root, encoders, tmp_path, script, more, words):
        out = tmp_path / "out"
        assert_refused(run_here(*command(script, root, out, more)), words)
        assert files_under(tmp_path) == []

    @pytest.mark.parametrize(
        ("script", "more", "words"),
        [
            ("data/slice_audio_tracks.py", "--csv {root}/broken.csv", "broken.csv, line 3"),
            ("STE_postprocessing.py", "--forward-dir {root}/nowhere", "nowhere"),
            ("ASC_forward.py", "--weights {root}/text.pth", "text.pth"),
        ],
    )
    def test_in_a_process_of_its_own(self, root, tmp_path, script, more, words):
        assert_refused(run_script(*command(script, root, tmp_path / "out", more)), words)
        assert files_under(tmp_path) == []

    @pytest.mark.parametrize(
        ("script", "positionals", "words"),
        [
            ("STE_forward.py", "3 cpu", ["ste.pth", "clip_length 3"]),
            ("ASC_forward.py", "5 2 2 cpu", ["asc.pth", "5"]),
            ("ASC_forward.py", "3 2 3 cpu", ["asc.pth", "3"]),
        ],
    )
    def test_weights_of_another_length(self, root, encoders, tmp_path, script, positionals, words):
        result = run_here(*command(script, root, tmp_path / "out", positionals=positionals))
        assert_refused(result, *words)
        assert files_under(tmp_path) == []

    def test_code_in_weights_is_not_run(self, root, tmp_path):
        class Payload:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        torch.save({"weight": Payload()}, tmp_path / "payload.pth")
        assert_refused(run_here(*command("ASC_forward.py", root, tmp_path, f"--weights {tmp_path}/payload.pth")))
        assert files_under(tmp_path) == ["payload.pth"]
        assert not (tmp_path / "ran").exists()

    def test_weights_from_imagenet_that_cannot_be_fetched(self, root, tmp_path):
        """The message says which file, where it would go, and how to do without."""
        words = [word for word in command("STE_train.py", root, tmp_path / "out") if word != "--no-pretrained"]
        deaf = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
        result = run_script(*words, TORCH_HOME=str(tmp_path / "torch"), no_proxy="", NO_PROXY="", **deaf)
        assert_refused(result, tmp_path / "torch", "resnet18", ".pth", "--no-pretrained")
        assert not [name for name in files_under(tmp_path) if name.endswith(".pth")]

    def test_part_of_the_films_missing_is_told_apart(self, root, tmp_path):
        """Exit status 1: the others are done, and a file lists what is not."""
        out, sound = tmp_path / "out", tmp_path / "sound"
        write_wav(sound / "one.wav", np.zeros(11 * 16000))
        result = run_here(*command("data/slice_audio_tracks.py", root, out, f"--ava-audio-dir {sound}"))
        assert result.returncode == 1, result.stderr
        assert "Traceback" not in result.stderr
        wavs = [name for name in files_under(out) if name.endswith(".wav")]
        assert wavs == ["val/one:1.wav", "val/one:2.wav"]
        assert "1 failed" in result.stdout
        (listed,) = (path for path in out.rglob("*.txt") if "two" in path.read_text())
        assert str(listed) in result.stdout
        assert len(listed.read_text().splitlines()) == 1


class TestForwardAgain:
    """Both forward stages: what is there is kept, unless it was made in another way."""

    @pytest.fixture(params=["STE_forward.py", "ASC_forward.py"])
    def stage(self, request, root, encoders):
        """Runs the stage: stage(out, more) -> what became of it; its weights are `asc` or `ste`."""

        def run(out: Path, more: str = ""):
            return run_here(*command(request.param, root, out, more))

        run.name = request.param[:3].lower()
        other = root / f"{run.name}_other.pth"
        if run.name == "asc":
            torch.manual_seed(1)
            torch.save(ASC_Net(3, 2).state_dict(), other)
        run.other = f"--weights {other}"
        return run

    @staticmethod
    def results(out: Path) -> dict[str, str]:
        return {name: digest for name, digest in digests(out).items() if not name.endswith(".json")}

    def test_with_other_weights(self, stage, tmp_path):
        """Refused, naming what differs; done anew on demand, and then as if nothing had been there."""
        assert stage(tmp_path / "out").returncode == 0
        before = digests(tmp_path / "out")
        assert_refused(stage(tmp_path / "out", stage.other), tmp_path / "out", "weights", "--overwrite")
        assert digests(tmp_path / "out") == before

        result = stage(tmp_path / "out", f"{stage.other} --overwrite")
        assert result.returncode == 0, result.stderr
        assert stage(tmp_path / "fresh", stage.other).returncode == 0
        assert self.results(tmp_path / "out") == self.results(tmp_path / "fresh")
        assert self.results(tmp_path / "out") != {name: before[name] for name in self.results(tmp_path / "out")}

    def test_is_nothing_to_do(self, stage, tmp_path):
        assert stage(tmp_path).returncode == 0
        before = {name: (tmp_path / name).stat().st_ino for name in self.results(tmp_path)}
        assert before
        assert stage(tmp_path).returncode == 0
        assert {name: (tmp_path / name).stat().st_ino for name in self.results(tmp_path)} == before

    def test_makes_what_is_missing(self, stage, tmp_path):
        assert stage(tmp_path).returncode == 0
        before, kept = self.results(tmp_path), (tmp_path / "two.csv").stat().st_ino
        (tmp_path / "one.csv").unlink()
        assert stage(tmp_path).returncode == 0
        assert self.results(tmp_path) == before
        assert (tmp_path / "two.csv").stat().st_ino == kept

    def test_makes_films_again_whose_rows_have_changed(self, stage, tmp_path, root):
        """Labels travel with the features, so a corrected label counts as much as a row that has gone."""
        if stage.name == "ste":
            faces = list(FACES)
            inputs, rewrite = f"--csv {tmp_path}/val.csv", lambda: write_annotations(tmp_path / "val.csv", faces)
        else:
            faces = list(FACES)
            inputs = f"--features-val-full {tmp_path}/features"
            rewrite = lambda: write_store(tmp_path / "features", faces, noise_features)  # noqa: E731
        rewrite()
        assert stage(tmp_path / "out", inputs).returncode == 0
        before = {name: (tmp_path / "out" / name).stat().st_ino for name in ("one.csv", "two.csv")}
        if stage.name == "ste":
            faces[0] = faces[0]._replace(label=1 - min(faces[0].label, 1))
        else:
            faces.pop(0)
        assert faces[0].video == "one"
        rewrite()
        if stage.name == "asc":
            os.utime(tmp_path / "features" / "two.npy", (0, 0))  # that of the other film is as old as it was
        result = stage(tmp_path / "out", inputs)
        assert result.returncode == 0, result
        assert "1 videos were there already" in result.stdout
        assert (tmp_path / "out" / "two.csv").stat().st_ino == before["two.csv"]
        assert (tmp_path / "out" / "one.csv").stat().st_ino != before["one.csv"]
        assert len(read_csv(tmp_path / "out" / "one.csv")) == sum(face.video == "one" for face in faces) + (
            stage.name == "ste"
        )

    def test_broken_input_does_not_pass_old_results_off_as_new(self, stage, tmp_path, root):
        """Begun anew with other weights, stopped by a broken input, run again once it is mended."""
        if stage.name == "ste":
            breakable = Path(shutil.copy(root / "val.csv", tmp_path / "val.csv"))
            inputs = f"--csv {breakable}"
        else:
            shutil.copytree(root / "features", tmp_path / "features")
            inputs, breakable = f"--features-val-full {tmp_path}/features", tmp_path / "features" / "two.npy"
        whole = breakable.read_bytes()
        assert stage(tmp_path / "out", inputs).returncode == 0
        breakable.write_bytes(whole[: len(whole) // 2])
        assert_refused(stage(tmp_path / "out", f"{inputs} {stage.other} --overwrite"), breakable)
        breakable.write_bytes(whole)
        again = stage(tmp_path / "out", f"{inputs} {stage.other}")
        if again.returncode == 0:
            assert stage(tmp_path / "fresh", f"{inputs} {stage.other}").returncode == 0
            assert self.results(tmp_path / "out") == self.results(tmp_path / "fresh")
        else:
            assert_refused(again, "--overwrite")

    def test_with_other_weights_for_some_of_the_films(self, stage, tmp_path, root):
        """Refused or done, but never a directory that holds the results of two networks."""
        if stage.name == "ste":
            write_annotations(tmp_path / "one.csv", [face for face in FACES if face.video == "one"])
            some = f"--csv {tmp_path}/one.csv"
        else:
            for name in ("one.csv", "one.npy"):
                (tmp_path / "features").mkdir(exist_ok=True)
                shutil.copy(root / "features" / name, tmp_path / "features" / name)
            some = f"--features-val-full {tmp_path}/features"
        assert stage(tmp_path / "out").returncode == 0
        before = digests(tmp_path / "out")
        result = stage(tmp_path / "out", f"{some} {stage.other} --overwrite")
        if result.returncode == 0:
            assert stage(tmp_path / "fresh", f"{some} {stage.other}").returncode == 0
            assert self.results(tmp_path / "out") == self.results(tmp_path / "fresh")
        else:
            assert_refused(result, tmp_path / "out", "two")
            assert digests(tmp_path / "out") == before

    def test_into_the_directory_of_another_stage_is_refused_even_on_demand(self, stage, tmp_path, root):
        other = {"ste": "ASC_forward.py", "asc": "STE_forward.py"}[stage.name]
        assert run_here(*command(other, root, tmp_path / "out")).returncode == 0
        before = digests(tmp_path / "out")
        assert_refused(stage(tmp_path / "out", "--overwrite"), tmp_path / "out", "another stage", other[:3])
        assert digests(tmp_path / "out") == before

    def test_settings_are_kept_beside_the_results(self, stage, tmp_path, root):
        assert stage(tmp_path).returncode == 0
        (saved,) = tmp_path.glob("*.json")
        settings = read_json(saved)
        assert settings["weights"] == str(root / f"{stage.name}.pth")
        assert settings["cuda_device"] == "cpu"


class TestForward:
    @pytest.mark.parametrize("script", ["ASC_train.py", "ASC_forward.py"])
    def test_features_of_a_part_of_the_films_are_refused(self, root, encoders, tmp_path, script):
        """As an unfinished run leaves them, which would train on less without a word."""
        assert run_here(*command("STE_forward.py", root, tmp_path / "features")).returncode == 0
        (tmp_path / "features" / "two.csv").unlink()
        flags = "--features-train-full {f} --features-val-full {f}" if "train" in script else "--features-val-full {f}"
        more = flags.format(f=tmp_path / "features")
        result = run_here(*command(script, root, tmp_path / "out", more))
        assert_refused(result, tmp_path / "features", "1 of 2 films", "STE_forward.py")

    def test_every_row_of_the_annotations(self, root, encoders, tmp_path):
        assert run_here(*command("STE_forward.py", root, tmp_path)).returncode == 0
        for video in ("one", "two"):
            lines = read_csv(tmp_path / f"{video}.csv")[1:]
            keys = [(video, face.time, face.entity, face.label == 1) for face in FACES if face.video == video]
            assert [(line[0], float(line[1]), line[2], float(line[3]) == 1) for line in lines] == keys
            features = np.load(tmp_path / f"{video}.npy")
            assert np.isfinite(features).all()
            assert len(np.unique(features, axis=0)) == len(keys)

    def test_text_features_say_the_same(self, root, encoders, tmp_path):
        assert run_here(*command("STE_forward.py", root, tmp_path / "binary")).returncode == 0
        assert run_here(*command("STE_forward.py", root, tmp_path / "text", "--text-features")).returncode == 0
        for video in ("one", "two"):
            header, *lines = read_csv(tmp_path / "binary" / f"{video}.csv")
            text = read_csv(tmp_path / "text" / f"{video}.csv")
            assert len(header) == 6
            assert [line[:3] + line[4:6] for line in text] == [line[:3] + line[4:] for line in lines]
            lists = np.array([line[6].strip("[]").split(",") for line in text], np.float32)
            assert (lists == np.load(tmp_path / "binary" / f"{video}.npy")).all()

    @pytest.mark.parametrize("more", ["--batch-size 1", "--batch-size 2", "--workers 2"])
    def test_encoder_whatever_the_batches_and_workers(self, root, encoders, tmp_path, more):
        assert run_here(*command("STE_forward.py", root, tmp_path / "plain")).returncode == 0
        assert run_here(*command("STE_forward.py", root, tmp_path / "other", more)).returncode == 0
        for video in ("one", "two"):
            one, two = (np.load(tmp_path / name / f"{video}.npy") for name in ("plain", "other"))
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)

    def test_context_whatever_the_batches_and_the_other_films(self, root, tmp_path):
        def logits(name: str, more: str = "") -> dict[tuple[str, str], list[float]]:
            out = tmp_path / name
            assert run_here(*command("ASC_forward.py", root, out, more)).returncode == 0
            lines = [line for path in out.glob("*.csv") for line in read_csv(path)]
            return {(line[0], line[1]): list(map(float, line[2:])) for line in lines}

        def assert_close(some: dict, plain: dict) -> None:
            assert some == {key: pytest.approx(plain[key], abs=1e-5) for key in some}

        plain, small = logits("plain"), logits("small", "--batch-size 1")
        assert plain.keys() == {(face.entity, str(face.time)) for face in FACES}
        assert small.keys() == plain.keys()
        assert_close(small, plain)

        for name in ("one.csv", "one.npy"):
            (tmp_path / "features").mkdir(exist_ok=True)
            shutil.copy(root / "features" / name, tmp_path / "features" / name)
        alone = logits("alone", f"--features-val-full {tmp_path}/features")
        assert len(alone) == 7
        assert_close(alone, plain)

    def test_context_of_another_seed(self, tmp_path):
        """Five faces for two places: some draw differs, and with it the logits."""
        write_store(tmp_path / "features", faces_of(Track(f"face {i}", "00") for i in range(5)), noise_features)
        torch.manual_seed(0)
        torch.save(ASC_Net(3, 2).state_dict(), tmp_path / "asc.pth")
        for seed in (0, 1):
            assert (
                run_here(*command("ASC_forward.py", tmp_path, tmp_path / str(seed), f"--seed {seed}")).returncode == 0
            )
        assert (tmp_path / "0" / "film.csv").read_bytes() != (tmp_path / "1" / "film.csv").read_bytes()

    def test_features_that_are_no_numbers(self, root, tmp_path):
        """The file and the row are named, and no prediction of this film is there."""
        result = run_here(*command("ASC_forward.py", root, tmp_path, "--features-val-full {root}/features_nan"))
        assert_refused(result, "features_nan/", ".npy", "feature 1 is", "not finite")
        assert not list(tmp_path.glob("*.csv"))
