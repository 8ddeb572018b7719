"""Many films at once: a pool of threads, a progress bar, and a list of what failed while the rest went on.

Threads are enough: decoding, encoding and ffmpeg leave Python free while they work.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from core.errors import InputError
from core.io import write_bytes
from core.progress import progress

FAILURES = "failures.txt"
Item = TypeVar("Item")


@dataclass
class Outcome:
    """What became of a job's units (rows, tracks, films)."""

    done: int = 0
    skipped: int = 0  # were there already
    failures: list[str] = field(default_factory=list)  # one line each: what, and why


def run_jobs(
    job: Callable[[Item, Callable[[int], None]], Outcome],
    items: Iterable[Item],
    name: Callable[[Item], str],
    total: int,
    unit: str,
    workers: int,
) -> Outcome:
    """Run `job(item, advance)` for every item, `workers` at a time; `advance(n)` moves the bar, of `total` units.

    A job that raises InputError or ValueError is a failure of that item alone. Anything else ends the run.
    """
    result, stop = Outcome(), threading.Event()
    with progress(total=total, unit=unit) as bar, ThreadPoolExecutor(max(workers, 1)) as pool:

        def advance(units: int) -> None:
            if stop.is_set():
                raise InterruptedError("stopped")
            bar.update(units)

        def run_one(item: Item) -> Outcome:
            try:
                return Outcome() if stop.is_set() else job(item, advance)
            except (InputError, ValueError) as error:
                return Outcome(failures=[f"{name(item)}: {error}"])

        futures = [pool.submit(run_one, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done():
                    outcome = future.result()
                    result.done += outcome.done
                    result.skipped += outcome.skipped
                    result.failures += outcome.failures
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return result


def report(outcome: Outcome, unit: str, directory: str | Path, next_command: str) -> int:
    """Say how a stage ended and what comes next; list its failures in a file. Returns the exit status, 0 or 1."""
    path = Path(directory, FAILURES)
    counts = f"{outcome.done} {unit} written, {outcome.skipped} were there already, {len(outcome.failures)} failed"
    print(f"{counts}: {directory}")
    if outcome.failures:
        write_bytes(path, "".join(f"{line}\n" for line in outcome.failures).encode())
        print(f"failures are listed in {path}; the first: {outcome.failures[0]}")
        return 1
    path.unlink(missing_ok=True)
    print(f"next: {next_command}")
    return 0
