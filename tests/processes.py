"""Scripts in separate processes that start fast, and that can be stopped at chosen function calls.

They are forked from a server that has already imported the libraries. They use a SmallEncoder.
"""

import contextlib
import ctypes
import functools
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from unittest import mock

from conftest import ROOT, wait_for

LIBRARIES = (
    *("core.media.crops", "core.datasets", "core.metrics", "core.models", "core.training", "core.detection.pipeline"),
    *("core.reports.postprocessing", "core.detection.timeline", "tiny_inputs"),
)
# Functions at which tests stop a process.
FUNCTIONS = {
    "step": "torch.optim.Adam.step",
    "backward": "torch.Tensor.backward",
    "metrics": "core.training.roc_auc",
    "evaluate": "core.training.evaluate",
    "save": "torch.save",
    "sync": "os.fsync",
    "rename": "os.replace",
    "make contexts": "core.datasets.ASCDataset",
    "create features": "numpy.lib.format.open_memmap",
    "outputs of a batch": "core.inference._wait_to_numpy",
    "write features csv": "core.formats.features.write_csv",
    "write predictions csv": "core.formats.predictions.write_csv",
    "write samples": "wave.Wave_write.writeframesraw",
    "read wav": "core.media.audio.read_wav",
    "decode audio": "core.media.audio.iter_audio",
    "encode crop": "cv2.imencode",
    "write bytes": "pathlib.Path.write_bytes",
    "write failures": "core.runtime.jobs.write_list",
}
Call = tuple[str, int]  # key of FUNCTIONS or dotted path, number of the call from 1


@dataclass(frozen=True)
class Fault:
    """A fault of a process, or a limit on it."""

    kill_at: Call | None = None  # SIGKILL to itself
    stop_at: Call | None = None  # SIGSTOP to itself; SIGCONT continues it
    interrupt_at: Call | None = None  # SIGINT to itself and its children, like Ctrl-C
    crash_on: tuple[str, str] | None = None  # function and part of an argument: the process that calls it crashes
    file_size: int | None = None  # bytes; a larger file is an error, as on a full disk
    open_files: int | None = None
    shared_memory: int | None = None  # bytes of /dev/shm; needs root
    sample_at: str | None = None  # function that prints memory and open files at each call, see `samples`


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
    """A running script. It leads a session, so its children can be found."""

    def __init__(self, directory: Path, script: str, *args: object, fault: Fault | None = None):
        directory.mkdir(parents=True, exist_ok=True)
        self.args = [str(ROOT / script), *map(str, args)]
        number = len(list(directory.glob("*.out")))
        self.out, self.err = directory / f"{number}.out", directory / f"{number}.err"
        self.out.touch()
        self.process = _context().Process(target=_child, args=(self.args, self.out, self.err, fault or Fault()))
        self.process.start()

    def wait(self, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Wait for its end and return its result, status -9 if it was killed. Kills it and fails after the timeout."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.signal(signal.SIGKILL)
            raise AssertionError(f"still running after {timeout} s: {self.args}\n{self.err.read_text()}")
        return subprocess.CompletedProcess(
            self.args, self.process.exitcode, self.out.read_text(), self.err.read_text(errors="replace")
        )

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition is true while the script runs."""
        wait_for(condition, 60, self.process.is_alive, self.err.read_text)

    def signal(self, number: int) -> None:
        """Send a signal to the script and its children, as a terminal does for Ctrl-C."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def until_stopped(self) -> None:
        """Wait for `Fault.stop_at`."""
        self.until(lambda: Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")

    def children(self, zombies: bool = True) -> list[int]:
        """Ids of the processes that it started, directly or not, and that still exist."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid and (zombies or fields[0] != "Z"):
                    found.append(int(stat.parent.name))
        return [number for number in found if number != self.process.pid]


def run(directory: Path, script: str, *args: object, fault: Fault | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script to its end. Its output is kept in `directory`."""
    return Running(directory, script, *args, fault=fault).wait()


def kill(directory: Path, arguments: list[object], call: Call) -> None:
    """Run a script until SIGKILL at a call, and wait for the end of its children."""
    running = Running(directory, *arguments, fault=Fault(kill_at=call))
    result = running.wait()
    assert result.returncode == -signal.SIGKILL, (call, result)
    wait_for(lambda: not running.children(zombies=False), 20)


def samples(result: subprocess.CompletedProcess[str]) -> list[tuple[int, int, int]]:
    """Memory (bytes), peak memory (bytes) and open files at each call of `Fault.sample_at`."""
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("sample ")]
    return [(int(memory), int(peak), int(files)) for _, memory, peak, files in lines]


def _child(args: list[str], out: Path, err: Path, fault: Fault) -> None:
    import torch
    from tiny_inputs import use_small_encoder

    os.setsid()
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    torch.set_num_threads(1)
    use_small_encoder().start()
    if fault.file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.file_size, resource.RLIM_INFINITY))
    if fault.open_files is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fault.open_files, hard))
    if fault.shared_memory is not None:
        ctypes.CDLL(None).unshare(0x00020000)  # CLONE_NEWNS: mounts of this process only
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={fault.shared_memory}", "tmpfs", "/dev/shm"], check=True)
    install(fault)
    sys.argv = args
    sys.path[0] = str(Path(args[0]).parent)
    os.chdir(ROOT)
    runpy.run_path(args[0], run_name="__main__")


def install(fault: Fault) -> None:
    """Patch the functions of a fault in this process."""
    for call, send, number in (
        (fault.kill_at, _kill_both, signal.SIGKILL),
        (fault.stop_at, os.kill, signal.SIGSTOP),
        (fault.interrupt_at, os.killpg, signal.SIGINT),
    ):
        if call:
            _signal_at(*call, functools.partial(send, os.getpid(), number))
    if fault.crash_on:
        _crash_on(*fault.crash_on)
    if fault.sample_at:
        _before_calls(fault.sample_at, _sample)


def _kill_both(main: int, number: int) -> None:
    """Send a signal to the script and to the calling process, which may be its child."""
    os.kill(main, number)
    os.kill(os.getpid(), number)


def _signal_at(name: str, number: int, send: Callable[[], None]) -> None:
    _before_calls(name, lambda call: send() if call == number else None)


def _crash_on(name: str, text: str) -> None:
    owner, _, attribute = FUNCTIONS.get(name, name).rpartition(".")
    original = getattr(_find(owner), attribute)

    @functools.wraps(original)
    def replacement(*args, **kwargs):
        if any(text in str(argument) for argument in args):
            os.kill(os.getpid(), signal.SIGSEGV)
        return original(*args, **kwargs)

    mock.patch.object(_find(owner), attribute, replacement).start()


def _before_calls(name: str, action: Callable[[int], object]) -> None:
    """Run an action, given the number of the call, before each call of a function by this process or its children."""
    owner, _, attribute = FUNCTIONS.get(name, name).rpartition(".")
    original, calls = getattr(_find(owner), attribute), multiprocessing.Value("i")

    @functools.wraps(original)
    def replacement(*args, **kwargs):
        with calls.get_lock():
            calls.value += 1
            call = calls.value
        action(call)
        return original(*args, **kwargs)

    mock.patch.object(_find(owner), attribute, replacement).start()


def _find(name: str) -> object:
    """Return a module or class, given its dotted path."""
    try:
        return import_module(name)
    except ImportError:
        owner, _, attribute = name.rpartition(".")
        return getattr(_find(owner), attribute)


def _sample(_: int) -> None:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = [int(status[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM")]
    print("sample", *memory, len(os.listdir("/proc/self/fd")), flush=True)
