"""Which results of an earlier run are kept: finished videos and steps made from the same inputs are skipped.

Every output directory has a settings file. `identity` names the settings that results depend on. Inputs and weights
appear in it as digests, never as paths, so a moved data root or a copied directory changes nothing.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from core.runtime import distributed
from core.runtime.errors import InputError
from core.runtime.files import list_files, lock, write_json
from core.runtime.progress import progress


def difference(saved: dict, settings: dict, identity: Iterable[str]) -> str | None:
    """Describe the first setting that differs from its saved value. Settings that were not saved are ignored."""
    for key in identity:
        if key in saved and saved[key] != settings[key]:
            return f"{key} {str(saved[key])[:60]}, now {str(settings[key])[:60]}"
    return None


class Manifest:
    """The settings file of an output directory, and the lock on that directory. Rank 0 reads and writes it.

    `saved` holds the settings of an earlier run; it is empty for a new directory or with `overwrite`. Raises InputError
    if another process writes to the directory or if the file is broken.
    """

    def __init__(self, path: Path, settings: dict, identity: Iterable[str] = (), overwrite: bool = False):
        self.path, self.directory = path, path.parent
        self.settings, self.identity, self.overwrite = settings, tuple(identity), overwrite
        self._lock: IO | None = None
        self.saved: dict = self._load()

    @distributed.on_main
    def _load(self) -> dict:
        if self.directory.is_dir():
            self._lock = lock(self.directory)
        if self.overwrite or not self.path.exists():
            return {}
        try:
            saved = json.loads(self.path.read_text())
        except (ValueError, RecursionError):
            saved = None
        if not isinstance(saved, dict):
            raise InputError(f"{self.path}: not a settings file; remove it or pass --overwrite")
        return saved

    def require_same(self, advice: str = "choose another directory or pass --overwrite") -> None:
        """Raise InputError if a setting of the identity differs from its saved value."""
        if change := difference(self.saved, self.settings, self.identity):
            raise InputError(f"{self.directory}: made with {change}; {advice}")

    @distributed.on_main
    def save(self, **more) -> None:
        """Write the settings, and lock the directory if it is new."""
        if self._lock is None:
            self._lock = lock(self.directory)
            if self.path.exists():
                raise InputError(f"{self.directory}: another process has just written here; run this again")
        write_json(self.path, {**self.settings, **more})

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """Save the settings while the block fills the directory file by file.

        Raises InputError if an earlier run with --overwrite was interrupted, which leaves old files among new ones.
        """
        if self.saved.get("overwriting"):
            raise InputError(f"{self.directory}: a run with --overwrite was interrupted; run it again with --overwrite")
        self.save(overwriting=self.overwrite)
        yield
        self.save(overwriting=False)


class OutputDirectory(Manifest):
    """Output directory of a forward stage: `<video_id>` + each suffix, and the settings file.

    Without `overwrite`, raises InputError if it holds results made with other settings.
    """

    def __init__(self, path: Path, settings: dict, identity: Iterable[str], suffixes: tuple[str, ...], overwrite: bool):
        super().__init__(path, settings, identity, overwrite)
        self.suffixes = suffixes
        self._check_existing()

    @distributed.on_main
    def _check_existing(self) -> None:
        names = list_files(self.directory)
        foreign = sorted(name for name in names if name.endswith("_cfg.json") and name != self.path.name)
        if foreign:
            raise InputError(
                f"{self.directory}: holds results of another stage ({foreign[0]}); choose another directory"
            )
        if not self.overwrite and not self.path.exists() and any(name.endswith(".csv") for name in names):
            advice = "choose another directory or pass --overwrite"
            raise InputError(f"{self.directory}: holds results but no {self.path.name} with their settings; {advice}")
        self.require_same()

    @distributed.on_main
    def done(self, video_ids: list[str], is_current: Callable[[Path, int], bool]) -> list[bool]:
        """Return for each video (V,) whether all its files exist and `is_current(csv file, video)` is true."""
        names = set() if self.overwrite else list_files(self.directory)
        done = [all(f"{video_id}{suffix}" in names for suffix in self.suffixes) for video_id in video_ids]
        for video in progress(np.flatnonzero(done), desc="checking results", unit="video", leave=False):
            done[video] = is_current(self.directory / f"{video_ids[video]}.csv", int(video))
        return done

    def begin(self, video_ids: list[str], done: list[bool]) -> None:
        """Delete the results of videos that are not done and save the settings. Call this once all inputs are checked.

        Raises InputError if results of other videos would remain next to settings that are not theirs.
        """
        self._delete_outdated(video_ids, done)
        self.save()

    @distributed.on_main
    def _delete_outdated(self, video_ids: list[str], done: list[bool]) -> None:
        if self._lock is None:  # the directory was new; files in it are those of another process
            return
        if self.overwrite:
            names = list_files(self.directory)
            others = sorted({name[:-4] for name in names if name.endswith(".csv")} - set(video_ids))
            if others:
                count = f"results of {len(others)} other videos, such as {others[0]}"
                raise InputError(f"{self.directory}: holds {count}; remove them or choose another directory")
        for video_id in (video_id for video_id, is_done in zip(video_ids, done, strict=True) if not is_done):
            for suffix in self.suffixes:
                (self.directory / f"{video_id}{suffix}").unlink(missing_ok=True)


class StepCache(Manifest):
    """A sequence of steps with results in one directory. Finished steps are skipped.

    The key of a step is a hash of its inputs and of those of all previous steps. The settings file holds the key and
    the state of each step. Raises InputError if one of the results exists but was not made here.
    """

    def __init__(self, directory: Path, results: list[str], overwrite: bool = False):
        existing = list_files(directory)
        super().__init__(directory / ".steps.json", {}, overwrite=overwrite)
        foreign = [] if self.path.is_file() else [name for name in results if name in existing]
        if foreign:
            raise InputError(f"{directory / foreign[0]}: not made by this script; move it, or it would be overwritten")
        self.settings, self._inputs = self.saved, []

    def run(
        self, name: str, inputs: object, outputs: list[Path], work: Callable[[], None], invalidates_later: bool = True
    ) -> None:
        """Call `work` unless this step is done with the same inputs (plain data) and all its outputs exist.

        Outputs of other inputs are deleted first; those of an interrupted call with the same inputs are left to `work`.
        Later steps depend on this one if it `invalidates_later`.
        """
        inputs = [*self._inputs, [name, inputs]]
        if invalidates_later:
            self._inputs = inputs
        key = hashlib.blake2b(json.dumps(inputs, sort_keys=True).encode(), digest_size=16).hexdigest()
        saved = self.settings.get(name)
        if saved == {"key": key, "done": True} and all(path.exists() for path in outputs):
            print(f"{name}: already done")
            return
        if not isinstance(saved, dict) or saved.get("key") != key:
            self._set(name, "", False)  # a half-deleted result belongs to no key
            for path in outputs:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        self._set(name, key, False)
        print(f"{name}:")
        work()
        self._set(name, key, True)

    def _set(self, name: str, key: str, done: bool) -> None:
        self.settings[name] = {"key": key, "done": done}
        self.save()
