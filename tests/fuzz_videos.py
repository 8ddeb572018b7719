"""Read thousands of mutated videos in child processes. Not run by pytest:

    python tests/fuzz_videos.py --count 2000

Every video must be read, as far as possible, or refused with a ValueError: within 10 s, with less than 1.5 GB of
memory and without a crash. A crash of a decoder ends only the child process; its video is reported. Exit status 1 with
findings.
"""

import argparse
import faulthandler
import multiprocessing
import resource
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from timed_videos import AAC, H264, make_timed_video

from core.media.audio import extract_audio
from core.media.reader import VideoReader
from core.runtime.jobs import Outcome

LIMIT_SECONDS, LIMIT_BYTES = 10, 1_500_000_000
FORMS = {
    "a.mp4": (*H264, *AAC),
    "a.mkv": (*H264, *AAC),
    "a.ts": (*H264, *AAC),
    "a.avi": ("-c:v", "mpeg4", "-q:v", 5, "-bf", 2, "-c:a", "mp3"),
    "a.webm": ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", 8, "-c:a", "libopus"),
    "b.mp4": ("-c:v", "libsvtav1", "-preset", 12, "-crf", 40, "-pix_fmt", "yuv420p", *AAC),
    "b.mkv": ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none", *AAC),
    "a.mpg": ("-c:v", "mpeg2video", "-q:v", 6, "-c:a", "mp2"),
    "a.wmv": ("-c:v", "wmv2", "-q:v", 6, "-c:a", "wmav2"),
    "a.flv": (*H264, *AAC),
    "a.ogv": ("-c:v", "libtheora", "-q:v", 5, "-c:a", "libvorbis"),
    "a.mxf": ("-c:v", "mpeg2video", "-q:v", 6, "-c:a", "pcm_s16le"),
}


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut, flip, zero, repeat or remove parts; half of the changes are in the first 4 kB, where the headers are."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 12)):
        end = min(len(data), 4096) if rng.random() < 0.5 else len(data)
        start = int(rng.integers(0, max(end, 1)))
        size = int(2 ** rng.uniform(0, 8))
        match rng.integers(0, 6):
            case 0:
                data[start : start + size] = rng.bytes(size)
            case 1:
                data[start] = data[start] ^ 1 << int(rng.integers(0, 8))
            case 2:
                data[start : start + size] = bytes([int(rng.choice([0, 255]))]) * size
            case 3:
                del data[start : start + size]
            case 4:
                data[start:start] = data[start : start + size]
            case _ if rng.random() < 0.2:
                del data[start:]
        if len(data) < 16:
            break
    return bytes(data)


def read(path: Path) -> str:
    """Read frames and audio as the stages do. Returns the outcome."""
    try:
        with VideoReader(path, enhance=True) as reader:
            frames = sum(image is not None for image in reader.frames(np.arange(0, 3, 0.08), 1.0))
    except ValueError:
        frames = -1
    try:
        extract_audio(path, path.with_suffix(".wav"), True, Outcome(), lambda _: None)
        audio = "audio"
    except ValueError:
        audio = "no audio"
    return f"{'refused' if frames < 0 else 'frames' if frames else 'no frames'}, {audio}"


def child(path: Path, connection) -> None:
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send((read(path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def try_video(path: Path) -> str:
    """Read a video in a child process. Returns its outcome, or a finding in capitals."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=child, args=(path, sender))
    start = time.monotonic()
    process.start()
    sender.close()
    try:
        if not receiver.poll(LIMIT_SECONDS):
            process.kill()
            return "HANG"
        outcome, memory = receiver.recv()
    except EOFError:
        process.join()
        return f"CRASH ({process.exitcode})"
    finally:
        process.join()
        receiver.close()
    if memory > LIMIT_BYTES:
        return f"MEMORY ({memory >> 20} MB)"
    return outcome if time.monotonic() - start < LIMIT_SECONDS else "HANG"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="number of mutated videos")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--workers", type=int, default=2, help="number of videos read in parallel")
    parser.add_argument("--findings", type=Path, help="directory for copies of the videos that fail")
    args = parser.parse_args()
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        originals = [make_timed_video(Path(directory, name), 2, options=form) for name, form in FORMS.items()]

        def run(index: int) -> None:
            rng = np.random.default_rng([args.seed, index])
            original = originals[index % len(originals)]
            path = Path(directory, f"{index}{original.suffix}")
            path.write_bytes(mutate(original.read_bytes(), rng))
            outcome = try_video(path)
            outcomes[outcome] += 1
            if outcome.isupper() or "(" in outcome:
                print(f"{original.name}, video {index}: {outcome}", flush=True)
                if args.findings:
                    path.rename(args.findings / path.name)
            path.unlink(missing_ok=True)
            path.with_suffix(".wav").unlink(missing_ok=True)

        with ThreadPoolExecutor(args.workers) as pool:
            list(pool.map(run, range(args.count)))
    for outcome, count in outcomes.most_common():
        print(f"{count:6} {outcome}")
    return int(any("(" in outcome or outcome.isupper() for outcome in outcomes))


if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    multiprocessing.set_forkserver_preload(["core.media.audio", "timed_videos"])
    sys.exit(main())
