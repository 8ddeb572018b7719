"""The one progress bar: lively on a terminal, a line every ten seconds in a log; of several ranks, rank 0's."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

from core.runtime.distributed import is_main_process


def progress(items: Iterable | None = None, **options) -> tqdm:
    """`tqdm(items, **options)`; total, desc and unit are the usual options."""
    interval = 0.1 if sys.stderr.isatty() else 10
    options |= {"dynamic_ncols": True, "mininterval": interval, "miniters": 1, "disable": not is_main_process()}
    return tqdm(items, **options)
