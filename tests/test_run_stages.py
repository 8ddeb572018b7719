"""scripts/run_stages.py: the commands of the stages, and errors."""

import argparse
import runpy

import pytest
from conftest import ROOT, run_script

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "run_stages.py"))


def commands(*args: str) -> list[list[str]]:
    parsed = SCRIPT["get_args_parser"]().parse_args(["cpu", *args])
    steps = [step for step in SCRIPT["stage_commands"](parsed) if step[0] in parsed.stages]
    return [list(map(str, command)) for _, _, command in steps]


def test_all_stages_in_order():
    scripts = [command[0] for command in commands()]
    data = ["data/slice_audio_tracks.py", "data/extract_face_crops_time.py"]
    assert scripts == [
        *("data/extract_audio_tracks.py", *data, *data),
        *("STE_train.py", "STE_forward.py", "STE_forward.py", "STE_postprocessing.py"),
        *("ASC_train.py", "ASC_forward.py", "ASC_prediction_postprocessing.py"),
    ]


def test_a_range_of_stages():
    training, *features = commands("--stages", "4-5", "--no-pretrained", "--ste-epochs", "3", "--precision", "bf16")
    assert "--no-pretrained" in training
    assert [command[command.index("--weights") + 1] for command in features] == ["ava/models/ste_encoder/3.pth"] * 2
    assert all(command[command.index("--precision") + 1] == "bf16" for command in (training, *features))


def test_published_weights():
    """They are not trained, and their results have names of their own."""
    found = commands("--published-weights", "--splits", "val")
    assert not any("train" in word for command in found for word in command)
    assert [command[command.index("--weights") + 1] for command in found if "--weights" in command] == [
        "ava/models/STE.pth",
        "ava/models/ASC.pth",
    ]
    written = [command[-1] for command in found[3:]]
    assert all("_published" in path for path in written)


def test_other_encoders_have_directories_of_their_own():
    training, *_, asc_training, _, _ = commands("--stages", "4-9", "--encoder", "resnet18-tsm")
    assert "ava/models_resnet18-tsm" in training
    assert "ava/ste_features_resnet18-tsm/train" in asc_training
    features, *_ = commands("--stages", "4-5", "--encoder", "lr-asd")
    assert features[0] == "STE_forward.py"
    assert features[features.index("--weights") + 1] == "ava/models/lr_asd/pretrain_AVA.model"


def test_missing_files_and_boxes_outside_the_frame():
    *data, training, _, features, encoder, _, _, context = commands("--skip-missing", "--clip-boxes")
    assert [command for command in data if "--clip-boxes" in command] == data[1:]
    assert all({"--skip-missing", "--clip-boxes"} <= set(command) for command in (training, features))
    assert all({"--only-predicted", "--clip-boxes"} <= set(command) for command in (encoder, context))


def test_a_failed_stage_ends_the_script_with_its_exit_status(tmp_path):
    result = run_script("scripts/run_stages.py", "cpu", "--stages", "1-2", ASC_DATA_ROOT=str(tmp_path))
    assert result.returncode == 2
    assert result.stdout.count("== ") == 1
    assert result.stderr.splitlines()[-1].startswith("error: stage 1 (Audio tracks) ended with exit status 2: ")


def test_stages_are_one_process_within_a_launcher(tmp_path):
    launcher = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    result = run_script(
        "scripts/run_stages.py", "cpu", "--stages", 4, timeout=60, **launcher, ASC_DATA_ROOT=str(tmp_path)
    )
    assert "error: stage 4" in result.stderr  # no annotations; it has not waited for another rank


@pytest.mark.parametrize("stages", ["0", "10", "5-4", "1-", "all"])
def test_invalid_stages(stages):
    with pytest.raises(argparse.ArgumentTypeError, match="must be a stage"):
        SCRIPT["stage_range"](stages)
