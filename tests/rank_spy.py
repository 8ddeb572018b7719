"""Run a script as one rank, with a SmallEncoder: `rank_spy.py OPTIONS SCRIPT ARGUMENTS`. OPTIONS is a JSON object.

`record`: directory for <rank>.pt, which holds a training script's final weights, the samples it used, and the gradients
of its first step. `exact`: batch norm in evaluation mode and float64, so a step does not depend on how its samples are
divided. `kill`: rank -> call (see `processes.Fault`) at which this rank is killed.
"""

import json
import os
import runpy
import sys
from pathlib import Path

import torch
from processes import Fault, install
from tiny_inputs import use_small_encoder
from torch import nn

import core.training
from core.datasets import ASCDataset, STEDataset

options, *sys.argv = sys.argv[1:]
options, rank = json.loads(options), os.environ.get("RANK", "0")
samples: list[tuple[int, int]] = []
gradients: list[torch.Tensor] = []
fit, step = core.training.fit, torch.optim.Adam.step
get_clip, get_contexts = STEDataset.__getitem__, ASCDataset.__getitems__


def recorded_fit(run, model, *rest):
    if options.get("exact"):
        model.train = lambda mode=True: nn.Module.train(model, False)
        torch.Tensor.float = torch.Tensor.double
        model.double().register_forward_pre_hook(lambda _, inputs: tuple(value.double() for value in inputs))
    fit(run, model, *rest)
    record = {"weights": model.state_dict(), "samples": samples, "gradients": gradients}
    torch.save(record, Path(options["record"], f"{rank}.pt"))


def recorded_step(self, closure=None):
    if not gradients:
        gradients.extend(p.grad.clone() for group in self.param_groups for p in group["params"])
    return step(self, closure)


def recorded_clip(self, key):
    if self.augment:
        samples.append(key)
    return get_clip(self, key)


def recorded_contexts(self, keys):
    if self.redraw:
        samples.extend(keys)
    return get_contexts(self, keys)


use_small_encoder().start()
if "record" in options:
    Path(options["record"]).mkdir(parents=True, exist_ok=True)
    core.training.fit, torch.optim.Adam.step = recorded_fit, recorded_step
    STEDataset.__getitem__, ASCDataset.__getitems__ = recorded_clip, recorded_contexts
if rank in options.get("kill", {}):
    install(Fault(kill_at=tuple(options["kill"][rank])))
runpy.run_path(sys.argv[0], run_name="__main__")
