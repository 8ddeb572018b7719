"""One training loop for both networks. What differs between them is `ste_losses` and `asc_losses`."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from core.metrics import average_precision, roc_auc, speaking_score
from core.runtime import distributed
from core.runtime.checkpoint import TrainingRun
from core.runtime.device import autocast, tune_malloc
from core.runtime.errors import RunError
from core.runtime.progress import progress
from core.transforms import normalise

# model, batch on the device -> named losses, logits (B, 2), labels (B,)
Losses = Callable[[nn.Module, dict[str, torch.Tensor]], tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]]

LOSS_CHECK_INTERVAL = 20  # at the losses on CUDA, where every look waits for the device


def context_run_name(context_length: int, stride: int, speakers: int) -> str:
    """Name of a training run of the context network, as in the released code."""
    return f"ASC_len_{context_length}_stride_{stride}_speakers_{speakers}"


def ste_losses(model: nn.Module, batch: dict[str, torch.Tensor]):
    """Cross-entropy of the joint head, and of the audio and the video head as auxiliary losses (section 3.1)."""
    video = normalise(batch["video"].unflatten(1, (-1, 3))).flatten(1, 2).contiguous(memory_format=torch.channels_last)
    joint, audio, visual, _ = model(batch["audio"], video)
    losses = {
        "av": cross_entropy(joint, batch["label"]),
        "audio": cross_entropy(audio, batch["audio_label"]),
        "video": cross_entropy(visual, batch["label"]),
    }
    return losses, joint, batch["label"]


def asc_losses(model: nn.Module, batch: dict[str, torch.Tensor]):
    """Cross-entropy of the reference speaker's label (section 3.3)."""
    logits = model(batch["features"])
    return {"av": cross_entropy(logits, batch["label"])}, logits, batch["label"]


def train_one_epoch(
    model: nn.Module, loader: DataLoader, losses_of: Losses, optimizer: Optimizer, device: torch.device, precision: str
) -> dict[str, float]:
    """One pass with gradient steps. Returns the mean of each loss, and AUC and AP of the predictions on the way.

    Of several ranks, whose model is that of `core.runtime.distributed.parallel`, all return the same, over the samples
    of all.
    Raises RunError, with the parts, as soon as a loss is not finite.
    """
    model.train()

    def step(index, batch):
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            losses, logits, label = losses_of(model, batch)
            total = sum(losses.values())
        if distributed.get_world_size() > 1:
            total = total * loader.batch_sampler.loss_scale(index)
        total.backward()
        optimizer.step()
        return losses, logits, label

    return _run_epoch("train", step, loader, device)


@torch.inference_mode()
def evaluate(
    model: nn.Module, loader: DataLoader, losses_of: Losses, device: torch.device, precision: str
) -> dict[str, float]:
    """One pass in evaluation mode. Returns and raises as `train_one_epoch`."""
    model.eval()

    def step(_, batch):
        with autocast(device, precision):
            return losses_of(model, batch)

    return _run_epoch("val", step, loader, device)


def _run_epoch(name: str, step: Callable, loader: DataLoader, device: torch.device) -> dict[str, float]:
    sums: dict[str, torch.Tensor] = {}
    logits, labels, unseen = [], [], []
    count = 0
    every = LOSS_CHECK_INTERVAL if device.type == "cuda" else 1
    bar = progress(loader, desc=name, unit="batch", leave=False)
    for index, batch in enumerate(bar):
        batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        losses, output, label = step(index, batch)
        for key, loss in losses.items():
            sums[key] = sums.get(key, 0) + loss.detach().double() * len(label)
        count += len(label)
        logits.append(output.detach())
        labels.append(label)
        unseen.append({key: loss.detach() for key, loss in losses.items()})
        if index % every == every - 1 or index == len(loader) - 1:
            for back, parts in enumerate(reversed(unseen)):
                values = {key: value.item() for key, value in parts.items()}
                if not all(map(math.isfinite, values.values())):
                    text = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
                    raise RunError(
                        f"{name}: the loss is not finite in batch {index - back + 1}: {text}; nothing is saved of it"
                    )
            unseen.clear()
            bar.set_postfix({key: f"{value.item() / count:.4f}" for key, value in sums.items()}, refresh=False)
    return _metrics({key: value.item() for key, value in sums.items()}, logits, labels)


def _metrics(sums: dict[str, float], logits: list[torch.Tensor], labels: list[torch.Tensor]) -> dict[str, float]:
    """Means of the losses, AUC and AP over the samples of all ranks."""
    own = (sums, *(torch.cat(parts).float().cpu().numpy() for parts in (logits, labels))) if labels else None
    all_sums, all_logits, all_labels = zip(*filter(None, distributed.all_gather(own)), strict=True)
    scores, positive = speaking_score(np.concatenate(all_logits)), np.concatenate(all_labels) == 1
    result = {f"loss_{key}": sum(part[key] for part in all_sums) / len(positive) for key in all_sums[0]}
    result["auc"] = roc_auc(scores, positive)
    result["ap"] = average_precision(scores, positive) if positive.any() else float("nan")
    return result


def fit(
    run: TrainingRun,
    model: nn.Module,
    losses_of: Losses,
    train_loader: DataLoader,
    val_loader: DataLoader,
    params: dict,
    device: torch.device,
) -> None:
    """Train to `params["epochs"]`, from where the run stands: Adam, the learning rate decayed in steps.

    Where there are several ranks they go in step; each has the model, its part of every batch, and the same run.
    The parameters are those of `STE_optimization_params` and `ASC_optimization_params` in the configuration.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=params["learning_rate"])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, params["step_size"], params["gamma"])
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    run.restore(parts)
    network = distributed.parallel(model, device)
    tune_malloc()
    if run.epoch:
        print(f"resuming after epoch {run.epoch}")
    for epoch in range(run.epoch + 1, params["epochs"] + 1):
        row = {"epoch": epoch, "learning_rate": scheduler.get_last_lr()[0]}
        train_loader.batch_sampler.sampler.epoch = epoch
        train = train_one_epoch(network, train_loader, losses_of, optimizer, device, params["precision"])
        distributed.share_buffers(network)
        val = evaluate(model, val_loader, losses_of, device, params["precision"])
        scheduler.step()
        row |= {f"train_{key}": value for key, value in train.items()}
        row |= {f"val_{key}": value for key, value in val.items()}
        run.save(parts, row)
        print(f"epoch {epoch:3d}  train {_line(train)}  |  val {_line(val)}")
    best = max(run.log, key=lambda row: np.nan_to_num(row["val_ap"], nan=-1.0))
    print(f"{run.epoch} epochs done: {run.directory} (best val AP {best['val_ap']:.4f} in epoch {best['epoch']})")


def _line(metrics: dict[str, float]) -> str:
    return " ".join(f"{key} {value:.4f}" for key, value in metrics.items())
