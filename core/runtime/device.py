"""Device, precision, seeds and weights: what every stage with a network needs."""

import contextlib
import ctypes
import hashlib
import warnings
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn

from core.runtime import distributed
from core.runtime.errors import InputError
from core.runtime.files import require_file

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def get_device(name: str) -> torch.device:
    """`cpu`, or the CUDA device of that number, counted on by a rank's number on its machine.

    Raises InputError where there is none: never a silent fall-back.
    """
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(name) + distributed.get_local_rank()
    if number >= count:
        have = f"CUDA devices 0 to {count - 1} are here" if count else "no CUDA device is here"
        advice = "pass cpu to run on the CPU"
        if local := distributed.get_local_rank():
            have, advice = f"for local rank {local} {have}", "start fewer ranks, each of which sees all devices"
        raise InputError(f"cuda_device {name}: {have}; {advice}")
    torch.cuda.set_device(number)  # else helpers such as the thread that pins memory open the first one too
    return torch.device("cuda", number)


def tune_malloc() -> None:
    """Have glibc keep what is freed for the next step, instead of giving it back and fetching it page by page.

    Activations come and go by the hundred megabytes; without this a quarter of a step goes into page faults. Call it
    once all input is read, so that what reading took is given back.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library keeps its own ways
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 64 << 20)


def device_label(device: torch.device) -> str:
    cuda = device.type == "cuda"
    label = f"{device} ({torch.cuda.get_device_name(device) if cuda else f'{torch.get_num_threads()} threads'})"
    return label if distributed.get_world_size() == 1 else f"{distributed.get_world_size()} ranks, the first on {label}"


def free_device_memory(device: torch.device) -> int:
    """Bytes that are free on a CUDA device; 0 for the CPU, whose memory the page cache uses already."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def seed_torch(seed: int) -> None:
    """Seed torch, for the initial weights. Data is drawn by (seed, epoch, row) and knows no global state."""
    torch.manual_seed(seed)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Automatic mixed precision in bfloat16 for `bf16`, nothing for `fp32`."""
    return torch.amp.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def input_dtype(precision: str) -> torch.dtype:
    """What images are stored as on the device: what the first layer would cast them to."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def load_checkpoint(path: Path) -> dict:
    """A dictionary of tensors and plain values on the CPU; code in the file is refused, not run. Raises InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd files, which are refused for what they lack
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch takes apart a file that may hold anything
        reason = str(error).strip().splitlines()
        raise InputError(f"{path}: not a file of weights ({reason[0][:100] if reason else 'cut off'})") from None
    if not isinstance(state, dict):
        raise InputError(f"{path}: not a file of weights ({type(state).__name__}, expected a state_dict)")
    return state


def load_weights(model: nn.Module, path: str | Path, hint: str) -> str:
    """Load a bare state_dict strictly; return the SHA-256 of the file.

    Raises InputError that names the first parameter that does not fit, with `hint` on the likely reason.
    """
    made = "STE_train.py and ASC_train.py make <epoch>.pth"
    path = require_file(path, f"weights; bash scripts/downloads.sh weights fetches the published ones, {made}")
    state = load_checkpoint(path)
    if "optimizer" in state:
        raise InputError(f"{path}: the state of a training run; the weights are in <epoch>.pth beside it")
    own = model.state_dict()
    for name, value in own.items():
        found = state.get(name)
        if not isinstance(found, torch.Tensor):
            raise InputError(f"{path}: no parameter {name}, so these are weights of another network")
        if found.shape != value.shape:
            shapes = f"{tuple(found.shape)}, expected {tuple(value.shape)}"
            raise InputError(f"{path}: {name} has shape {shapes}: {hint}")
    surplus = [name for name in state if name not in own]
    if surplus:
        raise InputError(f"{path}: surplus parameter {surplus[0]}, so these are weights of another network")
    model.load_state_dict(state)
    return sha256(path)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
