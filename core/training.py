"""Training of both networks: their losses, one epoch of training and of validation, and the loop over epochs."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from core.loaders import to_device
from core.metrics import average_precision, roc_auc, speaking_score
from core.runtime import distributed
from core.runtime.checkpoint import TrainingRun
from core.runtime.device import autocast, memory_format, peak_memory
from core.runtime.errors import RunError
from core.runtime.malloc import tune_malloc
from core.runtime.progress import progress

# model, batch on the device -> named losses, logits (B, 2) of the prediction
Losses = Callable[[nn.Module, dict[str, torch.Tensor]], tuple[dict[str, torch.Tensor], torch.Tensor]]

LOSS_CHECK_INTERVAL = 20  # steps between checks for NaN; reading a loss waits for the GPU


def ste_losses(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Cross-entropy of the joint head, plus the auxiliary losses of the audio and the video head (section 3.1)."""
    joint, audio, video, _ = model(batch["audio"], batch["video"])
    losses = {
        "av": cross_entropy(joint, batch["label"]),
        "audio": cross_entropy(audio, batch["audio_label"]),
        "video": cross_entropy(video, batch["label"]),
    }
    return losses, joint


def asc_losses(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Cross-entropy of the reference speaker's label (section 3.3)."""
    logits = model(batch["features"])
    return {"av": cross_entropy(logits, batch["label"])}, logits


def context_run_name(context_length: int, context_stride: int, num_speakers: int) -> str:
    """Name of a training run of the context network, as in the released code."""
    return f"ASC_len_{context_length}_stride_{context_stride}_speakers_{num_speakers}"


class Meter:
    """Collects losses, logits and labels of one epoch and checks that the losses are finite."""

    def __init__(self, name: str, loader: DataLoader):
        self.name, self.num_steps, self.step = name, len(loader), 0
        self.bar = progress(loader, desc=name, unit="batch", leave=False)
        self.sums: dict[str, torch.Tensor] = {}
        self.logits: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []

    def update(self, losses: dict[str, torch.Tensor], logits: torch.Tensor, label: torch.Tensor) -> None:
        """Add one batch. Raises RunError, with each loss, if one of them is no longer finite."""
        for key, loss in losses.items():
            self.sums[key] = self.sums.get(key, 0) + loss.detach().double() * len(label)
        self.logits.append(logits.detach())
        self.labels.append(label)
        self.step += 1
        if self.step % LOSS_CHECK_INTERVAL == 0 or self.step == self.num_steps:
            count = sum(map(len, self.labels))
            means = {key: value.item() / count for key, value in self.sums.items()}
            if not all(map(math.isfinite, means.values())):
                text = ", ".join(f"{key} {value:.4g}" for key, value in means.items())
                raise RunError(f"{self.name}: loss not finite by batch {self.step}: {text}; this epoch is not saved")
            self.bar.set_postfix({key: f"{value:.4f}" for key, value in means.items()}, refresh=False)

    def metrics(self) -> dict[str, float]:
        """Mean of each loss, and AUC and AP of the predictions, over the samples of all ranks."""
        local = None
        if self.labels:
            arrays = (torch.cat(parts).float().cpu().numpy() for parts in (self.logits, self.labels))
            local = ({key: value.item() for key, value in self.sums.items()}, *arrays)
        sums, logits, labels = zip(*filter(None, distributed.all_gather(local)), strict=True)
        scores, positive = speaking_score(np.concatenate(logits)), np.concatenate(labels) == 1
        result = {f"loss_{key}": sum(part[key] for part in sums) / len(positive) for key in sums[0]}
        result["auc"] = roc_auc(scores, positive)
        result["ap"] = average_precision(scores, positive) if positive.any() else float("nan")
        return result


def train_one_epoch(
    model: nn.Module, loader: DataLoader, losses_of: Losses, optimizer: Optimizer, device: torch.device, precision: str
) -> dict[str, float]:
    """Train for one epoch. Returns the mean of each loss, and AUC and AP of the predictions made while training.

    With several ranks, `model` is the result of `parallel`, and all ranks return the same values over all samples.
    Raises RunError if a loss is not finite.
    """
    model.train()
    torch.backends.cudnn.benchmark = True  # all batches but the last have one shape
    meter = Meter("train", loader)
    for index, batch in enumerate(meter.bar):
        batch = to_device(batch, device, memory_format(device, precision))
        with autocast(device, precision):
            losses, logits = losses_of(model, batch)
            loss = sum(losses.values())
        if distributed.get_world_size() > 1:
            loss = loss * loader.batch_sampler.loss_scale(index)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        meter.update(losses, logits, batch["label"])
    return meter.metrics()


@torch.inference_mode()
def evaluate(
    model: nn.Module, loader: DataLoader, losses_of: Losses, device: torch.device, precision: str
) -> dict[str, float]:
    """Validate. Returns the same metrics and raises the same error as `train_one_epoch`."""
    model.eval()
    torch.backends.cudnn.benchmark = False
    meter = Meter("val", loader)
    for batch in meter.bar:
        batch = to_device(batch, device, memory_format(device, precision))
        with autocast(device, precision):
            losses, logits = losses_of(model, batch)
        meter.update(losses, logits, batch["label"])
    return meter.metrics()


def fit(
    run: TrainingRun,
    model: nn.Module,
    losses_of: Losses,
    train_loader: DataLoader,
    val_loader: DataLoader,
    params: dict,
    device: torch.device,
) -> None:
    """Train from the last finished epoch of the run up to `params["epochs"]`, with Adam and a step learning rate decay.

    `params` has the keys of `STE_optimization_params` and `ASC_optimization_params`. With several ranks, each calls
    this with the same model, its part of every batch and the same run.
    """
    fused = {"fused": True} if device.type == "cuda" else {}
    optimizer = torch.optim.Adam(model.parameters(), lr=params["learning_rate"], **fused)
    optimizer.register_load_state_dict_pre_hook(keep_implementation)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, params["step_size"], params["gamma"])
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    run.restore(parts)
    network = parallel(model, device)
    tune_malloc()
    if run.epoch:
        print(f"resuming after epoch {run.epoch}")
    for epoch in range(run.epoch + 1, params["epochs"] + 1):
        row = {"epoch": epoch, "learning_rate": scheduler.get_last_lr()[0]}
        train_loader.batch_sampler.sampler.epoch = epoch
        train = train_one_epoch(network, train_loader, losses_of, optimizer, device, params["precision"])
        share_buffers(network)
        val = evaluate(model, val_loader, losses_of, device, params["precision"])
        scheduler.step()
        row |= {f"train_{key}": value for key, value in train.items()}
        row |= {f"val_{key}": value for key, value in val.items()}
        run.save(parts, row)
        print(f"epoch {epoch:3d}  train {_format(train)}  |  val {_format(val)}")
    best = run.log[run.best_epoch - 1]
    print(f"{run.epoch} epochs done{peak_memory(device)}: {run.directory}")
    reason = f"with the highest validation AP: {best['val_ap']:.4f}"
    if np.isnan(best["val_ap"]):
        reason = "the last one, because there is no validation AP"
    print(f"best.pth is epoch {best['epoch']}, {reason}")


def parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a network so that gradients are averaged over ranks; on CUDA, batch norm is synchronised, in place."""
    if distributed.get_world_size() == 1:
        return network
    on_cuda = device.type == "cuda"
    group = torch.distributed.new_group(backend="nccl" if on_cuda else "gloo", timeout=distributed.STEP_TIMEOUT)
    if on_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(network, group)
        warnings.filterwarnings("ignore", "Grad strides do not match")  # those of 1 x 1 convolutions in channels_last
    devices = [device.index] if on_cuda else None
    result = DistributedDataParallel(network, device_ids=devices, process_group=group, gradient_as_bucket_view=True)
    result.broadcast_buffers = not on_cuda  # synchronised norms have equal buffers
    return result


def share_buffers(network: nn.Module) -> None:
    """Copy the buffers of a `parallel` network (batch norm statistics) from rank 0 to all ranks."""
    for buffer in network.buffers() if distributed.get_world_size() > 1 else ():
        network.process_group.broadcast(buffer, 0).wait()


def keep_implementation(optimizer: Optimizer, state: dict) -> None:
    """Keep how an optimizer is computed, which its state may have from a run on another kind of device."""
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=False):
        saved.update({key: group[key] for key in ("fused", "foreach", "capturable")})


def _format(metrics: dict[str, float]) -> str:
    return " ".join(f"{key} {value:.4f}" for key, value in metrics.items())
