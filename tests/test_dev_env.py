"""scripts/dev_env.sh in a copy of the project: once with a real environment, else with a stub of Python."""

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, wait_for

# "-m venv" copies the stub to the environment. "-m pip install" is recorded, and runs the file on_install.
PYTHON_STUB = r"""#!/usr/bin/env bash
stubs="@STUBS@"
case "$*" in
    *version_info*) [[ ! -e $stubs/too_old ]] ;;
    *"import cv2"*) [[ ! -e $stubs/no_libraries ]] ;;
    "-m venv --clear "*) rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    "-m pip install "*)
        echo "$*" >>"$stubs/installs"
        if [[ -e $stubs/on_install ]]; then source "$stubs/on_install"; fi
        ;;
esac
"""


class Project:
    """A directory with the script and requirements. `stubs` comes first on the PATH."""

    def __init__(self, directory: Path):
        self.directory, self.stubs = directory / "a project", directory / "stubs"
        self.venv = self.directory / ".venv"
        (self.directory / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "dev_env.sh", self.directory / "scripts")
        (self.directory / "requirements.txt").touch()
        (self.directory / "requirements.lock").touch()
        self.stubs.mkdir()
        self.add_program("python3.12", PYTHON_STUB.replace("@STUBS@", str(self.stubs)))
        for name in ("python3.13", "python3.11", "python3"):
            self.add_program(name, "#!/bin/sh\nexit 127\n")  # as of a version manager without that version
        self.add_program("id", "#!/bin/sh\necho 1000\n")
        self.add_program("apt-get", f'#!/bin/sh\necho "$*" >>"{self.stubs}/apt"\n')

    def add_program(self, name: str, text: str):
        (self.stubs / name).write_text(text)
        (self.stubs / name).chmod(0o755)

    def on_install(self, commands: str):
        (self.stubs / "on_install").write_text(commands)

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
        environment["PATH"] = f"{self.stubs}:{environment['PATH']}"
        return subprocess.Popen(
            ["bash", str(self.directory / "scripts" / "dev_env.sh"), *arguments],
            env=environment | changes,
            cwd=self.stubs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, status: int = 0, **changes: str) -> str:
        """Returns what was printed to stderr."""
        process = self.start(*arguments, **changes)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == status, stderr
        return stderr

    def installs(self) -> list[str]:
        file = self.stubs / "installs"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def write_wheel(directory: Path, version: str):
    info = f"speaker-{version}.dist-info"
    with zipfile.ZipFile(directory / f"speaker-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("speaker.py", f"version = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: speaker\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"speaker.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def test_a_real_environment_is_created_and_updated(project):
    (project.stubs / "cv2.py").touch()
    for version in ("1.0", "2.0"):
        write_wheel(project.stubs, version)
    requirements, lock = (project.directory / name for name in ("requirements.txt", "requirements.lock"))
    requirements.write_text(f"--no-index\n--find-links {project.stubs.as_uri()}\nspeaker\n")
    for version in ("1.0", "2.0"):
        lock.write_text(f"speaker=={version}\nnot_required==9\n")
        project.run(PYTHON=sys.executable, PYTHONPATH=str(project.stubs))
        command = [project.venv / "bin" / "python", "-c", "import speaker; print(speaker.version)"]
        assert subprocess.check_output(command, text=True).strip() == version


def test_packages_are_installed_once_and_again_after_a_change(project):
    for _ in range(2):
        project.run()
    assert project.installs() == ["-m pip install -r requirements.txt -c requirements.lock"]
    for count, changed in enumerate(("requirements.txt", "requirements.lock", "scripts/dev_env.sh"), 2):
        with (project.directory / changed).open("a") as file:
            file.write("# changed\n")
        project.run()
        assert len(project.installs()) == count


@pytest.mark.parametrize("target", ["$PPID", "$$"])
def test_a_killed_installation_starts_with_an_empty_environment(project, target):
    project.on_install(f'touch "$(dirname "$0")/incomplete"; kill -9 {target}\n')
    process = project.start()
    process.communicate(timeout=20)
    assert process.returncode != 0
    assert (project.venv / "bin" / "incomplete").exists()
    project.on_install("")
    project.run()
    assert not (project.venv / "bin" / "incomplete").exists()


def test_an_error_of_pip_is_retried_in_the_same_environment(project):
    project.on_install("exit 1\n")
    assert project.run(status=1) == "error: pip could not install requirements.txt; see above\n"
    (project.venv / "kept").touch()
    project.on_install("")
    project.run()
    assert (project.venv / "kept").exists()


def test_ctrl_c_ends_the_installation(project):
    # pip catches the signal and exits with an ordinary error.
    started = project.stubs / "started"
    project.on_install(f"trap 'exit 1' INT; touch '{started}'; for i in {{1..500}}; do sleep 0.02; done\n")
    process = project.start()
    wait_for(started.exists, 20)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130


def test_an_environment_without_a_usable_python_is_recreated(project):
    project.run()
    programs = project.venv / "bin"
    (programs / "python").unlink()
    (programs / "python3.13").symlink_to(project.stubs / "python3.12")
    project.run(PATH=f"{programs}:{project.stubs}:{os.environ['PATH']}")  # as if activated
    assert [path.name for path in programs.iterdir()] == ["python"]


def test_an_unusable_python_is_an_error(project):
    (project.stubs / "too_old").touch()
    chosen = str(project.stubs / "python3.12")
    for changes, candidates in (({"PYTHON": chosen}, chosen), ({}, "python3.13 python3.12 python3.11 python3")):
        error = project.run(status=1, **changes)
        assert error.startswith(f"error: no Python 3.11 or newer with venv ({candidates}); install one")
        assert error.count("\n") == 1
    assert not project.venv.exists()


def test_system_libraries_of_opencv_are_installed_as_root(project):
    (project.stubs / "no_libraries").touch()
    error = "error: OpenCV cannot be imported; install libgl1 libglib2.0-0 and run this script again\n"
    assert project.run(status=1) == error
    assert not (project.stubs / "apt").exists()
    (project.venv / "kept").touch()
    project.add_program("id", "#!/bin/sh\necho 0\n")
    assert project.run(status=1) == error  # apt-get does not help
    project.add_program(
        "apt-get", f'#!/bin/sh\necho "$*" >>"{project.stubs}/apt"\nrm -f "{project.stubs}/no_libraries"\n'
    )
    assert project.run() == ""
    assert "libgl1 libglib2.0-0" in (project.stubs / "apt").read_text()
    assert (project.venv / "kept").exists()


def test_usage(project):
    assert project.run("--help") == ""
    assert project.run("--upgrade", status=2).startswith("usage: ")
    assert not project.venv.exists()
