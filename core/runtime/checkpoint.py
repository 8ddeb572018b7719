"""A training run on disk: weights of every epoch, the log, and what it takes to go on after a break."""

import os
from io import BytesIO
from pathlib import Path
from typing import IO

import pandas as pd
import torch

from core.runtime import distributed
from core.runtime.device import load_checkpoint
from core.runtime.errors import InputError
from core.runtime.files import list_files, lock, write_bytes, write_csv, write_json

CHECKPOINT_FILE = "last.ckpt"


class TrainingRun:
    """The directory `<models_out>/<name>` of one run.

    `<epoch>.pth` are bare state_dicts, epochs counted from 1; `last.ckpt` holds the rest; `<name>_logs.csv` a row per
    epoch; `<name>_cfg.json` the settings. An epoch is done once it is in `last.ckpt`, which has the log in it too, so
    a run killed anywhere goes on from its last whole epoch. Of several ranks, rank 0 reads and writes for all; how many
    they are may change from one start to the next.

    Raises InputError where a run lies there already and `resume` is not set, or was started with other settings.
    """

    def __init__(self, models_out: str | Path, name: str, settings: dict, resume: bool):
        self.name, self.settings = name, {**settings, "ranks": distributed.get_world_size()}
        self.directory = Path(models_out, name)
        self._lock: IO | None = None
        self.state: dict | None = self._load_existing(resume)
        self.log: list[dict] = self.state["log"] if self.state else []

    @distributed.on_main
    def _load_existing(self, resume: bool) -> dict | None:
        """What lies there to go on from."""
        self._lock = lock(self.directory) if self.directory.is_dir() else None
        names = (name for name in list_files(self.directory) if not name.startswith("."))
        found = sorted(name for name in names if name == CHECKPOINT_FILE or name.endswith(".pth"))
        if found and not resume:
            advice = "pass --resume to go on with it, or another --models-out to start anew"
            raise InputError(f"{self.directory}: a run lies here already ({found[-1]}): {advice}")
        if (
            found and CHECKPOINT_FILE not in found and found != ["1.pth"]
        ):  # which a run killed in its first epoch may leave
            raise InputError(
                f"{self.directory}: weights, but no {CHECKPOINT_FILE} to go on from; choose another --models-out"
            )
        if CHECKPOINT_FILE not in found:
            return None
        state = load_checkpoint(self.directory / CHECKPOINT_FILE)
        kinds = {"model": dict, "optimizer": dict, "scheduler": dict, "log": list, "settings": dict}
        if not all(isinstance(state.get(key), kind) for key, kind in {**kinds, "rng": torch.Tensor}.items()):
            raise self._broken()
        self._check_settings(state["settings"])
        return state

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.log)

    def set_data(self, digests: dict[str, str]) -> None:
        """Record the rows that the run is trained and validated on: split -> digest of its table.

        Raises InputError if the run was started with other rows, or if the ranks have different ones.
        """
        rows = {f"{split}_rows": digest for split, digest in digests.items()}
        distributed.require_same("rows", lambda: rows)
        self.settings = {**self.settings, **rows}
        for split in digests:
            before = (self.state or {"settings": {}})["settings"].get(f"{split}_rows", rows[f"{split}_rows"])
            if before != rows[f"{split}_rows"]:
                problem = f"the rows to {split} have changed since the run was started"
                raise InputError(
                    f"{self.directory / CHECKPOINT_FILE}: {problem}; resume with the same, or start anew elsewhere"
                )

    def _broken(self) -> InputError:
        advice = "put back a copy, or start anew in another --models-out"
        return InputError(f"{self.directory / CHECKPOINT_FILE}: not the state of such a training run; {advice}")

    def _check_settings(self, before: dict) -> None:
        free = {"epochs", "workers", "resume", "cuda_device", "models_out", "ranks"}
        for name in sorted(self.settings.keys() & before.keys() - free):
            if os.path.abspath(str(before[name])) != os.path.abspath(str(self.settings[name])):  # paths may be respelt
                change = f"{name} {before.get(name)}, now {self.settings[name]}"
                raise InputError(
                    f"{self.directory / CHECKPOINT_FILE}: the run was started with {change}; resume with the same"
                )

    def save(self, parts: dict[str, object], row: dict[str, float]) -> None:
        """Finish an epoch: parts are what has a state_dict (model, optimizer, scheduler), row its line of the log."""
        states = {name: part.state_dict() for name, part in parts.items()}
        log = [*self.log, row]
        if distributed.is_main_process():
            self._save(states["model"], f"{len(log)}.pth")
            self._save({**states, "log": log, "settings": self.settings, "rng": torch.get_rng_state()}, CHECKPOINT_FILE)
        self.log = log
        if distributed.is_main_process():
            self._write_log()

    def restore(self, parts: dict[str, object]) -> None:
        """Begin: save the settings, and give every part the state it had after the last whole epoch, if any.

        Raises InputError where another process trains here.
        """
        self._begin()
        if self.state is None:
            return
        try:
            for name, part in parts.items():
                part.load_state_dict(self.state[name])
            torch.set_rng_state(self.state["rng"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError):
            raise self._broken() from None
        self.state = None

    @distributed.on_main
    def _begin(self) -> None:
        if self._lock is None:
            self._lock = lock(self.directory)
            if (self.directory / CHECKPOINT_FILE).exists():
                raise InputError(f"{self.directory}: another process has trained here meanwhile; run this again")
        write_json(self.directory / f"{self.name}_cfg.json", self.settings)
        if self.state is None:
            return
        self._write_log()
        if not (self.directory / f"{self.epoch}.pth").exists():
            self._save(self.state["model"], f"{self.epoch}.pth")

    def _save(self, value: dict, name: str) -> None:
        buffer = BytesIO()  # torch writes the name of a file into it, and equal weights shall be equal files
        torch.save(value, buffer)
        write_bytes(self.directory / name, buffer.getbuffer(), durable=True)

    def _write_log(self) -> None:
        write_csv(self.directory / f"{self.name}_logs.csv", pd.DataFrame(self.log), header=True)
