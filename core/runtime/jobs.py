"""Parallel processing of many videos, on ranks and threads, with a progress bar and a list of failures.

Threads suffice, because decoding and encoding release the GIL.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from core.runtime import distributed
from core.runtime.errors import InputError, one_line
from core.runtime.files import write_bytes
from core.runtime.progress import progress

FAILURES, NOTES = "failures.txt", "notes.txt"
Item = TypeVar("Item")


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
    """Run `job(item, outcome, advance)` for every item on `workers` threads; returns the outcome of all ranks.

    The job fills its outcome and calls `advance(n)` to move the progress bar by n units. An InputError or ValueError
    is a failure of that item alone; any other exception ends the run. Failures and notes are written to files in the
    directory, also if the run ends early. Items are divided among the ranks by their units. If a rank dies, no files
    are written.
    """
    items = list(items)
    distributed.require_same("videos", lambda: [name(item) for item in items])
    local = distributed.local_items([units(item) for item in items])
    outcomes = {index: Outcome() for index in local}
    stop = threading.Event()
    total = sum(units(items[index]) for index in local)
    result = Outcome()
    try:
        with progress(total=total, unit=unit) as bar, ThreadPoolExecutor(max(workers, 1)) as pool:

            def advance(count: int) -> None:
                if stop.is_set():
                    raise InterruptedError("stopped")
                bar.update(count)

            def run_one(item: Item, outcome: Outcome) -> None:
                try:
                    if not stop.is_set():
                        job(item, outcome, advance)
                except (InputError, ValueError) as error:
                    outcome.failures.append(f"{name(item)}: {error}")

            futures = [pool.submit(run_one, items[index], outcome) for index, outcome in outcomes.items()]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                for future in futures:
                    if future.done():
                        future.result()
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)
        for gathered in distributed.all_gather(outcomes):
            outcomes |= gathered
    finally:
        for _, outcome in sorted(outcomes.items()):
            result.add(outcome)
        if distributed.is_main_process():
            write_list(result.failures, Path(directory, FAILURES))
            write_list([*_earlier_notes(result, Path(directory, NOTES)), *result.notes], Path(directory, NOTES))
    return result


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
