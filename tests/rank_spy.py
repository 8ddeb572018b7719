"""Run a training script as one rank and keep what no file tells: `rank_spy.py DIRECTORY MODE SCRIPT ARGUMENTS`.

DIRECTORY/<rank>.pt has the rank's last weights, the samples it trained on, and the gradients of its first step. MODE
`still` leaves batch norms in evaluation mode, so that a step does not depend on who shares a batch with whom; `still
and double` computes in float64 too, where the order of a sum does not show.
"""

import os
import runpy
import sys
from pathlib import Path

import torch
from torch import nn

import core.training
from core.datasets import ASCDataset, STEDataset

directory, mode, *sys.argv = sys.argv[1:]
rank = os.environ.get("RANK", "0")
samples: list[tuple[int, int]] = []
gradients: list[torch.Tensor] = []
fit, step = core.training.fit, torch.optim.Adam.step
get_clip, get_contexts = STEDataset.__getitem__, ASCDataset.__getitems__


def watched_fit(run, model, *rest):
    if mode.startswith("still"):
        model.train = lambda mode=True: nn.Module.train(model, False)
    if mode.endswith("double"):
        torch.Tensor.float = torch.Tensor.double
        model.double().register_forward_pre_hook(lambda _, inputs: tuple(value.double() for value in inputs))
    fit(run, model, *rest)
    kept = {"weights": model.state_dict(), "samples": samples, "gradients": gradients}
    torch.save(kept, Path(directory, f"{rank}.pt"))


def watched_step(self, closure=None):
    if not gradients:
        gradients.extend(p.grad.clone() for group in self.param_groups for p in group["params"])
    return step(self, closure)


def watched_clip(self, key):
    if self.augment:
        samples.append(key)
    return get_clip(self, key)


def watched_contexts(self, keys):
    if self.redraw:
        samples.extend(keys)
    return get_contexts(self, keys)


core.training.fit, torch.optim.Adam.step = watched_fit, watched_step
STEDataset.__getitem__, ASCDataset.__getitems__ = watched_clip, watched_contexts
runpy.run_path(sys.argv[0], run_name="__main__")
