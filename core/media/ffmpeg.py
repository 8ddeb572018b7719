"""The ffmpeg process: sound, where streams begin, encoding; and which films a directory holds."""

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

# What a film may be, and where it may be: one local file. A playlist posing as a film opens nothing else.
PROTOCOLS = "file"
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv")
_SOUND_ALONE = ("-vn", "-sn", "-dn")  # of several streams of sound ffmpeg takes its favourite, here as everywhere
_BLOCK_BYTES = 1 << 20
_NO_STREAM = "does not contain any stream"  # ffmpeg, where a film lacks what is asked of it
_SPECIFIC_ERRORS = (_NO_STREAM, "Unknown encoder", "No space left")  # what says more than ffmpeg's last line


def ffmpeg_path() -> str:
    """The ffmpeg on PATH, else the binary the package imageio-ffmpeg carries. Raises InputError without either."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise InputError("no ffmpeg: put one on PATH, or pip install imageio-ffmpeg") from None


def run_ffmpeg(*arguments: str) -> bytes:
    """Run ffmpeg without a shell, return what it wrote to stdout. Raises ValueError with its last line if it fails."""
    with _ffmpeg(*arguments) as process:
        return process.stdout.read()


@contextlib.contextmanager
def _ffmpeg(
    *arguments: str, feed: bool = False, complaints: list[str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """ffmpeg with a pipe from its stdout, and one to its stdin if it is to be fed.

    Whatever ends the block, the process is gone afterwards: a pipe nobody reads ends it too. The last line that it
    printed and ended well all the same is added to the complaints. Raises ValueError with its last line if it fails.
    """
    command = [ffmpeg_path(), "-hide_banner", "-nostdin", "-loglevel", "error", "-y", *arguments]
    with tempfile.TemporaryFile() as errors:
        stdin = subprocess.PIPE if feed else subprocess.DEVNULL
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
        lines = [re.sub(r"^\[[^]]*\] *", "", line) for line in errors.read().decode(errors="replace").splitlines()]
        lines = [line for line in lines if line.strip()]  # each without the address of who printed it
        if lines and not status and complaints is not None:
            complaints.append(lines[-1])
        if status:
            reason = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            last = lines[-1] if lines and status > 0 else reason
            telling = (line for line in lines for sign in _SPECIFIC_ERRORS if sign in line)
            raise ValueError(f"ffmpeg: {next(telling, last)}")


def _source(film: Path) -> tuple[str, ...]:
    """Arguments that have ffmpeg open this file and no other, whatever its name or its content."""
    _require_file(film)
    return "-protocol_whitelist", PROTOCOLS, "-format_whitelist", CONTAINERS, "-i", f"file:{os.path.abspath(film)}"


def _require_file(film: Path) -> None:
    if not film.is_file():  # a pipe would be waited for without end
        raise ValueError("not a file")


def iter_audio(film: Path, complaints: list[str] | None = None) -> Iterator[np.ndarray]:
    """The whole sound of a film in pieces (n,) int16, 16 kHz mono; silence where it starts late or has gaps.

    Where it is damaged, what ffmpeg says is added to the complaints. Raises ValueError where there is no sound or no
    film.
    """
    sound = ("-vn", "-ac", "1", "-acodec", "pcm_s16le", "-ar", str(SAMPLE_RATE), "-af", "aresample=async=1:first_pts=0")
    heard = False
    try:
        with _ffmpeg(*_source(film), *sound, "-f", "s16le", "pipe:1", complaints=complaints) as process:
            while block := process.stdout.read(_BLOCK_BYTES):
                heard = True
                yield np.frombuffer(block, "<i2")
    except ValueError as error:
        raise ValueError("it has no sound" if _NO_STREAM in str(error) else error) from None
    if not heard:
        raise ValueError("its sound is empty")


def video_start_offset(film: Path) -> float:
    """Seconds from where the sound of `iter_audio` begins to the film's first frame; 0 where either is missing.

    Raises ValueError for what is no file.
    """
    picture = _first_pts("-copyts", *_source(film), "-map", "0:V:0", "-enc_time_base", "1:1000000")
    sound = _first_pts("-copyts", *_source(film), *_SOUND_ALONE)
    heard = _first_pts(*_source(film), *_SOUND_ALONE)
    return 0.0 if None in (picture, sound, heard) else picture - (sound - heard)


def _first_pts(*arguments: str) -> float | None:
    """Presentation time in seconds of the first packet or frame, None where there is none."""
    try:
        lines = run_ffmpeg(*arguments, "-frames", "1", "-f", "framecrc", "pipe:1").decode().splitlines()
    except ValueError:
        return None
    (unit,) = [line.rpartition(" ")[2] for line in lines if line.startswith("#tb 0:")]
    moments = [int(line.split(",")[2]) for line in lines if not line.startswith("#")]
    return float(moments[0] * Fraction(unit)) if moments else None


def has_audio(film: Path) -> bool:
    """Whether there is sound in the film. Raises ValueError for what is no file."""
    return _first_pts(*_source(film), *_SOUND_ALONE) is not None


def aligned_audio_args(film: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A film's own sound for `encode_video`: where it comes from, and what has it begin with the film's first frame."""
    delay = video_start_offset(film)
    sound = (*_SOUND_ALONE, *_source(film))  # as options of the source: nothing else is taken from it
    shift = f",atrim=start={delay:.6f},asetpts=PTS-STARTPTS" if delay > 0 else f",adelay={-1000 * delay:.0f}:all=1"
    return sound, ("-ac", "2", "-af", f"aresample=async=1:first_pts=0{shift if delay else ''}")


def encode_video(
    path: Path, images: Iterable[np.ndarray], size: tuple[int, int], fps: float, sound: Sequence[str], *options: str
) -> None:
    """Encode BGR images (H, W, 3) uint8 of a size (W, H) to H.264 and their sound to AAC, as browsers play it.

    `sound` are ffmpeg's arguments that name its source, and `options` are further ones of the output. An odd size is
    made even by repeating the last row or column. The film has its name only once it is whole. Raises ValueError
    where ffmpeg fails.
    """
    width, height = (side + side % 2 for side in size)
    frames = ("-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{width}x{height}", "-r", f"{fps:.6g}", "-i", "pipe:0")
    codecs = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-c:a", "aac")
    with replacing(Path(os.path.abspath(path))) as film:
        output = ("-map_metadata", "-1", *codecs, *options, f"file:{film}")
        # Where the pipe breaks ffmpeg gave up, and what it printed is the reason.
        with _ffmpeg(*frames, *sound, *output, feed=True) as process, contextlib.suppress(BrokenPipeError):
            for image in images:
                if (width, height) != tuple(size):
                    more = (0, height - size[1], 0, width - size[0])
                    image = cv2.copyMakeBorder(image, *more, cv2.BORDER_REPLICATE)
                process.stdin.write(cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420))


def list_videos(directory: Path) -> dict[str, Path]:
    """video_id -> path of every film in the directory. Raises InputError where one id has two films."""
    films: dict[str, Path] = {}
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() not in VIDEO_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in films:
            raise InputError(f"{path}: there is also {films[path.stem].name}; keep one film per video id")
        films[path.stem] = path
    return films
