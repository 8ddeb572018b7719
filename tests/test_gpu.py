"""Both networks and their stages on a CUDA device: run with `pytest -m gpu`. Skipped where there is none."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, printed, run_script, wait_for
from stages import make_inputs
from tiny_inputs import Track, digests, faces_of, noise_features, write_store

from core.datasets import ASCDataset
from core.formats.features import FeatureStore
from core.inference import async_to_cpu
from core.loaders import to_device
from core.models import active_speakers_context, short_term_encoder
from core.runtime.device import autocast, get_device, memory_format, set_precision
from core.training import asc_losses, ste_losses
from core.transforms import augment, draw_augmentation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CPU, T = torch.device("cpu"), 11


@pytest.fixture(autouse=True)
def device():
    device = get_device("0")
    yield device
    torch.cuda.empty_cache()


def require(precision: str, device: torch.device) -> None:
    if precision in ("tf32", "bf16") and torch.cuda.get_device_capability(device) < (8, 0):
        pytest.skip(f"{torch.cuda.get_device_name(device)} has no {precision}")
    set_precision(precision, device)


def clips(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Audio (B, 1, 13, 40) and video (B, 33, 144, 144) of normalised noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 13, 40, generator=generator), torch.randn(count, 3 * T, 144, 144, generator=generator)


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.cpu().float() - expected).abs().max() / expected.abs().max())


# Networks


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("tf32", 2e-2), ("bf16", 5e-2), ("fp16", 2e-2)])
@torch.inference_mode()
def test_networks_equal_those_on_the_cpu(device, precision, tolerance):
    require(precision, device)
    torch.manual_seed(0)
    encoder, network = short_term_encoder(T).eval(), active_speakers_context(11, 3).eval()
    audio, video = clips(4)
    contexts = torch.randn(4, 1024, 11, 3).abs()
    expected = [*encoder(audio, video), network(contexts)]
    encoder.to(device, memory_format=memory_format(device, precision))
    network.to(device)
    with autocast(device, precision):
        found = [*encoder(audio.to(device), video.to(device)), network(contexts.to(device))]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert relative_difference(one, other) < tolerance


def test_lstm_is_trained_in_float32(device):
    """Gradients of the LSTM in bf16 are near those in fp32; in float16 many would vanish."""
    require("bf16", device)
    torch.manual_seed(0)
    network = active_speakers_context(11, 3).to(device)
    batch = {
        "features": torch.randn(64, 1024, 11, 3, device=device).abs(),
        "label": torch.arange(64, device=device) % 2,
    }
    dtypes = []
    network.lstm.register_forward_hook(lambda module, inputs, outputs: dtypes.append(outputs[0].dtype))
    gradients = []
    for precision in ("fp32", "bf16"):
        set_precision(precision, device)
        network.zero_grad()
        with autocast(device, precision):
            losses, _ = asc_losses(network, batch)
        losses["av"].backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.lstm.parameters()]).cpu())
    assert dtypes == [torch.float32] * 2
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


def test_augmentation_equals_that_on_the_cpu(device):
    require("tf32", device)  # must not round the products
    crops = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 3, 3, 144, 144)).astype(np.uint8))
    draws = [draw_augmentation(3, np.random.default_rng(seed)) for seed in range(40)]
    batch = {name: torch.from_numpy(np.stack([draw[name] for draw in draws])) for name in draws[0]}
    assert torch.equal(augment(crops.to(device), **batch).cpu(), augment(crops, **batch))


def test_memory_of_a_training_step(device):
    """128 clips, as by default, fit a GPU with 6 GB beside a desktop."""
    set_precision(None, device)
    encoder = short_term_encoder(T).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(encoder.parameters(), fused=True)
    torch.cuda.reset_peak_memory_stats(device)
    draws = [draw_augmentation(T, np.random.default_rng(seed)) for seed in range(128)]
    batch = {
        "video": torch.zeros(128, T, 3, 144, 144, dtype=torch.uint8),
        "audio": torch.zeros(128, 1, 13, 40),
        "label": torch.arange(128) % 2,
        "audio_label": torch.arange(128) % 2,
        **{name: torch.from_numpy(np.stack([draw[name] for draw in draws])) for name in draws[0]},
    }
    for _ in range(2):
        losses, _ = ste_losses(encoder, to_device(batch, device, torch.channels_last))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert torch.cuda.max_memory_allocated(device) < 3 << 30


def test_steps_do_not_wait_for_the_gpu(device):
    set_precision(None, device)
    network = active_speakers_context(11, 3).to(device)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    batch = {"features": torch.randn(64, 1024, 11, 3).pin_memory(), "label": (torch.arange(64) % 2).pin_memory()}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            losses, _ = asc_losses(network, to_device(batch, device, torch.channels_last))
            optimizer.zero_grad()
            losses["av"].backward()
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_results_are_copied_while_the_gpu_computes(device):
    values = [torch.full((256, 1024), float(number), device=device) for number in range(50)]
    busy = torch.randn(4096, 4096, device=device)

    def batches():
        for number, value in enumerate(values):
            _ = busy @ busy
            yield np.array([number]), value

    for (rows, found), value in zip(async_to_cpu(batches(), device), values, strict=True):
        assert rows[0] == value[0, 0].item()
        np.testing.assert_array_equal(found, value.cpu().numpy())


def test_features_on_the_gpu(device, tmp_path, monkeypatch):
    store = FeatureStore(write_store(tmp_path, faces_of([Track("a:1", "01" * 20), Track("a:2", "10" * 20)])))
    dataset = ASCDataset(store, 5, 2, 2, seed=0)
    keys = [(0, row) for row in range(len(dataset))]
    expected = dataset.__getitems__(keys)["features"]
    store.cache_on(device, np.arange(len(dataset)))
    found = dataset.__getitems__(keys)["features"]
    assert found.is_cuda
    assert torch.equal(found.cpu(), expected)


@pytest.mark.slow
def test_features_beyond_32_bit_indices(device):
    """A table of more than 2^31 values, as AVA's features are."""
    rows = (1 << 31) // 1024 + 1000
    if torch.cuda.mem_get_info(device)[0] < rows * 4096 + (2 << 30):
        pytest.skip("needs 11 GB of GPU memory")
    table = torch.zeros(rows, 1024, device=device)
    table[-1] = torch.arange(1024, device=device)
    assert torch.equal(table[torch.tensor([[0, rows - 1]], device=device)][0, 1], table[-1])


# Stages


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    tracks = [Track(f"{video}:{name}", "0011" * 4, 1.0, video) for video in ("one", "two") for name in "ab"]
    root = make_inputs(tmp_path_factory.mktemp("inputs"), tracks)
    torch.manual_seed(0)
    torch.save(short_term_encoder(3).state_dict(), root / "STE_real.pth")
    return root


def encoder_training(root: Path, out: Path, workers: int = 0) -> tuple:
    inputs = ("--csv-train-full", root / "train.csv", "--csv-val-full", root / "val.csv")
    clips = ("--audio-dir", root / "wavs", "--video-dir", root / "crops", "--models-out", out)
    return ("STE_train.py", 3, 0, *inputs, *clips, "--no-pretrained", "--batch-size", 2, "--workers", workers)


def log(directory: Path) -> pd.DataFrame:
    return pd.read_csv(next(directory.glob("*/*_logs.csv")))


def test_encoder_training_resumes(root, tmp_path):
    options = ("--epochs", 3, "--precision", "fp32")
    printed(run_script(*encoder_training(root, tmp_path / "whole"), *options))
    printed(run_script(*encoder_training(root, tmp_path / "workers", workers=2), *options))
    command = [sys.executable, *map(str, (*encoder_training(root, tmp_path / "killed"), *options))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for((tmp_path / "killed" / "ste_encoder" / "last.ckpt").exists, alive=lambda: process.poll() is None)
        os.kill(process.pid, signal.SIGKILL)
    printed(run_script(*encoder_training(root, tmp_path / "killed"), *options, "--resume"))
    for name in ("workers", "killed"):
        pd.testing.assert_frame_equal(log(tmp_path / name), log(tmp_path / "whole"), rtol=1e-3, atol=1e-3)
    weights = torch.load(tmp_path / "whole" / "ste_encoder" / "1.pth", weights_only=True)
    assert {value.device for value in weights.values()} == {CPU}


def test_encoder_forward(root, tmp_path):
    """Equal bytes in two runs, near the CPU's results and, with other batches, near the first ones."""
    inputs = ("--csv", root / "val.csv", "--split", "val", "--audio-dir", root / "wavs", "--video-dir", root / "crops")
    weights = ("--weights", root / "STE_real.pth")

    def features(name: str, device: object, *options: object) -> np.ndarray:
        out = tmp_path / name
        printed(run_script("STE_forward.py", 3, device, *inputs, *weights, "--output-dir", out, *options))
        return np.load(out / "one.npy")

    options = ("--precision", "fp32")
    first = features("first", 0, *options)
    np.testing.assert_array_equal(features("again", 0, *options), first)
    assert digests(tmp_path / "first", "*.csv") == digests(tmp_path / "again", "*.csv")
    for found in (features("cpu", "cpu", *options), features("batches", 0, *options, "--batch-size", 7)):
        np.testing.assert_allclose(found, first, rtol=0, atol=1e-3 * np.abs(first).max())


def test_context_training_and_forward(root, tmp_path, monkeypatch):
    """Training on features on the GPU and in main memory; features of one video at a time in the forward stage."""
    store = write_store(
        tmp_path / "features", faces_of([Track("a:1", "01" * 30), Track("a:2", "10" * 30)]), noise_features
    )
    inputs = ("--features-train-full", store, "--features-val-full", store)
    options = ("--epochs", 2, "--batch-size", 16, "--precision", "fp32")
    logs = {}
    for name, device in (("gpu", 0), ("cpu", "cpu")):
        printed(run_script("ASC_train.py", 3, 2, 2, device, *inputs, *options, "--models-out", tmp_path / name))
        logs[name] = log(tmp_path / name)
    pd.testing.assert_frame_equal(logs["gpu"], logs["cpu"], rtol=1e-3, atol=1e-3)
    weights = tmp_path / "gpu" / "ASC_len_3_stride_2_speakers_2" / "2.pth"
    logits = []
    for device in (0, "cpu"):
        out = tmp_path / f"logits_{device}"
        inputs = ("--features-val-full", store, "--weights", weights, "--output-dir", out, "--precision", "fp32")
        printed(run_script("ASC_forward.py", 3, 2, 2, device, *inputs))
        logits.append(pd.read_csv(out / "video.csv", header=None).iloc[:, -2:].to_numpy())
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_train_as_one(root, tmp_path):
    options = ("--epochs", 1, "--precision", "fp32", "--batch-size", 4)
    printed(run_script(*encoder_training(root, tmp_path / "one"), *options))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    printed(run_script(*launcher, *encoder_training(root, tmp_path / "two"), *options))
    one, two = (torch.load(tmp_path / name / "ste_encoder" / "1.pth", weights_only=True) for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-3)
