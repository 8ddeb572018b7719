"""csv files into checked tables: whatever is wrong is named with its file and line."""

import csv
import itertools
import math
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from core.runtime.errors import InputError

MAX_NAME_BYTES = 240  # a file system's limit of 255 less room for ".wav" and the like
_CHUNK_BYTES = 1 << 20  # no line of a table is longer than this
_DTYPES = {"number": "float64", "approx": "float64", "id": "category", "category": "category", "text": "str"}


def check_name(name: str, where: str) -> str:
    """The name, if it can be one plain component of a path on any file system; InputError otherwise.

    Leading dashes, spaces, colons and letters of any script are fine: AVA's own ids have some of them.
    """
    bad = name in ("", ".", "..") or name.startswith(".partial-")  # which half-written files are called
    if bad or not name.isprintable() or "/" in name or "\\" in name:
        raise InputError(f"{where}: {name[:80]!r} is not a plain file name, so it cannot be an id")
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise InputError(f"{where}: the id {name[:40]!r}... is longer than {MAX_NAME_BYTES} bytes")
    return name


@dataclass
class Scan:
    """What one pass over the bytes of a text file tells."""

    commas: int
    quotes: int


def scan(path: Path) -> Scan:
    """Refuse a file that no table can be in: missing, empty, cut off, binary, old Mac text. Raises InputError.

    Reads the file once, a megabyte at a time.
    """
    _require_file(path)
    last, lines, commas, quotes = b"", 0, 0, 0
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                if b"\0" in chunk:
                    line = lines + chunk[: chunk.index(b"\0")].count(b"\n") + 1
                    raise InputError(f"{path}, line {line}: NUL byte; this is not a text file")
                if b"\r" in chunk and chunk.count(b"\r") > chunk.count(b"\r\n") + chunk.endswith(b"\r"):
                    line = lines + len(re.split(rb"\r(?!\n)", chunk)[0].split(b"\n"))
                    raise InputError(f"{path}, line {line}: a carriage return without a line feed")
                if len(chunk) == _CHUNK_BYTES and b"\n" not in chunk:
                    raise InputError(f"{path}, line {lines + 1}: line of more than {_CHUNK_BYTES} bytes")
                found = np.frombuffer(chunk, np.uint8)  # where a byte is frequent, bytes.count takes ten times as long
                lines += np.count_nonzero(found == ord("\n"))
                commas += np.count_nonzero(found == ord(","))
                quotes += chunk.count(b'"')
                last = chunk[-1:]
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not last:
        raise InputError(f"{path}: empty file")
    if last != b"\n":
        raise InputError(f"{path}, line {lines + 1}: cut off in the middle (the last line has no line end)")
    return Scan(commas, quotes)


def _require_file(path: Path) -> None:
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe can be read only once
        raise InputError(f"{path}: not a file on a disk; write it to one first")


def first_fields(path: Path) -> list[str]:
    """The fields of a csv's first line. Raises InputError if the file cannot be read."""
    _require_file(path)
    try:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            return next(csv.reader([file.readline(_CHUNK_BYTES)]), [])
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except csv.Error as error:
        raise InputError(f"{path}, line 1: {error}") from None


def read_table(path: Path, columns: dict[str, str], names: list[str] | None = None) -> pd.DataFrame:
    """Read some columns of a csv; the index of the result is each row's line number in the file, from 1.

    `columns` maps the wanted names to "number" (finite float64), "approx" (the same to 15 digits, faster), "id"
    (category of strings that are plain file names), "category" (category) or "text" (str). A first line that holds the
    first of them is a header, and columns are found by name; without one the file holds exactly the columns `names`
    (default: the wanted ones). Blank lines are skipped. Raises InputError with file and line.
    """
    found = scan(path)
    names = names or list(columns)
    fields = first_fields(path)
    header = next(iter(columns)) in fields
    if header:
        names = fields
    missing = [name for name in columns if name not in names]
    if missing or len(set(names)) < len(names):
        problem = f"no column {missing[0]!r}" if missing else "a column name stands twice"
        raise InputError(f"{path}, line 1: {problem}; the header is {','.join(names)[:200]!r}")
    dtypes = {name: _DTYPES[kind] for name, kind in columns.items()}
    options = {
        "header": None,
        "names": names,
        "skiprows": int(header),
        "usecols": list(columns),
        "index_col": False,
        "dtype": dtypes,
        "keep_default_na": False,
        "skip_blank_lines": False,
        "encoding": "utf-8-sig",
        "compression": None,  # whatever the file is called
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = _read_categories(path, options, columns)
            numbers = [name for name, kind in columns.items() if kind == "number"]
            if not all(_is_exact(table[name].to_numpy()) for name in numbers):
                spelt = {**options, "dtype": "str", "usecols": numbers, "skip_blank_lines": True}
                table[numbers] = _read(path, spelt, numbers).astype(object).map(float).to_numpy()
    except (ValueError, OverflowError, pd.errors.ParserWarning) as error:  # ParserError and UnicodeError among them
        raise InputError(_explain(path, columns, names, header, error)) from None
    if not len(table):
        raise InputError(f"{path}: no rows")
    # Without quotes the commas of a file count its columns, which pandas fills up in silence where they are short.
    commas = len(names) - 1
    even = found.commas == commas * (len(table) + header) and (
        names[-1] in columns or _has_constant_width(path, commas)
    )
    if found.quotes or not even or _has_booleans(path, columns, names, header):
        problem = _explain(path, columns, names, header, None)
        if problem:
            raise InputError(problem)
    _check(path, table, columns)
    return table


def _is_exact(numbers: np.ndarray) -> bool:
    """Whether pandas' fast parsing, exact up to 15 digits, was: few decimals survive rounding."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool((numbers.round(9) == numbers).all())


def _has_constant_width(path: Path, commas: int) -> bool:
    """Whether every line has so many commas, or none as blank lines have."""
    rest = b""
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            lines, end, rest = (rest + chunk).rpartition(b"\n")
            if not end:
                continue
            found = np.frombuffer(lines, np.uint8)
            begins = np.append(0, np.flatnonzero(found == ord("\n")) + 1)
            counts = np.add.reduceat((found == ord(",")).view(np.uint8), begins[begins < len(found)])
            if not np.isin(counts, (0, commas % 256)).all():
                return False
    return True


def _has_booleans(path: Path, columns: dict[str, str], names: list[str], header: bool) -> bool:
    """Whether True or False stands where numbers should: pandas takes a column of nothing else for ones and zeros."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            rows = [fields for fields in itertools.islice(csv.reader(file), 100) if "".join(fields).strip()]
        except csv.Error:  # a field too long for csv: the caller looks closer
            return True
    first = dict(zip(names, rows[header] if len(rows) > header else [], strict=False))
    return any(kind.endswith("number") and not _is_number(first.get(name, "0")) for name, kind in columns.items())


def _read_categories(path: Path, options: dict, columns: Iterable[str]) -> pd.DataFrame:
    """`_read`, categories always of text: pandas takes a column of nothing but "007" for numbers."""
    categories = [name for name, dtype in options["dtype"].items() if dtype == "category"]
    table = _read(path, options, columns)
    if all(pd.api.types.is_string_dtype(table[name].cat.categories) for name in categories):
        return table
    table = _read(path, {**options, "dtype": {**options["dtype"], **dict.fromkeys(categories, "str")}}, columns)
    return table.astype(dict.fromkeys(categories, "category"))


def _read(path: Path, options: dict, columns: Iterable[str]) -> pd.DataFrame:
    header, absolute = options["skiprows"], os.path.abspath(path)  # pandas takes a leading ~ for somebody's home
    try:
        table = pd.read_csv(absolute, **options)
        table.index += 1 + header
    except ValueError:
        # A blank line is no number. Leave such lines out, and count which ones the rows stand in.
        table = pd.read_csv(absolute, **{**options, "skip_blank_lines": True})
        with open(path, "rb") as file:
            lines = [number for number, line in enumerate(file, 1) if line.strip()][header:]
        if len(lines) == len(table):
            table.index = lines
    return table[list(columns)]


def _check(path: Path, table: pd.DataFrame, columns: dict[str, str]) -> None:
    for name, kind in columns.items():
        if kind.endswith("number"):
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


def _explain(path: Path, columns: dict[str, str], names: list[str], header: bool, error: Exception | None) -> str:
    """One line for what pandas could not read: the first line with a bad number or a wrong count of columns.

    Without an error to explain, the answer is empty where nothing is wrong.
    """
    if isinstance(error, UnicodeError):
        return f"{path}: not UTF-8 text"
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader, blank = csv.reader(file), ""
        try:
            for number, fields in enumerate(reader):
                place = f"{path}, line {reader.line_num}"
                if len(fields) == 1 and fields[0].isspace():
                    blank = blank or f"{place}: 1 columns, expected {len(names)}"  # where pandas takes it for a row
                    continue
                if not fields or (header and number == 0):
                    continue
                if len(fields) != len(names):
                    return f"{place}: {len(fields)} columns, expected {len(names)}"
                for name, text in zip(names, fields, strict=True):
                    if columns.get(name, "").endswith("number") and not _is_number(text):
                        return f"{place}: {name} is {text[:40]!r}, not a number"
        except csv.Error as problem:
            return f"{path}, line {reader.line_num}: {problem}"
    return (blank or f"{path}: {str(error).splitlines()[0]}") if error else ""


def _is_number(text: str) -> bool:
    try:
        return text.isascii() and "_" not in text and math.isfinite(float(text))
    except ValueError:
        return False
