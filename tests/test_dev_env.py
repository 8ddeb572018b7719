"""scripts/dev_env.sh: once with a real environment and wheels made here, else with an interpreter that only records."""

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "dev_env.sh"

# Stands in for python: "-m venv" copies it, "-m pip install" counts itself and then does what the file on_install says.
RECORDING_PYTHON = r"""#!/usr/bin/env bash
fakes="@FAKES@"
case "$*" in
    *version_info\[:2\]*) echo 3.12 ;;
    *version_info*) [[ ! -e $fakes/too_old ]] ;;
    *ensurepip*) [[ ! -e $fakes/no_venv_module ]] ;;
    *"import cv2"*) [[ ! -e $fakes/cv2_message ]] || { cat "$fakes/cv2_message" >&2; exit 1; } ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip install "*)
        echo "$*" >>"$fakes/installs"
        if [[ -e $fakes/on_install ]]; then source "$fakes/on_install"; fi
        ;;
esac
"""


class Project:
    """A copy of the script in a folder of its own; `fakes` goes first on the PATH."""

    def __init__(self, folder: Path):
        self.folder = folder / "a project"
        self.fakes = folder / "fakes"
        self.script = self.folder / "scripts" / "dev_env.sh"
        self.script.parent.mkdir(parents=True)
        shutil.copy(SCRIPT, self.script)
        (self.folder / "requirements.txt").write_text("# nothing\n")
        (self.folder / "requirements.lock").write_text("# nothing\n")
        self.fakes.mkdir()
        self.add_program("python3.12", RECORDING_PYTHON.replace("@FAKES@", str(self.fakes)))
        for name in ("python3.13", "python3.11", "python3.10", "python3"):
            self.add_program(name, "#!/bin/sh\nexit 127\n")  # as a version manager's, with nothing behind it
        self.add_program("id", "#!/bin/sh\necho 1000\n")
        self.add_program("apt-get", f'#!/bin/sh\necho "$*" >>"{self.fakes}/apt"\n')

    def add_program(self, name: str, text: str):
        program = self.fakes / name
        program.write_text(text)
        program.chmod(0o755)

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
        environment["PATH"] = f"{self.fakes}:{environment['PATH']}"
        return subprocess.Popen(
            ["bash", str(self.script), *arguments],
            env=environment | changes,
            cwd=self.fakes,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **changes)
        stdout, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    @property
    def venv(self) -> Path:
        return self.folder / ".venv"

    def count_installs(self) -> int:
        installs = self.fakes / "installs"
        return len(installs.read_text().splitlines()) if installs.exists() else 0


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def make_wheel(folder: Path, version: str):
    info = f"speaker-{version}.dist-info"
    with zipfile.ZipFile(folder / f"speaker-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("speaker.py", f"version = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: speaker\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"speaker.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def test_a_real_environment_is_made_kept_and_brought_up_to_date(project):
    for version in ("1.0", "2.0", "3.0"):
        make_wheel(project.fakes, version)
    lock = project.folder / "requirements.lock"
    (project.folder / "requirements.txt").write_text(f"--no-index\n--find-links {project.fakes.as_uri()}\nspeaker\n")
    lock.write_text("speaker==1.0\nnever_asked_for==9\n")

    def installed() -> str:
        command = [project.venv / "bin" / "python", "-c", "import speaker; print(speaker.version)"]
        return subprocess.check_output(command, text=True).strip()

    first = project.run(PYTHON=sys.executable)
    assert first.returncode == 0, first.stderr
    assert installed() == "1.0"

    start = time.perf_counter()
    second = project.run(PYTHON=sys.executable)
    assert time.perf_counter() - start < 1
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")

    lock.write_text("speaker==2.0\n")
    third = project.run(PYTHON=sys.executable)
    assert third.returncode == 0, third.stderr
    assert installed() == "2.0"

    lock.write_text("speaker==4.0\n")
    refused = project.run(PYTHON=sys.executable)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: pip could not install requirements.txt")
    assert installed() == "2.0"


@pytest.mark.parametrize("changed", ["requirements.txt", "requirements.lock", "scripts/dev_env.sh"])
def test_a_change_installs_once(project, changed):
    assert project.run().returncode == 0
    assert project.run().returncode == 0
    assert project.count_installs() == 1
    with (project.folder / changed).open("a") as file:
        file.write("# more\n")
    assert project.run().returncode == 0
    assert project.run().returncode == 0
    assert project.count_installs() == 2


def test_pip_is_given_the_requirements_and_the_lock(project):
    assert project.run().returncode == 0
    expected = f"-m pip install -r {project.folder}/requirements.txt -c {project.folder}/requirements.lock\n"
    assert (project.fakes / "installs").read_text() == expected


@pytest.mark.parametrize("killed", ["the script", "pip"])
def test_an_install_that_is_killed_is_made_anew(project, killed):
    target = {"the script": "$PPID", "pip": "$$"}[killed]
    (project.fakes / "on_install").write_text(f'touch "$(dirname "$0")/half"; kill -9 {target}\n')
    assert project.run().returncode != 0
    half = project.venv / "bin" / "half"
    assert half.exists()
    (project.fakes / "on_install").unlink()
    again = project.run()
    assert again.returncode == 0
    assert "anew" in again.stderr
    assert not half.exists()
    assert project.count_installs() == 2
    assert project.run().stderr == ""
    assert project.count_installs() == 2


def test_an_install_stopped_from_the_keyboard_is_made_anew(project):
    # As pip does: it catches the signal and ends with an ordinary failure.
    (project.fakes / "on_install").write_text(
        f"trap 'exit 1' INT; touch '{project.fakes}/started'; for i in {{1..500}}; do sleep 0.02; done\n"
    )
    process = project.start()
    deadline = time.monotonic() + 20
    while not (project.fakes / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode != 0
    (project.fakes / "on_install").unlink()
    again = project.run()
    assert again.returncode == 0
    assert "anew" in again.stderr
    assert project.count_installs() == 2


def test_a_refusal_by_pip_is_tried_again_in_the_same_environment(project):
    (project.fakes / "on_install").write_text("echo no such version >&2; exit 1\n")
    for attempt in (1, 2):
        failed = project.run()
        assert failed.returncode == 1
        assert failed.stderr.count("error: ") == 1
        assert project.count_installs() == attempt
        (project.venv / "keep").touch()
    (project.fakes / "on_install").unlink()
    assert project.run().returncode == 0
    assert (project.venv / "keep").exists()
    assert project.count_installs() == 3


def test_an_environment_made_by_hand_is_filled_and_kept(project):
    subprocess.run([project.fakes / "python3.12", "-m", "venv", project.venv], check=True)
    (project.venv / "keep").touch()
    assert project.run().returncode == 0
    assert (project.venv / "keep").exists()
    assert project.count_installs() == 1


def test_a_broken_or_moved_environment_is_made_anew(project):
    assert project.run().returncode == 0
    (project.venv / "bin" / "python").unlink()
    assert project.run().returncode == 0
    assert (project.venv / "bin" / "python").exists()
    assert project.count_installs() == 2

    (project.venv / "old place").touch()
    moved = project.folder.with_name("moved")
    project.folder.rename(moved)
    project.folder, project.script = moved, moved / "scripts" / "dev_env.sh"
    assert project.run().returncode == 0
    assert not (project.venv / "old place").exists()
    assert project.count_installs() == 3


def test_an_activated_environment_is_not_used_to_make_itself_anew(project):
    assert project.run().returncode == 0
    programs = project.venv / "bin"
    (programs / "python3.13").symlink_to("python")  # would be taken before the 3.12 outside
    (project.venv / ".dev_env").write_text("unfinished\n")
    again = project.run(PATH=f"{programs}:{project.fakes}:{os.environ['PATH']}")
    assert again.returncode == 0, again.stderr
    assert project.count_installs() == 2


@pytest.mark.skipif(shutil.which("flock") is None, reason="without flock the script cannot tell")
def test_of_two_at_once_the_second_waits(project):
    (project.fakes / "on_install").write_text("sleep 0.5\n")
    both = [project.start(), project.start()]
    errors = [process.communicate(timeout=30)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert project.count_installs() == 1
    assert sum("waiting" in text for text in errors) == 1


def test_missing_python_is_one_line_that_says_what_to_do(project):
    python = project.fakes / "python3.12"
    (project.fakes / "too_old").touch()
    chosen = project.run(PYTHON=str(python))
    assert chosen.returncode == 1
    assert chosen.stderr == f"error: PYTHON={python} is not a Python 3.10 or newer that runs\n"

    none = project.run()  # all the names are there, and none of them will do
    assert none.returncode == 1
    assert none.stderr.startswith("error: no Python 3.10 or newer on the PATH") and none.stderr.count("\n") == 1

    (project.fakes / "too_old").unlink()
    (project.fakes / "no_venv_module").touch()
    bare = project.run()
    assert bare.returncode == 1
    assert "apt-get install python3.12-venv" in bare.stderr and bare.stderr.count("\n") == 1
    assert not project.venv.exists()


def test_opencv_without_its_system_libraries(project):
    message = project.fakes / "cv2_message"
    message.write_text("ImportError: libGL.so.1: cannot open shared object file: No such file or directory\n")
    user = project.run()
    assert user.returncode == 1
    assert "apt-get install libgl1 libglib2.0-0" in user.stderr.splitlines()[-1]
    assert not (project.fakes / "apt").exists()

    project.add_program("id", "#!/bin/sh\necho 0\n")
    failing = project.run()  # an apt-get that does not help
    assert failing.returncode == 1
    assert failing.stderr.splitlines()[-1].startswith("error: OpenCV does not load")

    project.add_program("apt-get", f'#!/bin/sh\necho "$*" >>"{project.fakes}/apt"\nrm -f "{message}"\n')
    root = project.run()
    assert root.returncode == 0, root.stderr
    assert "libgl1 libglib2.0-0" in (project.fakes / "apt").read_text()
    assert project.run().stderr == ""


def test_usage(project):
    asked = project.run("--help")
    assert asked.returncode == 0 and asked.stdout.startswith("usage: ")
    wrong = project.run("--upgrade")
    assert wrong.returncode == 2 and wrong.stderr.startswith("usage: ")
    assert not project.venv.exists()
