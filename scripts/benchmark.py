"""Measure the speed of every stage on generated data, and compare it with the ceiling of this machine.

    python scripts/benchmark.py                 # about 15 minutes and 2 GB of temporary data on two CPU cores
    python scripts/benchmark.py --device 0      # the network stages on the first GPU
    python scripts/benchmark.py --scale 0.01    # smoke test

Every stage runs through its command line, from files to files, so its time includes start-up. A ceiling is the rate of
a bare operation that the stage cannot do without, measured just before: decoding, reading or writing files, or the
arithmetic of the network at the rate of matrix products. The fraction is the rate divided by the lowest ceiling. Memory
is the peak of the stage's main process.
"""

import argparse
import contextlib
import math
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
import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image

from core.config import SAMPLE_RATE
from core.datasets import ClipReader, STEDataset
from core.formats.annotations import LABELS, OFFICIAL_SUFFIX, read_annotations
from core.formats.features import feature_writer
from core.formats.predictions import write_predictions
from core.media.writer import encode_video
from core.runtime import cli
from core.runtime.device import default_precision, device_label, get_device, input_dtype, set_precision
from core.runtime.errors import InputError, RunError
from core.runtime.files import write_bytes, write_json

ROOT = Path(__file__).resolve().parents[1]
CORES = os.cpu_count() or 1
FPS, FACES, TRACK_ROWS = 25, 2, 25  # generated data: two faces in every frame, tracks of one second
VIDEOS = [f"video_{index}" for index in range(8)]
LOOPS = 8  # repetitions of the annotated part in a video; stage 3 uses the first only, as it takes much longer
CLIP_LENGTH = 11  # crops
CONTEXT = (11, 4, 3)  # steps, stride, speakers
GFLOP = {"STE training": 7.86, "STE forward": 2.62, "ASC training": 0.21, "ASC forward": 0.07}  # per row


def measure(stage: str, unit: str, size: int, ceilings: dict[str, float], script: str, *args: object) -> dict:
    """Run a script of the project. Returns its size, rate, memory in bytes and fraction of the lowest ceiling.

    `ceilings` maps bare operations to units per second. Raises RunError if the script fails.
    """
    seconds, memory = run_script(script, *args)
    bound = min(ceilings, key=ceilings.__getitem__)
    fraction = size / seconds / ceilings[bound]
    print(f"  {stage}: {size:,} {unit} in {seconds:.1f} s, {fraction:.2f} of the ceiling", flush=True)
    return {
        "stage": stage,
        "unit": unit,
        "size": size,
        "seconds": seconds,
        "rate": size / seconds,
        "memory": memory,
        "ceilings": ceilings,
        "bound": bound,
        "fraction": fraction,
    }


def run_script(script: str, *args: object) -> tuple[float, int]:
    """Run a script of the project. Returns seconds and the peak memory in bytes. Raises RunError if it fails."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    memory, start = 0, time.perf_counter()
    with tempfile.TemporaryFile("w+") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            memory = max([memory, *(1024 * int(size) for size in re.findall(r"VmHWM:\s+(\d+) kB", status))])
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
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


def decode_audio(path: Path) -> None:
    with av.open(str(path)) as container:
        for _ in container.decode(audio=0):
            pass


def decode_frames(path: Path, count: int) -> None:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    for _ in range(count):
        capture.read()
    capture.release()


def matmul_gflops(device_name: str, precision: str) -> float:
    """Return the GFLOP/s of matrix products: of 4096 x 4096, or smaller if ten take more than a second."""
    device = get_device(device_name)
    set_precision(precision, device)
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


# Data


def make_videos(directory: Path, seconds: int) -> list[Path]:
    """Make a 720p H.264 video with noise and audio, and hard links to it."""
    directory.mkdir()
    part, paths = directory.with_name("part.mp4"), [directory / f"{name}.mp4" for name in VIDEOS]
    video = f"testsrc2=size=1280x720:rate={FPS}:duration={seconds},noise=alls=4:allf=t"
    audio = f"anoisesrc=amplitude=0.3:sample_rate=44100:duration={seconds}:seed=0"
    try:
        with av.open(video, format="lavfi") as images, av.open(audio, format="lavfi") as noise:
            frames = (frame.to_ndarray(format="bgr24") for frame in images.decode(video=0))
            samples = (np.rint(32767 * frame.to_ndarray()[0]).astype(np.int16) for frame in noise.decode(audio=0))
            encode_video(part, frames, (1280, 720), FPS, samples, 44_100)
        repeat_video(part, paths[0], seconds)
    except (av.FFmpegError, ValueError) as error:
        raise RunError(str(error)) from None
    for path in paths[1:]:
        os.link(paths[0], path)
    return paths


def repeat_video(part: Path, path: Path, seconds: int) -> None:
    """Write a video LOOPS times into one file, without encoding it again."""
    with av.open(str(path), "w") as output:
        streams, last = [], [-math.inf, -math.inf]  # of video and audio
        for loop in range(LOOPS):
            with av.open(str(part)) as source:
                streams = streams or [output.add_stream_from_template(stream) for stream in source.streams]
                for packet in source.demux():
                    index, shift = packet.stream.index, round(loop * seconds / packet.time_base)
                    # The last packets are empty, and audio frames overlap at the seams.
                    if packet.dts is not None and packet.dts + shift > last[index]:
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream, last[index] = streams[index], packet.dts
                        output.mux(packet)


def write_annotations(directory: Path, videos: list[str], rows: int) -> Path:
    """Write official annotations with this many rows for each video. Faces are 60 to 200 pixels wide in 720p."""
    rng = np.random.default_rng(0)
    for name in videos:
        lines = []
        for row in range(rows):
            second, face, position = row // TRACK_ROWS // FACES, row // TRACK_ROWS % FACES, row % TRACK_ROWS
            if position == 0:
                width, label = rng.uniform(0.05, 0.16), LABELS[rng.integers(2)]
            left, timestamp = 0.05 + 0.45 * face + 0.005 * position, second + position / FPS
            box = f"{left:.6f},0.2,{left + width:.6f},{0.2 + 2 * width:.6f}"
            lines.append(f"{name},{timestamp:.2f},{box},{label},{name}_{second:04d}:{face}\n")
        write_bytes(directory / f"{name}{OFFICIAL_SUFFIX}", "".join(lines).encode())
    return directory


def write_features(directory: Path, csvs: Path) -> Path:
    """Write random features and logits for all annotated rows."""
    table, rng = read_annotations(csvs), np.random.default_rng(0)
    for video in range(len(table.video_ids)):
        with feature_writer(directory, table, table.rows_of_video(video)) as (logits, features):
            logits[:] = rng.normal(size=logits.shape)
            features[:] = rng.random(features.shape, np.float32)
    return directory


# Stages


def measure_data(work: Path, args: argparse.Namespace) -> Iterator[dict]:
    """Stages 1 to 3: audio of videos, audio of tracks, crops."""
    seconds = max(1, round(75 * args.scale))
    rows = FACES * FPS * seconds
    tracks = len(VIDEOS) * LOOPS * rows // TRACK_ROWS
    videos = make_videos(work / "videos", seconds)
    csv_audio = write_annotations(work / "csv_audio", VIDEOS, LOOPS * rows)
    csv_faces = write_annotations(work / "csv_faces", VIDEOS, rows)

    ceilings = {"FFmpeg decoding the audio": rate(decode_audio, videos) * LOOPS * seconds}
    command = ("data/extract_audio_tracks.py", "--ava-video-dir", work / "videos", "--target-audios", work / "audio")
    yield measure("audio of videos", "s of video", len(VIDEOS) * LOOPS * seconds, ceilings, *command)

    second = (work / "audio" / f"{VIDEOS[0]}.wav").read_bytes()[: 2 * SAMPLE_RATE]
    writes = rate(lambda index: Path(work, f"copy_{index}").write_bytes(second), range(tracks))
    paths = ("--csv", csv_audio, "--ava-audio-dir", work / "audio", "--output-dir", work / "slices")
    command = ("data/slice_audio_tracks.py", *paths, "--split", "train")
    yield measure("audio of tracks", "tracks", tracks, {"writing the files": writes}, *command)

    ceilings = {"OpenCV decoding the frames": rate(lambda path: decode_frames(path, FPS * seconds), videos) * rows}
    paths = ("--csv", csv_faces, "--ava-video-dir", work / "videos", "--output-dir", work / "crops")
    command = ("data/extract_face_crops_time.py", *paths, "--split", "train")
    yield measure("face crops", "rows", len(VIDEOS) * rows, ceilings, *command)


def measure_encoder(work: Path, args: argparse.Namespace) -> Iterator[dict]:
    """Stages 4 and 5, on the results of stages 2 and 3."""
    rows, clips = max(10, round(1024 * args.scale)), len(read_annotations(work / "csv_faces").entity_ids)
    for directory in ("crops", "slices"):
        (work / directory / "val").symlink_to("train")
    csv_val = write_annotations(work / "csv_val", VIDEOS[:1], FACES * TRACK_ROWS)
    csv_forward = write_annotations(work / "csv_forward", VIDEOS, rows)
    paths = work / "slices" / "train", work / "crops" / "train"
    data = ("--audio-dir", work / "slices", "--video-dir", work / "crops")
    train = ("--csv-train-full", work / "csv_faces", "--csv-val-full", csv_val, "--no-pretrained", "--epochs", 1, *data)
    weights = work / "models" / "ste_encoder" / "1.pth"
    forward = ("--csv", csv_forward, "--split", "train", "--weights", weights, *data)
    crop_paths = sorted((work / "crops" / "train").glob("*/*.jpg"))[:4000]
    crops = rate(lambda path: Image.open(path).load(), crop_paths, threads=1) * CORES
    dataset = STEDataset(ClipReader(read_annotations(work / "csv_faces"), *paths, CLIP_LENGTH), seed=0, augment=True)
    clips_read = rate(lambda index: dataset[1, index], range(min(400, clips)), threads=1)
    print(f"  clips for training: {clips_read:,.0f} per second and core")
    gflops = {}
    for precision in (default_precision(get_device(args.device)), "bf16"):
        with contextlib.suppress(InputError):  # a GPU without bfloat16
            gflops[precision] = matmul_gflops(args.device, precision)
    precision = max(gflops, key=gflops.__getitem__)  # bf16 is slow on a CPU without its arithmetic
    options = (CLIP_LENGTH, args.device, "--precision", precision)
    products = gflops[precision] / GFLOP["STE training"]
    ceilings = {"matrix products": products, "Pillow decoding the crops": crops / CLIP_LENGTH}
    command = ("STE_train.py", *options, *train, "--models-out", work / "models")
    yield measure(f"STE training, {precision}", "clips", clips, ceilings, *command)

    products = gflops[precision] / GFLOP["STE forward"]
    ceilings = {"matrix products": products, "Pillow decoding the crops": crops}
    command = ("STE_forward.py", *options, *forward, "--output-dir", work / "features")
    yield measure(f"STE forward, {precision}", "rows", len(VIDEOS) * rows, ceilings, *command)


def measure_context_network(work: Path, args: argparse.Namespace) -> Iterator[dict]:
    """Stages 7 and 8, on random features."""
    rows = max(50, round(12_000 * args.scale))
    store = write_features(work / "features_train", write_annotations(work / "csv_contexts", VIDEOS[:4], rows))
    val = write_features(work / "features_val", write_annotations(work / "csv_contexts_val", VIDEOS[:1], 500))
    precision = default_precision(get_device(args.device))
    gflops = matmul_gflops(args.device, precision)
    paths = ("--features-train-full", store, "--features-val-full", val, "--models-out", work / "models")
    command = ("ASC_train.py", *CONTEXT, args.device, *paths, "--epochs", 1)
    ceilings = {"matrix products": gflops / GFLOP["ASC training"]}
    yield measure(f"ASC training, {precision}", "contexts", 4 * rows, ceilings, *command)

    weights = work / "models" / "ASC_len_11_stride_4_speakers_3" / "1.pth"
    paths = ("--features-val-full", store, "--weights", weights, "--output-dir", work / "logits")
    ceilings = {"matrix products": gflops / GFLOP["ASC forward"]}
    command = ("ASC_forward.py", *CONTEXT, args.device, *paths)
    yield measure(f"ASC forward, {precision}", "rows", 4 * rows, ceilings, *command)


def measure_scores(work: Path, args: argparse.Namespace) -> Iterator[dict]:
    """Stage 9, on random logits. Stage 6 does the same."""
    truth = write_annotations(work / "csv_scores", VIDEOS, max(200, round(100_000 * args.scale)))
    table, rng, logits = read_annotations(truth), np.random.default_rng(0), work / "noise_logits"
    for rows in map(table.rows_of_video, range(len(VIDEOS))):
        write_predictions(logits, table, rows, rng.normal(size=(len(rows), 2)).astype(np.float32))
    files = [*logits.iterdir(), *truth.iterdir()]
    ceilings = {"pandas reading the csv files": len(table) * rate(pd.read_csv, files, threads=1) / len(files)}
    paths = ("--predictions-csv", work / "scores.csv", "--ground-truth-csv", work / "ground_truth.csv")
    command = ("ASC_prediction_postprocessing.py", "--predictions-dir", logits, "--ground-truth", truth, *paths)
    yield measure("scores and evaluation", "rows", len(table), ceilings, *command)


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
    versions = {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__}
    return {"cpu": cpu[1] if cpu else platform.processor(), "cores": CORES, "device": device, **versions}


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--device", type=cli.device_name, default="cpu", help="number of the CUDA device, or cpu")
    parser.add_argument("--scale", type=cli.positive_float, default=1.0, help="factor on all sizes")
    parser.add_argument("--work", default="benchmark", help="directory for benchmark.md, benchmark.json and the data")
    return parser


def main(args: argparse.Namespace) -> None:
    work, machine = Path(args.work), describe_machine(device_label(get_device(args.device)))
    cli.print_settings({**vars(args), **machine})
    work.mkdir(parents=True, exist_ok=True)
    stages = []
    with tempfile.TemporaryDirectory(dir=work) as directory:
        for measure_stages in (measure_data, measure_encoder, measure_context_network, measure_scores):
            stages += measure_stages(Path(directory).absolute(), args)
    table = markdown(stages)
    write_json(work / "benchmark.json", {"machine": machine, "scale": args.scale, "stages": stages})
    write_bytes(work / "benchmark.md", table.encode())
    print(f"\n{table}\nsaved: {work / 'benchmark.md'}, {work / 'benchmark.json'}")


if __name__ == "__main__":
    cli.launch(main, get_args_parser())
