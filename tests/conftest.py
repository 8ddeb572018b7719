"""Shared by test files: running scripts, waiting, small csv files, code in pickles, inputs of stages, real data."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in the background
torch.set_num_threads(min(2, torch.get_num_threads()))


def run_script(
    script: str | Path, *args: object, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script in a new process, from the project's root.

    `args` may be numbers and paths; `environment` adds variables. The user's ASC_DATA_ROOT is removed.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "ASC_DATA_ROOT"}
    return subprocess.run(
        [sys.executable, str(script), *map(str, args)],
        cwd=ROOT,
        env={"OMP_NUM_THREADS": "2", **inherited, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def printed(result: subprocess.CompletedProcess[str]) -> str:
    """Assert that a script succeeded. Returns what it printed."""
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def assert_refused(result: subprocess.CompletedProcess[str], *words: object) -> None:
    """Assert exit status 2 and, as the last line, one `error: ...` with all the words; no traceback."""
    assert result.returncode == 2, result.stdout + result.stderr
    lines = result.stderr.strip().splitlines()
    assert "Traceback" not in result.stderr, result.stderr
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], result.stderr
    missing = [word for word in map(str, words) if word not in lines[-1]]
    assert not missing, f"{missing} not in: {lines[-1]}"


def wait_for(
    condition: Callable[[], object],
    seconds: float = 120,
    alive: Callable[[], bool] = lambda: True,
    text: Callable[[], str] = str,
) -> None:
    """Wait until a condition is true, and fail, with a text, after some seconds or if a process is no longer alive."""
    end = time.monotonic() + seconds
    while not condition():
        assert alive(), f"ended early: {text()}"
        assert time.monotonic() < end, f"waited in vain: {text()}"
        time.sleep(0.01)


Row = tuple[str, str, tuple[str, str, str, str], str, str]  # video, timestamp, box, label, entity; all as text
BOX = ("0.1", "0.2", "0.3", "0.6")


def row(
    entity: str, timestamp: object, label: str = "NOT_SPEAKING", video: str = "video", box: Iterable[object] = BOX
) -> str:
    """One line of an official annotation csv, without line end."""
    return ",".join([video, str(timestamp), *map(str, box), label, entity])


def write_lines(path: Path, lines: Iterable[str], end: str = "\n") -> Path:
    """Write lines, each with the line end, and create parent directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


class Payload:
    """An object whose unpickling creates a directory."""

    def __init__(self, directory: Path):
        self.directory = directory

    def __reduce__(self):
        return os.mkdir, (str(self.directory),)


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory) -> None:
    """Put the temporary files of scripts, which a killed one leaves behind, into pytest's directory."""
    tempfile.gettempdir()  # that of this process stays
    os.environ["TMPDIR"] = str(tmp_path_factory.mktemp("tmp"))


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    """Inputs of every stage, see `stages.make_inputs`. Read only: all tests of a process share them."""
    from stages import make_inputs

    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Directory of real annotations and clips given by ASC_TEST_DATA; without it, tests are skipped.

    It contains ava_csv/train.tar.xz, ava_csv/val/<video_id>-activespeaker.csv and real_clips/.
    """
    name = os.environ.get("ASC_TEST_DATA", "")
    if not name:
        pytest.skip("ASC_TEST_DATA is not set")
    directory = Path(name).resolve()
    if not directory.is_dir():
        pytest.skip(f"ASC_TEST_DATA: no directory {directory}")
    return directory
