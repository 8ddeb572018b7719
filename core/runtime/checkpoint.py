"""A training run on disk: weights of every epoch, the log, and the checkpoint to resume from."""

import copy
import filecmp
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from core.runtime import distributed
from core.runtime.errors import InputError
from core.runtime.files import list_files, replacing, write_bytes
from core.runtime.resume import Manifest, difference
from core.runtime.weights import load_checkpoint

CHECKPOINT_FILE, BEST_FILE = "last.ckpt", "best.pth"
TRAINING_IDENTITY = ("batch_size", "learning_rate", "step_size", "gamma", "precision", "seed")


class TrainingRun:
    """The directory `<models_out>/<name>` of one training run.

    `<epoch>.pth` are bare state_dicts, counted from 1; `best.pth` is the one with the highest validation AP;
    `<name>_logs.csv` has a row per epoch; `<name>_cfg.json` holds the settings; `last.ckpt` holds everything that
    resuming needs, including the log. An epoch is finished once it is in `last.ckpt`, so a run that is killed at any
    time resumes after its last finished epoch, with any number of ranks.

    Raises InputError if a run exists and `resume` is not set, or if it was started with other settings of `identity`.
    """

    def __init__(self, models_out: str | Path, name: str, settings: dict, resume: bool, identity: Iterable[str] = ()):
        self.name, self.directory, self.identity = name, Path(models_out, name), tuple(identity)
        self.settings = {**settings, "ranks": distributed.get_world_size()}
        self.path = self.directory / CHECKPOINT_FILE
        # Earlier settings are compared with those in the checkpoint, so the settings file is not read.
        self._manifest = Manifest(self.directory / f"{name}_cfg.json", self.settings, overwrite=True)
        self.state: dict | None = self._load(resume)
        self.log: list[dict] = self.state["log"] if self.state else []
        if self.state and "init_weights" in settings:  # those it started from, also if they are not named again
            self.settings["init_weights"] = self.state["settings"].get("init_weights")
        self._require_same(self.identity)

    @distributed.on_main
    def _load(self, resume: bool) -> dict | None:
        """Return the state of an existing run, None if there is no run to resume."""
        found = sorted(name for name in list_files(self.directory) if name == CHECKPOINT_FILE or name.endswith(".pth"))
        if found and not resume:
            advice = "pass --resume to continue it, or another --models-out"
            raise InputError(f"{self.directory}: already holds a run ({found[-1]}); {advice}")
        if not self.path.exists():
            if not {"1.pth", BEST_FILE}.issuperset(found):  # a run killed in its first epoch may leave them
                raise InputError(f"{self.directory}: weights without {CHECKPOINT_FILE}; choose another --models-out")
            return None
        state = load_checkpoint(self.path)
        types = {"model": dict, "optimizer": dict, "scheduler": dict, "log": list, "settings": dict}
        if not all(isinstance(state.get(key), type_) for key, type_ in {**types, "rng": torch.Tensor}.items()):
            raise self._broken()
        return state

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.log)

    @property
    def best_epoch(self) -> int:
        """The epoch with the highest validation AP, the first one in a tie; 0 before the first epoch."""
        values = [-1.0, *(row["val_ap"] for row in self.log)]
        return int(np.argmax(np.nan_to_num(values, nan=-1.0))) or self.epoch

    def set_data(self, digests: dict[str, str]) -> None:
        """Record digests of the training and validation data, name -> digest.

        Raises InputError if the run was started with other data, or if the ranks have different data.
        """
        distributed.require_same("rows", lambda: digests)
        self.settings.update(digests)
        self._require_same(digests)

    def _require_same(self, identity: Iterable[str]) -> None:
        if self.state and (change := difference(self.state["settings"], self.settings, identity)):
            advice = "resume with the same settings, or choose another --models-out"
            raise InputError(f"{self.path}: the run was started with {change}; {advice}")

    def _broken(self) -> InputError:
        return InputError(f"{self.path}: not a checkpoint of this run; restore a copy or choose another --models-out")

    def save(self, parts: dict[str, object], row: dict[str, float]) -> None:
        """Finish an epoch: save the state of each part (model, optimizer, scheduler) and a row of the log."""
        states = on_cpu({name: part.state_dict() for name, part in parts.items()})
        self.log = [*self.log, row]
        if distributed.is_main_process():
            self._save(states["model"], f"{self.epoch}.pth")
            state = {**states, "log": self.log, "settings": self.settings, "rng": torch.get_rng_state()}
            self._save(state, CHECKPOINT_FILE)
            self._write_log_and_best()

    def restore(self, parts: dict[str, object]) -> None:
        """Save the settings and load the state of every part after the last finished epoch, if there is one.

        Raises InputError if another process has written to the directory, or if the state does not fit the parts.
        """
        self._manifest.save()
        if self.state is None:
            return
        try:
            for name, part in parts.items():
                part.load_state_dict(self.state[name])
            torch.set_rng_state(self.state["rng"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError):
            raise self._broken() from None
        if distributed.is_main_process():
            self._write_log_and_best()
        self.state = None

    def _save(self, value: dict, name: str) -> None:
        buffer = BytesIO()  # torch.save stores the file name; saving to a buffer keeps equal weights byte-identical
        torch.save(value, buffer)
        write_bytes(self.directory / name, buffer.getbuffer(), durable=True)

    def _write_log_and_best(self) -> None:
        """Write the log, and copy the weights of the best epoch to best.pth. A resumed run does this again."""
        source, target = self.directory / f"{self.best_epoch}.pth", self.directory / BEST_FILE
        if source.exists() and not (target.exists() and filecmp.cmp(source, target, shallow=False)):
            write_bytes(target, source.read_bytes(), durable=True)
        with replacing(self.directory / f"{self.name}_logs.csv") as temporary:
            pd.DataFrame(self.log).to_csv(temporary, index=False, lineterminator="\n")


def on_cpu(state: Any) -> Any:
    """Return nested dictionaries and lists with their tensors on the CPU, so that any machine can load them."""
    if isinstance(state, torch.Tensor):
        return state.cpu()
    if isinstance(state, dict):
        result = copy.copy(state)  # keeps the versions of modules in a state_dict
        result.update({key: on_cpu(value) for key, value in state.items()})
        return result
    return [on_cpu(value) for value in state] if isinstance(state, list) else state
