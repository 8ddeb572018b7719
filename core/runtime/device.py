"""Device and precision of a network."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn

from core.runtime import distributed
from core.runtime.errors import InputError

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
_WORKING_MEMORY = 2 << 30  # bytes; more than training the context network takes


def get_device(name: str) -> torch.device:
    """Return the CPU for `cpu`, else the CUDA device with this number plus the local rank.

    Some launchers make a single GPU visible to each rank, which is then device 0. Raises InputError if the device does
    not exist or cannot be used; there is no fallback to the CPU.
    """
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local_rank = distributed.get_local_rank() if count > 1 else 0
    number = int(name) + local_rank
    if number >= count:
        found, advice = f"this machine has CUDA devices 0 to {count - 1}", "pass cpu to run on the CPU"
        if count and (visible := os.environ.get("CUDA_VISIBLE_DEVICES")):
            found = f"CUDA_VISIBLE_DEVICES={visible} shows {count} of the GPUs, which are numbered from 0"
        elif not count and Path("/dev/nvidia0").exists():
            found = (
                f"torch cannot use the GPU; its driver may be too old for CUDA {torch.version.cuda} (see nvidia-smi)"
            )
        elif not count:
            found = "this machine has no CUDA device"
        if local_rank:
            found, advice = f"{found}, too few for local rank {local_rank}", "start fewer ranks"
        raise InputError(f"cuda_device {name}: {found}; {advice}")
    major, minor = torch.cuda.get_device_capability(number)
    built = [divmod(int(arch[3:].rstrip("af")), 10) for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")]
    if built and not any(major == other and minor >= least for other, least in built):
        gpu = f"{torch.cuda.get_device_name(number)} (sm_{major}{minor})"
        supported = ", ".join(torch.cuda.get_arch_list())
        advice = "install a torch that supports it, or pass cpu to run on the CPU"
        raise InputError(f"cuda_device {name}: this torch does not support {gpu}, only {supported}; {advice}")
    torch.cuda.set_device(number)  # otherwise threads such as the one that pins memory would also use device 0
    return torch.device("cuda", number)


def default_precision(device: torch.device) -> str:
    """Return `tf32` for GPUs that have it (Ampere and newer), else `fp32`."""
    return "tf32" if _is_ampere(device) else "fp32"


def set_precision(precision: str | None, device: torch.device) -> str:
    """Set the precision of matrix products and convolutions, and return its name; None is the default.

    fp32 is strict float32. tf32 rounds the factors of products on the GPU to 10 bits. With bf16 and fp16, most layers
    run in 16 bits, see `autocast`. Raises InputError if the device does not have this precision.
    """
    precision = precision or default_precision(device)
    supported = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "fp16")}[device.type]
    if _is_ampere(device):
        supported = PRECISIONS
    if precision not in supported:
        name = "the CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
        raise InputError(f"--precision {precision}: {name} only has {' and '.join(supported)}")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    return precision


def _is_ampere(device: torch.device) -> bool:
    """True for a GPU with the arithmetic of NVIDIA's Ampere or a newer generation."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def memory_format(device: torch.device, precision: str) -> torch.memory_format:
    """Return the memory format of images in which convolutions are faster."""
    is_slower = device.type == "cuda" and precision == "fp32" and not _is_ampere(device)
    return torch.contiguous_format if is_slower else torch.channels_last


def move_to(device: torch.device, model: nn.Module, image_format: torch.memory_format) -> nn.Module:
    """Move a network to a device, with the weights of its 2D convolutions in the format. Returns the network."""
    model.to(device)
    for parameter in model.parameters():
        if parameter.ndim == 4:  # Module.to() would fail for weights of 3D convolutions
            parameter.data = parameter.data.to(memory_format=image_format)
    return model


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Compute on the CPU in one thread, which is faster for small tensors, above all on shared cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Compute matrix products in float32, also where the precision allows TF32."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def device_label(device: torch.device) -> str:
    """Return the name of the device and the number of threads or ranks, for messages."""
    cuda = device.type == "cuda"
    label = f"{device} ({torch.cuda.get_device_name(device) if cuda else f'{torch.get_num_threads()} threads'})"
    return label if distributed.get_world_size() == 1 else f"{distributed.get_world_size()} ranks, the first on {label}"


def fits_on(device: torch.device, num_bytes: int) -> bool:
    """True if a CUDA device has free memory for this many bytes and for training the context network.

    False for the CPU, where the page cache keeps files in memory.
    """
    if device.type == "cpu":
        return False
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # free for new tensors
    return num_bytes + _WORKING_MEMORY < torch.cuda.mem_get_info(device)[0] + cached


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Automatic mixed precision with bfloat16 for `bf16` and float16 for `fp16`; no effect for `fp32` and `tf32`."""
    dtype = input_dtype(precision)
    return torch.amp.autocast(device.type, dtype, enabled=dtype != torch.float32)


def input_dtype(precision: str) -> torch.dtype:
    """Data type of images on the device, which is that of the first layer under `autocast`."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def peak_memory(device: torch.device) -> str:
    """Return the peak of allocated GPU memory in words, for messages; nothing for the CPU."""
    if device.type == "cpu":
        return ""
    return f" (GPU memory: {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB)"


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
