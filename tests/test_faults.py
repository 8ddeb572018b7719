"""After a kill, Ctrl-C, a full disk or a second start, the same command finishes with the results of one clean run.

Every script runs as a separate process, and its results are compared byte for byte.
"""

import functools
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import assert_refused, printed
from processes import Fault, Running, kill, run, samples
from stages import DATA, TRAINING, command, results
from tiny_inputs import (
    Track,
    digests,
    faces_of,
    files_under,
    noise_features,
    write_encoder_inputs,
    write_store,
    write_text,
)


def some(*fast: str, slow: tuple[str, ...]) -> list:
    """Parameters of a test; those in `slow` are marked."""
    return [*fast, *(pytest.param(script, marks=pytest.mark.slow) for script in slow)]


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory):
    """Results of a script that runs undisturbed: file name -> SHA-256."""

    @functools.cache
    def make(script: str) -> dict[str, str]:
        out = tmp_path_factory.mktemp("expected") / "out"
        printed(run(out.parent / "printed", *command(script, inputs, out)))
        return results(out)

    return make


def resumed(script: str, inputs: Path, out: Path) -> list[object]:
    """The command that starts or continues a script."""
    return [*command(script, inputs, out), *(["--resume"] if script in TRAINING else [])]


def assert_no_broken_files(out: Path, expected: dict[str, str]) -> None:
    """Assert that all files with a final name are complete; logs may lack epochs, and best.pth changes."""
    files = {name: digest for name, digest in results(out).items() if not Path(name).name.startswith(".")}
    broken = {name for name, digest in files.items() if expected.get(name) != digest}
    assert not {name for name in broken if not name.endswith(("_logs.csv", "best.pth"))}


def assert_no_partial_files(out: Path) -> None:
    assert [name for name in files_under(out) if ".partial" in name] == []


def assert_finishes(arguments: list[object], out: Path, expected: dict[str, str]) -> None:
    """Assert that the command finishes with the expected results and no partial files."""
    printed(run(out.parent / "printed", *arguments))
    assert results(out) == expected
    assert_no_partial_files(out)


def assert_fails(result: subprocess.CompletedProcess[str], *words: object) -> None:
    """Assert exit status 1 and, as the last line, one `error: ...` with all the words; no traceback."""
    assert result.returncode == 1, result
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], result.stderr
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    for word in words:
        assert str(word) in lines[-1]


# Killed

TRAINING_CALLS = [
    ("step", 2),
    ("save", 3),  # weights are saved, the checkpoint is not
    ("rename", 5),  # the checkpoint is saved, the log is not
]
MORE_TRAINING_CALLS = [
    ("backward", 1),
    ("sync", 1),  # weights are written, but not yet renamed
    ("metrics", 1),  # after the steps of an epoch
    ("evaluate", 1),
]
CALLS = {
    "data/extract_audio_tracks.py": ("write samples", 1),
    "data/slice_audio_tracks.py": ("write samples", 2),
    "data/extract_face_crops_time.py": ("encode crop", 5),
    "STE_forward.py": ("write features csv", 1),  # features are written, the csv is not
    "ASC_forward.py": ("rename", 2),
}
MORE_CALLS = {
    "data/extract_audio_tracks.py": [("rename", 1), ("rename", 2), ("write failures", 1)],
    "data/slice_audio_tracks.py": [("rename", 3), ("read wav", 3)],
    "data/extract_face_crops_time.py": [("rename", 9), ("write bytes", 30)],
    "STE_forward.py": [("create features", 1), ("rename", 3), ("outputs of a batch", 2)],
    "ASC_forward.py": [("write predictions csv", 1), ("rename", 3)],
}


def check_killed_training(script: str, calls: list, inputs: Path, expected: dict[str, str], out: Path) -> None:
    arguments = resumed(script, inputs, out)
    for call in calls:
        kill(out.parent / "printed", arguments, call)
        assert_no_broken_files(out, expected)
    assert_finishes(arguments, out, expected)


@pytest.mark.parametrize("script", some("STE_train.py", slow=("ASC_train.py",)))
def test_killed_training_resumes_to_the_same_weights(script, inputs, expected, tmp_path):
    assert any(name.endswith(".pth") for name in expected(script))
    check_killed_training(script, TRAINING_CALLS, inputs, expected(script), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("script", TRAINING)
def test_training_can_be_killed_anywhere(script, inputs, expected, tmp_path):
    check_killed_training(script, MORE_TRAINING_CALLS, inputs, expected(script), tmp_path / "out")


@pytest.mark.parametrize("script", some("STE_forward.py", DATA[2], slow=("ASC_forward.py", *DATA[:2])))
def test_killed_stage_finishes_with_the_same_command(script, inputs, expected, tmp_path):
    out = tmp_path / "out"
    kill(tmp_path / "printed", command(script, inputs, out), CALLS[script])
    assert_no_broken_files(out, expected(script))
    assert_finishes(command(script, inputs, out), out, expected(script))


@pytest.mark.slow
@pytest.mark.parametrize("script", MORE_CALLS)
def test_stage_can_be_killed_anywhere(script, inputs, expected, tmp_path):
    draw = random.Random(script)
    renames = len(expected(script)) + 1  # results and settings
    for number, call in enumerate([*MORE_CALLS[script], ("rename", draw.randint(1, renames))]):
        out = tmp_path / str(number) / "out"
        kill(tmp_path / "printed", command(script, inputs, out), call)
        if out.exists():
            assert_no_broken_files(out, expected(script))
        assert_finishes(command(script, inputs, out), out, expected(script))


def test_overwrite_removes_partial_files_of_a_killed_run(inputs, expected, tmp_path):
    script = DATA[1]
    out = tmp_path / "out"
    kill(tmp_path / "printed", command(script, inputs, out), ("rename", 2))
    assert [name for name in files_under(out) if ".partial" in name]
    assert_finishes([*command(script, inputs, out), "--overwrite"], out, expected(script))


def test_killed_run_with_overwrite_must_be_repeated(inputs, tmp_path):
    """Until then the directory holds aligned and unaligned wavs, which look alike."""
    out = tmp_path / "out"
    arguments = command(DATA[0], inputs, out)
    printed(run(tmp_path / "printed", *arguments))
    kill(tmp_path / "printed", [*arguments, "--align", "--overwrite"], ("rename", 3))
    assert_refused(run(tmp_path / "printed", *arguments, "--align"), out, "--overwrite")
    printed(run(tmp_path / "printed", *arguments, "--align", "--overwrite"))
    printed(run(tmp_path / "printed", *arguments, "--align"))


# Interrupted

INTERRUPTIONS = {
    "STE_train.py": ("step", 2),
    "STE_forward.py": ("outputs of a batch", 1),
    "data/extract_audio_tracks.py": ("decode audio", 1),
    "data/extract_face_crops_time.py": ("encode crop", 3),
}


@pytest.mark.parametrize("script", some("STE_train.py", DATA[0], slow=("STE_forward.py", DATA[2])))
def test_ctrl_c_prints_one_line_and_leaves_no_process(script, inputs, expected, tmp_path):
    """Exit status 130; the same command continues."""
    out = tmp_path / "out"
    arguments = resumed(script, inputs, out)
    if script == "STE_train.py":
        arguments += ["--workers", 2]
    running = Running(tmp_path / "printed", *arguments, fault=Fault(interrupt_at=INTERRUPTIONS[script]))
    result = running.wait(60)
    assert result.returncode == 130, result
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert lines[-1].startswith("interrupted; "), result.stderr
    assert "Traceback" not in result.stderr
    assert not running.children()
    assert_no_partial_files(out)
    assert_no_broken_files(out, expected(script))
    assert_finishes(arguments, out, expected(script))


# Full disk

LIMITS = {  # largest file in bytes: some results fit, some do not
    "data/extract_audio_tracks.py": 30_000,
    "data/extract_face_crops_time.py": 3_000,
    "STE_forward.py": 100_000,
    "ASC_forward.py": 900,
    "STE_postprocessing.py": 2_000,
    "scripts/evaluate.py": 10_000,
}


@pytest.mark.parametrize(
    "script",
    some("STE_forward.py", "STE_postprocessing.py", DATA[0], slow=(DATA[2], "ASC_forward.py", "scripts/evaluate.py")),
)
def test_full_disk_is_an_error_with_the_path(script, inputs, expected, tmp_path):
    out, arguments = tmp_path / "out", command(script, inputs, tmp_path / "out")
    workers = ("--workers", 0) if script == "STE_forward.py" else ()
    result = run(tmp_path / "printed", *arguments, *workers, fault=Fault(file_size=LIMITS[script]))
    assert_fails(result, out, "File too large")
    assert_no_partial_files(out)
    assert_no_broken_files(out, expected(script))
    assert_finishes(arguments, out, expected(script))


def test_full_disk_keeps_finished_epochs(inputs, expected, tmp_path):
    script = "STE_train.py"
    out, arguments = tmp_path / "out", command(script, inputs, tmp_path / "out")
    printed(run(tmp_path / "printed", *arguments, "--epochs", 1))
    before = digests(out)
    result = run(tmp_path / "printed", *arguments, "--resume", fault=Fault(file_size=100_000))
    assert_fails(result, out / TRAINING[script] / "2.pth", "File too large")
    changed = {name for name, digest in digests(out).items() if before.get(name) != digest}
    assert {Path(name).name for name in changed} <= {f"{TRAINING[script]}_cfg.json"}
    assert_finishes([*arguments, "--resume"], out, expected(script))


def test_full_shared_memory_is_an_error(inputs, tmp_path):
    """Workers send data through files in /dev/shm, which are limited as well."""
    arguments = [*command("STE_train.py", inputs, tmp_path / "out"), "--workers", 1]
    result = run(tmp_path / "printed", *arguments, fault=Fault(file_size=50_000))
    assert_fails(result, "worker died", "/dev/shm", "--workers 0")


def can_mount() -> bool:
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    return bool(shutil.which("unshare")) and not subprocess.run(command, capture_output=True, check=False).returncode


@pytest.mark.skipif(not can_mount(), reason="mounting a small /dev/shm is not permitted")
@pytest.mark.parametrize("script", ["STE_train.py", "ASC_train.py", "STE_forward.py"])
def test_small_shared_memory_is_enough(script, inputs, tmp_path):
    """A default container has 64 MB, less than a batch of 128 clips; here a batch is larger than all of /dev/shm."""
    arguments = command(script, inputs, tmp_path / "out")
    options = ("--batch-size", 60, "--workers", 2)
    size = 1_000_000 if script == "ASC_train.py" else 300_000
    printed(run(tmp_path / "printed", *arguments, *options, fault=Fault(shared_memory=size)))
    arguments = command(script, inputs, tmp_path / "ample")
    printed(run(tmp_path / "printed", *arguments, *options))
    assert results(tmp_path / "out") == results(tmp_path / "ample")


@pytest.mark.skipif(not can_mount(), reason="mounting a full /dev/shm is not permitted")
@pytest.mark.parametrize("script", ["STE_train.py", "STE_forward.py"])
def test_full_shared_memory_needs_no_workers(script, inputs, tmp_path):
    arguments = [*command(script, inputs, tmp_path / "out"), "--workers", 2]
    result = run(tmp_path / "printed", *arguments, fault=Fault(shared_memory=4096))
    assert "note: /dev/shm is full" in printed(result)


# Two processes


@pytest.mark.parametrize(
    ("script", "call"),
    [
        ("STE_train.py", ("save", 1)),
        ("ASC_forward.py", ("write predictions csv", 1)),
        (DATA[1], ("write samples", 2)),
    ],
)
def test_second_process_on_the_same_output_is_refused(script, call, inputs, expected, tmp_path):
    out, arguments = tmp_path / "out", resumed(script, inputs, tmp_path / "out")
    first = Running(tmp_path / "first", *arguments, fault=Fault(stop_at=call))
    first.until_stopped()
    assert_refused(run(tmp_path / "second", *arguments), out, "another process")
    os.kill(first.process.pid, signal.SIGCONT)
    printed(first.wait())
    assert results(out) == expected(script)


def test_results_of_another_process_are_not_overwritten(inputs, expected, tmp_path):
    """A second process starts and ends while the first still reads its inputs."""
    script = "ASC_forward.py"
    out, arguments = tmp_path / "out", resumed(script, inputs, tmp_path / "out")
    first = Running(tmp_path / "first", *arguments, fault=Fault(stop_at=("make contexts", 1)))
    first.until_stopped()
    printed(run(tmp_path / "second", *arguments))
    os.kill(first.process.pid, signal.SIGCONT)
    assert_refused(first.wait(), out, "another process")
    assert results(out) == expected(script)


# Processes that die


def test_worker_that_dies_is_an_error(inputs, tmp_path):
    arguments = [*command("STE_train.py", inputs, tmp_path / "out"), "--epochs", 1000, "--workers", 2]
    running = Running(tmp_path / "printed", *arguments, fault=Fault(stop_at=("step", 7)))
    running.until_stopped()
    worker = running.children()[0]
    os.kill(worker, signal.SIGKILL)
    running.until(lambda: worker not in running.children(zombies=False))
    os.kill(running.process.pid, signal.SIGCONT)
    assert_fails(running.wait(60), "worker died", "--workers")
    assert not running.children()
    assert_no_partial_files(tmp_path / "out")


def test_decoder_that_crashes_fails_only_its_video(inputs, tmp_path):
    fault = Fault(crash_on=("decode audio", "one.mp4"))
    result = run(tmp_path / "printed", *command(DATA[0], inputs, tmp_path / "out"), fault=fault)
    assert result.returncode == 1, result
    assert (tmp_path / "out" / "failures.txt").read_text() == "one: its process died (killed by signal 11)\n"
    assert sorted(path.stem for path in (tmp_path / "out").glob("[!.]*.wav")) == ["four", "three", "two"]


@pytest.mark.parametrize("script", some("STE_train.py", DATA[0], slow=("STE_forward.py", DATA[2])))
def test_no_process_is_left_after_an_error(script, inputs, tmp_path):
    """A crop, video or wav in the middle of the run is broken."""
    broken, arguments = tmp_path / "inputs", command(script, tmp_path / "inputs", tmp_path / "out")
    shutil.copytree(inputs, broken)
    write_text(broken / "crops" / "val" / "two:a" / "0.6.jpg", "not an image")
    write_text(broken / "videos" / "two.mp4", "not a video")
    if script == "STE_train.py":
        for crop in (broken / "crops" / "train" / "two:a").iterdir():
            write_text(crop, "not an image")
    if script not in DATA:
        arguments += ["--workers", 2]
    running = Running(tmp_path / "printed", *arguments)
    result = running.wait()
    if script in DATA:
        assert result.returncode == 1, result
        assert "failures are listed" in result.stdout
    else:
        assert_refused(result, "two:a/")
    assert not running.children()
    assert_no_partial_files(tmp_path / "out")


# Many videos


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "function"),
    [("STE_forward.py", "write features csv"), ("ASC_forward.py", "write predictions csv")],
)
def test_memory_and_open_files_stay_constant(script, function, inputs, tmp_path):
    tracks = [Track(f"video{number}:a", "0110", 1.0, f"video{number}") for number in range(50)]
    write_encoder_inputs(tmp_path, "val", tracks)
    write_store(tmp_path / "features", faces_of(tracks), noise_features)
    arguments = [*command(script, tmp_path, tmp_path / "out"), "--weights", inputs / f"{script[:3]}.pth"]
    result = run(tmp_path / "printed", *arguments, fault=Fault(sample_at=function))
    printed(result)
    memory, _, files = zip(*samples(result), strict=True)
    assert len(memory) == 50
    assert max(memory[-10:]) < max(memory[5:15]) + 16e6, memory
    assert max(files[-10:]) <= max(files[5:15]), files


@pytest.mark.slow
def test_more_videos_than_open_files(inputs, tmp_path):
    tracks = [Track(f"video{number}:a", "01", 1.0, f"video{number}") for number in range(200)]
    write_store(tmp_path / "features", faces_of(tracks), noise_features)
    arguments = [*command("ASC_forward.py", tmp_path, tmp_path / "out"), "--weights", inputs / "ASC.pth"]
    printed(run(tmp_path / "printed", *arguments, fault=Fault(open_files=180)))
