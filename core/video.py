"""ffmpeg, and films frame by frame. Used by the scripts in data/."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from core.config import SAMPLE_RATE
from core.runtime.errors import InputError
from core.runtime.files import replacing

# What a film may be, and where it may be: one local file. A playlist posing as a film opens nothing else.
PROTOCOLS = "file"
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg"
# OpenCV reads these when it opens a film, so they are set before it does.
os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = f"protocol_whitelist;{PROTOCOLS}|format_whitelist;{CONTAINERS}"

import cv2  # noqa: E402

FILM_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv")

# Containers where seeking finds a frame: in the others it lands some frames off.
SEEKABLE_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
# And those that tell when each frame is shown:
TIMED_SUFFIXES = (*SEEKABLE_SUFFIXES, ".ts", ".mts", ".m2ts", ".flv", ".3gp", ".3g2")

MAX_FRAME_RATE = 1000  # what some recorders that know no rate write, and keep a clock in milliseconds
MAX_FRAME_PIXELS = 100_000_000  # 8K has a third of it
_SOUND_ALONE = ("-vn", "-sn", "-dn")  # of several streams of sound ffmpeg takes its favourite, here as everywhere
_BLOCK_BYTES = 1 << 20
_TICKS = 1_000_000  # a second
_SCENE_WIDTH = 320  # pixels of a frame in which a cut is looked for: fine enough to see it, and fast
_NO_STREAM = "does not contain any stream"  # ffmpeg, where a film lacks what is asked of it
_TELLING = (_NO_STREAM, "Unknown encoder", "No space left")  # what says more than ffmpeg's last line
_CLOCK_STEP = 0.002  # seconds; matroska rounds times to 0.001: what is further off than that shows another frame rate
_LONGEST_FRAME = 60.0  # seconds; frames that are over by then are not looked at


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
            telling = (line for line in lines for sign in _TELLING if sign in line)
            raise ValueError(f"ffmpeg: {next(telling, last)}")


def _source(film: Path) -> tuple[str, ...]:
    """Arguments that have ffmpeg open this file and no other, whatever its name or its content."""
    _require_file(film)
    return "-protocol_whitelist", PROTOCOLS, "-format_whitelist", CONTAINERS, "-i", f"file:{os.path.abspath(film)}"


def _require_file(film: Path) -> None:
    if not film.is_file():  # a pipe would be waited for without end
        raise ValueError("not a file")


def film_sound(film: Path, complaints: list[str] | None = None) -> Iterator[np.ndarray]:
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


def picture_delay(film: Path) -> float:
    """Seconds from where the sound of `film_sound` begins to the film's first frame; 0 where either is missing.

    Raises ValueError for what is no file.
    """
    picture = _first_moment("-copyts", *_source(film), "-map", "0:V:0", "-enc_time_base", "1:1000000")
    sound = _first_moment("-copyts", *_source(film), *_SOUND_ALONE)
    heard = _first_moment(*_source(film), *_SOUND_ALONE)
    return 0.0 if None in (picture, sound, heard) else picture - (sound - heard)


def _first_moment(*arguments: str) -> float | None:
    """Presentation time in seconds of the first packet or frame, None where there is none."""
    try:
        lines = run_ffmpeg(*arguments, "-frames", "1", "-f", "framecrc", "pipe:1").decode().splitlines()
    except ValueError:
        return None
    (unit,) = [line.rpartition(" ")[2] for line in lines if line.startswith("#tb 0:")]
    moments = [int(line.split(",")[2]) for line in lines if not line.startswith("#")]
    return float(moments[0] * Fraction(unit)) if moments else None


def has_sound(film: Path) -> bool:
    """Whether there is sound in the film. Raises ValueError for what is no file."""
    return _first_moment(*_source(film), *_SOUND_ALONE) is not None


def scene_scores(film: Path) -> Iterator[tuple[float, float]]:
    """How much each frame differs from the one before it: ffmpeg's scene score, 0 to 1, and the frame's time.

    Times are in seconds from the first frame, as those of `Film`. Raises ValueError where there is no picture or no
    film.
    """
    with Film(film) as opened:
        fps = opened.fps
    scale = f"scale={_SCENE_WIDTH}:-2:flags=fast_bilinear,settb=1/{_TICKS}"  # whole ticks, as seconds may be rounded
    scores = f"{scale},select='gte(scene,0)',metadata=mode=print:file=-"
    with _ffmpeg(*_source(film), "-map", "0:V:0", "-vf", scores, "-f", "null", "-") as process:
        time, zero, count = 0.0, None, 0
        for line in process.stdout:
            if found := re.search(rb"pts: *(-?\d+)", line):
                moment = int(found[1]) / _TICKS
                zero = moment if zero is None else zero
                time = moment - zero if is_timed(film) else count / fps
            elif found := re.search(rb"scene_score=([\d.]+)", line):
                count += 1
                yield time, float(found[1])


def sound_with_picture(film: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A film's own sound for `write_film`: where it comes from, and what has it begin with the film's first frame."""
    delay = picture_delay(film)
    sound = (*_SOUND_ALONE, *_source(film))  # as options of the source: nothing else is taken from it
    shift = f",atrim=start={delay:.6f},asetpts=PTS-STARTPTS" if delay > 0 else f",adelay={-1000 * delay:.0f}:all=1"
    return sound, ("-ac", "2", "-af", f"aresample=async=1:first_pts=0{shift if delay else ''}")


def write_film(
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


def is_timed(film: Path) -> bool:
    """Whether the film's container tells when each frame is shown; in the others frames are counted."""
    return film.suffix.lower() in TIMED_SUFFIXES


def follows(time: float, index: int, fps: float) -> bool:
    """Whether a frame's time, in seconds from the first frame, is what its number (from 0) at this rate makes it."""
    return abs(time - index / fps) <= max(0.1 / fps, _CLOCK_STEP)


def find_films(directory: Path) -> dict[str, Path]:
    """video_id -> path of every film in the directory. Raises InputError where one id has two films."""
    films: dict[str, Path] = {}
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() not in FILM_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in films:
            raise InputError(f"{path}: there is also {films[path.stem].name}; keep one film per video id")
        films[path.stem] = path
    return films


class Film:
    """A film opened for reading frames forward. Use as a context manager.

    Time is counted from its first frame. Raises ValueError where the file is no film.
    """

    def __init__(self, path: Path):
        _require_file(path)
        self.path = path
        self._timed, self._seekable = is_timed(path), path.suffix.lower() in SEEKABLE_SUFFIXES
        self._open()
        self.fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        width, height = self.size
        problem = None
        if not self._capture.isOpened() or not 0 < self.fps <= MAX_FRAME_RATE:
            problem = "cannot be opened as a film"
        elif width * height > MAX_FRAME_PIXELS:
            problem = f"frames of {width} x {height} pixels"
        if problem:
            self._capture.release()
            raise ValueError(problem)

    def _open(self) -> None:
        # An absolute path, so that no name can be taken for a protocol, an option or an image-sequence pattern.
        self._capture = cv2.VideoCapture(os.path.abspath(self.path), cv2.CAP_FFMPEG)
        self._next = 0  # the frame that is grabbed next
        self._zero = 0.0  # where the film's clock stands at its first frame, in milliseconds

    def __enter__(self) -> "Film":
        return self

    def __exit__(self, *_) -> None:
        self._capture.release()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as the film is shown: a rotation it asks for is done."""
        return int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))

    @property
    def pixel_aspect(self) -> tuple[int, int]:
        """Width and height of a pixel as it is to be shown."""
        wide, high = (int(self._capture.get(key)) for key in (cv2.CAP_PROP_SAR_NUM, cv2.CAP_PROP_SAR_DEN))
        return (wide, high) if wide > 0 and high > 0 else (1, 1)

    @property
    def frame_count(self) -> int | None:
        """How many frames the film says it has, None where it does not say."""
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        return count if count > 0 else None

    def frames(self, moments: np.ndarray, seek_gap: float) -> Iterator[np.ndarray | None]:
        """Yield the BGR image (H, W, 3) uint8 on show at each of the increasing times (n,) in seconds.

        At a constant frame rate this is frame `floor(t * fps + 0.5)`, which the released code's seek picks. Each frame
        is decoded once, and stretches of more than `seek_gap` seconds are skipped by seeking. None stands for a frame
        that is broken; ends early where the film does.
        """
        if self._next == 0 and not self._grab():
            return
        for place, moment in enumerate(moments):
            index = int(np.floor(moment * self.fps + 0.5))
            if self._seekable and index - self._next > seek_gap * self.fps:
                self._seek(index)
            while self._next <= index:
                if not self._grab():
                    return
            if self._timed and not follows(self._time(), index, self.fps):
                yield from self._frames_by_time(moments[place:])
                return
            yield self._image()

    def _grab(self) -> bool:
        """Decode the next frame; False at the end."""
        if not self._capture.grab():
            return False
        if self._next == 0:
            self._zero = self._capture.get(cv2.CAP_PROP_POS_MSEC)
        self._next += 1
        return True

    def _frames_by_time(self, moments: np.ndarray) -> Iterator[np.ndarray | None]:
        """`frames` by the clock, from the beginning, of a film whose frame rate varies.

        A frame counts as on show from the middle between the one before and itself, or from half a frame of the mean
        rate before its time, whichever is later.
        """
        self._capture.release()
        self._open()
        half = 0.5 / self.fps
        shown, image, end = -np.inf, None, not self._grab()
        for moment in moments:
            while not end:
                coming = self._time()
                if moment < coming - min(half, (coming - shown) / 2):
                    break
                shown, image = coming, self._image() if coming > moment - _LONGEST_FRAME else None
                end = not self._grab()
            if end and moment >= shown + half:
                return
            yield image

    def _time(self) -> float:
        """Seconds from the first frame to the one that was grabbed last."""
        return (self._capture.get(cv2.CAP_PROP_POS_MSEC) - self._zero) / 1000

    def _image(self) -> np.ndarray | None:
        """The frame that was grabbed last, None where it is broken."""
        try:
            decoded, image = self._capture.retrieve()
        except cv2.error:
            return None
        return image if decoded else None

    def _seek(self, index: int) -> None:
        """Grab the frame of this index; where seeking goes astray, begin the film again, to get there by counting."""
        self._capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        # Seeking goes by time, which is not the same as counting where the frame rate varies.
        if self._capture.grab() and abs(self._time() * self.fps - index) < 0.5:
            self._next = index + 1
        else:
            self._seekable = False
            self._capture.release()
            self._open()
