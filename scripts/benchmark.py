"""Measure the speed of the stages on a synthetic mini AVA, and compare it with the ceiling of this machine.

    python scripts/benchmark.py                 # about 15 minutes and 2 GB of temporary data on two CPU cores
    python scripts/benchmark.py --device 0      # the network stages on the first GPU
    python scripts/benchmark.py --scale 0.01    # smoke test

Every stage runs through its command line, from files to files, so its time includes start-up. A ceiling is the rate of
a bare operation that the stage cannot do without, measured just before: decoding, writing files, or the arithmetic of
the network at the rate of matrix products. The fraction is the rate divided by the lowest ceiling. Memory is the peak
of the stage's main process. Post-processing takes seconds and is left out.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import torch
from PIL import Image

from core.config import SAMPLE_RATE
from core.formats.annotations import read_annotations
from core.runtime import cli
from core.runtime.device import device_label, get_device, input_dtype
from core.runtime.errors import RunError
from core.runtime.files import write_bytes, write_json

ROOT = Path(__file__).resolve().parents[1]
CORES = os.cpu_count() or 1
VIDEOS, SECONDS = 6, 80  # number and length of the videos
CLIP_LENGTH = 11  # crops
CONTEXT = (11, 4, 3)  # steps, stride, speakers
GFLOP = {"STE training": 7.86, "STE forward": 2.62, "ASC training": 0.21, "ASC forward": 0.07}  # per row


def measure(
    root: Path, stage: str, unit: str, size: int, ceilings: dict[str, float], script: str, *args: object
) -> dict:
    """Run a script on the data in `root`. Returns its rate, memory in bytes and fraction of the lowest ceiling.

    `ceilings` maps bare operations to units per second. Raises RunError if the script fails.
    """
    seconds, memory = run_script(root, script, *args)
    bound = min(ceilings, key=ceilings.__getitem__)
    result = {"stage": stage, "unit": unit, "size": size, "seconds": seconds, "rate": size / seconds, "memory": memory}
    fraction = size / seconds / ceilings[bound]
    print(f"  {stage}: {size:,} {unit} in {seconds:.1f} s, {fraction:.2f} of the ceiling", flush=True)
    return {**result, "ceilings": ceilings, "bound": bound, "fraction": fraction}


def run_script(root: Path, script: str, *args: object) -> tuple[float, int]:
    """Run a script on the data in `root`. Returns seconds and peak memory in bytes. Raises RunError if it fails."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    environment = {**os.environ, "ASC_DATA_ROOT": str(root)}
    memory, start = 0, time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process,
    ):
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            memory = max([memory, *(1024 * int(size) for size in re.findall(r"VmHWM:\s+(\d+) kB", status))])
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        if process.returncode:
            output.seek(0)
            last_line = (output.read().strip().splitlines() or [""])[-1]
            raise RunError(f"{script}: exit status {process.returncode}: {last_line}")
    return seconds, memory


# Ceilings


def rate(function: Callable, items: Sequence, threads: int = CORES) -> float:
    """Return the number of items per second that a function processes in this many threads."""
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(function, items))
    return len(items) / (time.perf_counter() - start)


def decode(path: Path, **streams: int) -> None:
    """Decode the stream `audio` or `video` of this number."""
    with av.open(str(path)) as container:
        for _ in container.decode(**streams):
            pass


def matmul_gflops(device_name: str, precision: str) -> float:
    """Return the GFLOP/s of matrix products: of 4096 x 4096, or smaller if ten take more than a second."""
    device = get_device(device_name)
    for size in (256, 512, 1024, 2048, 4096):
        a, b = (torch.randn(size, size, device=device).to(input_dtype(precision)) for _ in range(2))
        (a @ b)[0, 0].item()  # warm-up
        start = time.perf_counter()
        for _ in range(10):
            product = a @ b
        product[0, 0].item()  # waits for the GPU
        seconds = time.perf_counter() - start
        if seconds > 1:
            break
    return 10 * 2 * size**3 / seconds / 1e9


# Stages


def measure_stages(root: Path, args: argparse.Namespace) -> Iterator[dict]:
    """Make a mini AVA in `root` and measure stages 1 to 5, 7 and 8 on it. All sizes are those of the train split."""
    seconds = max(2, round(SECONDS * args.scale))
    run_script(root, "scripts/make_mini_ava.py", "--root", root, "--videos", VIDEOS, "--seconds", seconds)
    videos = sorted((root / "videos" / "trainval").iterdir())
    train, val = (read_annotations(root / "csv" / split) for split in ("train", "val"))
    rows, tracks = len(train), len(train.entity_ids)

    ceilings = {"FFmpeg decoding the audio": rate(lambda path: decode(path, audio=0), videos) * seconds}
    length = VIDEOS * seconds
    yield measure(root, "audio of videos", "s of video", length, ceilings, "data/extract_audio_tracks.py")

    second = bytes(2 * SAMPLE_RATE)
    writes = rate(lambda index: Path(root, f"copy_{index}").write_bytes(second), range(tracks))
    command = ("data/slice_audio_tracks.py", "--split", "train")
    yield measure(root, "audio of tracks", "tracks", tracks, {"writing the files": writes}, *command)

    train_videos = [path for path in videos if path.stem in train.video_ids]
    decoding = rate(lambda path: decode(path, video=0), train_videos) / len(train_videos) * rows
    command = ("data/extract_face_crops_time.py", "--split", "train")
    yield measure(root, "face crops", "rows", rows, {"FFmpeg decoding the frames": decoding}, *command)
    for script in ("data/slice_audio_tracks.py", "data/extract_face_crops_time.py"):
        run_script(root, script, "--split", "val")

    crop_paths = sorted((root / "instance_crops_time" / "train").glob("*/*.jpg"))[:4000]
    crops = rate(lambda path: Image.open(path).load(), crop_paths, threads=1) * CORES
    gflops = {precision: matmul_gflops(args.device, precision) for precision in ("fp32", "bf16")}
    precision = max(gflops, key=gflops.__getitem__)  # bf16 is slow on a CPU without its arithmetic
    options = (CLIP_LENGTH, args.device, "--precision", precision)

    validation = GFLOP["STE forward"] * len(val.entity_ids) / tracks
    products = gflops[precision] / (GFLOP["STE training"] + validation)
    ceilings = {"matrix products": products, "Pillow decoding the crops": crops / CLIP_LENGTH}
    command = ("STE_train.py", *options, "--no-pretrained", "--epochs", 1)
    yield measure(root, f"STE training, {precision}", "clips", tracks, ceilings, *command)

    ceilings = {"matrix products": gflops[precision] / GFLOP["STE forward"], "Pillow decoding the crops": crops}
    forward = ("STE_forward.py", *options, "--weights", root / "models" / "ste_encoder" / "1.pth", "--split")
    yield measure(root, f"STE forward, {precision}", "rows", rows, ceilings, *forward, "train")
    run_script(root, *forward, "val")

    validation = GFLOP["ASC forward"] * len(val) / rows
    ceilings = {"matrix products": gflops["fp32"] / (GFLOP["ASC training"] + validation)}
    command = ("ASC_train.py", *CONTEXT, args.device, "--epochs", 1)
    yield measure(root, "ASC training, fp32", "contexts", rows, ceilings, *command)

    ceilings = {"matrix products": gflops["fp32"] / GFLOP["ASC forward"]}
    weights = root / "models" / "ASC_len_11_stride_4_speakers_3" / "1.pth"
    paths = ("--weights", weights, "--features-val-full", root / "ste_features" / "train")
    command = ("ASC_forward.py", *CONTEXT, args.device, *paths)
    yield measure(root, "ASC forward, fp32", "rows", rows, ceilings, *command)


# Results


def markdown(stages: list[dict]) -> str:
    """Return the table of results."""
    lines = ["| stage | size | time | rate | memory | ceiling | fraction |", "|---|---|---|---|---|---|---|"]
    for s in stages:
        time_rate = f"{s['seconds']:.1f} s | {s['rate']:,.{0 if s['rate'] >= 100 else 1}f}/s"
        ceiling = f"{s['ceilings'][s['bound']]:,.0f}/s: {s['bound']}"
        line = f"{s['stage']} | {s['size']:,} {s['unit']} | {time_rate} | {s['memory'] / 1e9:.2f} GB | {ceiling}"
        lines.append(f"| {line} | {s['fraction']:.2f} |")
    return "\n".join(lines) + "\n"


def describe_machine(device: str) -> dict[str, object]:
    """Return the hardware and the versions that the results depend on."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = {"python": platform.python_version(), "torch": torch.__version__, "pyav": av.__version__}
    return {"cpu": cpu[1] if cpu else platform.processor(), "cores": CORES, "device": device, **versions}


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--device", type=cli.device_name, default="cpu", help="number of the CUDA device, or cpu")
    parser.add_argument("--scale", type=cli.positive_float, default=1.0, help="factor on the length of the videos")
    parser.add_argument("--work", default="benchmark", help="directory for benchmark.md, benchmark.json and the data")
    return parser


def main(args: argparse.Namespace) -> None:
    work, machine = Path(args.work), describe_machine(device_label(get_device(args.device)))
    cli.print_settings({**vars(args), **machine})
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as directory:
        stages = list(measure_stages(Path(directory).absolute(), args))
    table = markdown(stages)
    write_json(work / "benchmark.json", {"machine": machine, "scale": args.scale, "stages": stages})
    write_bytes(work / "benchmark.md", table.encode())
    print(f"\n{table}\nsaved: {work / 'benchmark.md'}, {work / 'benchmark.json'}")


if __name__ == "__main__":
    cli.launch(main, get_args_parser())
