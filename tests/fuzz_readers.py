"""Damage valid files at random, and check that every reader returns the right table or refuses the file in one line.

    python tests/fuzz_readers.py --count 20000
    python tests/fuzz_readers.py --what features --seed 3 --first 1234 --count 1

A case depends only on its kind, seed and number. The expected result is computed by oracle.py. A reader must refuse
errors and may refuse doubtful lines, with an InputError of one line that names the file and, if there is one, the line.
Anything else is a finding, which is printed and its files kept. Exit status 1 if there are findings.
"""

import argparse
import contextlib
import gzip
import io
import math
import os
import random
import re
import shutil
import struct
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
from oracle import (
    ANY_LINE,
    LABELS,
    OFFICIAL,
    PREDICTED,
    STORED,
    WIDTH,
    Expected,
    array_header,
    expected_annotations,
    expected_join,
    expected_logits,
    expected_scores,
    expected_store,
)
from tqdm import tqdm

from core.formats import features as features_module
from core.formats import predictions as predictions_module
from core.formats.annotations import FaceTable, read_annotations
from core.runtime.errors import InputError

# Valid files and ways to damage them

VIDEO = "talk"
NAMES = ("talk:1", "talk:2", "-k_0", "7", "007", "7.0", "nan", "True", "a b", "é字", "...", "1e5")
_NASTY = (  # separated by |
    "|NaN|nan|inf|-inf|Infinity|1e400|1e-320|1e-400|0x10|1_000| 0.5|0.5 |+0.5|\uff11|\u0661|½|0.5\xa0|--1|1e|1e+|1.2.3|"
    "-0.0|-0|1e23|9007199254740993|123456789.123456789|5.|.5|.|-|1e308|-1e308|1e39|0.1e1|00012|1 2|1,2|True|False|true|"
    '../x|a/b|a\\b|..|~|a\0b|"|""|"""|"a\nb"|"a\r\nb"|"a,b"|"a""b"|a"b|"a"b|None|NULL|NA|null|""1""|=1+1|-a|a:b| |\t|'
    "a |talk|speaking_audible|0|1|2|0.0|1.0|0.3|1.01|-0.1|\ufeff|\x1b[2J|\u2028|\x0c|\x85|"
    "'|#|#NAME?|%s%n|{}|[]|[1.0]|(1,)|;|1;2|0,5|é|e\u0301|\u202ea|@f|$HOME|`ls`|other|SPEAKING_AUDIBLE|NOT_SPEAKING"
)
_LONG = ("1" * 30, "1" * 400, "0." + "1" * 40, "x" * 240, "x" * 300, "字" * 80)
_BYTES = (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x1a", b"\r", b"\n", b",", b",,,,,,,,")
NASTY = [text.encode() for text in (*_NASTY.split("|"), *_LONG)] + list(_BYTES)


def faces(rng: random.Random, videos: Iterable[str] = (VIDEO, "2")) -> list[tuple[str, str, str, str]]:
    """(video, timestamp, label, entity) of the rows of a few tracks, mixed; in rare cases 9,000 rows."""
    many = rng.random() < 0.004
    names = rng.sample(NAMES, rng.randint(1, 4))
    video_of = {name: rng.choice(list(videos)) for name in names}
    clock = dict.fromkeys(names, rng.choice((0, 1080, 900.04)))
    rows = []
    for index in range(9000 if many else rng.randint(1, 12)):
        name = names[index * len(names) // 9000] if many else rng.choice(names)
        time = round(clock[name] + rng.choice((0.04, 0.03, 1)), 2)
        timestamp = rng.choice((str(time), f"{time:.2f}", f"{time:.10g}", repr(time + 1e-9)))
        clock[name] = max(time, math.ceil(float(timestamp) * 100) / 100)
        rows.append((video_of[name], timestamp, rng.choice(LABELS), name))
    return rows


def lines_of(rows: list[tuple[str, str, str, str]], rng: random.Random, more: Callable[..., list]) -> bytes:
    """Official lines of rows, each followed by the fields `more(label, name)`."""
    lines = []
    for video, timestamp, label, name in rows:
        x, y = sorted(rng.sample(range(101), 2)), sorted(rng.sample(range(1001), 2))
        box = [x[0] / 100, y[0] / 1000, x[1] / 100, y[1] / 1000]
        lines.append(",".join([video, timestamp, *map(str, box), label, name, *more(label, name)]) + "\n")
    return "".join(lines).encode()


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or insert a few bytes, or flip one bit."""
    at, other = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    end = at + rng.choice((0, 0, 1, 1, 1, 2, 5, 40))
    flipped = bytes(byte ^ (1 << rng.randrange(8)) for byte in data[at : at + 1])
    mark = bytes([rng.choice(b',"\n\r\0 \t.-_019eE\xef')])
    copy = data[other : other + rng.choice((1, 5, 60))]
    new = rng.choice((b"", flipped, flipped, mark, mark, copy, rng.randbytes(rng.randint(1, 4)), rng.choice(NASTY)))
    return data[:at] + new + data[end if new is not flipped else at + 1 :]


def change_lines(data: bytes, rng: random.Random) -> bytes:
    """Repeat, swap or remove a line, or insert the first line or a blank one."""
    lines = data.splitlines(keepends=True) or [b""]
    one, two = rng.randrange(len(lines)), rng.randrange(len(lines))
    blank = rng.choice((b"\n", b"\n", b"\r\n", b"   \n", b"\t\n", b"\x0c\n", b",,,,,,,\n", b'""\n', b'"  "\n'))
    match rng.randrange(5):
        case 0:
            lines.insert(one, lines[two])
        case 1:
            lines[one], lines[two] = lines[two], lines[one]
        case 2:
            lines.pop(one)
        case 3:
            lines.insert(one, lines[0])
        case 4:
            lines.insert(rng.choice((0, one, len(lines))), blank)
    return b"".join(lines)


def change_fields(data: bytes, rng: random.Random) -> bytes:
    """Change fields of one row or of all rows: replace, quote, insert, remove, move or swap them."""
    table = [line.split(b",") for line in data.split(b"\n")]
    row, other = rng.randrange(len(table)), rng.randrange(len(table))
    column, second = rng.randrange(len(table[row])), rng.randrange(len(table[other]))
    every = table if rng.random() < 0.2 else [table[row]]
    size = rng.choice((2_000, 140_000, 1_200_000, 3_000_000)) if rng.random() < 0.01 else 30
    nasty, order = rng.choice((*NASTY, b"v" * size, b"1" * size)), rng.sample(range(99), 99)
    action = rng.randrange(9)
    if action == 0:  # the same column of two rows, such as their timestamps
        column = min(column, len(table[other]) - 1)
        table[row][column], table[other][column] = table[other][column], table[row][column]
    elif action == 1:  # move a field to another row, which keeps the number of commas
        table[other].insert(second, table[row].pop(column))
    for fields in (fields for fields in every if column < len(fields) and fields != [b""]):
        match action:
            case 2 | 3:
                fields[column] = nasty
            case 4:
                fields.insert(column, rng.choice((nasty, fields[column], b"")))
            case 5:
                fields.pop(column)
            case 6:
                fields[:] = [field for _, field in sorted(zip(order, fields, strict=False))]
            case 7:
                fields[column] = b'"' + fields[column].replace(b'"', b'""') + b'"'
            case 8:  # change the spelling of a number
                zeros = b"0" * rng.choice((1, 20, 60))
                text = fields[column]
                fields[column] = rng.choice((zeros + text, text + b"e0", text + zeros, b" " + text, text + b"1" * 16))
    return b"\n".join(map(b",".join, table))


def change_all(data: bytes, rng: random.Random) -> bytes:
    """Change the encoding, line ends or spellings, add a byte order mark, quote all fields, truncate or compress."""
    mixed = b"".join(line + rng.choice((b"\n", b"\r\n", b"\r")) for line in data.split(b"\n"))
    quoted = b"".join(b'"' + line.replace(b",", b'","') + b'"\n' for line in data.split(b"\n")[:-1])
    text = data.decode("utf-8", "replace")
    coded = text.encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-7")), "replace")
    ends = data.replace(b"\n", rng.choice((b"\r\n", b"\r")))
    part, packed = data[: rng.randrange(len(data) + 1)], gzip.compress(data, mtime=0)
    head, spelled = data.partition(b"\n")[0], data.replace(b",", b", ").lower()
    short = head.replace(b"frame_timestamp", b"Time").replace(b"entity_box_", b"").replace(b"video_id", b"video")
    whole = data.removesuffix(b"\n")
    marked = b"\xef\xbb\xbf" + data
    return rng.choice(
        (mixed, quoted, coded, ends, ends, marked, packed, part, part, whole, spelled, short + data[len(head) :])
    )


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The data after up to three changes."""
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 3))):
        data = rng.choice((change_bytes, change_lines, change_fields, change_fields, change_all))(data, rng)
    return data


def damaged_array(data: bytes, rows: int, rng: random.Random) -> bytes:
    """A .npy file, unchanged, with bytes changed, or with a different header."""
    choice = rng.randrange(5)
    if choice < 2:
        return change_bytes(data[:200], rng) + change_bytes(data[200:], rng) if choice else data

    def one_of(text: str) -> str:
        return rng.choice(text.split("|"))

    descr = one_of("'<f4'|'<f4'|'<f4'|'>f4'|'O'|'<f8'|'f4,f4'|[('a', '<f4')]|'<f4|1|[]|'x'")
    order = one_of("False|False|False|True|0|[]")
    shape = one_of("N, W|N, W|N, W|N, W|N, -W|-N, W|NL, WL|B, W|N, B|True, W|N, W, 1|N*W,||N, W.0|(N,), W|0, W|W, N")
    shape = shape.replace("N", str(rows)).replace("W", str(WIDTH)).replace("B", one_of("9|99|999") * 10)
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': ({shape}), }}"
    odd = [header[:-4], " " + header, "(" * 150, "[" * 9000, "-" * 9000 + "1", one_of("|1|{|{[]: 1}|'''|\\|é")]
    text = rng.choice((header, header, rng.choice(odd))).ljust(rng.choice((0, 117))).encode("latin-1") + b"\n"
    version, wide = rng.choice(((1, False), (1, False), (2, True), (3, True), (0, False), (255, True)))
    size = rng.choice((len(text), len(text), len(text), 0, 10, 65535))
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<I" if wide else "<H", size) + text + data[128:]


# Checks


class Finding(Exception):
    """A reader returned the wrong table or did not refuse a file properly."""


class Trial:
    """One case: its random numbers and a directory for its files."""

    def __init__(self, directory: Path, rng: random.Random):
        self.directory, self.rng = directory, rng

    def write(self, files: dict[str, bytes]) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        for name, data in files.items():
            (self.directory / name).write_bytes(data)

    def judge(self, read: Callable[[], list[tuple]], expected: Expected, source: Path) -> bool:
        """Return True for the right table, False for a proper refusal. Raises Finding otherwise."""

        found, message = None, ""
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("always")
            try:
                found = read()
            except InputError as error:
                message = str(error)
        if caught:
            raise Finding(f"warns: {caught[0].message}")
        if found is not None:
            for (name, line), reason in expected.errors.items():
                raise Finding(f"accepts an error ({reason}): {name}, line {line}")
            for row, wanted in zip(found, expected.rows, strict=False):
                if repr(row) != repr(wanted):  # compared as text, because 0.0 == -0.0
                    raise Finding(f"wrong row: {row!r:.300}, not {wanted!r:.300}")
            if len(found) != len(expected.rows):
                raise Finding(f"wrong number of rows: {len(found)}, not {len(expected.rows)}")
            return True
        if message.splitlines() != [message]:
            raise Finding(f"message of more than one line: {message!r:.300}")
        reasons = {**expected.errors, **expected.doubts}
        if not reasons:
            raise Finding(f"refuses a valid file: {message:.300}")
        paths = {name: str(source / name) if source.is_dir() else str(source) for name, _ in reasons}
        named = [name for name, path in paths.items() if message.startswith((f"{path}:", f"{path}, line "))]
        if not named:
            raise Finding(f"message without the name of an invalid file: {message:.300}")
        lines = {line for name, line in reasons if name in named}
        match = re.match(r", line (\d+)", message[len(paths[named[0]]) :])
        if ANY_LINE not in lines and (int(match[1]) if match else 0) not in lines:
            raise Finding(f"{'wrong' if match else 'no'} line number, expected {sorted(lines)[:20]}: {message:.300}")
        return False


def check_annotations(trial: Trial, files: dict[str, bytes]) -> bool:
    """Read a file or a directory of official files; see `Trial.judge`."""
    trial.write(files)
    official = all(name.endswith("-activespeaker.csv") for name in files)
    source = trial.directory if official else Path(trial.directory, *files)

    def read() -> list[tuple]:
        table = read_annotations(source)
        columns = (table.video, table.entity, table.timestamp, table.label, table.box, table.anyone_speaking)
        return [
            (table.video_ids[v], table.entity_ids[e], t, label, box, speaking, table.audio_start[e].item())
            for v, e, t, label, box, speaking in zip(*(column.tolist() for column in columns), strict=True)
        ]

    return trial.judge(read, expected_annotations(files), source)


def check_store(trial: Trial, files: dict[str, bytes]) -> bool:
    """Open a feature store and read all of it; see `Trial.judge`."""
    trial.write(files)

    def read() -> list[tuple]:
        store = features_module.FeatureStore(trial.directory)
        table, values = store.table, store.gather(np.arange(len(store.table)))
        columns = (column.tolist() for column in (table.video, table.entity, table.timestamp, table.label))
        return [
            (table.video_ids[v], table.entity_ids[e], t, label, row.tobytes())
            for v, e, t, label, row in zip(*columns, values, strict=True)
        ]

    return trial.judge(read, expected_store(files), trial.directory)


def check_predictions(trial: Trial, files: dict[str, bytes], truth: list[tuple]) -> bool:
    """Read scores.csv or logits, and join them to the (video, time, entity) of the truth; see `Trial.judge`."""
    trial.write(files)
    if "scores.csv" in files:
        source, values = trial.directory / "scores.csv", ["score"]
        read, expected = predictions_module.read_scores, expected_scores(files)
    else:
        source, values = trial.directory, ["logit_0", "logit_1"]
        read, expected = predictions_module.read_logits, expected_logits(files)
    frames = []

    def rows(frame: pd.DataFrame) -> list[tuple]:
        frames.append(frame)
        columns = ["video_id", "frame_timestamp", "entity_id", *values]
        return list(zip(*(frame[column].tolist() for column in columns), strict=True))

    if not trial.judge(lambda: rows(read(source)), expected, source):
        return False
    video, videos = pd.factorize(np.array([key[0] for key in truth], object))
    entity, entities = pd.factorize(np.array([key[2] for key in truth], object))
    times = np.array([key[1] for key in truth])
    table = FaceTable(list(videos), list(entities), video, entity, times, np.zeros(len(truth), np.int8))
    joined = expected_join(expected.rows, truth)
    return trial.judge(lambda: rows(predictions_module.join(frames[0], table, str(source))), joined, source)


def annotations(trial: Trial) -> bool:
    """An official file, an augmented file, or a directory of official files, one of them damaged."""
    rng = trial.rng
    form = rng.choice(("official", "augmented", "directory"))
    if form == "directory":
        rows = faces(rng, "abc")
        videos = {video: [row for row in rows if row[0] == video] for video in {row[0]: None for row in rows}}
        files = {f"{video}-activespeaker.csv": lines_of(rows, rng, lambda *_: []) for video, rows in videos.items()}
    else:
        more = (lambda label, name: [str(LABELS.index(label)), f"{name}:0"]) if form == "augmented" else lambda *_: []
        head = ",".join([*OFFICIAL, "label_id", "instance_id"]).encode() + b"\n" if form == "augmented" else b""
        suffix = rng.choice([".csv"] * 120 + ["", ".txt", ".csv.gz", ".csv.bz2", ".csv.xz", ".zip", ".csv.zst", ".tar"])
        files = {f"faces{suffix}": head + lines_of(faces(rng), rng, more)}
    name = rng.choice(list(files))
    return check_annotations(trial, {**files, name: damaged(files[name], rng)})


def features(trial: Trial) -> bool:
    """A feature store: csv and npy, or the released text format."""
    rng = trial.rng
    files = {}
    for stem in rng.sample((VIDEO, "2", "a.b"), rng.choice((1, 1, 2))):
        rows = faces(rng, (stem,))[:12]
        values = np.random.default_rng(rng.randrange(1 << 32)).standard_normal((len(rows), WIDTH)).astype(np.float32)
        text, array = rng.random() < 0.4, rng.random() < 0.8
        lines = [] if text else [",".join(STORED)]
        for (video, timestamp, label, name), row in zip(rows, values, strict=True):
            end = f',"{row.tolist()}"' if text else ""
            lines.append(f"{video},{timestamp},{name},{float(label == LABELS[1])},{row[0]},{row[1]}{end}")
        data = "".join(line + "\n" for line in lines).encode()
        files[f"{stem}.csv"] = damaged(data, rng) if rng.random() < 0.7 else data
        if array or not text:
            whole = array_header(len(rows)) + values.tobytes()
            files[f"{stem}.npy"] = damaged_array(whole, len(rows), rng) if rng.random() < 0.6 else whole
    return check_store(trial, files)


def predictions(trial: Trial) -> bool:
    """Logits of either network or final scores, joined to a ground truth."""
    rng = trial.rng
    rows = faces(rng)
    form, files = rng.choice(("scores", "context", "encoder")), {}
    if form == "scores":
        files["scores.csv"] = lines_of(rows, rng, lambda *_: [str(rng.random())])
    for video, timestamp, _, name in rows if form != "scores" else ():
        logits = f"{rng.gauss(0, 1)},{np.float32(rng.gauss(0, 1))}"
        line = f"{name},{timestamp},{logits}\n" if form == "context" else f"{video},{timestamp},{name},1,{logits}\n"
        files[f"{video}.csv"] = files.get(f"{video}.csv", b"") + line.encode()
    if form == "encoder" or rng.random() < 0.3:
        head = {"scores": [*OFFICIAL, "score"], "context": PREDICTED, "encoder": STORED}[form]
        files = {name: ",".join(head).encode() + b"\n" + data for name, data in files.items()}
    name = rng.choice(list(files))
    truth = [(video, float(timestamp), entity) for video, timestamp, _, entity in rows]
    return check_predictions(trial, {**files, name: damaged(files[name], rng)}, truth)


KINDS = {kind.__name__: kind for kind in (annotations, features, predictions)}


def attempt(what: str, seed: int, number: int, directory: Path) -> tuple[bool, str]:
    """Run one case. Returns True if the files were accepted, and the finding or ""."""
    try:
        return KINDS[what](Trial(directory, random.Random(f"{seed} {what} {number}"))), ""
    except Finding as finding:
        return False, str(finding)
    except Exception as error:  # not caught by the reader
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "core" in Path(frame.filename).parts]
        place = f"{Path(frames[-1].filename).name}, {frames[-1].name}" if frames else "?"
        return False, f"{type(error).__name__} in {place}: {' '.join(str(error).split())[:300]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20000, help="cases of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default: %(default)s)")
    parser.add_argument("--what", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of cases (default: all)")
    keep = Path(tempfile.gettempdir(), "fuzz_findings")
    parser.add_argument("--keep", type=Path, default=keep, help="directory for their files (default: %(default)s)")
    args = parser.parse_args()
    for module in (features_module, predictions_module):
        module.progress = lambda items, **_: items  # no nested progress bars
    counts = Counter()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    cases = [(what, args.first + index) for what in args.what for index in range(args.count)]
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        for what, number in tqdm(cases, unit="file", disable=None):
            accepted, finding = attempt(what, args.seed, number, Path(directory, "case"))
            title = f"{what}: {finding.partition(':')[0]}" if finding else "accepted" if accepted else "refused"
            counts[title] += 1
            if finding and counts[title] == 1:  # print and keep the first of each kind
                kept = args.keep / f"{what}-{args.seed}-{number}"
                shutil.copytree(Path(directory, "case"), kept, dirs_exist_ok=True)
                again = f"--what {what} --seed {args.seed} --first {number} --count 1"
                tqdm.write(f"{what} {number}: {finding}\n  files: {kept}; repeat with: {again}")
    for title, count in counts.items():
        if title not in ("accepted", "refused"):
            print(f"{count} x {title}")
    findings = len(cases) - counts["accepted"] - counts["refused"]
    print(f"{len(cases)} cases, {counts['accepted']} accepted, {counts['refused']} refused, {findings} findings")
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
