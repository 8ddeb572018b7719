"""A directory of results, one per film, that all belong to the settings saved beside them."""

import json
from pathlib import Path

from core.errors import InputError
from core.io import existing_files, lock, write_json


class ResultDirectory:
    """What a forward stage fills: `<video_id>` + each suffix, and a file of settings.

    Raises InputError where results lie that were made with other settings, unless they are to be overwritten.
    `decisive` names the settings that results depend on.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        settings: dict,
        decisive: tuple[str, ...],
        suffixes: tuple[str, ...],
        overwrite: bool,
    ):
        self.directory, self.path, self.settings = directory, directory / name, settings
        self.suffixes, self.overwrite = suffixes, overwrite
        if overwrite:
            return
        if not self.path.exists():
            if any(file.endswith(".csv") for file in existing_files(directory)):
                advice = "choose another directory or pass --overwrite"
                raise InputError(f"{directory}: holds results but no {name} that says how they were made; {advice}")
            return
        try:
            before = dict(json.loads(self.path.read_text()))
        except (ValueError, TypeError):
            raise InputError(f"{self.path}: not a file of settings; remove it or pass --overwrite") from None
        for key in decisive:
            if before.get(key) != settings[key]:
                change = f"{key} {str(before.get(key))[:60]}, now {str(settings[key])[:60]}"
                raise InputError(f"{directory}: made with {change}; choose another directory or pass --overwrite")

    def done(self, video_ids: list[str]) -> list[bool]:
        """Which of the films need not be made."""
        names = set() if self.overwrite else existing_files(self.directory)
        return [all(f"{video_id}{suffix}" in names for suffix in self.suffixes) for video_id in video_ids]

    def begin(self, video_ids: list[str]) -> None:
        """Make room: remove what is to be overwritten and save the settings. Call it once all input was found usable.

        Raises InputError where results of films that are not to be made now would stay, under settings not theirs, or
        where another process fills the directory.
        """
        self._lock = lock(self.directory)
        if self.overwrite:
            names = existing_files(self.directory)
            others = sorted({name[:-4] for name in names if name.endswith(".csv")} - set(video_ids))
            if others:
                count = f"{len(others)} films that are not to be made now, such as {others[0]}"
                raise InputError(f"{self.directory}: holds {count}; remove them or choose another directory")
            for name in (f"{video_id}{suffix}" for video_id in video_ids for suffix in self.suffixes):
                (self.directory / name).unlink(missing_ok=True)
        write_json(self.path, self.settings)


def weights_behind(directory: str | Path, name: str) -> str | None:
    """SHA-256 of the weights that a directory's results were made with, None where its settings do not tell."""
    try:
        return dict(json.loads(Path(directory, name).read_text())).get("weights_sha256")
    except (OSError, ValueError, TypeError):
        return None
