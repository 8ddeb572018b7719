"""Reading of csv files into checked tables, and writing. Errors name the file and the line."""

import csv
import math
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from core.runtime.errors import InputError
from core.runtime.files import PARTIAL, replacing

MAX_NAME_BYTES = 240  # the usual limit of a file name is 255; the rest is for suffixes such as ".wav"
_CHUNK_BYTES = 1 << 20  # also the longest line that is accepted
_DTYPES = {"number": "float64", "id": "category", "category": "category", "text": "str"}
# Other spellings of column names, in lower case
_SYNONYMS = {
    **dict.fromkeys(("video", "videoid", "video_name"), "video_id"),
    **dict.fromkeys(("timestamp", "frame_time", "time", "seconds"), "frame_timestamp"),
    **{name: f"entity_box_{name}" for name in ("x1", "y1", "x2", "y2")},
    **dict.fromkeys(("entity", "entityid", "track", "track_id"), "entity_id"),
}
_SPREADSHEET_ERRORS = ("#NAME?", "#REF!", "#VALUE!", "#N/A")
_BOOLEANS = ["True", "TRUE", "true", "False", "FALSE", "false"]  # pandas converts these to numbers


def check_name(name: str, where: str) -> str:
    """Return the name if it is a plain file name on any file system. Raises InputError otherwise.

    Leading dashes, spaces, colons and letters of any script are allowed: some occur in AVA's ids.
    """
    reserved = name in ("", ".", "..") or name.startswith(PARTIAL)
    if reserved or not name.isprintable() or "/" in name or "\\" in name:
        raise InputError(f"{where}: {name[:80]!r} is not a plain file name, so it cannot be an id")
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        problem = f"the name {name[:40]!r}... is longer than {MAX_NAME_BYTES} bytes"
        raise InputError(f"{where}: {problem}; rename the file or shorten the id")
    return name


def require_text(path: Path) -> int:
    """Count the lines of a text file. Raises InputError if it is empty, truncated, binary or has CR line ends.

    Reads the file once, one megabyte at a time.
    """
    last, lines = b"", 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            if b"\0" in chunk:
                line = lines + chunk[: chunk.index(b"\0")].count(b"\n") + 1
                raise InputError(f"{path}, line {line}: NUL byte; this is not a text file in UTF-8")
            if b"\r" in chunk and chunk.count(b"\r") > chunk.count(b"\r\n") + chunk.endswith(b"\r"):
                line = lines + len(re.split(rb"\r(?!\n)", chunk)[0].split(b"\n"))
                raise InputError(f"{path}, line {line}: a carriage return without a line feed")
            newlines = chunk.count(b"\n")
            if len(chunk) == _CHUNK_BYTES and not newlines:
                raise InputError(f"{path}, line {lines + 1}: longer than {_CHUNK_BYTES} bytes")
            lines += newlines
            last = chunk[-1:]
    if not last:
        raise InputError(f"{path}: empty file")
    if last != b"\n":
        if not _last_line_is_complete(path):
            problem = "truncated, or complete but without a line end: then add one"
            raise InputError(f"{path}, line {lines + 1}: {problem}")
        lines += 1
    return lines


def _last_line_is_complete(path: Path) -> bool:
    """Return True if the last line of a file ends with the same id as a line before it.

    Some programs do not end the last line. One that was cut off hardly ends with the whole id of another row.
    """
    earlier, _, last = path.read_bytes().replace(b"\r\n", b"\n").rpartition(b"\n")
    _, comma, name = last.rpartition(b",")
    is_number = not re.search(rb"[^\d.eE+-]", name)  # may have lost digits
    return bool(comma) and not is_number and b"," + name + b"\n" in earlier + b"\n"


def first_fields(path: Path) -> list[str]:
    """Return the fields of the first line. Raises InputError if the file cannot be read."""
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe could be read only once
        raise InputError(f"{path}: not a regular file; write the data to one first")
    try:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.reader([file.readline(_CHUNK_BYTES), "\n"])
            fields = next(reader, [])
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except csv.Error as error:
        raise InputError(f"{path}, line 1: {error}") from None
    if reader.line_num > 1:
        raise InputError(f"{path}, line 1: a line end within quotes")
    return fields


def read_table(
    path: Path, columns: dict[str, str], names: list[str] | None = None, optional: tuple[str, ...] = ()
) -> pd.DataFrame:
    """Read columns of a csv file. The index of the result is the line number of each row, from 1.

    `columns` maps names to kinds: "number" (finite float64), "id" (plain file names, as categories), "category" or
    "text" (str). Blanks around categories are removed. A first line that contains the first of these names, or
    usual spellings of all of them, is a header, and columns are found by name; `optional` columns may be missing:
    numbers are NaN then, texts empty. A file without header has exactly the columns `names` (default: those of
    `columns`). Blank lines are skipped. Raises InputError with file and line.
    """
    names = names or list(columns)
    fields = first_fields(path)
    lines = require_text(path)
    found = [_column_name(field, columns) for field in fields]
    header = next(iter(columns)) in fields or set(columns) <= {*found, *optional}
    absent = [name for name in optional if header and name not in found]
    optional_kinds = {name: columns[name] for name in absent}
    columns = {name: kind for name, kind in columns.items() if name not in absent}
    if header:
        names = found
    missing = [name for name in columns if name not in names]
    if missing or len(set(names)) < len(names):
        duplicate = "two columns without a name (trailing commas?)" if "" in names else "duplicate column name"
        problem = f"no column {missing[0]!r}" if missing else duplicate
        raise InputError(f"{path}, line 1: {problem}; the header is {','.join(names)[:200]!r}")
    numbers = [name for name, kind in columns.items() if kind == "number"]
    options = {
        "header": None,
        "names": names,
        "skiprows": int(header),
        "index_col": False,
        # Other columns are read too, one byte per field, because pandas then checks the number of columns.
        "dtype": {name: _DTYPES[columns[name]] if name in columns else "S1" for name in names},
        "keep_default_na": False,
        "na_values": dict.fromkeys(numbers, _BOOLEANS),
        "encoding": "utf-8-sig",
        "compression": None,  # the suffix does not matter
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = _read(path, options)
        if not header and len(fields) > len(names):  # pandas drops an empty last column
            raise ValueError("additional columns")
    except (ValueError, pd.errors.ParserWarning) as error:  # ParserError and UnicodeError are ValueErrors
        raise InputError(_inspect(path, columns, names, header, error)[0]) from None
    if not len(table):
        raise InputError(f"{path}: no rows")
    # pandas pads short lines with empty fields, skips blank lines and accepts line ends in quoted fields.
    may_be_short = names[-1] not in numbers and table[names[-1]].isin(["", b""]).any()
    table = table[list(columns)]
    table.index += 1 + header
    is_finite = np.isfinite(table[numbers].to_numpy()).all()
    if may_be_short or not is_finite or len(table) + header < lines:
        problem, line_numbers = _inspect(path, columns, names, header)
        if problem or not is_finite:
            raise InputError(problem or f"{path}: invalid number")
        if len(line_numbers) == len(table):
            table.index = line_numbers
    for name, kind in columns.items():
        if kind == "category":
            names = table[name].cat.categories
            if (names != names.str.strip(" \t")).any():
                table[name] = table[name].astype("str").str.strip(" \t").astype("category")
        if kind == "id":
            _check_ids(path, table[name])
    for name in absent:
        table[name] = np.nan if optional_kinds[name] == "number" else pd.Categorical([""] * len(table))
    return table


def _column_name(field: str, columns: Iterable[str]) -> str:
    """Return the name of the column that a field of a header means, the field itself if it is none of them."""
    name = field.strip().lower()
    name = _SYNONYMS.get(name, name)
    return name if name in columns else field


def _read(path: Path, options: dict) -> pd.DataFrame:
    """Call pandas' reader. Categories are always text: pandas converts a column of nothing but "007" to numbers."""
    path = os.path.abspath(path)  # pandas expands a leading ~

    def read(options: dict) -> pd.DataFrame:
        # Never in parallel, which splits a file at line ends, including those in quoted fields.
        with pd.read_csv(path, iterator=True, **options) as reader:
            return reader.read()

    table = read(options)
    columns = table.select_dtypes("category")
    numeric = [name for name in columns if not pd.api.types.is_string_dtype(columns[name].cat.categories)]
    if not numeric:
        return table
    options = {**options, "dtype": {**options["dtype"], **dict.fromkeys(numeric, "str")}}
    return read(options).astype(dict.fromkeys(numeric, "category"))


def _check_ids(path: Path, ids: pd.Series) -> None:
    for name in ids.cat.categories:
        if name in _SPREADSHEET_ERRORS:
            cause = "a spreadsheet wrote this for a text that begins with - or =; import the column as text"
            raise InputError(f"{path}, line {(ids == name).idxmax()}: {ids.name} is {name}: {cause}")
        try:
            check_name(name, str(path))
        except InputError:
            check_name(name, f"{path}, line {(ids == name).idxmax()}, {ids.name}")


def _inspect(
    path: Path, columns: dict[str, str], names: list[str], header: bool, error: Exception | None = None
) -> tuple[str, list[int]]:
    """Read a csv slowly, up to the first line with an invalid number or a wrong number of columns.

    Returns a description of that line and the line numbers of the rows before it. Without an error of pandas to
    explain, the description is empty if no line is wrong.
    """
    if isinstance(error, UnicodeError):
        return f"{path}: not UTF-8 text; save it in this encoding", []
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader, blank, rows = csv.reader(file), "", []
        try:
            for index, fields in enumerate(reader):
                where = f"{path}, line {reader.line_num}"
                if len(fields) == 1 and fields[0].isspace():
                    blank = blank or f"{where}: 1 columns, expected {len(names)}"  # quoted blanks are a row for pandas
                    continue
                if not fields or (header and index == 0):
                    continue
                if len(fields) != len(names):
                    cause = _column_cause(fields, names, header)
                    return f"{where}: {len(fields)} columns, expected {len(names)}{cause}", rows
                for name, text in zip(names, fields, strict=True):
                    if columns.get(name) == "number" and not _is_number(text):
                        cause = "" if index else f"; a header must name {', '.join(columns)}"
                        return f"{where}: {name} is {text[:40]!r}, not a number{cause}", rows
                rows.append(reader.line_num)
        except csv.Error as problem:
            return f"{path}, line {reader.line_num}: {problem}", rows
    return (blank or f"{path}: {str(error).splitlines()[0]}") if error else "", rows


def _column_cause(fields: list[str], names: list[str], header: bool) -> str:
    """Return the likely cause of a wrong number of columns, as the end of a message."""
    if len(fields) == 1 and (";" in fields[0] or "\t" in fields[0]):
        return "; the columns are separated by semicolons or tabs: save the file with commas"
    if len(fields) == len(names) + 1 and fields[0].isdigit():
        return "; the first column looks like an index: write the file without it (pandas: index=False)"
    return "" if header else f"; without a header they are {', '.join(names)}"


def _is_number(text: str) -> bool:
    try:
        return text.isascii() and "_" not in text and math.isfinite(float(text))
    except ValueError:
        return False


def write_csv(path: str | Path, table: pd.DataFrame, header: bool) -> None:
    """Write a table with full precision; NaN becomes an empty field."""
    with replacing(path) as temporary:
        table.to_csv(temporary, header=header, index=False, lineterminator="\n")
