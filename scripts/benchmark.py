"""Measure every stage on data made for it, next to what this machine could do at best, in one run.

    python scripts/benchmark.py                     # two CPU cores: half an hour and 6 GB in benchmark/
    python scripts/benchmark.py --device 0          # the network stages on the first GPU
    python scripts/benchmark.py --stages crops annotations
    python scripts/benchmark.py --minutes 1 --clips 4 --contexts 500 --annotation-rows 50000      # a quick look
    python scripts/benchmark.py --stages --ranks 2  # nothing but films shared by two ranks: ten minutes

Stages are run through their command lines, from files on disk to files on disk, at three sizes. The rate is that of
the largest, start-up and all, and beside it the rate at which marginal_rate rows are done. The ceiling is measured just
before: the rate of a bare tool, or the rate of products of 4096 x 4096 matrices divided by the operations of a row.
Growth is the cost of a marginal_rate row between the larger sizes over that between the smaller ones: 1 where a stage is
linear. Memory is what the processes of a stage hold together, the page cache not counted; where a function is measured
and not a script (annotations, loader, opening, assembling), it is what the function adds.

With --ranks the stages whose films ranks share are run once more, on four films, by one process and by so many ranks,
with as many films at a time in all as there are cores.
Their ceiling is the rate at which the single process's seconds of CPU would be used up were every core always busy.
"""

import argparse
import multiprocessing
import os
import platform
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image
from python_speech_features import mfcc

from core.config import JPEG_QUALITY, SAMPLE_RATE, STE_FEATURES
from core.contexts import window
from core.datasets import ASCDataset, ClipReader, STEDataset, STETrackDataset
from core.formats.annotations import BOX_COLUMNS, LABELS, OFFICIAL_SUFFIX, FaceTable, find_annotations, read_annotations
from core.formats.clips import crop_path, read_crop, read_wav, wav_path
from core.formats.features import FeatureStore, feature_writer
from core.formats.predictions import write_predictions
from core.inference import encode
from core.loaders import EpochSampler, clip_batches
from core.media.ffmpeg import run_ffmpeg
from core.mfcc import fit_clip
from core.models import active_speakers_context, short_term_encoder
from core.runtime.cli import Parser, device_name, launch, positive_int, print_settings
from core.runtime.device import device_label, get_device, input_dtype, tune_malloc
from core.runtime.errors import InputError, RunError
from core.runtime.files import replacing, write_bytes, write_json
from core.transforms import evaluation_clip, normalise

ROOT = Path(__file__).resolve().parents[1]
CORES = os.cpu_count() or 1
SCALES = (1, 4, 16)
GFLOP = {"STE forward": 2.62, "STE training": 7.86, "ASC forward": 0.07, "ASC training": 0.21}  # a row
FPS, FACES, TRACK_ROWS = 25, 2, 25  # of the film: two faces in every frame, a track a second
CLIP_LENGTH = 11  # crops
CONTEXT = CLIPS, STRIDE, SPEAKERS = 11, 4, 3


@dataclass
class Measurement:
    """One line of the table: a stage at growing sizes, and the rate that it is compared with."""

    stage: str
    unit: str
    sizes: list[int]
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # bytes, at each size
    ceiling: float | None = None  # units a second
    bound: str = ""  # what the ceiling is
    remarks: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.sizes[-1] / self.seconds[-1]

    @property
    def share(self) -> float | None:
        return None if self.ceiling is None else self.rate / self.ceiling

    @property
    def growth(self) -> float | None:
        """Cost of a marginal_rate row at the largest sizes over that at the smallest; 1 where the stage is linear."""
        costs = np.diff(self.seconds) / np.diff(self.sizes)
        return float(costs[1] / costs[0]) if costs.min() > 0 else None  # a start-up that varies hides the rest

    @property
    def marginal_rate(self) -> float | None:
        """Units a second of what the largest size adds to the one before: the rate without the start-up."""
        units, seconds = self.sizes[-1] - self.sizes[-2], self.seconds[-1] - self.seconds[-2]
        return units / seconds if seconds > 0 else None

    def numbers(self) -> dict[str, object]:
        """All that is known, for the json file."""
        derived = {"rate": self.rate, "marginal_rate": self.marginal_rate, "share": self.share, "growth": self.growth}
        return {**asdict(self), **derived}


# Measuring


def memory_of(process: int) -> int:
    """Bytes that a process and its descendants hold: their own and shared memory, files in the page cache left out."""
    total = 0
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1]) << 10
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            total += sum(map(memory_of, map(int, children.read_text().split())))
    except OSError:  # it has ended
        pass
    return total


def watched(process: int, wait: Callable[[], object]) -> tuple[float, int]:
    """Seconds until `wait` returns, and the most that the process held meanwhile."""
    done, peak, start = threading.Event(), [0], time.perf_counter()

    def watch() -> None:
        while not done.wait(0.2):
            peak.append(memory_of(process))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        wait()
    finally:
        done.set()
        thread.join()
    return time.perf_counter() - start, max(peak)


def measure_script(script: str, *args: object, ranks: int = 1) -> tuple[float, int]:
    """Run a script of the project; seconds and bytes. Raises RunError where it fails."""
    torchrun = ("-m", "torch.distributed.run", f"--nproc-per-node={ranks}")
    command = [sys.executable, *(torchrun if ranks > 1 else ()), str(ROOT / script), *map(str, args)]
    threads = {"OMP_NUM_THREADS": str(max(CORES // ranks, 1))} if ranks > 1 else {}
    output: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env={**os.environ, **threads}, **output) as process:
        printed: list[str] = []
        result = watched(process.pid, lambda: printed.append(process.communicate()[0]))
    if process.returncode:
        last = "".join(printed[0].strip().splitlines()[-1:])
        raise RunError(f"{script}: exit status {process.returncode}: {last}")
    return result


def measure_call(function: Callable, *args: object) -> tuple[Any, int]:
    """Run a function in a process of its own; what it returns, and the bytes that it held more than at its start."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, args))
    process.start()
    sender.close()
    answer: list = []
    try:
        before = receiver.recv()
        _, memory = watched(process.pid, lambda: answer.append(receiver.recv()))
    except EOFError:
        raise RunError(f"{function.__name__}: the process that measured it died") from None
    finally:
        process.join()
    return answer[0], max(memory - before, 0)


def _call(sender, function: Callable, args: tuple) -> None:
    sender.send(memory_of(os.getpid()))
    sender.send(function(*args))


def scaled_sizes(largest: int) -> list[int]:
    """The sizes of a stage by its largest."""
    return [largest * scale // SCALES[-1] for scale in SCALES]


def scaled(figure: Measurement, measure: Callable[[int], tuple[float, int]]) -> Measurement:
    """Fill a figure: measure(size) gives seconds and bytes."""
    for size in figure.sizes:
        seconds, memory = measure(size)
        figure.seconds.append(seconds)
        figure.memory.append(memory)
        print(f"  {figure.stage}: {size} {figure.unit} in {seconds:.2f} s", flush=True)
    return figure


def matmul_rate(name: str, dtype: torch.dtype) -> float:
    """FLOP/s of products of 4096 x 4096 matrices."""
    device = get_device(name)
    a, b = (torch.randn(4096, 4096, device=device).to(dtype) for _ in range(2))
    return 2 * 4096**3 / median_seconds(lambda: a @ b, 7, device)


def median_seconds(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds of a repetition, the median of some after a warm-up; on CUDA by events."""
    for _ in range(2):
        work()
    seconds = []
    for _ in range(times):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1000)
        else:
            before = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - before)
    return float(np.median(seconds))


def network_figure(stage: str, precision: str, unit: str, sizes: list[int], device: str) -> Measurement:
    """A figure with its ceiling: rows a second, were all of the network's operations products of large matrices."""
    rate, _ = measure_call(matmul_rate, device, input_dtype(precision))
    bound = f"{rate / 1e9:,.0f} GFLOP/s in {precision}"
    return Measurement(f"{stage}, {precision}", unit, sizes, ceiling=rate / (GFLOP[stage] * 1e9), bound=bound)


# Data


def ffmpeg(*arguments: str) -> None:
    try:
        run_ffmpeg(*arguments)
    except ValueError as error:
        raise RunError(str(error)) from None


def make_video(work: Path, minutes: int) -> Path:
    """720p H.264 with a keyframe every 10 s, a moving test picture under noise, and noise to hear."""
    path = work / f"films_{minutes}_minutes" / "film.mp4"
    if not path.exists():
        print(f"making {path}", flush=True)
        picture = f"testsrc2=size=1280x720:rate={FPS}:duration={60 * minutes},noise=alls=4:allf=t"
        sound = f"anoisesrc=amplitude=0.3:sample_rate=44100:duration={60 * minutes}:seed=0"
        sources = ("-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound)
        keyframes = ("-g", str(10 * FPS), "-keyint_min", str(10 * FPS), "-sc_threshold", "0")
        codecs = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", *keyframes, "-c:a", "aac")
        with replacing(path) as temporary:
            ffmpeg(*sources, *codecs, f"file:{os.path.abspath(temporary)}")
    return path


def film_csv(path: Path, rows: int, faces: int = FACES, video: str = "film") -> Path:
    """Annotations of the film's first rows: faces of 60 to 200 pixels side by side, who move to the right."""
    rng, lines = np.random.default_rng(0), []
    for track in range(-(-rows // (faces * TRACK_ROWS))):
        for face in range(faces):
            width, label = rng.uniform(0.05, 0.16), LABELS[rng.integers(2)]
            for position in range(TRACK_ROWS):
                moment = round((track * TRACK_ROWS + position) / FPS, 2)
                left = 0.05 + 0.45 * (face % FACES) + 0.005 * position
                box = f"{left:.6f},0.2,{left + width:.6f},{0.2 + 2 * width:.6f}"
                lines.append(f"{video},{moment},{box},{label},{video}_{track:04d}:{face}\n")
    write_bytes(path, "".join(lines[:rows]).encode())
    return path


def annotation_lines(rows: int, videos: int) -> list[list[str]]:
    """Lines of official annotations like AVA's, one list per video: tracks of 65 rows, one to three at a time."""
    each, result = -(-rows // videos), []
    for video in range(videos):
        rng, lines, start, name = np.random.default_rng(video), [], 900.0, f"vid-{video:07d}"
        size = min(each, rows - video * each)
        while len(lines) < size:
            for face in range(int(rng.choice([1, 1, 2, 3]))):
                entity = f"{name}_{int(start):04d}_{int(start) + 60:04d}:{face}"
                label = LABELS[rng.integers(2)]
                for position, (x, y) in enumerate(rng.uniform(0.05, 0.45, (65, 2)).round(6).tolist()):
                    moment = round(start + position / FPS, 2)
                    lines.append(f"{name},{moment:g},{x},{y},{x + 0.3:.6f},{y + 0.4:.6f},{label},{entity}\n")
            start += 3
        result.append(lines[:size])
    return [lines for lines in result if lines]


def write_official(directory: Path, videos: list[list[str]]) -> Path:
    for lines in videos:
        write_bytes(directory / f"{lines[0].split(',')[0]}{OFFICIAL_SUFFIX}", "".join(lines).encode())
    return directory


def write_augmented(path: Path, videos: list[list[str]]) -> Path:
    header = f"video_id,frame_timestamp,{','.join(BOX_COLUMNS)},label,entity_id,label_id,instance_id\n"
    rows = (f"{line[:-1]},{LABELS.index(line.split(',')[6])},x:0\n" for lines in videos for line in lines)
    write_bytes(path, (header + "".join(rows)).encode())
    return path


def make_store(work: Path, rows: int) -> Path:
    """A feature store of 22,000 rows a video, of noise that repeats."""
    store = work / f"store_{rows}"
    if not (store / "done").exists():
        print(f"making {store}", flush=True)
        noise = np.random.default_rng(0).random((4096, STE_FEATURES), np.float32)
        lines = annotation_lines(rows, -(-rows // 22_000))
        table = read_annotations(write_official(empty_dir(work / "annotations"), lines))
        for video in range(len(table.video_ids)):
            with feature_writer(store, table, table.rows_of_video(video)) as arrays:
                for array in arrays:
                    array[:] = np.resize(noise, array.shape)
        write_bytes(store / "done", b"")
    return store


def make_weights(work: Path) -> None:
    torch.manual_seed(0)
    networks = {"STE.pth": short_term_encoder(CLIP_LENGTH), "ASC.pth": active_speakers_context(CLIPS, SPEAKERS)}
    for name, network in networks.items():
        with replacing(work / name) as temporary:
            torch.save(network.state_dict(), temporary)


def film_clips(work: Path, csv: Path) -> ClipReader:
    """The film's tracks with the slices and crops that the stages before made."""
    return ClipReader(read_annotations(csv), work / "slices" / "train", work / "crops" / "train", CLIP_LENGTH)


def empty_dir(directory: Path) -> Path:
    """An empty directory in place of what was there."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


# Bare tools and plain loops to compare with


def decode_rate(film: Path, frames: int) -> float:
    """Frames a second of OpenCV reading a film from its start."""
    capture = cv2.VideoCapture(str(film), cv2.CAP_FFMPEG)
    start = time.perf_counter()
    count = 0
    while count < frames and capture.read()[0]:
        count += 1
    capture.release()
    return count / (time.perf_counter() - start)


def read_rate(path: Path) -> float:
    """Bytes a second of reading a file a megabyte at a time."""
    start = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
    return path.stat().st_size / (time.perf_counter() - start)


def copy_rate(wav: Path, directory: Path, seconds: int, tracks: int) -> float:
    """Files a second of reading a second of sound at a time and writing it to a file of its own."""
    start = time.perf_counter()
    for track in range(tracks):
        with open(wav, "rb") as source:
            source.seek(44 + 2 * SAMPLE_RATE * (track % (seconds - 1)))
            (directory / f"{track}.wav").write_bytes(source.read(2 * SAMPLE_RATE))
    return tracks / (time.perf_counter() - start)


def pandas_rate(files: list[Path], header: int | None, rows: int) -> float:
    """Rows a second of pandas reading csv files with its defaults."""
    start = time.perf_counter()
    for file in files:
        pd.read_csv(file, header=header)
    return rows / (time.perf_counter() - start)


def pillow_rate(crops: list[Path]) -> float:
    """Crops a second of Pillow decoding them."""
    start = time.perf_counter()
    for path in crops:
        with Image.open(path) as image:
            image.load()
    return len(crops) / (time.perf_counter() - start)


def copy_bytes_rate() -> float:
    """Bytes a second of copying memory, too much of it for a cache, after a warm-up."""
    source = np.ones(1 << 29, np.uint8)
    target = source.copy()
    start = time.perf_counter()
    np.copyto(target, source)
    return len(source) / (time.perf_counter() - start)


def seek_per_row(film: Path, table: FaceTable, rows: np.ndarray) -> tuple[float, list[bytes]]:
    """The faces of some rows, a seek for each: rows a second, and the JPEGs."""
    capture = cv2.VideoCapture(str(film), cv2.CAP_FFMPEG)
    start, images = time.perf_counter(), []
    for row in rows:
        capture.set(cv2.CAP_PROP_POS_MSEC, table.timestamp[row] * 1000)
        _, frame = capture.read()
        height, width = frame.shape[:2]
        x1, y1, x2, y2 = (table.box[row] * (width, height, width, height)).astype(int)
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        images.append(cv2.imencode(".jpg", frame[y1:y2, x1:x2], quality)[1].tobytes())
    return len(rows) / (time.perf_counter() - start), images


@torch.inference_mode()
def row_by_row(work: Path, csv: Path, rows: int, name: str) -> tuple[float, np.ndarray]:
    """STE forward one row at a time, every crop of its clip decoded anew: rows a second, and logits (rows, 2)."""
    device, table = get_device(name), read_annotations(csv)
    model = short_term_encoder(CLIP_LENGTH)
    model.load_state_dict(torch.load(work / "STE.pth", weights_only=True))
    model = model.to(device).eval()
    start, logits = time.perf_counter(), []
    for row in range(rows):
        track = table.rows_of_track(table.entity[row])
        clip = track[window(table.position[row], len(track), CLIP_LENGTH)]
        entity, times = table.entity_ids[table.entity[row]], table.timestamp
        crops = [read_crop(crop_path(work / "crops" / "train", entity, times[one])) for one in clip]
        video = normalise(torch.from_numpy(evaluation_clip(crops)).to(device)).flatten(0, 1)
        first, last = (int((times[one] - times[track[0]]) * SAMPLE_RATE) for one in clip[[0, -1]])
        sound = fit_clip(read_wav(wav_path(work / "slices" / "train", entity))[first:last], CLIP_LENGTH)
        audio = torch.from_numpy(mfcc(sound, SAMPLE_RATE).T.astype(np.float32)).to(device)
        logits.append(model(audio[None, None], video[None])[0].cpu().numpy())
    return rows / (time.perf_counter() - start), np.concatenate(logits)


# The stages


def measure_sound(args: argparse.Namespace, work: Path) -> list[Measurement]:
    figure = Measurement("sound of the films", "s of film", scaled_sizes(SCALES[-1] * 60 * args.minutes))
    film = make_video(work, args.minutes)
    start = time.perf_counter()
    ffmpeg("-i", str(film), "-vn", "-f", "null", "-")
    figure.ceiling = os.cpu_count() * figure.sizes[0] / (time.perf_counter() - start)
    figure.bound = "ffmpeg decoding the sound, one film a core"

    def measure(size: int) -> tuple[float, int]:
        films = empty_dir(work / "copies")
        for copy in range(size // figure.sizes[0]):
            os.link(film, films / f"film{copy}.mp4")
        paths = ("--ava-video-dir", films, "--target-audios", empty_dir(work / "audio"))
        return measure_script("data/extract_audio_tracks.py", *paths)

    scaled(figure, measure)
    os.replace(work / "audio" / "film0.wav", work / "film.wav")
    empty_dir(work / "audio")
    os.replace(work / "film.wav", work / "audio" / "film.wav")
    return [figure]


def measure_slices(args: argparse.Namespace, work: Path) -> list[Measurement]:
    seconds = 60 * args.minutes
    figure = Measurement("sound of the tracks", "tracks", scaled_sizes(16 * seconds), bound="bare read and write")
    figure.ceiling = copy_rate(work / "audio" / "film.wav", empty_dir(work / "copies"), seconds, figure.sizes[-1])

    def measure(size: int) -> tuple[float, int]:
        csv = film_csv(work / f"film_{size}.csv", TRACK_ROWS * size, faces=16)
        paths = ("--csv", csv, "--ava-audio-dir", work / "audio", "--output-dir", empty_dir(work / "slices"))
        return measure_script("data/slice_audio_tracks.py", *paths, "--split", "train")

    return [scaled(figure, measure)]


def measure_crops(args: argparse.Namespace, work: Path) -> list[Measurement]:
    figure = Measurement("faces", "rows", scaled_sizes(FACES * FPS * 60 * args.minutes))
    film = make_video(work, args.minutes)
    frames, _ = measure_call(decode_rate, film, FPS * 60)
    figure.ceiling, figure.bound = FACES * frames, f"OpenCV reading {frames:.0f} frames/s"

    def measure(size: int) -> tuple[float, int]:
        csv = film_csv(work / f"faces_{size}.csv", size)
        paths = ("--csv", csv, "--ava-video-dir", film.parent, "--output-dir", work / "crops")
        return measure_script("data/extract_face_crops_time.py", *paths, "--split", "train", "--overwrite")

    scaled(figure, measure)
    table = read_annotations(work / f"faces_{figure.sizes[-1]}.csv")
    sample = np.linspace(0, len(table) - 1, 60).astype(int)
    (rate, images), _ = measure_call(seek_per_row, film, table, sample)
    names, times = (table.entity_ids[entity] for entity in table.entity[sample]), table.timestamp[sample]
    paths = (crop_path(work / "crops" / "train", name, moment) for name, moment in zip(names, times, strict=True))
    same = sum(path.read_bytes() == image for path, image in zip(paths, images, strict=True))
    remark = f"{figure.rate / rate:.0f} times a seek per row ({rate:.1f} rows/s); {same} of {len(sample)} equal"
    figure.remarks.append(remark)
    return [figure]


def read_seconds(source: Path) -> tuple[float, int]:
    """Seconds of reading annotations and all that training needs of them; bytes that a forked worker adds."""
    start = time.perf_counter()
    table = read_annotations(source)
    _ = table.position, table.frame_id, table.audio_start, table.anyone_speaking
    seconds = time.perf_counter() - start
    receiver, sender = os.pipe()
    if not os.fork():
        for entity in range(0, len(table.entity_ids), 10):
            table.timestamp[table.rows_of_track(entity)].sum()
        text = Path("/proc/self/smaps_rollup").read_text().split()
        os.write(sender, text[text.index("Private_Dirty:") + 1].encode())
        os._exit(0)
    own = int(os.read(receiver, 20)) << 10
    os.wait()
    return seconds, own


def measure_reading(name: str, write: Callable, header: int | None, rows: int, work: Path) -> Measurement:
    figure = Measurement(f"annotations, {name}", "rows", scaled_sizes(rows), bound="bare pandas.read_csv")
    sources: list[Path] = []

    def measure(size: int) -> tuple[float, int]:
        sources.append(write(work / f"{name.replace(' ', '_')}_{size}", annotation_lines(size, 120)))
        (seconds, own), memory = measure_call(read_seconds, sources[-1])
        figure.remarks = [f"a worker adds {own >> 20} MB"]
        return seconds, memory

    scaled(figure, measure)
    figure.ceiling, _ = measure_call(pandas_rate, find_annotations(sources[-1]), header, figure.sizes[-1])
    return figure


def measure_annotations(args: argparse.Namespace, work: Path) -> list[Measurement]:
    sources = (("one augmented file", write_augmented, 0), ("120 official files", write_official, None))
    return [measure_reading(*source, args.annotation_rows, work) for source in sources]


@torch.inference_mode()
def decoded_rate(work: Path, csv: Path, name: str, precision: str) -> float:
    """Rows a second of the encoder on crops that are decoded already."""
    device, dataset = get_device(name), STETrackDataset(film_clips(work, csv))
    pieces = [dataset[index] for index in range(len(dataset))]
    tune_malloc()
    model = short_term_encoder(CLIP_LENGTH).to(device, memory_format=torch.channels_last).eval()

    def forward() -> None:
        for _ in encode(model, clip_batches(pieces, 128, device, input_dtype(precision)), device, precision):
            pass

    return len(dataset.reader.table) / median_seconds(forward, 3, device)


def measure_ste_forward(args: argparse.Namespace, work: Path) -> list[Measurement]:
    figures = []
    for precision in ("fp32", "bf16"):
        figure = network_figure(
            "STE forward", precision, "rows", scaled_sizes(SCALES[-1] * 8 * args.clips), args.device
        )

        def measure(size: int, precision: str = precision) -> tuple[float, int]:
            csv = film_csv(work / f"rows_{size}.csv", size)
            data = ("--csv", csv, "--split", "train", "--weights", work / "STE.pth")
            paths = ("--audio-dir", work / "slices", "--video-dir", work / "crops")
            output = ("--output-dir", work / f"features_{precision}", "--overwrite", "--precision", precision)
            return measure_script("STE_forward.py", CLIP_LENGTH, args.device, *data, *paths, *output)

        scaled(figure, measure)
        smallest, largest = (work / f"rows_{figure.sizes[index]}.csv" for index in (0, -1))
        if precision == "fp32":
            (rate, logits), _ = measure_call(row_by_row, work, largest, 30, args.device)
            got = pd.read_csv(work / "features_fp32" / "film.csv")[["logit_0", "logit_1"]].to_numpy()[: len(logits)]
            difference = np.abs(got - logits).max()
            remark = f"{figure.rate / rate:.1f} times a row at a time ({rate:.1f} rows/s), {difference:.0e} off"
            figure.remarks.append(remark)
        rate, _ = measure_call(decoded_rate, work, smallest, args.device, precision)
        figure.remarks.append(f"{rate:,.0f} rows/s from decoded crops")
        figures.append(figure)
    return figures


def loader_seconds(work: Path, csv: Path, clips: int) -> float:
    """Seconds of one process that makes training clips."""
    torch.set_num_threads(1)
    dataset = STEDataset(film_clips(work, csv), seed=0, augment=True)
    start = time.perf_counter()
    for epoch in range(-(-clips // len(dataset))):
        for index in range(min(len(dataset), clips - epoch * len(dataset))):
            dataset[epoch, index]
    return time.perf_counter() - start


def measure_ste_train(args: argparse.Namespace, work: Path) -> list[Measurement]:
    sizes = scaled_sizes(SCALES[-1] * args.clips)
    csvs = {size: film_csv(work / f"clips_{size}.csv", TRACK_ROWS * size) for size in sizes}
    val = film_csv(work / "val.csv", FACES * TRACK_ROWS)
    for directory in ("crops", "slices"):
        if not (work / directory / "val").exists():
            (work / directory / "val").symlink_to("train")
    loader = Measurement("STE training, one loader", "clips", sizes, bound="Pillow decoding the crops")
    crops, _ = measure_call(pillow_rate, sorted((work / "crops" / "train").glob("*/*.jpg"))[:4000])
    loader.ceiling = crops / CLIP_LENGTH
    scaled(loader, lambda size: measure_call(loader_seconds, work, csvs[size], size))
    figures = [loader]
    for precision in ("fp32", "bf16"):
        figure = network_figure("STE training", precision, "clips", sizes, args.device)

        def measure(size: int, precision: str = precision) -> tuple[float, int]:
            data = ("--csv-train-full", csvs[size], "--csv-val-full", val, "--no-pretrained", "--epochs", 1)
            paths = ("--audio-dir", work / "slices", "--video-dir", work / "crops")
            output = ("--models-out", empty_dir(work / "models"), "--batch-size", 64, "--precision", precision)
            return measure_script("STE_train.py", CLIP_LENGTH, args.device, *data, *paths, *output)

        figures.append(scaled(figure, measure))
    return figures


def open_seconds(store: Path) -> float:
    start = time.perf_counter()
    ASCDataset(FeatureStore(store), *CONTEXT, seed=0)
    return time.perf_counter() - start


def assembly_seconds(store: Path, samples: int) -> float:
    """Seconds of assembling shuffled batches of 64 contexts, after some to warm up."""
    tune_malloc()
    dataset = ASCDataset(FeatureStore(store), *CONTEXT, seed=0, redraw=True)
    keys = list(EpochSampler(len(dataset), seed=0))
    for start in range(0, min(len(keys), 6400), 64):
        dataset.__getitems__(keys[start : start + 64])
    begin = time.perf_counter()
    for start in range(0, samples, 64):
        dataset.__getitems__(keys[start : start + 64])
    return time.perf_counter() - begin


def measure_asc(args: argparse.Namespace, work: Path) -> list[Measurement]:
    opened, sizes = scaled_sizes(args.store_rows), scaled_sizes(SCALES[-1] * args.contexts)
    stores, val = {size: make_store(work, size) for size in (*opened, *sizes)}, make_store(work, 500)
    opening = Measurement("ASC, opening the store", "rows", opened, bound="bare pandas.read_csv")
    opening.ceiling, _ = measure_call(pandas_rate, sorted(stores[opened[-1]].glob("*.csv")), 0, opened[-1])
    scaled(opening, lambda size: measure_call(open_seconds, stores[size]))

    assembly = Measurement("ASC, assembling batches", "contexts", sizes, bound="bare copy of memory")
    assembly.ceiling = measure_call(copy_bytes_rate)[0] / (4 * STE_FEATURES * CLIPS * SPEAKERS)
    scaled(assembly, lambda size: measure_call(assembly_seconds, stores[size], size))

    train = network_figure("ASC training", "fp32", "contexts", sizes, args.device)

    def measure(size: int) -> tuple[float, int]:
        data = ("--features-train-full", stores[size], "--features-val-full", val)
        output = ("--models-out", empty_dir(work / "models"), "--epochs", 1)
        return measure_script("ASC_train.py", *CONTEXT, args.device, *data, *output)

    scaled(train, measure)
    forward = network_figure("ASC forward", "fp32", "rows", sizes, args.device)

    def measure_forward(size: int) -> tuple[float, int]:
        paths = ("--features-val-full", stores[size], "--output-dir", empty_dir(work / "predictions"))
        return measure_script("ASC_forward.py", *CONTEXT, args.device, *paths, "--weights", work / "ASC.pth")

    return [opening, assembly, train, scaled(forward, measure_forward)]


def measure_scores(args: argparse.Namespace, work: Path) -> list[Measurement]:
    figure = Measurement("scores and evaluation", "rows", scaled_sizes(args.score_rows))
    figure.bound = "pandas reading the inputs and writing the result"

    def measure(size: int) -> tuple[float, int]:
        truth, logits = empty_dir(work / "truth"), empty_dir(work / "logits")
        table, rng = read_annotations(write_official(truth, annotation_lines(size, 33))), np.random.default_rng(0)
        for video in range(len(table.video_ids)):
            rows = table.rows_of_video(video)
            write_predictions(logits, table, rows, rng.normal(size=(len(rows), 2)).astype(np.float32))
        scores, copy = work / "scores.csv", work / "truth.csv"
        written = ("--predictions-csv", scores, "--ground-truth-csv", copy)
        script = "ASC_prediction_postprocessing.py"
        first = measure_script(script, "--predictions-dir", logits, "--ground-truth", truth, *written)
        second = measure_script("scripts/evaluate.py", "--predictions", scores, "--ground-truth", copy)
        return first[0] + second[0], max(first[1], second[1])

    scaled(figure, measure)
    start = time.perf_counter()
    for file in (*(work / "truth").glob("*.csv"), *(work / "logits").glob("*.csv")):
        pd.read_csv(file, header=None)
    pd.read_csv(work / "scores.csv", header=None).to_csv(work / "copy.csv")
    figure.ceiling = figure.sizes[-1] / (time.perf_counter() - start)
    return [figure]


# Ranks


@dataclass
class Shared:
    """One line of the table of ranks: films shared by one process and by several ranks."""

    stage: str
    unit: str
    size: int
    seconds: dict[int, float] = field(default_factory=dict)  # by the number of ranks
    cpu_seconds: dict[int, float] = field(default_factory=dict)

    @property
    def ceiling(self) -> float:
        """Units a second, were all cores busy with what the single process does and with nothing else."""
        return self.size * CORES / self.cpu_seconds[1]

    def rates(self) -> dict[int, float]:
        return {ranks: self.size / seconds for ranks, seconds in self.seconds.items()}


def cpu_seconds() -> float:
    """Of all processes that have ended so far, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure_ranks(args: argparse.Namespace, work: Path) -> list[Shared]:
    film = make_video(work, args.minutes)
    root, videos = empty_dir(work / "shared"), [f"film{number}" for number in range(4)]
    rows, encoded = FACES * FPS * 60 * args.minutes, SCALES[-1] * 2 * args.clips
    for video in videos:
        (root / "films").mkdir(exist_ok=True)
        os.link(film, root / "films" / f"{video}{film.suffix}")
        film_csv(root / "all" / f"{video}{OFFICIAL_SUFFIX}", rows, video=video)
        film_csv(root / "some" / f"{video}{OFFICIAL_SUFFIX}", encoded, video=video)
    films, wavs, slices, crops, features = (root / name for name in ("films", "wavs", "slices", "crops", "features"))
    contexts, predictions = 4 * SCALES[-1] * args.contexts, root / "predictions"
    store = make_store(work, contexts)
    every, some = (("--split", "train", "--csv", root / name) for name in ("all", "some"))
    clips = (CLIP_LENGTH, args.device, *some, "--audio-dir", slices, "--video-dir", crops, "--precision", "bf16")
    rows_of_store = (*CONTEXT, args.device, "--features-val-full", store, "--weights", work / "ASC.pth")
    stages: list[tuple[str, str, int, str, tuple, str, Path]] = [
        ("sound of the films", "s of film", 4 * 60 * args.minutes, "data/extract_audio_tracks.py",
            ("--ava-video-dir", films), "--target-audios", wavs),
        ("sound of the tracks", "tracks", 4 * rows // TRACK_ROWS, "data/slice_audio_tracks.py",
            (*every, "--ava-audio-dir", wavs), "--output-dir", slices),
        ("faces", "rows", 4 * rows, "data/extract_face_crops_time.py",
            (*every, "--ava-video-dir", films), "--output-dir", crops),
        ("STE forward, bf16", "rows", 4 * encoded, "STE_forward.py",
            (*clips, "--weights", work / "STE.pth"), "--output-dir", features),
        ("ASC forward, fp32", "rows", contexts, "ASC_forward.py", rows_of_store, "--output-dir", predictions),
    ]  # fmt: skip
    result = []
    for stage, unit, size, script, inputs, flag, output in stages:
        shared = Shared(stage, unit, size)
        for ranks in (1, args.ranks):
            workers = ("--workers", max(CORES // ranks, 1)) if script.startswith("data/") else ()
            empty_dir(output)
            before = cpu_seconds()
            shared.seconds[ranks], _ = measure_script(script, *inputs, *workers, flag, output, ranks=ranks)
            shared.cpu_seconds[ranks] = cpu_seconds() - before
            print(f"  {stage}: {size} {unit} by {ranks} in {shared.seconds[ranks]:.2f} s", flush=True)
        result.append(shared)
    return result


def markdown_of_ranks(shared: list[Shared], ranks: int) -> str:
    head = ["stage", "size", "one process", f"{ranks} ranks", "ratio", "ceiling", f"share, {ranks} ranks"]
    lines = [head, ["---"] * len(head)]
    for line in shared:
        one, several = (line.rates()[count] for count in (1, ranks))
        rates = (f"{one:,.0f} {line.unit}/s", f"{several:,.0f}", f"{several / one:.2f}", f"{line.ceiling:,.0f}")
        lines.append([line.stage, f"{line.size:,}", *rates, f"{several / line.ceiling:.2f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# The table


def row_of(figure: Measurement) -> list[str]:
    ceiling = "" if figure.ceiling is None else f"{figure.ceiling:,.0f} ({figure.bound})"
    share = "" if figure.share is None else f"{figure.share:.2f}"
    growth = "" if figure.growth is None else f"{figure.growth:.2f}"
    rate = f"{figure.rate:,.0f} {figure.unit}/s" if figure.rate >= 100 else f"{figure.rate:.1f} {figure.unit}/s"
    marginal_rate = "" if figure.marginal_rate is None else f"{figure.marginal_rate:,.0f}"
    memory = f"{figure.memory[-1] / 1e9:.2f} GB"
    size = f"{figure.sizes[-1]:,}"
    return [figure.stage, size, f"{figure.seconds[-1]:.1f} s", rate, marginal_rate, memory, ceiling, share, growth]


def markdown(figures: list[Measurement]) -> str:
    head = ["stage", "size", "time", "rate", "of marginal_rate rows", "memory", "ceiling", "share", "growth"]
    lines = [head, ["---"] * len(head), *map(row_of, figures)]
    remarks = [f"{figure.stage}: {remark}" for figure in figures for remark in figure.remarks]
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", *remarks])


def describe_machine(device: str) -> dict[str, object]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = [line.split(":")[1].strip() for line in lines if "model name" in line]
    versions = {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__}
    return {"cpu": cpu[0] if cpu else platform.processor(), "cores": CORES, "device": device, **versions}


STAGES = {
    "sound": measure_sound,
    "slices": measure_slices,
    "crops": measure_crops,
    "annotations": measure_annotations,
    "ste_forward": measure_ste_forward,
    "ste_train": measure_ste_train,
    "asc": measure_asc,
    "scores": measure_scores,
}


def get_args_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--device", type=device_name, default="cpu", help="number of the CUDA device, or cpu")
    parser.add_argument("--work", default="benchmark", help="directory for the data, which is kept and used again")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=tuple(STAGES), help="what to measure")
    parser.add_argument("--ranks", type=positive_int, default=1, help="measure films shared by so many ranks as well")
    parser.add_argument("--minutes", type=positive_int, default=10, help="length of the film")
    parser.add_argument("--clips", type=positive_int, default=64, help="clips at the smallest size of the STE stages")
    parser.add_argument("--contexts", type=positive_int, default=4000, help="rows at the smallest size of ASC")
    parser.add_argument("--store-rows", type=positive_int, default=100_000, help="rows of the store that is opened")
    parser.add_argument("--annotation-rows", type=positive_int, default=2_676_314, help="rows of the annotations")
    parser.add_argument("--score-rows", type=positive_int, default=800_000, help="rows of the predictions")
    parser.add_argument("--json", help="file for all the numbers (default: <work>/benchmark.json)")
    return parser


def main(args: argparse.Namespace) -> None:
    print_settings(vars(args))
    if args.clips * SCALES[-1] * TRACK_ROWS > FACES * FPS * 60 * args.minutes:
        raise InputError(f"--clips {args.clips}: a film of {args.minutes} minutes has not enough tracks for it")
    if min(args.annotation_rows, args.score_rows, args.store_rows) < SCALES[-1]:
        raise InputError(f"--annotation-rows, --score-rows and --store-rows must be at least {SCALES[-1]}")
    work = Path(args.work)
    result = Path(args.json or work / "benchmark.json")
    machine = describe_machine(device_label(get_device(args.device)))
    machine["bytes/s of reading"] = read_rate(make_video(work, args.minutes))
    make_weights(work)
    print_settings(machine)
    figures: list[Measurement] = []
    for stage, measure in STAGES.items():
        if stage in args.stages:
            print(stage, flush=True)
            figures += measure(args, work)
            stages = [figure.numbers() for figure in figures]
            write_json(result, {"machine": machine, "stages": stages, "settings": vars(args)})
    if figures:
        print(markdown(figures))
    if args.ranks > 1:
        shared = measure_ranks(args, work)
        numbers = [{**asdict(line), "ceiling": line.ceiling} for line in shared]
        stages = [figure.numbers() for figure in figures]
        write_json(result, {"machine": machine, "stages": stages, "ranks": numbers, "settings": vars(args)})
        print(markdown_of_ranks(shared, args.ranks))
    print(f"numbers: {result}")


if __name__ == "__main__":
    launch(main, get_args_parser())
