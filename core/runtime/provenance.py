"""A directory of results, one per film, that all belong to the settings saved beside them."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from core.runtime import distributed
from core.runtime.errors import InputError
from core.runtime.files import list_files, lock, read_setting, write_json
from core.runtime.progress import progress


class OutputDirectory:
    """What a forward stage fills: `<video_id>` + each suffix, and a file of settings.

    Raises InputError where results lie that were made with other settings, unless they are to be overwritten.
    `identity_keys` names the settings that results depend on. Of several ranks, rank 0 looks and writes for all.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        settings: dict,
        identity_keys: tuple[str, ...],
        suffixes: tuple[str, ...],
        overwrite: bool,
    ):
        self.directory, self.path, self.settings = directory, directory / name, settings
        self.suffixes, self.overwrite = suffixes, overwrite
        self._lock: IO | None = None
        self._load_existing(identity_keys)

    @distributed.on_main
    def _load_existing(self, identity_keys: tuple[str, ...]) -> None:
        directory, name = self.directory, self.path.name
        self._lock = lock(directory) if directory.is_dir() else None
        strangers = sorted(file for file in list_files(directory) if file.endswith("_cfg.json") and file != name)
        if strangers:
            raise InputError(f"{directory}: holds what another stage made ({strangers[0]}); choose another directory")
        if self.overwrite:
            return
        if not self.path.exists():
            if any(file.endswith(".csv") for file in list_files(directory)):
                advice = "choose another directory or pass --overwrite"
                raise InputError(f"{directory}: holds results but no {name} that says how they were made; {advice}")
            return
        try:
            before = dict(json.loads(self.path.read_text()))
        except (ValueError, TypeError, RecursionError):
            raise InputError(f"{self.path}: not a file of settings; remove it or pass --overwrite") from None
        for key in identity_keys:
            if before.get(key) != self.settings[key]:
                change = f"{key} {str(before.get(key))[:60]}, now {str(self.settings[key])[:60]}"
                raise InputError(f"{directory}: made with {change}; choose another directory or pass --overwrite")

    @distributed.on_main
    def done(self, video_ids: list[str], is_current: Callable[[Path, int], bool]) -> list[bool]:
        """Which of the videos (V,) are finished: all their files exist and `is_current(csv file, video)` holds."""
        names = set() if self.overwrite else list_files(self.directory)
        here = [all(f"{video_id}{suffix}" in names for suffix in self.suffixes) for video_id in video_ids]
        for video in progress(np.flatnonzero(here), desc="checking results", unit="video", leave=False):
            here[video] = is_current(self.directory / f"{video_ids[video]}.csv", video)
        return here

    @distributed.on_main
    def begin(self, video_ids: list[str]) -> None:
        """Make room: remove what is to be overwritten and save the settings. Call it once all input was found usable.

        Raises InputError where results of films that are not to be made now would stay, under settings not theirs, or
        where another process fills the directory.
        """
        if self._lock is None:
            self._lock = lock(self.directory)
            if self.path.exists():
                raise InputError(f"{self.directory}: another process has filled it meanwhile; run this again")
        if self.overwrite:
            names = list_files(self.directory)
            others = sorted({name[:-4] for name in names if name.endswith(".csv")} - set(video_ids))
            if others:
                count = f"{len(others)} films that are not to be made now, such as {others[0]}"
                raise InputError(f"{self.directory}: holds {count}; remove them or choose another directory")
            for name in (f"{video_id}{suffix}" for video_id in video_ids for suffix in self.suffixes):
                (self.directory / name).unlink(missing_ok=True)
        write_json(self.path, self.settings)


@contextlib.contextmanager
def saved_settings(path: Path, settings: dict) -> Iterator[None]:
    """Save the settings of a data stage while the block fills their directory.

    Raises InputError where a run with --overwrite was cut short, which leaves old and new mixed, and is not repeated.
    """

    @distributed.on_main
    def save(overwriting: bool) -> None:
        write_json(path, {**settings, "overwriting": overwriting})

    if not settings["overwrite"] and read_setting(path.parent, path.name, "overwriting"):
        raise InputError(f"{path.parent}: a run with --overwrite was cut short, old and new are mixed; pass it again")
    save(settings["overwrite"])
    yield
    save(False)
