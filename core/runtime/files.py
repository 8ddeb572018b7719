"""Files that are written whole or not at all, locks on directories, and what killed runs left in them."""

import contextlib
import csv
import fcntl
import itertools
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from core.runtime.errors import InputError


def _host_id() -> str:
    """What tells machines and containers of one name apart: the boot, and where process numbers are counted."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return "unknown"


# Half-written files carry the machine and the process that writes them, so that what a killed run left can be told.
_PARTIAL = f".partial-{socket.gethostname()}-{_host_id()}-"
_OWN_PARTIAL = re.compile(re.escape(_PARTIAL) + r"(\d+)-(\d+)-\d+(\.\w+)?")
_ANY_PARTIAL = re.compile(r"\.partial-.+-\d+-\d+-\d+(\.\w+)?")
_DAY = 86400  # seconds; what another machine has not touched for so long it has left behind
_counter = itertools.count()


def lock(directory: Path) -> IO:
    """Keep other processes from filling this directory for as long as the result is held, or this process lives.

    Raises InputError where another process does.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = os.fdopen(os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # belongs to the process: its workers do not inherit it
    except (BlockingIOError, PermissionError):
        file.close()
        raise InputError(f"{directory}: another process writes here; wait for it, or choose another place") from None
    except OSError:  # a file system that cannot lock
        pass
    return file


@contextlib.contextmanager
def replacing(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside `path`; when the block ends well it becomes `path`, else it is removed.

    With `durable` the data is on the disk before, so that a power cut leaves the old file or the new one. An OSError
    of writing (a full disk) names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f"{_own_partial(os.getpid())}-{next(_counter)}{path.suffix}")
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


@lru_cache(maxsize=1)
def _own_partial(process: int) -> str:
    return f"{_PARTIAL}{process}-{_process_start_time(process)}"


def list_files(directory: str | Path) -> set[str]:
    """Names of the files in a directory, none if it does not exist. Removes what killed runs left half-written."""
    try:
        names = set(os.listdir(directory))
    except FileNotFoundError:
        return set()
    except NotADirectoryError:
        raise InputError(f"{directory}: a file, expected a directory") from None
    for name in [name for name in names if _ANY_PARTIAL.fullmatch(name)]:
        names.remove(name)
        path = Path(directory, name)
        with contextlib.suppress(OSError):  # on a disk that is only read they may stay
            if _is_left_behind(path):
                path.unlink()
    return names


def _is_left_behind(partial: Path) -> bool:
    """Whether nobody writes this half-written file any more."""
    own = _OWN_PARTIAL.fullmatch(partial.name)
    if own is None:
        return time.time() - partial.stat().st_mtime > _DAY
    return _process_start_time(int(own[1])) != int(own[2])


def _process_start_time(process: int) -> int:
    """When a process began, in clock ticks since the machine did, as its number alone will be another's; 0 if gone."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def write_bytes(path: str | Path, data: bytes | memoryview, durable: bool = False) -> None:
    with replacing(path, durable) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | Path, value: object) -> None:
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_setting(directory: str | Path, name: str, key: str) -> object:
    """One of the settings that a directory's results were made with, None where they do not tell."""
    try:
        return dict(json.loads(Path(directory, name).read_text())).get(key)
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def write_csv(path: str | Path, table: pd.DataFrame, header: bool) -> None:
    """Numbers are written with as many digits as it takes to read the same number back, NaN as nothing."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")  # twice as fast as pandas' own
        if header:
            writer.writerow(table.columns)
        for start in range(0, len(table), 1 << 16):
            part = table.iloc[start : start + (1 << 16)]
            writer.writerows(zip(*(_plain(part[name]) for name in table), strict=True))


def _plain(column: pd.Series) -> list:
    values = column.to_numpy()
    if values.dtype.kind != "f":
        return values.tolist()
    texts = list(map(str, values)) if values.dtype == np.float32 else values.tolist()  # in the digits of its precision
    for row in np.flatnonzero(np.isnan(values)):
        texts[row] = ""
    return texts


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
    """The path, or an InputError that says what the directory should hold."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such directory; it should hold {what}")
    return path


def require_file(path: str | Path, what: str) -> Path:
    """The path, or an InputError that says what the file should be."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; it should be {what}")
    return path
