"""Ranks: the processes that work on one stage together, started by torchrun or srun.

A process is rank 0 of 1 until `process_group` has connected it to the others, so scripts for one process ignore the
environment of a launcher. If a rank dies, torchrun, `srun --kill-on-bad-exit` or a failing collective ends the others.
"""

import contextlib
import ctypes
import functools
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from core.runtime.errors import InputError, RunError, first_line

if TYPE_CHECKING:
    import torch

# Timeouts for a rank that disappears without closing its connection (a node that loses power).
CONNECT_TIMEOUT = timedelta(minutes=5)  # until all ranks have started
STAGE_TIMEOUT = timedelta(days=1)  # while each rank works on its own videos
STEP_TIMEOUT = timedelta(minutes=10)  # between training steps
_connected = False
Value = TypeVar("Value")


def get_rank() -> int:
    return int(os.environ["RANK"]) if _connected else 0


def get_world_size() -> int:
    return int(os.environ["WORLD_SIZE"]) if _connected else 1


def get_local_rank() -> int:
    """Number of this rank on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0)) if _connected else 0


def is_main_process() -> bool:
    """True for rank 0, which alone prints and writes shared files."""
    return get_rank() == 0


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Connect to the other ranks, and wait for them at the end. Without a launcher, do nothing.

    The group uses gloo, for small messages between hosts; `core.training.parallel` makes one for gradients. Raises
    InputError for an incomplete environment and RunError if the ranks cannot connect.
    """
    global _connected
    if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        yield
        return
    from torch import distributed

    end_with_parent()
    try:
        store, rank, world_size = next(distributed.rendezvous("env://", timeout=CONNECT_TIMEOUT))
        store = distributed.PrefixStore(_fresh_prefix(store, rank, world_size), store)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=STAGE_TIMEOUT)
    except (ValueError, KeyError) as error:
        raise InputError(f"incomplete environment of a rank ({first_line(error)}); start this with torchrun") from None
    except RuntimeError as error:
        raise RunError(f"the ranks could not connect: {first_line(error)}") from None
    _connected = True
    if not is_main_process():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    yield
    wait_for_all()
    distributed.destroy_process_group()
    _connected = False


def _fresh_prefix(store: "torch.distributed.Store", rank: int, world_size: int) -> str:
    """Agree on a key prefix, since torchrun keeps its store, with the addresses of dead ranks, across restarts.

    Each rank publishes a nonce, which rank 0 answers with the prefix until all ranks have acknowledged it.
    """
    if rank > 0:
        nonce = secrets.token_hex(8)
        store.set(f"nonce/{rank}", nonce)
        prefix = store.get(nonce).decode()
        store.set(f"{prefix}/{rank}", "")
        return prefix
    prefix, deadline = f"start/{store.add('starts', 1)}", time.monotonic() + CONNECT_TIMEOUT.total_seconds()
    while not store.check([f"{prefix}/{other}" for other in range(1, world_size)]):
        for other in range(1, world_size):
            if store.check([f"nonce/{other}"]):
                store.set(store.get(f"nonce/{other}").decode(), prefix)
        if time.monotonic() > deadline:
            raise RuntimeError(f"not all {world_size} ranks started within {CONNECT_TIMEOUT}")
        time.sleep(0.01)
    return prefix


def end_with_parent() -> None:
    """Have Linux kill this process when its parent dies."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def on_main(function: Callable[..., Value]) -> Callable[..., Value]:
    """Decorator: rank 0 alone calls the function, and all ranks return its result or raise its error."""

    @functools.wraps(function)
    def call(*args, **options):
        if get_world_size() == 1:
            return function(*args, **options)
        from torch import distributed

        answer: list = [None, None]
        if is_main_process():
            try:
                answer[0] = function(*args, **options)
            except (InputError, RunError, OSError) as error:
                answer[1] = error
        distributed.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    return call


def all_gather(value: Value) -> list[Value]:
    """Return the values of all ranks, in order of rank."""
    values: list = [value] * get_world_size()
    if get_world_size() > 1:
        from torch import distributed

        distributed.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    all_gather(None)


def local_items(costs: Sequence[float]) -> list[int]:
    """Return the indices of this rank's items, in increasing order, given the cost of every item."""
    return sorted(on_main(partition)(costs, get_world_size())[get_rank()])


def partition(costs: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Split items into one list per rank: each item, the most expensive first, to the rank with the lowest total."""
    result: list[list[int]] = [[] for _ in range(num_ranks)]
    totals = [0.0] * num_ranks
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        rank = min(range(num_ranks), key=lambda rank: (totals[rank], len(result[rank])))
        totals[rank] += costs[item]
        result[rank].append(item)
    return result


def require_same(what: str, value: Callable[[], object]) -> None:
    """Raise InputError if the value is not the same on all ranks. Not computed for a single process."""
    values = all_gather(value()) if get_world_size() > 1 else []
    for rank, other in enumerate(values):
        if other != values[0]:
            raise InputError(f"{what} differ between rank 0 and rank {rank}; are all paths on a shared disk?")
