"""Whatever ends a run, the same command goes on from there: killed, interrupted, disk full, two at once.

Every script runs as a process of its own, and what it leaves is compared with an undisturbed run, byte for byte.
"""

import functools
import os
import random
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import assert_refused, run_script
from processes import Fault, Running, kill, run, samples
from stages import DATA, FORWARD, TRACKS, TRAINING, command, make_inputs, results
from tiny_inputs import (
    Track,
    digests,
    faces_of,
    files_under,
    noise_features,
    write_annotations,
    write_encoder_inputs,
    write_store,
)

from core.media.ffmpeg import ffmpeg_path


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@dataclass
class Undisturbed:
    """What a script leaves when nothing happens to it."""

    files: dict[str, str]


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory):
    """Undisturbed runs, each made when it is first asked for."""

    @functools.cache
    def once(script: str) -> Undisturbed:
        out = root / "sound" if script == DATA[0] else tmp_path_factory.mktemp("whole") / "out"
        if script == DATA[1]:
            once(DATA[0])  # slices are cut from the sound that it makes
        result = run(out.parent / "printed", *command(script, root, out))
        assert result.returncode == 0, result.stdout + result.stderr
        made = Undisturbed(results(out))
        if script in TRAINING:
            shutil.rmtree(out)  # hundreds of megabytes
        return made

    return once


def assert_no_half_files(out: Path, whole: Undisturbed) -> None:
    """Whatever has a final name is as the undisturbed run made it, a log but for the epochs that are to come."""
    final = {name: digest for name, digest in results(out).items() if not Path(name).name.startswith(".")}
    wrong = {name for name, digest in final.items() if whole.files.get(name) != digest}
    assert not {name for name in wrong if not name.endswith("_logs.csv")}


def assert_tidy(out: Path) -> None:
    assert [name for name in files_under(out) if ".partial" in name] == []


WRITES_CSV = {
    "STE_forward.py": "core.formats.features.write_csv",
    "ASC_forward.py": "core.formats.predictions.write_csv",
}


# Killed

MOMENTS_OF_TRAINING = [
    ("torch.optim.Adam.step", 2),  # in a step
    ("core.training.evaluate", 1),  # in validation
    ("torch.save", 2),  # the weights are there, the checkpoint is not
    ("os.replace", 4),  # the checkpoint is there, the log is not
]
MORE_MOMENTS_OF_TRAINING = [
    ("os.fsync", 1),  # the weights are written, but not yet under their name
    ("core.training.roc_auc", 1),  # at the end of an epoch's steps
]
MOMENTS = {
    "data/extract_audio_tracks.py": [
        ("os.replace", 1),  # the settings
        ("wave.Wave_write.writeframesraw", 1),
        ("os.replace", 2),
        ("core.runtime.jobs.write_list", 1),
    ],
    "data/slice_audio_tracks.py": [
        ("wave.Wave_write.writeframesraw", 2),
        ("os.replace", 3),
        ("core.media.audio.read_wav", 3),
    ],
    "data/extract_face_crops_time.py": [("cv2.imencode", 5), ("os.replace", 9), ("pathlib.Path.write_bytes", 30)],
    "STE_forward.py": [
        ("numpy.lib.format.open_memmap", 1),
        (WRITES_CSV["STE_forward.py"], 1),  # the features are there, the csv is not
        ("os.replace", 3),
        ("core.inference._wait_to_numpy", 2),
    ],
    "ASC_forward.py": [(WRITES_CSV["ASC_forward.py"], 1), ("os.replace", 2), ("os.replace", 3)],
}


@pytest.mark.parametrize("script", TRAINING)
def test_training_killed_anywhere_goes_on_to_the_same_weights(script, root, undisturbed, tmp_path):
    whole, out = undisturbed(script), tmp_path / "out"
    assert any(name.endswith(".pth") for name in whole.files)
    arguments = [*command(script, root, out), "--resume"]
    draw, fast = random.Random(script), script == "ASC_train.py"
    # Of the random moments none ends an epoch, so that all of them come; then those that let the run advance.
    moments = [("torch.Tensor.backward", draw.randint(1, 2)), ("core.training.average_precision", 1)]
    if fast:
        moments = [("torch.Tensor.backward", draw.randint(1, 6)) for _ in range(6)] + MORE_MOMENTS_OF_TRAINING
    for moment in [*moments, *MOMENTS_OF_TRAINING]:
        kill(tmp_path / "printed", arguments, moment)
        assert_no_half_files(out, whole)
    result = run(tmp_path / "printed", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    assert results(out) == whole.files
    assert_tidy(out)
    shutil.rmtree(out)


@pytest.mark.parametrize("script", MOMENTS)
def test_killed_anywhere_the_same_command_goes_on(script, root, undisturbed, tmp_path):
    whole = undisturbed(script)
    draw = random.Random(script)
    files = len(whole.files) + 1  # and the settings; each of them gets its name once
    moments = [*MOMENTS[script], *(("os.replace", draw.randint(1, files)) for _ in range(4))]
    for number, moment in enumerate(moments):
        out = tmp_path / str(number) / "out"
        kill(tmp_path / "printed", command(script, root, out), moment)
        if out.exists():
            assert_no_half_files(out, whole)
        result = run(tmp_path / "printed", *command(script, root, out))
        assert result.returncode == 0, (moment, result)
        assert results(out) == whole.files, moment
        assert_tidy(out)


@pytest.mark.parametrize("script", DATA)
def test_overwriting_clears_up_after_a_killed_run_too(script, root, undisturbed, tmp_path):
    whole, out = undisturbed(script), tmp_path / "out"
    kill(tmp_path / "printed", command(script, root, out), ("os.replace", 2))
    assert [name for name in files_under(out) if ".partial" in name]
    assert run(tmp_path / "printed", *command(script, root, out), "--overwrite").returncode == 0
    assert results(out) == whole.files
    assert_tidy(out)


# Interrupted


INTERRUPTIONS = {
    "STE_train.py": ("torch.optim.Adam.step", 2),
    "ASC_train.py": ("torch.optim.Adam.step", 9),
    "STE_forward.py": ("core.inference._wait_to_numpy", 1),
    "ASC_forward.py": (WRITES_CSV["ASC_forward.py"], 2),
    "data/extract_audio_tracks.py": ("core.media.audio.iter_audio", 1),
    "data/slice_audio_tracks.py": ("wave.Wave_write.writeframesraw", 2),
    "data/extract_face_crops_time.py": ("cv2.imencode", 3),
}


@pytest.mark.parametrize("script", INTERRUPTIONS)
def test_ctrl_c_ends_in_one_line_that_says_how_to_go_on(script, root, undisturbed, tmp_path):
    """Exit status 130, nothing half-written, nobody left behind, and the same command goes on."""
    whole, out, again = undisturbed(script), tmp_path / "out", ("--resume",) if script in TRAINING else ()
    arguments = command(script, root, out)
    if script == "STE_train.py":
        arguments[arguments.index("--workers") + 1] = 2
    running = Running(tmp_path / "printed", *arguments, *again, fault=Fault(interrupt_at=INTERRUPTIONS[script]))
    result = running.wait(60)
    assert result.returncode == 130, result
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert lines[-1].startswith("interrupted; "), result.stderr
    assert "Traceback" not in result.stderr
    assert ("--resume" in lines[-1]) or script not in TRAINING
    assert not running.companions()
    assert_tidy(out)
    assert_no_half_files(out, whole)
    assert run(tmp_path / "printed", *arguments, *again).returncode == 0
    assert results(out) == whole.files
    if script == "STE_train.py":
        shutil.rmtree(out)


# A full disk

LIMITS = {  # bytes that a file may have: some of the results fit, some do not
    "data/extract_audio_tracks.py": 30_000,
    "data/slice_audio_tracks.py": 8_000,
    "data/extract_face_crops_time.py": 3_000,
    "STE_forward.py": 100_000,
    "ASC_forward.py": 900,
    "STE_postprocessing.py": 2_000,
    "scripts/evaluate.py": 10_000,
    "scripts/plot_training.py": 10_000,
}


@pytest.mark.parametrize("script", LIMITS)
def test_full_disk_is_one_line_with_the_path(script, root, undisturbed, tmp_path):
    whole, out = undisturbed(script), tmp_path / "out"
    arguments = command(script, root, out)
    if script == "STE_forward.py":
        arguments += ["--workers", 0]
    result = run(tmp_path / "printed", *arguments, fault=Fault(file_size=LIMITS[script]))
    assert_one_line_of_failure(result, out, "File too large")
    assert_tidy(out)
    assert_no_half_files(out, whole)
    assert run(tmp_path / "printed", *command(script, root, out)).returncode == 0
    assert results(out) == whole.files


@pytest.mark.parametrize("script", TRAINING)
def test_full_disk_while_saving_keeps_the_epochs_before(script, root, undisturbed, tmp_path):
    whole, out = undisturbed(script), tmp_path / "out"
    arguments = command(script, root, out)
    epochs = arguments.index("--epochs") + 1
    first = [*arguments[:epochs], 1, *arguments[epochs + 1 :]]
    assert run(tmp_path / "printed", *first).returncode == 0
    before = digests(out)
    result = run(tmp_path / "printed", *arguments, "--resume", fault=Fault(file_size=1_000_000))
    assert_one_line_of_failure(result, out / TRAINING[script] / "2.pth", "File too large")
    changed = {name for name, digest in digests(out).items() if before.get(name) != digest}
    assert {Path(name).name for name in changed} <= {f"{TRAINING[script]}_cfg.json"}
    assert run(tmp_path / "printed", *arguments, "--resume").returncode == 0
    assert results(out) == whole.files
    shutil.rmtree(out)


def test_full_shared_memory_is_one_line_too(root, tmp_path):
    """What workers read travels in files of /dev/shm, under the same limit."""
    arguments = [*command("STE_forward.py", root, tmp_path / "out"), "--workers", 1]
    result = run(tmp_path / "printed", *arguments, fault=Fault(file_size=100_000))
    assert_one_line_of_failure(result, "a process that reads data died", "/dev/shm", "--workers")


def assert_one_line_of_failure(result: subprocess.CompletedProcess[str], *words: object) -> None:
    """Exit status 1 and a last line `error: ...` with all the words in it, no traceback."""
    assert result.returncode == 1, result
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], result.stderr
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    for word in words:
        assert str(word) in lines[-1]


# Two at once


@pytest.mark.parametrize("script", DATA)
def test_two_at_once_over_the_same_output_both_end_well(script, root, undisturbed, tmp_path):
    whole, out = undisturbed(script), tmp_path / "out"
    both = [Running(tmp_path / str(number), *command(script, root, out), "--overwrite") for number in range(2)]
    for running in both:
        result = running.wait()
        assert result.returncode == 0, result
    assert results(out) == whole.files
    assert_tidy(out)


@pytest.mark.parametrize("script", [*TRAINING, *FORWARD])
def test_two_at_once_with_networks_the_second_is_refused(script, root, undisturbed, tmp_path):
    """Their files depend on each other, or on settings that only one of them can have."""
    whole, out = undisturbed(script), tmp_path / "out"
    again = ("--resume",) if script in TRAINING else ()
    place = "torch.save" if script in TRAINING else WRITES_CSV[script]
    first = Running(tmp_path / "first", *command(script, root, out), *again, fault=Fault(stop_at=(place, 1)))
    first.until_stopped()
    second = run(tmp_path / "second", *command(script, root, out), *again)
    assert_refused(second, "another process")
    os.kill(first.process.pid, signal.SIGCONT)
    assert first.wait().returncode == 0
    assert results(out) == whole.files
    shutil.rmtree(out)


@pytest.mark.parametrize("script", ["ASC_train.py", "ASC_forward.py"])
def test_what_another_process_did_meanwhile_is_not_undone(script, root, undisturbed, tmp_path):
    """One reads its input while another begins and ends: the first does not write over the results of the second."""
    whole, out = undisturbed(script), tmp_path / "out"
    again = ("--resume",) if script in TRAINING else ()
    slow = Running(
        tmp_path / "slow",
        *command(script, root, out),
        *again,
        fault=Fault(stop_at=("core.formats.features.FeatureStore", 1)),
    )
    slow.until_stopped()
    quick = run(tmp_path / "quick", *command(script, root, out), *again)
    assert quick.returncode == 0, quick
    os.kill(slow.process.pid, signal.SIGCONT)
    assert_refused(slow.wait(), out, "another process")
    assert results(out) == whole.files
    # Where there is a directory already, the second waits for the first.
    slow = Running(
        tmp_path / "slow",
        *command(script, root, out),
        *again,
        fault=Fault(stop_at=("core.formats.features.FeatureStore", 1)),
    )
    slow.until_stopped()
    assert_refused(run(tmp_path / "quick", *command(script, root, out), *again), out, "another process")
    os.kill(slow.process.pid, signal.SIGCONT)
    assert slow.wait().returncode == 0


def test_an_overwriting_run_cut_short_is_repeated_and_not_mixed_with_the_old(root, undisturbed, tmp_path):
    """Half of the films are aligned by then and half are not, which no name of a file tells."""
    undisturbed(DATA[0])
    out = tmp_path / "out"
    shutil.copytree(root / "sound", out)
    arguments = command(DATA[0], root, out)
    kill(tmp_path / "printed", [*arguments, "--align", "--overwrite"], ("os.replace", 2))
    assert_refused(run(tmp_path / "printed", *arguments, "--align"), out, "--overwrite")
    assert run(tmp_path / "printed", *arguments, "--align", "--overwrite").returncode == 0
    assert run(tmp_path / "printed", *arguments, "--align").returncode == 0


# A process that dies


@pytest.mark.parametrize("script", ["STE_train.py", "STE_forward.py"])
def test_a_worker_that_dies_ends_the_run_with_a_clear_line(script, root, tmp_path):
    arguments = command(script, root, tmp_path / "out")
    if script == "STE_train.py":
        arguments[arguments.index("--epochs") + 1] = 1000
        arguments[arguments.index("--workers") + 1] = 2
    else:
        arguments += ["--workers", 2]
    running = Running(tmp_path / "printed", *arguments)
    if script == "STE_train.py":
        running.until(lambda: "epoch   1" in running.out.read_text())
    else:
        running.until(lambda: len(running.companions()) == 2)
    os.kill(random.Random(script).choice(running.companions()), signal.SIGKILL)
    result = running.wait(60)
    assert_one_line_of_failure(result, "a process that reads data died", "--workers")
    assert not running.companions()
    assert_tidy(tmp_path / "out")


def test_an_ffmpeg_that_dies_is_a_failure_of_its_film(root, tmp_path):
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncase "$*" in *one.mp4*) kill -9 $$ ;; esac\nexec {ffmpeg_path()} "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    result = run_script(*command(DATA[0], root, tmp_path / "out"), PATH=path)
    assert result.returncode == 1, result
    assert (tmp_path / "out" / "failures.txt").read_text() == "one: ffmpeg: killed by signal 9\n"
    assert sorted(path.name for path in (tmp_path / "out").glob("*.wav")) == ["two.wav"]


# Long runs


def test_memory_and_open_files_stay_level_over_fifty_films(root, tmp_path):
    tracks = [Track(f"film{number}:a", "0110", 1.0, f"film{number}") for number in range(50)]
    write_encoder_inputs(tmp_path, "val", tracks)
    write_store(tmp_path / "features", faces_of(tracks), noise_features)
    for script, place in WRITES_CSV.items():
        arguments = command(script, tmp_path, tmp_path / script)
        arguments[arguments.index("--weights") + 1] = root / f"{script[:3]}.pth"
        result = run(tmp_path / "printed", *arguments, fault=Fault(sample_at=place))
        assert result.returncode == 0, result
        memory, _, files = zip(*samples(result), strict=True)
        assert len(memory) == 50
        assert max(memory[-10:]) < max(memory[5:15]) + 16e6, memory
        assert max(files[-10:]) <= max(files[5:15]), files


def test_a_store_of_more_films_than_files_may_be_open(root, tmp_path):
    tracks = [Track(f"film{number}:a", "01", 1.0, f"film{number}") for number in range(120)]
    write_store(tmp_path / "features", faces_of(tracks), noise_features)
    arguments = command("ASC_forward.py", tmp_path, tmp_path / "out")
    arguments[arguments.index("--weights") + 1] = root / "ASC.pth"
    result = run(tmp_path / "printed", *arguments, fault=Fault(open_files=100))
    assert result.returncode == 0, result


@pytest.mark.parametrize("script", ["STE_train.py", "STE_forward.py", *DATA])
def test_nobody_is_left_behind_after_an_error(script, root, tmp_path):
    """A crop or a film turns out to be broken in the middle of the run."""
    broken = tmp_path / "inputs"
    shutil.copytree(root, broken, ignore=shutil.ignore_patterns("*.pth", "features", "sound"))
    (broken / "crops" / "val" / "two:a" / "0.6.jpg").write_bytes(b"no image")
    (broken / "films" / "two.mp4").write_bytes(b"no film")
    write_annotations(broken / "val.csv", faces_of(TRACKS))
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound" / "two.wav").write_bytes(b"no wav")
    arguments = command(script, broken, tmp_path / "out")
    if script == "STE_train.py":
        for crop in (broken / "crops" / "train" / "two:a").iterdir():
            crop.write_bytes(b"no image")
        arguments[arguments.index("--workers") + 1] = 2
        arguments[arguments.index("--epochs") + 1] = 30
    if script == "STE_forward.py":
        arguments[arguments.index("--weights") + 1] = root / "STE.pth"
        arguments += ["--workers", 2]
    running = Running(tmp_path / "printed", *arguments)
    result = running.wait()
    if script in DATA:
        assert result.returncode == 1, result
        assert "failures are listed" in result.stdout
    else:
        assert_refused(result, "two:a/")
    assert not running.companions()
    assert_tidy(tmp_path / "out")
