"""Ranks: the processes that do one stage together, on one machine or on many, as torchrun or srun starts them.

Each is told who it is by its environment: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. Without these a
process is rank 0 of 1, and nothing in here starts, waits or imports torch.
"""

import contextlib
import ctypes
import functools
import heapq
import inspect
import json
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn, TypeVar

from core.runtime.errors import InputError, RunError

if TYPE_CHECKING:
    import torch
    from torch import nn

# A rank that dies is noticed by its connection, at once. How long to wait for one whose machine is gone without a word:
STAGE_TIMEOUT = timedelta(days=1)  # where ranks have films of their own, which take what they take
STEP_TIMEOUT = timedelta(minutes=10)  # where they go in step
CONNECT_TIMEOUT = timedelta(minutes=5)  # for all ranks to be started
NO_TIMEOUT = timedelta(days=3650)
_LOST = "another rank has died or cannot be reached"
_group: "torch.distributed.ProcessGroup | None" = None  # of gloo, of all ranks
_watched: "torch.distributed.ProcessGroup | None" = None  # where a rank says that it ends, and with which status
_ending = threading.Lock()
RANK_0_GRACE_SECONDS = 0.5  # seconds in which rank 0 alone says a cause, as it may be that of all
TORCHRUN_GRACE_SECONDS = (
    2  # seconds in which torchrun ends those who have only lost another, and names that one as the cause
)
WATCHER_GRACE_SECONDS = 10  # seconds in which those who watch find out more than an operation that failed
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
Value = TypeVar("Value")


# Who is who


def get_rank() -> int:
    """Number of this process among all, from 0."""
    return _number("RANK", 0) if get_world_size() > 1 else 0


def get_world_size() -> int:
    """How many processes there are."""
    return max(_number("WORLD_SIZE", 1), 1)


def get_local_rank() -> int:
    """Number of this process among those on its machine, from 0."""
    return _number("LOCAL_RANK", 0) if get_world_size() > 1 else 0


def is_main_process() -> bool:
    """Whether this is rank 0, which alone prints and writes what there is one of."""
    return get_rank() == 0


def _number(name: str, default: int) -> int:
    return int(text) if _is_number(text := os.environ.get(name, "")) else default


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Meet the other ranks, and wait for them at the end; alone, nothing.

    The group is of gloo, for small things between hosts; gradients on CUDA go through the one that `parallel` makes.
    Raises InputError where the environment is not that of a rank.
    """
    global _group, _watched
    told = {name: os.environ.get(name) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        if told[name] and not _is_number(told[name]):
            raise InputError(f"the environment variable {name} is {told[name]!r}, not a number; torchrun sets it")
    if get_world_size() == 1:
        yield
        return
    absent = [name for name in told if not told[name]]
    if absent:
        problem = f"WORLD_SIZE is {told['WORLD_SIZE']}, but {absent[0]} is not set"
        raise InputError(f"{problem}; start this with torchrun, which sets all of them, or unset WORLD_SIZE")
    if get_rank() >= get_world_size():
        raise InputError(f"RANK is {told['RANK']}, but WORLD_SIZE only {told['WORLD_SIZE']}")
    from torch import distributed

    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    place = f"{told['MASTER_ADDR']}:{told['MASTER_PORT']}"
    try:
        store, rank, world_size = next(distributed.rendezvous("env://", timeout=CONNECT_TIMEOUT))
        store = distributed.PrefixStore(_meet(store, rank, world_size), store)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=CONNECT_TIMEOUT)
        _watched = distributed.new_group(backend="gloo", timeout=NO_TIMEOUT)
        watchers = [threading.Thread(target=_watch, args=(other,), daemon=True) for other in _others()]
        for watcher in watchers:
            watcher.start()
        _group = distributed.new_group(backend="gloo", timeout=STAGE_TIMEOUT)
    except ValueError as error:
        raise InputError(f"MASTER_ADDR and MASTER_PORT are {place}: {error}") from None
    except RuntimeError as error:
        raise RunError(f"the {get_world_size()} ranks did not all meet at {place}: {_reason(error)}") from None
    yield
    wait_for_all()
    for other in _others():
        _send(0, other)
    for watcher in watchers:
        watcher.join()
    _watched = None
    distributed.destroy_process_group()


def _others() -> Sequence[int]:
    """Whom this rank watches: rank 0 all, and all of them rank 0."""
    return range(1, get_world_size()) if is_main_process() else [0]


def _watch(other: int) -> None:
    """End this rank when another one ends, whatever this one is at.

    The other sends its status, 0 at the orderly end of all; it has said why. Where the connection breaks, it has not.
    """
    import torch
    from torch import distributed

    status = torch.zeros(1, dtype=torch.int64)
    try:
        distributed.recv(status, other, group=_watched)
    except RuntimeError as error:
        time.sleep(TORCHRUN_GRACE_SECONDS)
        _exit_all(
            lost_rank(error) or str(error) if get_rank() < 2 else None, 1
        )  # rank 1 speaks for all who lost rank 0
    if status.item():
        _exit_all(None, int(status.item()), told_by=other)


def _send(status: int, other: int) -> None:
    import torch
    from torch import distributed

    with contextlib.suppress(RuntimeError):  # it may be gone
        distributed.send(torch.tensor([status]), other, group=_watched)


def _meet(store: "torch.distributed.Store", rank: int, world_size: int) -> str:
    """A name for this start that all ranks agree on.

    torchrun keeps one store through its restarts, and the addresses that dead ranks left in it lead nowhere. So each
    rank says hello by a word of its own, rank 0 answers it with the name, and waits until all have heard.
    """
    if rank > 0:
        word = secrets.token_hex(8)
        store.set(f"hello/{rank}", word)
        name = store.get(word).decode()
        store.set(f"{name}/{rank}", "heard")
        return name
    name, waiting, end = (
        str(store.add("starts", 1)),
        set(range(1, world_size)),
        time.monotonic() + CONNECT_TIMEOUT.seconds,
    )
    while waiting:
        if time.monotonic() > end:
            raise RuntimeError(f"no word of rank {min(waiting)} in {CONNECT_TIMEOUT.seconds} s")
        for other in sorted(waiting):
            if store.check([f"hello/{other}"]):
                store.set(store.get(f"hello/{other}").decode(), name)
            if store.check([f"{name}/{other}"]):
                waiting.remove(other)
        time.sleep(0.01)
    return name


def end_with_parent() -> None:
    """Have Linux kill this process when the one that started it dies, however that may be."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


# What ranks tell each other


def on_main(function: Callable[..., Value]) -> Callable[..., Value]:
    """The function called by rank 0 alone, and what it returns, or raises, given to all; a decorator too."""

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
        distributed.broadcast_object_list(answer, src=0, group=_group)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    return call


def all_gather(value: Value) -> list[Value]:
    """The values of all ranks, by rank."""
    if get_world_size() == 1:
        return [value]
    from torch import distributed

    values: list = [None] * get_world_size()
    distributed.all_gather_object(values, value, group=_group)
    return values


def wait_for_all() -> None:
    """Wait until all ranks have come here."""
    all_gather(None)


def local_items(lengths: Sequence[float]) -> list[int]:
    """Which of some items, whose lengths these are, this rank is to take, in order."""
    return sorted(on_main(partition)(lengths, get_world_size())[get_rank()])


def partition(lengths: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Items by their lengths into so many num_ranks that end at about the same time.

    The longest is given out first, each to the hand that holds the least so far.
    """
    result: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [(0.0, 0, hand) for hand in range(num_ranks)]
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        load, count, hand = loads[0]
        heapq.heapreplace(loads, (load + lengths[item], count + 1, hand))
        result[hand].append(item)
    return result


def require_even_batch(batch_size: int) -> None:
    """Raise InputError where the samples of a step cannot be split evenly over the ranks."""
    world_size = get_world_size()
    if rest := batch_size % world_size:
        near = " or ".join(str(size) for size in (batch_size - rest, batch_size - rest + world_size) if size)
        problem = f"a batch of {batch_size} over {world_size} ranks leaves a remainder of {rest}"
        raise InputError(f"{problem}; pass --batch-size {near}, or start another number of ranks")


def require_same(what: str, value: Callable[[], object]) -> None:
    """Raise InputError where the value that the function gives is not the same on all ranks; alone, nothing."""
    values = all_gather(value()) if get_world_size() > 1 else []
    for rank, other in enumerate(values):
        if other != values[0]:
            raise InputError(f"rank {rank} sees other {what} than rank 0; is every path on a disk that all share?")


# Networks


def parallel(network: "nn.Module", device: "torch.device") -> "nn.Module":
    """The network wrapped such that gradients are averaged over the ranks; alone, the network as it is.

    On CUDA its batch norms become synchronised ones, in place; parameters and their names stay.
    """
    if get_world_size() == 1:
        return network
    from torch import distributed
    from torch.nn import SyncBatchNorm
    from torch.nn.parallel import DistributedDataParallel

    if device.type != "cuda":
        return DistributedDataParallel(
            network, process_group=distributed.new_group(backend="gloo", timeout=STEP_TIMEOUT)
        )
    bound = "device_id" in inspect.signature(distributed.new_group).parameters  # else NCCL takes it from the tensors
    group = distributed.new_group(backend="nccl", timeout=STEP_TIMEOUT, **({"device_id": device} if bound else {}))
    SyncBatchNorm.convert_sync_batchnorm(network, group)
    return DistributedDataParallel(network, device_ids=[device.index], process_group=group)


def share_buffers(network: "nn.Module") -> None:
    """Give all ranks rank 0's buffers, what its batch norm has seen: they are not learned, so nothing else does."""
    if get_world_size() == 1:
        return
    from torch import distributed

    for buffer in network.buffers():
        distributed.broadcast(buffer, 0, group=network.process_group)


# Ends


def report_failure(cause: str, status: int) -> None:
    """Say why this rank ends; one of several ends then, and all others with it, who say nothing.

    What rank 0 says first is not said again, as it is mostly the cause of all.
    """
    if get_world_size() > 1:
        if cause.startswith(_LOST):
            time.sleep(WATCHER_GRACE_SECONDS)
        elif not is_main_process():
            time.sleep(RANK_0_GRACE_SECONDS)
        if _watched is not None:
            _exit_all(cause, status)
    log_error(cause)


def abort_all(status: int) -> None:
    """End one of several ranks, and all others with it; alone, nothing."""
    if _watched is not None:
        if not is_main_process():
            time.sleep(WATCHER_GRACE_SECONDS)  # rank 0 leaves too, and ends this one
        _exit_all(None, status)


def log_error(cause: str) -> None:
    """Print it, and note it for torchrun's summary."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with contextlib.suppress(OSError), open(path, "w") as file:
            extra = {"py_callstack": cause, "timestamp": str(int(time.time()))}  # the first is what is shown
            json.dump({"message": {"message": cause, "extraInfo": extra}}, file)
    rank = "" if is_main_process() else f"rank {get_rank()}: "
    print(f"error: {rank}{cause}", file=sys.stderr, flush=True)


def _exit_all(cause: str | None, status: int, told_by: int | None = None) -> NoReturn:
    """End this rank at once, as a device that waits for the others would hold up an orderly end."""
    with _ending:  # for good: no other thread comes after
        if cause is not None:
            log_error(cause)
        for other in _others():
            if other != told_by:
                _send(status, other)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def lost_rank(error: Exception) -> str | None:
    """One line for what torch says where ranks cannot speak any more, mostly for a dead one; None for anything else."""
    text = str(error)
    if get_world_size() == 1 or not ("gloo" in text or "NCCL" in text or type(error).__name__.startswith("Dist")):
        return None
    if "NCCL" in text and not re.search("remote|closed|reset|timed out|timeout", text, re.IGNORECASE):
        return f"NCCL failed: {text.strip().splitlines()[-1]} (NCCL_DEBUG=INFO tells more)"
    return f"{_LOST} ({_reason(error)}); if it left no line here, the system may have killed it: see torchrun's summary"


def _reason(error: Exception) -> str:
    """What torch says, without the place in its source and its good wishes."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[[^]]*\] ", "", lines[0]).partition(". ")[0]
