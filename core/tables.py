"""csv files into checked tables: whatever is wrong is named with its file and line."""

import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from core.errors import InputError

MAX_NAME_BYTES = 240  # a file system's limit of 255 less room for ".wav" and the like
_CHUNK_BYTES = 1 << 20  # no line of a table is longer than this


def check_name(name: str, where: str) -> str:
    """The name, if it can be one plain component of a path on any file system; InputError otherwise.

    Leading dashes, spaces, colons and letters of any script are fine: AVA's own ids have some of them.
    """
    if name in ("", ".", "..") or not name.isprintable() or "/" in name or "\\" in name:
        raise InputError(f"{where}: {name[:80]!r} is not a plain file name, so it cannot be an id")
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise InputError(f"{where}: the id {name[:40]!r}... is longer than {MAX_NAME_BYTES} bytes")
    return name


def scan(path: Path) -> bytes:
    """Refuse a file that no table can be in (empty, cut off, binary); return its first line.

    Raises InputError. Reads the file once, a megabyte at a time.
    """
    first, last, lines, offset = b"", b"", 0, 0
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                if not first:
                    first = chunk.partition(b"\n")[0]
                if b"\0" in chunk:
                    line = lines + chunk[: chunk.index(b"\0")].count(b"\n") + 1
                    raise InputError(f"{path}, line {line}: NUL byte; this is not a text file")
                if len(chunk) == _CHUNK_BYTES and b"\n" not in chunk:
                    raise InputError(f"{path}, line {lines + 1}: line of more than {_CHUNK_BYTES} bytes")
                lines += chunk.count(b"\n")
                offset += len(chunk)
                last = chunk[-1:]
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not offset:
        raise InputError(f"{path}: empty file")
    if last != b"\n":
        raise InputError(f"{path}, line {lines + 1}: cut off in the middle (the last line has no line end)")
    return first.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r")


def read_table(path: Path, columns: dict[str, str], header: bool) -> pd.DataFrame:
    """Read the named columns of a csv; the index of the result is each row's line number in the file, from 1.

    `columns` maps a name to "number" (finite float64), "id" (category of strings that are plain file names),
    "word" (category) or "text" (str). With `header` columns are found by name and others are ignored, else the file
    must hold exactly these. Blank lines are skipped. Raises InputError with file and line.
    """
    first = scan(path)
    wanted = list(columns)
    if header:
        names = next(iter(_split_line(first)), [])
        missing = [name for name in wanted if name not in names]
        if missing or len(set(names)) < len(names):
            problem = f"no column {missing[0]!r}" if missing else "a column name stands twice"
            raise InputError(f"{path}, line 1: {problem}; the header is {first[:200].decode(errors='replace')!r}")
    else:
        names = [*wanted, "_surplus"]
    # The last column is read whatever it is, because a line that is short of columns shows there.
    dtypes = {name: "float64" if columns.get(name) == "number" else "category" for name in names}
    dtypes |= {name: "str" for name, kind in columns.items() if kind == "text"}
    options = {
        "header": None,
        "names": names,
        "skiprows": int(header),
        "usecols": sorted({*map(names.index, wanted), len(names) - 1}),
        "index_col": False,
        "dtype": dtypes,
        "keep_default_na": False,
        "na_filter": True,
        "skip_blank_lines": False,
        "encoding": "utf-8-sig",
        "low_memory": False,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, **options)
            numbers = [name for name, kind in columns.items() if kind == "number"]
            # Fast parsing is exact up to 15 digits, which shows as decimals that survive rounding.
            if any((table[name].round(9) != table[name]).any() for name in numbers):
                table = pd.read_csv(path, float_precision="round_trip", **options)
    except (ValueError, pd.errors.ParserWarning, OverflowError) as error:  # ParserError and UnicodeError among them
        raise InputError(_explain(path, columns, names, header, error)) from None
    table.index += 1 + int(header)
    blank = table[wanted[0]].isna() | (table[wanted[0]].astype(object) == "")
    if blank.any():
        others = table[wanted[1:]]
        table = table[~(blank & (others.isna() | (others.astype(object) == "")).all(axis=1))]
    if not len(table):
        raise InputError(f"{path}: no rows")
    _check(path, table, columns, names, header)
    return table[wanted]


def _split_line(line: bytes) -> list[list[str]]:
    import csv

    return list(csv.reader([line.decode("utf-8", errors="replace")]))


def _check(path: Path, table: pd.DataFrame, columns: dict[str, str], names: list[str], header: bool) -> None:
    last, expected = table[names[-1]], len(names) - (not header)
    short = table[names[-1 if header else -2]].isna()
    if short.any():
        raise InputError(f"{path}, line {short.idxmax()}: fewer than {expected} columns")
    if not header and last.notna().any():
        raise InputError(f"{path}, line {last.notna().idxmax()}: more than {expected} columns")
    for name, kind in columns.items():
        if kind == "number":
            bad = ~np.isfinite(table[name].to_numpy())
            if bad.any():
                line = table.index[bad.argmax()]
                raise InputError(f"{path}, line {line}: {name} is {table[name].iloc[bad.argmax()]}, not a number")
        elif kind == "id":
            for value in table[name].cat.categories:
                try:
                    check_name(value, str(path))
                except InputError:
                    line = (table[name] == value).idxmax()
                    check_name(value, f"{path}, line {line}, {name}")


def _explain(path: Path, columns: dict[str, str], names: list[str], header: bool, error: Exception) -> str:
    """One line for what pandas could not read: the first line with a bad number or a wrong count of columns."""
    if isinstance(error, UnicodeError):
        return f"{path}: not UTF-8 text"
    expected = len(names) - (not header)
    with open(path, encoding="utf-8-sig", newline="") as file:
        import csv

        reader = csv.reader(file)
        try:
            for fields in reader:
                if not fields or (header and reader.line_num == 1):
                    continue
                if len(fields) != expected:
                    return f"{path}, line {reader.line_num}: {len(fields)} columns, expected {expected}"
                for name, text in zip(names, fields, strict=False):
                    if columns.get(name) == "number":
                        try:
                            float(text)
                        except ValueError:
                            return f"{path}, line {reader.line_num}: {name} is {text[:40]!r}, not a number"
        except csv.Error as problem:
            return f"{path}, line {reader.line_num}: {problem}"
    return f"{path}: {str(error).splitlines()[0]}"
