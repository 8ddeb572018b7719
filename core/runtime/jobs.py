"""Many films at once: ranks and threads, a progress bar, and a list of what failed while the rest went on.

Threads are enough: decoding, encoding and ffmpeg leave Python free while they work.
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
    """What became of a job's units (rows, tracks, films)."""

    done: int = 0
    skipped: int = 0  # were there already
    failures: list[str] = field(default_factory=list)  # one line each: what, and why
    notes: list[str] = field(default_factory=list)  # what was done and should be known

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
    length: Callable[[Item], float] | None = None,
) -> Outcome:
    """Run `job(item, outcome, advance)` for every item, `workers` at a time; `advance(n)` moves the bar by n units.

    The job fills its outcome. One that raises InputError or ValueError is a failure of that item alone; anything else
    ends the run. Failures and notes are listed in files of the directory, those of a run that ends early too. Several
    ranks share the items by their length (that in units, if no other is given), and all return the outcome of all;
    where one of them dies, nothing is listed.
    """
    items = list(items)
    distributed.require_same("films", lambda: [name(item) for item in items])
    mine = distributed.local_items([(length or units)(item) for item in items])
    outcomes = {number: Outcome() for number in mine}
    stop = threading.Event()
    total = sum(units(items[number]) for number in mine)
    result = Outcome()
    try:
        with progress(total=total, unit=unit) as bar, ThreadPoolExecutor(max(workers, 1)) as pool:

            def advance(by: int) -> None:
                if stop.is_set():
                    raise InterruptedError("stopped")
                bar.update(by)

            def run_one(item: Item, outcome: Outcome) -> None:
                try:
                    if not stop.is_set():
                        job(item, outcome, advance)
                except (InputError, ValueError) as error:
                    outcome.failures.append(f"{name(item)}: {error}")

            futures = [pool.submit(run_one, items[number], outcome) for number, outcome in outcomes.items()]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                for future in futures:
                    if future.done():
                        future.result()
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)
        for others in distributed.all_gather(outcomes):
            outcomes |= others
    finally:
        for _, outcome in sorted(outcomes.items()):
            result.add(outcome)
        if distributed.is_main_process():
            write_list(result.failures, Path(directory, FAILURES))
            write_list([*_earlier_notes(result, Path(directory, NOTES)), *result.notes], Path(directory, NOTES))
    return result


def _earlier_notes(result: Outcome, path: Path) -> list[str]:
    """Notes of an earlier run, which count for as long as some of what it made is kept."""
    before = path.read_text().splitlines() if result.skipped and path.is_file() else []
    return [line for line in before if line not in set(map(one_line, result.notes))]


def write_list(lines: list[str], path: Path) -> None:
    """A file of lines, or none where there are none."""
    if lines:
        write_bytes(path, "".join(f"{one_line(line)}\n" for line in lines).encode())
    else:
        path.unlink(missing_ok=True)


def print_outcome(outcome: Outcome, unit: str, directory: str | Path, next_command: str) -> int:
    """Say how a stage ended and what comes next. Returns the exit status, 0 or 1."""
    counts = f"{outcome.done} {unit} written, {outcome.skipped} were there already, {len(outcome.failures)} failed"
    print(f"{counts}: {directory}")
    for note in outcome.notes[:3]:
        print(f"note: {one_line(note)}")
    if len(outcome.notes) > 3:
        print(f"note: and {len(outcome.notes) - 3} more in {Path(directory, NOTES)}")
    if outcome.failures:
        print(f"failures are listed in {Path(directory, FAILURES)}; the first: {one_line(outcome.failures[0])}")
        return 1
    print(f"next: {next_command}")
    return 0
