"""Device and precision of a network."""

import contextlib
import ctypes
from contextlib import AbstractContextManager

import torch
from torch import nn

from core.runtime import distributed
from core.runtime.errors import InputError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def get_device(name: str) -> torch.device:
    """Return the CPU for `cpu`, else the CUDA device with this number plus the local rank.

    Raises InputError if the device does not exist; there is no fallback to the CPU.
    """
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(name) + distributed.get_local_rank()
    if number >= count:
        found = f"this machine has CUDA devices 0 to {count - 1}" if count else "this machine has no CUDA device"
        advice = "pass cpu to run on the CPU"
        if local := distributed.get_local_rank():
            found, advice = f"{found}, too few for local rank {local}", "start fewer ranks"
        raise InputError(f"cuda_device {name}: {found}; {advice}")
    torch.cuda.set_device(number)  # otherwise threads such as the one that pins memory would also use device 0
    return torch.device("cuda", number)


def tune_malloc() -> None:
    """Make glibc keep freed memory instead of returning it to the system.

    Activations of hundreds of megabytes are allocated in every step; page faults would take a quarter of its time on a
    CPU. Call this after reading inputs, so that the memory for reading is returned.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 64 << 20)


def device_label(device: torch.device) -> str:
    """Return the name of the device and the number of threads or ranks, for messages."""
    cuda = device.type == "cuda"
    label = f"{device} ({torch.cuda.get_device_name(device) if cuda else f'{torch.get_num_threads()} threads'})"
    return label if distributed.get_world_size() == 1 else f"{distributed.get_world_size()} ranks, the first on {label}"


def free_device_memory(device: torch.device) -> int:
    """Return the free memory of a CUDA device in bytes; 0 for the CPU, where the page cache keeps files in memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Automatic mixed precision with bfloat16 for `bf16`; no effect for `fp32`."""
    return torch.amp.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def input_dtype(precision: str) -> torch.dtype:
    """Data type of images on the device, which is that of the first layer under `autocast`."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
