"""Work that runs ahead in threads."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item], threads: int = 1) -> Iterator[Result]:
    """Yield `function(item)` of each item, in order, computed ahead by threads: at most two items for each of them.

    The items themselves are read in the caller's thread. With 0 threads, results are computed when they are needed.
    """
    if not threads:
        yield from map(function, items)
        return
    items = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        ahead = deque(pool.submit(function, item) for item in itertools.islice(items, 2 * threads))
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
            yield result
