"""Parallel processing of many videos, on ranks and processes, with a progress bar and a list of failures.

Each video is processed in its own process: if a decoder crashes, only its video fails.
"""

import multiprocessing
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import TypeVar

from core.runtime import distributed
from core.runtime.errors import InputError, RunError, one_line
from core.runtime.files import write_bytes
from core.runtime.malloc import tune_malloc
from core.runtime.progress import progress

FAILURES, NOTES = "failures.txt", "notes.txt"
_GRACE_SECONDS = 5  # for a process to end after SIGTERM
Item, Result = TypeVar("Item"), TypeVar("Result")


@dataclass
class Outcome:
    """Counts of processed units (rows, tracks, videos), and messages about them, one line each."""

    done: int = 0
    skipped: int = 0  # units whose output exists already
    failures: list[str] = field(default_factory=list)  # unit and reason
    notes: list[str] = field(default_factory=list)  # remarks about output that was written

    def add(self, other: "Outcome") -> None:
        self.done += other.done
        self.skipped += other.skipped
        self.failures += other.failures
        self.notes += other.notes


def run_jobs(
    job: Callable[[Item, Outcome, Callable[[int], None]], None],
    items: Iterable[Item],
    name: Callable[[Item], str],
    units: Callable[[Item], int],
    unit: str,
    workers: int,
    directory: str | Path,
) -> Outcome:
    """Run `job(item, outcome, advance)` for every item, `workers` at a time; returns the outcome of all ranks.

    The job fills its outcome and calls `advance(n)` to move the progress bar by n units. An InputError, a ValueError or
    a crash is a failure of that item alone; any other exception ends the run. Failures and notes are written to files
    in the directory, also if the run ends early. Items are divided among the ranks by their units. If a rank dies, no
    files are written.
    """
    items = list(items)
    distributed.require_same("videos", lambda: [name(item) for item in items])
    local = distributed.local_items([units(item) for item in items])
    outcomes: dict[int, Outcome] = {}
    waiting, running = deque(local), {}
    result = Outcome()
    try:
        with progress(total=sum(units(items[index]) for index in local), unit=unit) as bar:
            while waiting or running:
                while waiting and len(running) < max(workers, 1):
                    index = waiting.popleft()
                    receiver, process, interrupted = _start(job, items[index], name(items[index]))
                    running[receiver] = index, process
                    if interrupted:
                        raise KeyboardInterrupt
                for receiver in connection.wait(running):
                    index, process = running[receiver]
                    message = _receive(receiver, process, name(items[index]))
                    if isinstance(message, int):
                        bar.update(message)
                        continue
                    del running[receiver]
                    process.join()
                    if isinstance(message, Exception):
                        raise message
                    outcomes[index] = message
        for gathered in distributed.all_gather(outcomes):
            outcomes |= gathered
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join(_GRACE_SECONDS)
            process.kill()
            process.join()
        for _, outcome in sorted(outcomes.items()):
            result.add(outcome)
        if distributed.is_main_process():
            write_list(result.failures, Path(directory, FAILURES))
            write_list([*_earlier_notes(result, Path(directory, NOTES)), *result.notes], Path(directory, NOTES))
    return result


def run_in_process(function: Callable[..., Result], *args: object) -> Result:
    """Call a function in a new process and return its result. Raises RunError if the process dies.

    The function is one of a module, and arguments and result can be pickled.
    """
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, context, initializer=distributed.end_with_parent) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool:
            raise RunError("its process died, in a decoder or for lack of memory") from None


def _start(job: Callable, item: Item, name: str) -> tuple[connection.Connection, multiprocessing.Process, bool]:
    """Start a process for one item, which ignores Ctrl-C.

    Returns the connection that it reports to, the process, and true if Ctrl-C was pressed meanwhile.
    """
    context = multiprocessing.get_context("fork")  # the job needs no pickling
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(job, item, name, sender))
    interrupts: list[int] = []  # Python would ignore an exception while it forks
    handler = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    process.start()
    signal.signal(signal.SIGINT, handler)
    sender.close()
    return receiver, process, bool(interrupts)


def _run(job: Callable, item: Item, name: str, sender: connection.Connection) -> None:
    """Run a job in its own process: send units of progress, then the outcome or an exception that ends the run."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # removes its unfinished file
    distributed.end_with_parent()
    tune_malloc()
    outcome = Outcome()
    try:
        job(item, outcome, sender.send)
    except (InputError, ValueError) as error:
        outcome.failures.append(f"{name}: {error}")
    except Exception as error:
        if not isinstance(error, (OSError, RunError, MemoryError)):
            traceback.print_exc()
        sender.send(error)
        return
    sender.send(outcome)


def _receive(
    receiver: connection.Connection, process: multiprocessing.Process, name: str
) -> "int | Outcome | Exception":
    """Return the next message of a process. If it has died, this is a failure of its item."""
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        reason = f"killed by signal {-process.exitcode}" if process.exitcode < 0 else f"exit status {process.exitcode}"
        return Outcome(failures=[f"{name}: its process died ({reason})"])


def _earlier_notes(result: Outcome, path: Path) -> list[str]:
    """Notes of earlier runs. They still apply if some of the output was kept."""
    earlier = path.read_text().splitlines() if result.skipped and path.is_file() else []
    return [line for line in earlier if line not in set(map(one_line, result.notes))]


def write_list(lines: list[str], path: Path) -> None:
    """Write a file of lines. Without lines, remove the file."""
    if lines:
        write_bytes(path, "".join(f"{one_line(line)}\n" for line in lines).encode())
    else:
        path.unlink(missing_ok=True)


def print_outcome(outcome: Outcome, unit: str, directory: str | Path) -> int:
    """Print the outcome of a stage. Returns the exit status: 1 with failures, else 0."""
    print(f"{outcome.done} {unit} written, {outcome.skipped} skipped, {len(outcome.failures)} failed: {directory}")
    for note in outcome.notes[:3]:
        print(f"note: {one_line(note)}")
    if len(outcome.notes) > 3:
        print(f"note: {len(outcome.notes) - 3} more in {Path(directory, NOTES)}")
    if outcome.failures:
        print(f"failures are listed in {Path(directory, FAILURES)}; the first: {one_line(outcome.failures[0])}")
        print("fix them and run this again, or continue without them: stages 4 and 5 need --skip-missing then")
    return 1 if outcome.failures else 0
