"""What every script's command line shares: the parser, argument types, exit statuses, the record of its settings."""

import argparse
import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from core.runtime import distributed
from core.runtime.errors import InputError, RunError, one_line

SPLITS = ("train", "val", "test")
_UNUSABLE_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows defaults, keeps the docstring's lines, and refuses in one line, exit status 2."""

    def __init__(self, description: str | None):
        class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
            def _get_help_string(self, action: argparse.Action) -> str | None:
                return action.help if action.default is None else super()._get_help_string(action)

        super().__init__(description=description, formatter_class=Formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        told = f"error: {one_line(message)} (--help shows every argument)\n"
        self.exit(2, told if distributed.is_main_process() else None)


def positive_int(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def worker_count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, not {text!r}")
    return int(text)


def odd_positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) % 2 == 0:
        raise argparse.ArgumentTypeError(f"must be odd and positive, not {text!r}")
    return int(text)


def seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^63 - 1, not {text!r}")
    return int(text)


def odd_window(text: str) -> int:
    if text == "0":
        return 0
    try:
        return odd_positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or 0 for none") from None


def positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return value


def fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return value


def device_name(text: str) -> str:
    if text != "cpu" and not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"must be the number of a CUDA device or cpu, not {text!r}")
    return text


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """--split and --csv: which annotations a stage works on; without --csv, those of the split in the configuration."""
    parser.add_argument("--split", choices=SPLITS, default="val", help="which part of AVA; names the sub-directories")
    parser.add_argument(
        "--csv", help="annotations: augmented file, official file, or directory of official files (default: by split)"
    )


def add_training_arguments(parser: argparse.ArgumentParser, defaults: dict, models_out: str) -> None:
    """What both training stages take, with the defaults of their dictionary in the configuration."""
    parser.add_argument("--models-out", default=models_out, help="the run's directory is made in here")
    parser.add_argument("--epochs", type=positive_int, default=defaults["epochs"], help="passes over the data")
    parser.add_argument("--batch-size", type=positive_int, default=defaults["batch_size"], help="samples a step")
    parser.add_argument("--learning-rate", type=positive_float, default=defaults["learning_rate"], help="of Adam")
    parser.add_argument("--workers", type=worker_count, default=defaults["workers"], help="processes that read data")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=defaults["precision"], help="of the network")
    parser.add_argument("--resume", action="store_true", help="go on after the last whole epoch")
    parser.add_argument("--seed", type=seed, default=defaults["seed"], help="of weights, order, clips and contexts")


def print_settings(settings: dict) -> None:
    """Print the settings a run is about to use, one a line."""
    width = max(map(len, settings))
    for name, value in settings.items():
        print(one_line(f"  {name:<{width}}  {value}"))


def launch(
    main: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser, all_ranks: bool = False
) -> NoReturn:
    """Run `main` on the parsed command line and exit: 0 done, 1 failed or partly failed, 2 unusable input.

    The user's mistakes and the machine's (a full disk) end in one line on stderr; a traceback means a bug. Of several
    ranks all run `main` together if `all_ranks`, else rank 0 does alone.
    """
    try:
        if not distributed.is_main_process():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
            if not all_ranks:
                sys.exit(0)
        args = parser.parse_args()
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(line_buffering=True)  # so that a log is never behind, nor lost when it is killed
        with distributed.process_group() if all_ranks else contextlib.nullcontext():
            status = main(args) or 0
    except (InputError, RunError) as error:
        status = _fail(error, 2 if isinstance(error, InputError) else 1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        status = _fail(f"{place}{error.strerror or error}", 2 if error.errno in _UNUSABLE_PATHS else 1)
    except Exception as error:
        fault = describe_system_error(error)
        if fault is None:
            if not all_ranks or distributed.get_world_size() == 1:
                raise
            traceback.print_exc()
        status = _fail(fault or f"{type(error).__name__}: {error}", 1)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C has nothing left to stop
        advice = "the same command goes on (training: add --resume; with --overwrite it begins anew)"
        if distributed.is_main_process():  # Ctrl-C comes to all
            print(f"interrupted; what was finished is kept: {advice}", file=sys.stderr)
        status = 130
    if status and all_ranks:
        distributed.abort_all(status)
    sys.exit(status)


def _fail(message: object, status: int) -> int:
    distributed.report_failure(one_line(message), status)
    return status


def describe_system_error(error: Exception) -> str | None:
    """One line for what torch says when memory ends or one of its processes dies, None for anything else."""
    reason = (str(error).strip().splitlines() or ["no more of it"])[0].rstrip(".: ")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({reason}); try a smaller --batch-size or fewer --workers"
    if reason.startswith("DataLoader worker") and ("killed" in reason or "exited" in reason):
        advice = "memory, or the space in /dev/shm, may be short: try fewer --workers; 0 needs none"
        return f"a process that reads data died ({reason}); {advice}"
    return distributed.lost_rank(error) if isinstance(error, RuntimeError) else None
