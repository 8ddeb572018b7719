"""Atomic writes of files, locks on directories, checks of paths."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from core.runtime.errors import InputError

PARTIAL = ".partial-"  # prefix of unfinished files


def lock(directory: Path) -> IO:
    """Keep other processes from writing to a directory while the result is open. Raises InputError if one does."""
    directory.mkdir(parents=True, exist_ok=True)
    file = os.fdopen(os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by worker processes
    except (BlockingIOError, PermissionError):
        file.close()
        raise InputError(f"{directory}: another process writes here; wait for it or choose another directory") from None
    except OSError:  # the file system has no locks
        pass
    return file


@contextlib.contextmanager
def replacing(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same directory, which replaces `path` at the end of the block.

    After an error it is removed. A killed process leaves it, and the next write of the same file replaces it. With
    `durable` the data is on disk before the file gets its name. An OSError of writing (a full disk) names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f"{PARTIAL}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and error.filename in (None, temporary, str(temporary)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def list_files(directory: str | Path) -> set[str]:
    """Return the names of finished files in a directory; none if it does not exist. Raises InputError for a file."""
    try:
        return {name for name in os.listdir(directory) if not name.startswith(PARTIAL)}
    except FileNotFoundError:
        return set()
    except NotADirectoryError:
        raise InputError(f"{directory}: a file, expected a directory") from None


def write_bytes(path: str | Path, data: bytes | memoryview, durable: bool = False) -> None:
    with replacing(path, durable) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | Path, value: object) -> None:
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_settings(path: Path) -> dict:
    """Return the settings in a file, {} if it does not exist or is not a settings file."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def read_setting(directory: str | Path, name: str, key: str) -> object:
    """Return a setting from a directory's settings file; None if the file or the setting does not exist."""
    return read_settings(Path(directory, name)).get(key)


def require_distinct(inputs: Iterable[str | Path | None], outputs: dict[str, str | Path | None]) -> None:
    """Raise InputError if an output (flag -> path) is also an input, or if two outputs are the same file."""
    read = {os.path.realpath(path) for path in inputs if path is not None}
    written: dict[str, str] = {}
    for flag, path in outputs.items():
        if path is None:
            continue
        if os.path.realpath(path) in read:
            raise InputError(f"{path}: {flag} would overwrite an input; choose another path")
        if (other := written.setdefault(os.path.realpath(path), flag)) != flag:
            raise InputError(f"{path}: both {other} and {flag}; choose different paths")


def require_directory(path: str | Path, what: str) -> Path:
    """Return the path. Raises InputError with the expected content if it is not a directory."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such directory; it should hold {what}")
    return path


def require_file(path: str | Path, what: str) -> Path:
    """Return the path. Raises InputError with the expected content if it is not a file."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; it should be {what}")
    return path
