"""ffmpeg as a process: decode audio, find stream offsets, encode videos; and list the videos of a directory."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from core.config import SAMPLE_RATE
from core.runtime.errors import InputError
from core.runtime.files import replacing

# Only local files in these containers are opened, so that a playlist named like a video cannot open anything else.
PROTOCOLS = "file"
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv")
_AUDIO_ONLY = ("-vn", "-sn", "-dn")  # of several audio streams, ffmpeg takes its default
_BLOCK_BYTES = 1 << 20
_NO_STREAM = "does not contain any stream"  # printed by ffmpeg if the requested stream is missing
_SPECIFIC_ERRORS = (_NO_STREAM, "Unknown encoder", "No space left")  # more specific than ffmpeg's last line


def ffmpeg_path() -> str:
    """Return the path of ffmpeg, from PATH or from the package imageio-ffmpeg. Raises InputError if there is none."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise InputError("ffmpeg not found: add it to PATH, or pip install imageio-ffmpeg") from None


def run_ffmpeg(*arguments: str) -> bytes:
    """Run ffmpeg and return its stdout. Raises ValueError with ffmpeg's error message if it fails."""
    with ffmpeg_process(*arguments) as process:
        return process.stdout.read()


@contextlib.contextmanager
def ffmpeg_process(
    *arguments: str, pipe_stdin: bool = False, warnings: list[str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start ffmpeg with a pipe from its stdout and, with `pipe_stdin`, a pipe to its stdin.

    The process has always ended when the block exits; an exception in the block kills it. If ffmpeg succeeds but
    prints to stderr, the last line is appended to `warnings`. Raises ValueError with its error message if it fails.
    """
    command = [ffmpeg_path(), "-hide_banner", "-nostdin", "-loglevel", "error", "-y", *arguments]
    with tempfile.TemporaryFile() as errors:
        stdin = subprocess.PIPE if pipe_stdin else subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=errors)
        try:
            yield process
        except BaseException:
            process.kill()
            raise
        finally:
            for pipe in filter(None, (process.stdin, process.stdout)):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            status = process.wait()
        errors.seek(0)
        # Lines begin with a component and its address: "[aac @ 0x55d0c0] ...".
        lines = [re.sub(r"^\[[^]]*\] *", "", line) for line in errors.read().decode(errors="replace").splitlines()]
        lines = [line for line in lines if line.strip()]
        if lines and not status and warnings is not None:
            warnings.append(lines[-1])
        if status:
            reason = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            last = lines[-1] if lines and status > 0 else reason
            specific = (line for line in lines for phrase in _SPECIFIC_ERRORS if phrase in line)
            raise ValueError(f"ffmpeg: {next(specific, last)}")


def input_arguments(video: Path) -> tuple[str, ...]:
    """Return the ffmpeg arguments that open this file, and no other file whatever its name or content."""
    require_regular_file(video)
    return "-protocol_whitelist", PROTOCOLS, "-format_whitelist", CONTAINERS, "-i", f"file:{os.path.abspath(video)}"


def require_regular_file(path: Path) -> None:
    """Raise ValueError if the path is not a regular file. Opening a named pipe would block forever."""
    if not path.is_file():
        raise ValueError("not a regular file")


def iter_audio(video: Path, decoder_warnings: list[str] | None = None) -> Iterator[np.ndarray]:
    """Yield the audio of a video in chunks (n,) int16, 16 kHz mono; late starts and gaps are filled with silence.

    If the audio is damaged, ffmpeg's message is appended to `decoder_warnings`. Raises ValueError if the file is not
    a video or has no audio.
    """
    audio = ("-vn", "-ac", "1", "-acodec", "pcm_s16le", "-ar", str(SAMPLE_RATE), "-af", "aresample=async=1:first_pts=0")
    empty = True
    try:
        arguments = (*input_arguments(video), *audio, "-f", "s16le", "pipe:1")
        with ffmpeg_process(*arguments, warnings=decoder_warnings) as process:
            while block := process.stdout.read(_BLOCK_BYTES):
                empty = False
                yield np.frombuffer(block, "<i2")
    except ValueError as error:
        raise ValueError("no audio stream" if _NO_STREAM in str(error) else error) from None
    if empty:
        raise ValueError("the audio stream is empty")


def video_start_offset(video: Path) -> float:
    """Return the seconds from the first sample of `iter_audio` to the first frame; 0 if either stream is missing.

    Raises ValueError if the path is not a regular file.
    """
    source = input_arguments(video)
    first_frame = _first_pts("-copyts", *source, "-map", "0:V:0", "-enc_time_base", "1:1000000")
    first_sample = _first_pts("-copyts", *source, *_AUDIO_ONLY)
    shifted_sample = _first_pts(*source, *_AUDIO_ONLY)  # ffmpeg shifts the container's start to 0
    if first_frame is None or first_sample is None or shifted_sample is None:
        return 0.0
    return first_frame - (first_sample - shifted_sample)


def _first_pts(*arguments: str) -> float | None:
    """Return the presentation time in seconds of the first packet or frame, None if there is none."""
    try:
        lines = run_ffmpeg(*arguments, "-frames", "1", "-f", "framecrc", "pipe:1").decode().splitlines()
    except ValueError:
        return None
    (time_base,) = [line.rpartition(" ")[2] for line in lines if line.startswith("#tb 0:")]
    pts = [int(line.split(",")[2]) for line in lines if not line.startswith("#")]
    return float(pts[0] * Fraction(time_base)) if pts else None


def has_audio(video: Path) -> bool:
    """Return True if the video has audio. Raises ValueError if the path is not a regular file."""
    return _first_pts(*input_arguments(video), *_AUDIO_ONLY) is not None


def aligned_audio_args(video: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return input and output arguments of `encode_video` for a video's own audio, aligned to its first frame."""
    offset = video_start_offset(video)
    source = (*_AUDIO_ONLY, *input_arguments(video))  # before the input: only its audio is read
    shift = f",atrim=start={offset:.6f},asetpts=PTS-STARTPTS" if offset > 0 else f",adelay={-1000 * offset:.0f}:all=1"
    return source, ("-ac", "2", "-af", f"aresample=async=1:first_pts=0{shift if offset else ''}")


def encode_video(
    path: Path, images: Iterable[np.ndarray], size: tuple[int, int], fps: float, audio: Sequence[str], *options: str
) -> None:
    """Encode BGR images (H, W, 3) uint8 of size (W, H) as H.264 and audio as AAC, which browsers play.

    `audio` is ffmpeg's input arguments for the audio, `options` are further output arguments. Odd sizes are made even
    by repeating the last row or column. The file appears at `path` when it is complete. Raises ValueError if ffmpeg
    fails.
    """
    width, height = (side + side % 2 for side in size)
    frames = ("-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{width}x{height}", "-r", f"{fps:.6g}", "-i", "pipe:0")
    codecs = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-c:a", "aac")
    with replacing(Path(os.path.abspath(path))) as partial:
        output = ("-map_metadata", "-1", *codecs, *options, f"file:{partial}")
        # A broken pipe means that ffmpeg failed; ffmpeg_process then raises its error.
        with ffmpeg_process(*frames, *audio, *output, pipe_stdin=True) as process, contextlib.suppress(BrokenPipeError):
            for image in images:
                if (width, height) != tuple(size):
                    padding = (0, height - size[1], 0, width - size[0])
                    image = cv2.copyMakeBorder(image, *padding, cv2.BORDER_REPLICATE)
                process.stdin.write(cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420))


def list_videos(directory: Path) -> dict[str, Path]:
    """Return video_id -> path of the videos in a directory. Raises InputError if two videos have one id."""
    videos: dict[str, Path] = {}
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() not in VIDEO_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in videos:
            raise InputError(f"{path}: has the same video id as {videos[path.stem].name}; keep one of them")
        videos[path.stem] = path
    return videos
