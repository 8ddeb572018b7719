"""The progress bar of all scripts."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

from core.runtime.distributed import is_main_process


def progress(items: Iterable | None = None, **options) -> tqdm:
    """tqdm on rank 0, updated every ten seconds if stderr is not a terminal. Takes tqdm's options."""
    interval = 0.1 if sys.stderr.isatty() else 10
    options |= {"dynamic_ncols": True, "mininterval": interval, "miniters": 1, "disable": not is_main_process()}
    return tqdm(items, **options)
