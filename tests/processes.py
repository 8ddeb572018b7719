"""Scripts in processes of their own that start in a moment, and that can be stopped where a test wants them to be.

They are forked from a server that has imported the libraries already, which saves the seconds this takes.
"""

import contextlib
import functools
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module, reload
from pathlib import Path
from unittest import mock

from conftest import ROOT

LIBRARIES = (
    *("core.media.crops", "core.datasets", "core.metrics", "core.models", "core.training", "core.detection.pipeline"),
    *("core.reports.postprocessing", "core.detection.timeline"),
)


@dataclass(frozen=True)
class Fault:
    """What happens to a process. Functions are named by their dotted path; calls are counted from 1."""

    kill_at: tuple[str, int] | None = None  # SIGKILL to itself at this call of this function
    stop_at: tuple[str, int] | None = None  # SIGSTOP to itself: it goes on when it is told to
    interrupt_at: tuple[str, int] | None = None  # as Ctrl-C would: SIGINT to itself and all that it started
    file_size: int | None = None  # bytes: writing more fails, as on a full disk
    open_files: int | None = None
    environment: tuple[tuple[str, str], ...] = ()  # variables and their values; core.config is read anew
    sample_at: str | None = None  # at each call, print the memory and the open files of the process: see `samples`


@functools.cache
def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *([before] if before else [])])
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


class Running:
    """A script that runs: a leader of its own session, so that whatever it starts can be found."""

    def __init__(self, directory: Path, script: str, *args: object, fault: Fault | None = None):
        directory.mkdir(parents=True, exist_ok=True)
        self.args = [str(ROOT / script), *map(str, args)]
        number = len(list(directory.glob("*.out")))
        self.out, self.err = directory / f"{number}.out", directory / f"{number}.err"
        self.out.touch()
        self.process = _context().Process(target=_child, args=(self.args, self.out, self.err, fault or Fault()))
        self.process.start()

    def wait(self, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """What became of it; status -9 where it was killed. Kills it and fails where it takes too long."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.signal(signal.SIGKILL)
            raise AssertionError(f"still running after {timeout} s: {self.args}\n{self.err.read_text()}")
        return subprocess.CompletedProcess(
            self.args, self.process.exitcode, self.out.read_text(), self.err.read_text(errors="replace")
        )

    def until(self, condition: Callable[[], bool], timeout: float = 60) -> None:
        """Wait for something it does."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.process.is_alive(), f"it ended before: {self.err.read_text()}"
            assert time.monotonic() < end, "it does not come"
            time.sleep(0.005)

    def signal(self, number: int) -> None:
        """To all of its session, as a terminal does with Ctrl-C."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def until_stopped(self) -> None:
        """Wait for `Fault.stop_at`."""
        self.until(lambda: Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")

    def companions(self, zombies: bool = True) -> list[int]:
        """Process numbers of what it started and what is not gone yet."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid and (zombies or fields[0] != "Z"):
                    found.append(int(stat.parent.name))
        return [number for number in found if number != self.process.pid]


def run(directory: Path, script: str, *args: object, fault: Fault | None = None):
    """Run a script to its end. `directory` holds what it prints."""
    return Running(directory, script, *args, fault=fault).wait()


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_ranks(
    directory: Path, world_size: int, script: str, *args: object, faults: dict[int, Fault] | None = None
) -> list[Running]:
    """Start a script as torchrun would, once for every rank; `faults` are of single ranks."""
    place = (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", str(free_port())))
    running = []
    for rank in range(world_size):
        fault = (faults or {}).get(rank, Fault())
        own = (("RANK", str(rank)), ("LOCAL_RANK", str(rank)), ("WORLD_SIZE", str(world_size)))
        fault = replace(fault, environment=(*fault.environment, *place, *own))
        running.append(Running(directory, script, *args, fault=fault))
    return running


def run_ranks(directory: Path, world_size: int, script: str, *args: object, faults: dict[int, Fault] | None = None):
    """Run a script with several ranks to the end of all. Returns what became of each."""
    return [running.wait() for running in start_ranks(directory, world_size, script, *args, faults=faults)]


def _child(args: list[str], out: Path, err: Path, fault: Fault) -> None:
    os.setsid()
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(1)
    if fault.file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.file_size, resource.RLIM_INFINITY))
    if fault.open_files is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fault.open_files, hard))
    if fault.environment:
        os.environ.update(fault.environment)
        reload(import_module("core.config"))
    for moment, send, number in (
        (fault.kill_at, os.kill, signal.SIGKILL),
        (fault.stop_at, os.kill, signal.SIGSTOP),
        (fault.interrupt_at, os.killpg, signal.SIGINT),
    ):
        if moment:
            _signal_at(*moment, functools.partial(send, os.getpid(), number))
    if fault.sample_at:
        _at_calls(fault.sample_at, _sample)
    sys.argv = args
    sys.path[0] = str(Path(args[0]).parent)
    os.chdir(ROOT)
    runpy.run_path(args[0], run_name="__main__")


def _signal_at(name: str, number: int, send: Callable[[], None]) -> None:
    _at_calls(name, lambda call: send() if call == number else None)


def _at_calls(name: str, action: Callable[[int], object]) -> None:
    """Have every call of a function begin with an action that is given the number of the call."""
    owner, _, attribute = name.rpartition(".")
    original, calls = getattr(_find(owner), attribute), []

    @functools.wraps(original)
    def replacement(*args, **kwargs):
        calls.append(1)
        action(len(calls))
        return original(*args, **kwargs)

    mock.patch.object(_find(owner), attribute, replacement).start()


def _find(name: str) -> object:
    """A module or a class by its dotted path."""
    try:
        return import_module(name)
    except ImportError:
        owner, _, attribute = name.rpartition(".")
        return getattr(_find(owner), attribute)


def _sample(_: int) -> None:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = [int(status[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM")]
    print("sample", *memory, len(os.listdir("/proc/self/fd")), flush=True)


def samples(result: subprocess.CompletedProcess[str]) -> list[tuple[int, int, int]]:
    """Memory in bytes, the most of it so far, and open files, at each call of `Fault.sample_at`."""
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("sample ")]
    return [(int(memory), int(most), int(files)) for _, memory, most, files in lines]


def kill(printed: Path, arguments: list[object], moment: tuple[str, int]) -> None:
    """Run until SIGKILL at a call, and wait for what it started."""
    running = Running(printed, *arguments, fault=Fault(kill_at=moment))
    result = running.wait()
    assert result.returncode == -signal.SIGKILL, (moment, result)
    end = time.monotonic() + 20
    while running.companions(zombies=False) and time.monotonic() < end:
        time.sleep(0.02)
    assert not running.companions(zombies=False)
