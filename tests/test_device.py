"""Devices and precisions. GPUs are simulated here; tests/test_gpu.py uses a real one."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from core.models import active_speakers_context, short_term_encoder
from core.runtime import device as device_module
from core.runtime.checkpoint import on_cpu
from core.runtime.cli import describe_failure
from core.runtime.device import (
    autocast,
    default_precision,
    exact_products,
    fits_on,
    get_device,
    memory_format,
    set_precision,
)
from core.runtime.errors import InputError
from core.training import keep_implementation

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
AMPERE, TURING = (8, 6), (7, 5)


@pytest.fixture
def simulate(monkeypatch):
    """Let this machine have GPUs of a compute capability, with a torch for some architectures."""

    def simulate(capability: tuple[int, int], count: int = 1, built: tuple[str, ...] = ("sm_75", "sm_80", "sm_90a")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Simulated GPU")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built))
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    yield simulate
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True  # torch's defaults


# Devices


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0)])
def test_supported_gpus(simulate, capability):
    simulate(capability)
    assert get_device("0") == GPU


@pytest.mark.parametrize("capability", [(7, 0), (6, 1), (10, 0)])
def test_gpus_that_torch_was_not_built_for_are_refused(simulate, capability):
    simulate(capability)
    arch = f"sm_{capability[0]}{capability[1]}"
    with pytest.raises(InputError, match=rf"does not support Simulated GPU \({arch}\), only sm_75, sm_80, .* pass cpu"):
        get_device("0")


def test_missing_devices(simulate, monkeypatch):
    simulate(AMPERE, count=2)
    with pytest.raises(InputError, match="cuda_device 2: this machine has CUDA devices 0 to 1; pass cpu"):
        get_device("2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES=5,7 shows 2 of the GPUs, which are numbered from 0"):
        get_device("5")


def test_old_driver(simulate, monkeypatch):
    simulate(AMPERE, count=0)
    monkeypatch.setattr(device_module.Path, "exists", lambda path: str(path) == "/dev/nvidia0")
    with pytest.raises(InputError, match="cuda_device 0: torch cannot use the GPU; its driver may be too old"):
        get_device("0")


@pytest.mark.parametrize(("count", "expected"), [(4, 3), (1, 0)])
def test_local_ranks_use_their_own_gpu(simulate, monkeypatch, count, expected):
    """A launcher may also show each rank a single GPU."""
    simulate(AMPERE, count=count)
    monkeypatch.setattr(device_module.distributed, "get_local_rank", lambda: 3)
    assert get_device("0").index == expected
    with pytest.raises(InputError, match="fewer ranks" if count > 1 else "pass cpu"):
        get_device("1")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", "out of memory"),
        ("CUDA error: out of memory", "out of memory"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "out of memory"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "out of memory"),
        ("Caught OutOfMemoryError in pin memory thread for device 0.\nCUDA out of memory", "out of memory"),
        ("Pin memory thread exited unexpectedly", "the GPU failed"),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nFor debugging", "the GPU failed"),
        ("CUDA error: uncorrectable ECC error encountered", "the GPU failed"),
        ("CUDA error: no kernel image is available for execution on the device", "the GPU failed"),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "the GPU failed"),
    ],
)
def test_failures_of_a_gpu_are_one_line(message, expected, capsys):
    text, status = describe_failure(RuntimeError(message))
    assert text.startswith(expected)
    assert "\n" not in text
    assert status == 1
    assert "Traceback" not in capsys.readouterr().err


# Precisions


@pytest.mark.parametrize(
    ("capability", "default", "supported"),
    [(AMPERE, "tf32", {"fp32", "tf32", "bf16", "fp16"}), (TURING, "fp32", {"fp32", "fp16"})],
)
def test_precisions_of_gpus(simulate, capability, default, supported):
    simulate(capability)
    assert default_precision(GPU) == set_precision(None, GPU) == default
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        if precision in supported:
            assert set_precision(precision, GPU) == precision
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is (precision != "fp32")
        else:
            with pytest.raises(InputError, match=f"--precision {precision}: Simulated GPU only has fp32 and fp16"):
                set_precision(precision, GPU)


def test_precisions_of_the_cpu():
    assert set_precision(None, CPU) == "fp32"
    assert set_precision("bf16", CPU) == "bf16"
    for precision in ("tf32", "fp16"):
        with pytest.raises(InputError, match=f"--precision {precision}: the CPU only has fp32 and bf16"):
            set_precision(precision, CPU)


def test_exact_products_without_tf32(simulate):
    simulate(AMPERE)
    set_precision("tf32", GPU)
    with exact_products():
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32


def test_channels_last_where_it_is_faster(simulate):
    assert memory_format(CPU, "fp32") == torch.channels_last
    simulate(AMPERE)
    assert memory_format(GPU, "tf32") == torch.channels_last
    simulate(TURING)
    assert memory_format(GPU, "fp32") == torch.contiguous_format
    assert memory_format(GPU, "fp16") == torch.channels_last


def test_free_memory_includes_what_torch_has_reserved(monkeypatch):
    free, reserved, allocated = 3 << 30, 10 << 30, 1 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 24 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
    assert fits_on(GPU, 9 << 30)
    assert not fits_on(GPU, 11 << 30)
    assert not fits_on(CPU, 1)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lstm_is_in_float32_on_cuda(monkeypatch, dtype):
    """torch runs an LSTM in float16 under autocast on CUDA, also if that is set to bfloat16."""
    calls = []

    def forward(self, sequence):
        calls.append((sequence.dtype, torch.is_autocast_enabled("cuda")))
        return sequence.new_zeros(*sequence.shape[:2], self.hidden_size), None

    monkeypatch.setattr(torch.nn.LSTM, "forward", forward)
    with FakeTensorMode(), torch.device("cuda"):
        network, contexts = active_speakers_context(3, 2), torch.randn(2, 1024, 3, 2)
        torch.set_autocast_dtype("cuda", dtype)
        torch.set_autocast_enabled("cuda", True)
        try:
            assert network.sat.theta(contexts).dtype == dtype
            assert network(contexts).dtype == torch.float32
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert calls == [(torch.float32, False)]


def test_features_in_bf16_have_means_in_float32():
    encoder = short_term_encoder(3).eval()
    with torch.inference_mode(), autocast(CPU, "bf16"):
        features = encoder(torch.randn(2, 1, 13, 12), torch.randn(2, 9, 144, 144))[3]
    assert features.dtype == torch.float32
    assert not torch.equal(features, features.bfloat16().float())


# Checkpoints


def test_checkpoints_have_tensors_on_the_cpu():
    with FakeTensorMode(), torch.device("cuda"):
        model = torch.nn.BatchNorm1d(2)
        state = {
            "model": model.state_dict(),
            "optimizer": {"state": {0: {"step": torch.ones(())}}, "n": [1]},
        }
        saved = on_cpu(state)
    assert {value.device for value in saved["model"].values()} == {CPU}
    assert saved["model"]._metadata == state["model"]._metadata
    assert saved["optimizer"]["state"][0]["step"].device == CPU
    assert saved["optimizer"]["n"] == [1]
    assert state["optimizer"]["state"][0]["step"].device == GPU  # unchanged


def test_optimizers_resume_on_another_kind_of_device():
    def optimizer() -> torch.optim.Adam:
        layer = torch.nn.Linear(2, 2)
        layer(torch.ones(1, 2)).sum().backward()
        result = torch.optim.Adam(layer.parameters(), lr=0.1)
        result.register_load_state_dict_pre_hook(keep_implementation)
        return result

    first, second = optimizer(), optimizer()
    first.step()
    state = first.state_dict()
    state["param_groups"][0] |= {"fused": True, "capturable": True, "lr": 0.01}  # as saved on a GPU
    second.load_state_dict(state)
    second.step()
    assert second.param_groups[0]["fused"] is None
    assert not second.param_groups[0]["capturable"]
    assert second.param_groups[0]["lr"] == 0.01
