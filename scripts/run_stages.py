"""Run the nine stages in order. Each stage skips what an earlier run has finished.

    python scripts/run_stages.py 0
    python scripts/run_stages.py cpu --stages 1-5 --no-pretrained --ste-epochs 24 --ste-batch-size 16
    python scripts/run_stages.py 0 --splits val --published-weights
    python scripts/run_stages.py 0 --encoder resnet18-tsm

Data is read from and written to ASC_DATA_ROOT. Each command is printed before it runs. If a stage fails, this script
ends with the exit status of the stage; run the same command again to continue. Directories and results of other
encoders than resnet18 end in the encoder's name. lr-asd is not trained: its published weights are used.
"""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core import config
from core.runtime import cli, distributed

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "val")
INTERRUPTED = 130  # exit status
CONTEXT = (11, 4, 3)  # steps, stride and speakers of a context, as in the paper


def stage_range(text: str) -> range:
    match = re.fullmatch(r"([1-9])(?:-([1-9]))?", text)
    stages = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not stages:
        raise argparse.ArgumentTypeError(f"must be a stage (4) or a range of stages (1-5), not {text!r}")
    return stages


def get_args_parser() -> cli.Parser:
    ste, asc, forward = config.STE_optimization_params, config.ASC_optimization_params, config.STE_forward_params
    parser = cli.Parser(__doc__)
    parser.add_argument("cuda_device", type=cli.device_name, help="number of the CUDA device, or cpu")
    parser.add_argument("--stages", type=stage_range, default="1-9", help="stage, or range of stages, to run")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=[*SPLITS], help="splits to process")
    parser.add_argument("--published-weights", action="store_true", help="use STE.pth and ASC.pth instead of training")
    parser.add_argument("--encoder", default="resnet18", help="as for STE_forward.py")
    cli.add_clip_boxes_argument(parser)
    help_text = "leave out videos, wavs and crops that are missing or fail, and evaluate the other rows"
    parser.add_argument("--skip-missing", action="store_true", help=help_text)
    parser.add_argument("--clip-length", type=cli.odd_positive, default=11, help="number of crops in a clip")
    parser.add_argument("--no-pretrained", action="store_true", help="stage 4: start from random weights")
    parser.add_argument("--ste-epochs", type=cli.positive_int, default=ste["epochs"], help="stage 4: number of epochs")
    parser.add_argument(
        "--ste-batch-size", type=cli.positive_int, default=ste["batch_size"], help="stage 4: batch size"
    )
    batch_size = forward["batch_size"]
    parser.add_argument("--forward-batch-size", type=cli.positive_int, default=batch_size, help="stage 5: batch size")
    cli.add_precision_argument(parser, ste["precision"], training=True)
    parser.add_argument("--asc-epochs", type=cli.positive_int, default=asc["epochs"], help="stage 7: number of epochs")
    parser.add_argument(
        "--asc-learning-rate", type=cli.positive_float, default=asc["learning_rate"], help="stage 7: learning rate"
    )
    parser.add_argument("--seed", type=cli.seed, default=0, help="stages 4, 7 and 8: random seed")
    return parser


def stage_commands(args: argparse.Namespace) -> Iterator[tuple[int, str, list[object]]]:
    """Yield the stage, title and command (script and arguments) of each step, in order."""
    root, device, published = Path(config.DATA_ROOT), args.cuda_device, args.published_weights
    suffix = "" if args.encoder == "resnet18" else f"_{args.encoder}"
    models = root / f"models{suffix}"
    ste_weights = models / ("STE.pth" if published else f"ste_encoder/{args.ste_epochs}.pth")
    ste_weights = config.lr_asd_weights.get(args.encoder, ste_weights)
    asc_weights = models / ("ASC.pth" if published else f"ASC_len_11_stride_4_speakers_3/{args.asc_epochs}.pth")
    suffix += "_published" if published else ""
    features, predictions = root / f"ste_features{suffix}", root / f"asc_predictions{suffix}"
    results, precision = root / "results", ["--precision", args.precision] if args.precision else []
    boxes = ["--clip-boxes"] if args.clip_boxes else []
    inputs = [*boxes, *(["--skip-missing"] if args.skip_missing else [])]
    evaluated = [*boxes, *(["--only-predicted"] if args.skip_missing else [])]

    yield 1, "Audio tracks", ["data/extract_audio_tracks.py"]
    for split in args.splits:
        yield 2, f"Audio slices, {split}", ["data/slice_audio_tracks.py", "--split", split, *boxes]
        yield 3, f"Face crops, {split}", ["data/extract_face_crops_time.py", "--split", split, *boxes]
    if not published and args.encoder not in config.lr_asd_weights:
        options = ["--encoder", args.encoder, "--models-out", models]
        options += ["--no-pretrained"] if args.no_pretrained else []
        options += ["--epochs", args.ste_epochs, "--batch-size", args.ste_batch_size, *precision, *inputs]
        command = ["STE_train.py", args.clip_length, device, *options, "--seed", args.seed, "--resume"]
        yield 4, "Train the short-term encoder", command
    for split in args.splits:
        options = ["--split", split, *precision, "--batch-size", args.forward_batch_size, "--weights", ste_weights]
        options += ["--encoder", args.encoder, *inputs]
        command = ["STE_forward.py", args.clip_length, device, *options, "--output-dir", features / split]
        yield 5, f"Features, {split}", command
    options = ["--forward-dir", features / "val", "--predictions-csv", results / f"ste_predictions_val{suffix}.csv"]
    yield 6, "mAP of the short-term encoder", ["STE_postprocessing.py", *evaluated, *options]
    if not published:
        options = ["--epochs", args.asc_epochs, "--learning-rate", args.asc_learning_rate, "--seed", args.seed]
        options += ["--models-out", models]
        options += [part for split in SPLITS for part in (f"--features-{split}-full", features / split)]
        yield 7, "Train the context network", ["ASC_train.py", *CONTEXT, device, *options, "--resume"]
    options = ["--seed", args.seed, "--weights", asc_weights]
    options += ["--features-val-full", features / "val", "--output-dir", predictions]
    yield 8, "Predictions in context", ["ASC_forward.py", *CONTEXT, device, *options]
    options = ["--predictions-dir", predictions, "--predictions-csv", results / f"asc_predictions_val{suffix}.csv"]
    yield 9, "mAP of the context network", ["ASC_prediction_postprocessing.py", *evaluated, *options]


def run(command: list[str]) -> int:
    """Run a script of the project with this interpreter. Returns its exit status as a shell reports it."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=distributed.single_process_environment())
    try:
        status = process.wait()
    except KeyboardInterrupt:  # also sent to the stage, which reports it
        status = process.wait()
    return status if status >= 0 else 128 - status


def main(args: argparse.Namespace) -> int:
    for stage, title, command in stage_commands(args):
        if stage not in args.stages:
            continue
        words = [str(word) for word in command]
        print(f"\n== {stage} {title}\n$ ASC_DATA_ROOT={shlex.quote(config.DATA_ROOT)} python {shlex.join(words)}")
        status = run(words)
        some_failed = status == 1 and stage <= 3
        if some_failed and args.skip_missing:
            continue
        if status and status != INTERRUPTED:
            advice = "fix the errors above and run the same command again"
            advice += ", or pass --skip-missing to continue" if some_failed else ""
            print(f"error: stage {stage} ({title}) ended with exit status {status}: {advice}", file=sys.stderr)
        if status:
            return status
    return 0


if __name__ == "__main__":
    cli.launch(main, get_args_parser())
