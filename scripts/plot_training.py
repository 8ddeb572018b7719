"""Plot the logs of one or several training runs: losses, AUC and AP by epoch.

    python scripts/plot_training.py ava/models/ste_encoder
    python scripts/plot_training.py one/ste_encoder other/ste_encoder --output runs.png

The legend names the epoch with the best validation AP of each run.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from core.formats.csv_table import first_fields, read_table, require_text
from core.reports.report import display_names
from core.reports.training_plots import best_text, plot_training
from core.runtime import cli
from core.runtime.errors import InputError, one_line
from core.runtime.files import list_files, require_distinct, write_json

PLOT_FILE, SETTINGS_FILE = "training.png", "plot_training_cfg.json"
MAX_EPOCH = 10**9


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "logs",
        nargs="+",
        metavar="LOG",
        help="<name>_logs.csv of a training run, or the run's directory; several runs are compared",
    )
    parser.add_argument("--output", help=f".png file to write (default: {PLOT_FILE} next to the first log)")
    return parser


def find_log(path: Path) -> Path:
    """Return the path of a log, given itself or its run's directory. Raises InputError."""
    if not path.is_dir():
        return path
    found = sorted(name for name in list_files(path) if name.endswith("_logs.csv"))
    if len(found) != 1:
        raise InputError(f"{path}: {len(found)} logs in this directory, expected one <name>_logs.csv")
    return path / found[0]


def read_log(path: Path) -> pd.DataFrame:
    """Read the columns epoch, learning_rate, train_<metric> and val_<metric>; empty metrics are NaN.

    Raises InputError with file and line.
    """
    names = first_fields(path)
    curves = [name for name in names if name.startswith(("train_", "val_"))]
    if "epoch" not in names or not curves:
        require_text(path)  # raises a more specific error if the file is not text
        columns = "epoch, learning_rate and train_<metric> or val_<metric>"
        raise InputError(f"{path}, line 1: expected columns {columns}; the header is {','.join(names)[:200]!r}")
    log = read_table(path, {"epoch": "number", "learning_rate": "number", **dict.fromkeys(curves, "text")})
    values = log[curves].apply(pd.to_numeric, errors="coerce")
    bad = (log[curves] != "") & ~np.isfinite(values)
    if bad.any(axis=None):
        line, name = bad.stack().idxmax()
        raise InputError(f"{path}, line {line}: {name} is {log[name][line][:40]!r}, not a number")
    log[curves] = values
    epoch = log["epoch"]
    bad = (epoch % 1 != 0) | (epoch.diff().fillna(epoch) < 1) | (epoch > MAX_EPOCH)
    if bad.any():
        line, expected = bad.idxmax(), "a whole number above the one before"
        raise InputError(f"{path}, line {line}: epoch is {epoch[line]:g}, expected {expected}")
    return log.astype({"epoch": int}).reset_index(drop=True)


def main(args: argparse.Namespace) -> None:
    cli.print_settings(vars(args))
    paths = [find_log(Path(log)) for log in args.logs]
    output = Path(args.output) if args.output is not None else paths[0].with_name(PLOT_FILE)
    if output.suffix != ".png":
        raise InputError(f"{output}: --output must end with .png")
    settings_file = output.with_name(SETTINGS_FILE)
    require_distinct(paths, {"--output": output, "the settings of --output": settings_file})
    names = display_names([str(path).replace("_logs.csv", "") for path in paths])
    runs = {name: read_log(path) for name, path in zip(names, paths, strict=True)}
    for name, log in runs.items():
        print(one_line(f"{name}: {len(log)} epochs, {best_text(log)}"))
    plot_training(output, runs)
    write_json(settings_file, vars(args))
    print(one_line(f"plot: {output}"))


if __name__ == "__main__":
    cli.launch(main, get_args_parser())
