"""The one progress bar: lively on a terminal, a line every ten seconds in a log."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress(items: Iterable | None = None, **options) -> tqdm:
    """`tqdm(items, **options)`; total, desc and unit are the usual options."""
    interval = 0.1 if sys.stderr.isatty() else 10
    return tqdm(items, dynamic_ncols=True, mininterval=interval, miniters=1, **options)
