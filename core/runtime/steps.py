"""Work in steps, each of which is done once: a step is redone where what it depends on has changed."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from core.runtime.errors import InputError
from core.runtime.files import list_files, lock, write_json


class StepCache:
    """The steps of one piece of work, in one order, all of whose results lie in one directory.

    What a step depends on is what it names and all that the steps before it depend on. A file in the directory holds
    how far the work has come, so that the same work goes on where it was, however it ended; of other work only what is
    equal is kept. Raises InputError where another process works there, or where one of the results (names) lies there
    that no such work has made.
    """

    def __init__(self, directory: Path, results: list[str], overwrite: bool = False):
        self.path = directory / ".steps.json"
        list_files(directory)  # clears up what a killed run left, and refuses a file
        self._lock = lock(directory)
        strangers = [] if self.path.is_file() else [name for name in results if (directory / name).exists()]
        if strangers:
            raise InputError(f"{directory / strangers[0]}: was not made here and would be written over; move it away")
        self._state: dict[str, dict] = {} if overwrite else self._read()
        self._depends: list = []

    def _read(self) -> dict[str, dict]:
        try:
            state = json.loads(self.path.read_text()) if self.path.exists() else {}
            return {name: {"key": str(step["key"]), "done": bool(step["done"])} for name, step in state.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise InputError(f"{self.path}: not a file of steps; pass --overwrite to begin anew") from None

    def do(
        self, name: str, depends: object, makes: list[Path], work: Callable[[], None], invalidates_later: bool = True
    ) -> None:
        """Do a step unless it is done; what comes later depends on it too if it `invalidates_later`.

        `depends` is plain data. `makes` are the files and directories that are there once the step is done; what lies
        there from other work is removed first, and what an interrupted run of the same step has made is left to it.
        """
        depends = [*self._depends, [name, depends]]
        if invalidates_later:
            self._depends = depends
        key = hashlib.blake2b(json.dumps(depends, sort_keys=True).encode(), digest_size=16).hexdigest()
        before = self._state.get(name, {"key": "", "done": False})
        if before == {"key": key, "done": True} and all(path.exists() for path in makes):
            print(f"{name}: done already")
            return
        if before["key"] != key:
            self._note(name, "", False)  # half removed it is nobody's
            for path in makes:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        for place in {path.parent for path in makes}:
            list_files(place)
        self._note(name, key, False)
        print(f"{name}:")
        work()
        self._note(name, key, True)

    def _note(self, name: str, key: str, done: bool) -> None:
        self._state[name] = {"key": key, "done": done}
        write_json(self.path, self._state)
