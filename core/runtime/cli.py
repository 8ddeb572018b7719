"""Command lines of all scripts: the parser, argument types, exit statuses."""

import argparse
import contextlib
import errno
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from core.runtime import distributed
from core.runtime.errors import InputError, RunError, first_line, one_line

SPLITS = ("train", "val", "test")
_UNUSABLE_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
_GRACE_SECONDS = 1  # rank 0 reports a common failure first; the launcher then ends the other ranks


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description and shows defaults other than None."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports errors in one line with exit status 2."""

    def __init__(self, description: str | None):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {one_line(message)} (--help shows all arguments)\n")


def integer(minimum: int, odd: bool = False) -> Callable[[str], int]:
    """Argument type: an integer of at least `minimum`, below 2^63."""

    def parse(text: str) -> int:
        is_integer = text.isascii() and text.isdigit() and minimum <= int(text) < 1 << 63
        if not is_integer or (odd and int(text) % 2 == 0):
            wanted = "odd and positive" if odd else f"an integer of at least {minimum}"
            raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")
        return int(text)

    return parse


def number(minimum: float, maximum: float = float("inf")) -> Callable[[str], float]:
    """Argument type: a finite number above `minimum` or, with a `maximum`, from `minimum` to `maximum`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (minimum < value < maximum or (maximum < float("inf") and value in (minimum, maximum))):
            wanted = f"above {minimum:g}" if maximum == float("inf") else f"from {minimum:g} to {maximum:g}"
            raise argparse.ArgumentTypeError(f"must be a number {wanted}, not {text!r}")
        return value

    return parse


positive_int, worker_count, seed, odd_positive = integer(1), integer(0), integer(0), integer(1, odd=True)
positive_float, fraction, seconds = number(0), number(0, 1), number(0, 1e6)


def odd_window(text: str) -> int:
    """Argument type: an odd filter width, or 0 for no filter."""
    return 0 if text == "0" else odd_positive(text)


def device_name(text: str) -> str:
    """Argument type: `cpu`, or the number of a CUDA device, which may follow `cuda:`."""
    name = text.removeprefix("cuda:")
    if text != "cpu" and not (name.isascii() and name.isdigit()):
        raise argparse.ArgumentTypeError(f"must be the number of a CUDA device or cpu, not {text!r}")
    return name


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --split and --csv, the annotations of a stage; --csv defaults to the annotations of the split."""
    parser.add_argument("--split", choices=SPLITS, default="val", help="split of AVA; names the subdirectories")
    parser.add_argument(
        "--csv", help="annotations: augmented file, official file, or directory of official files (default: by split)"
    )
    add_clip_boxes_argument(parser)


def add_clip_boxes_argument(parser: argparse.ArgumentParser) -> None:
    help_text = "cut off the parts of annotated boxes outside the frame, instead of an error"
    parser.add_argument("--clip-boxes", action="store_true", help=help_text)


def add_training_arguments(parser: argparse.ArgumentParser, defaults: dict, models_out: str) -> None:
    """Add the flags that both training stages share, with their defaults from the configuration."""
    parser.add_argument("--models-out", default=models_out, help="parent directory of the run's directory")
    parser.add_argument("--epochs", type=positive_int, default=defaults["epochs"], help="number of epochs")
    parser.add_argument("--batch-size", type=positive_int, default=defaults["batch_size"], help="samples per step")
    parser.add_argument(
        "--learning-rate", type=positive_float, default=defaults["learning_rate"], help="initial learning rate (Adam)"
    )
    add_workers_argument(parser, defaults["workers"])
    add_precision_argument(parser, defaults["precision"], training=True)
    parser.add_argument("--init-weights", help="start from these weights (fine-tuning)")
    parser.add_argument("--resume", action="store_true", help="continue after the last finished epoch")
    parser.add_argument(
        "--seed", type=seed, default=defaults["seed"], help="random seed of weights, clips and contexts"
    )


def add_mismatch_argument(parser: argparse.ArgumentParser) -> None:
    help_text = "accept features of another encoder, or another stride, than the context network was trained with"
    parser.add_argument("--allow-mismatch", action="store_true", help=help_text)


def add_workers_argument(parser: argparse.ArgumentParser, default: int) -> None:
    help_text = "processes that read clips ahead, or threads that read contexts ahead; 0: none"
    parser.add_argument("--workers", type=worker_count, default=default, help=help_text)


def add_precision_argument(parser: argparse.ArgumentParser, default: str | None, training: bool = False) -> None:
    choices = ("fp32", "tf32", "bf16") if training else ("fp32", "tf32", "bf16", "fp16")
    help_text = "precision of the network"
    help_text += " (default: tf32 on a GPU that has it, else fp32)" if default is None else ""
    parser.add_argument("--precision", choices=choices, default=default, help=help_text)


def print_settings(settings: dict) -> None:
    """Print resolved settings, one per line."""
    width = max(map(len, settings))
    for name, value in settings.items():
        print(one_line(f"  {name:<{width}}  {value}"))


def print_next(*words: object, **options: tuple[object, object]) -> None:
    """Print the command that comes next. Options, pairs of value and default, are left out if the two are equal."""
    command = [str(word) for word in words]
    for name, (value, default) in options.items():
        if value != default:
            command.append(f"--{name.replace('_', '-')}")
            command += [] if value is True else [str(value)]
    print(f"next: python {shlex.join(command)}")


def launch(
    main: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser, all_ranks: bool = False
) -> NoReturn:
    """Run `main` on the parsed command line and exit: 0 success, 1 failed or partly failed, 2 unusable input.

    Expected failures, of input or of the system (a full disk), are reported in one line on stderr; a traceback means a
    bug. With `all_ranks`, the processes that torchrun or srun started run `main` together.
    """
    try:
        args = parser.parse_args()
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(line_buffering=True)  # logs are up to date even if the process is killed
        with distributed.process_group() if all_ranks else contextlib.nullcontext():
            status = main(args) or 0
    except Exception as error:
        status = _fail(*describe_failure(error))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        status = 130
        if distributed.is_main_process():
            advice = "run the same command again to continue (training: add --resume; --overwrite starts over)"
            print(f"interrupted; finished work is kept: {advice}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if distributed.get_world_size() > 1:
        os._exit(status)  # an orderly exit could wait for the other ranks
    sys.exit(status)


def describe_failure(error: Exception) -> tuple[str, int]:
    """Return a message and the exit status. The traceback of an unexpected error is printed."""
    if isinstance(error, InputError | RunError):
        return str(error), 2 if isinstance(error, InputError) else 1
    if isinstance(error, OSError):
        path = f"{error.filename}: " if error.filename else ""
        return f"{path}{error.strerror or error}", 2 if error.errno in _UNUSABLE_PATHS else 1
    message = describe_system_error(error)
    if message is None:
        traceback.print_exc()
        message = f"unexpected {type(error).__name__}: {error}"
    return message, 1


def _fail(message: str, status: int) -> int:
    if not distributed.is_main_process():
        time.sleep(_GRACE_SECONDS)
        message = f"rank {distributed.get_rank()}: {message}"
    print(f"error: {one_line(message)}", file=sys.stderr)
    return status


def describe_system_error(error: Exception) -> str | None:
    """Describe running out of memory, a failing GPU, a dead worker or a lost rank in one line, others as None."""
    reason, text = first_line(error), str(error)
    no_memory = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")  # the last two are of cuBLAS and cuDNN
    if isinstance(error, MemoryError) or any(part in text for part in no_memory):
        return f"out of memory ({reason}); try a smaller --batch-size or fewer --workers"
    if any(part in text for part in ("CUDA error", "cuDNN error", "CUBLAS_STATUS", "Pin memory thread exited")):
        return f"the GPU failed ({reason}); nvidia-smi and dmesg may show why"
    if "DataLoader worker" in reason and any(word in str(error) for word in ("killed", "exited", "</torch_")):
        reason = str(error).strip().splitlines()[-1]  # </torch_...> is a file in /dev/shm
        advice = "memory or /dev/shm may be full: try fewer workers (--workers 0 needs no /dev/shm)"
        return f"a data-loading worker died ({reason}); {advice}"
    if distributed.get_world_size() > 1 and ("gloo" in str(error) or "NCCL" in str(error)):
        reason = reason.partition(". ")[0]  # without torch's hints
        return f"lost another rank ({reason}); see the error of the rank that failed first"
    return None
