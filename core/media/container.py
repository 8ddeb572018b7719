"""Opening videos with PyAV: files, streams, decoding and filters."""

import contextlib
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av

from core.runtime.errors import InputError

# Containers are recognised by content, whatever the suffix. Playlists, which refer to other files, are not among them.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,mxf,dv"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv")
MAX_FRAME_PIXELS = 100_000_000  # three times 8K
_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none", "max_pixels": str(MAX_FRAME_PIXELS)}
PLAYABLE_VIDEO = ("h264", "vp8", "vp9", "av1")
PLAYABLE_AUDIO = ("aac", "mp3", "opus", "vorbis", "flac")
SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # containers with an exact index
_RESTARTING = ("mpegts", "mpeg")  # containers whose clock may start again within the file
_MAX_JUMP = 10.0  # seconds; a longer jump of such a clock is a new start
_MAX_DURATION = 4 * 3600 * 1_000_000  # microseconds; assumed if the duration is unknown
_PICTURE = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
_DEFAULT = av.stream.Disposition.default
logging.getLogger("libav").addHandler(logging.NullHandler())


@contextlib.contextmanager
def open_container(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a video. No other file is opened, whatever its name or content. Raises ValueError."""
    if not path.is_file():  # opening a named pipe would block forever
        raise ValueError("not a regular file")
    # A file object without a name: FFmpeg could read a name as a protocol or guess the container from it.
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb", buffering=0) as file:
        try:
            container = av.open(file, options=_OPTIONS, buffer_size=1 << 18, metadata_errors="replace")
        except (av.FFmpegError, OSError, OverflowError) as error:
            reason = getattr(error, "strerror", error)
            file.seek(0)
            if file.read(8)[4:] in (b"ftyp", b"wide", b"mdat"):  # mp4 or mov
                reason = "cut off: its index is missing; record or download it again"
            raise ValueError(f"cannot be opened as a video ({reason})") from None
        container.flags &= ~av.container.Flags.gen_pts.value  # it invents wrong times in AVI
        with container:
            yield container


def list_videos(directory: Path) -> dict[str, Path]:
    """Return video_id -> path of the videos in a directory; other files are named in a note.

    Files with a usual suffix are not opened. Raises InputError if two videos have one id.
    """
    videos: dict[str, Path] = {}
    ignored = []
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix.lower() not in VIDEO_SUFFIXES and not _has_video(path):
            ignored.append(path.name)
        elif path.stem in videos:
            raise InputError(f"{path}: has the same video id as {videos[path.stem].name}; keep one of them")
        else:
            videos[path.stem] = path
    if ignored:
        print(f"note: {len(ignored)} files that are not videos are ignored: {', '.join(ignored[:5])}")
    return videos


def _has_video(path: Path) -> bool:
    try:
        with open_container(path) as container:
            return any(not stream.disposition & _PICTURE for stream in container.streams.video)
    except (ValueError, OSError):
        return False


def plays_in_browsers(path: Path) -> bool:
    """Return True if current browsers play a video: its container and codecs. Raises ValueError as `open_container`."""
    with open_container(path) as container:
        streams = [*container.streams.video, *container.streams.audio]
        codecs = {stream.codec_context and stream.codec_context.codec.canonical_name for stream in streams}
        formats = {stream.codec_context.pix_fmt for stream in container.streams.video if stream.codec_context}
        is_mp4 = container.format.name == SEEKABLE[0]
    is_usual = path.suffix.lower() in ((".mp4", ".m4v", ".mov") if is_mp4 else (".webm",))
    return is_usual and codecs <= {*PLAYABLE_VIDEO, *PLAYABLE_AUDIO} and formats <= {"yuv420p", "yuvj420p"}


def choose_stream(
    container: av.container.InputContainer, kind: str, number: int | None, notes: list[str]
) -> av.VideoStream | av.AudioStream:
    """Return the stream of a kind, "video" or "audio", with this number (from 0), or the one that players choose.

    Of those that can be decoded, that is the default one, else the largest video or the first audio. The others are
    disabled, and named in `notes`. Raises ValueError if there is none.
    """
    streams = [stream for stream in container.streams if stream.type == kind and not stream.disposition & _PICTURE]
    if not streams:
        raise ValueError(f"no {kind} stream")
    if (number or 0) >= len(streams):
        raise ValueError(f"no {kind} stream {number}; it has {len(streams)}, numbered from 0")

    def rank(stream: av.VideoStream | av.AudioStream) -> tuple:
        decodable = stream.codec_context is not None
        pixels = stream.width * stream.height if decodable and kind == "video" else 0
        return decodable, stream.frames != 1, bool(stream.disposition & _DEFAULT), pixels

    chosen = max(streams, key=rank) if number is None else streams[number]
    if chosen.codec_context is None:
        av.logging.set_level(av.logging.INFO)
        lines = container.dumps_format().splitlines()  # PyAV does not give the name of a codec that it cannot decode
        av.logging.set_level(None)
        line = next(line for line in lines if f"Stream #0:{chosen.index}" in line)
        raise ValueError(f"its {kind} codec cannot be decoded: {line.strip()}")
    for stream in container.streams:
        if stream is not chosen:
            stream.discard = av.stream.Discard.all
    if len(streams) > 1 and number is None:
        notes.append(f"{len(streams)} {kind} streams, of which number {streams.index(chosen)} is used (from 0)")
    return chosen


def decode(
    container: av.container.InputContainer,
    stream: av.VideoStream | av.AudioStream,
    duration: Callable[[av.frame.Frame], float],
    notes: list[str],
) -> Iterator[tuple[float | None, av.VideoFrame | av.AudioFrame]]:
    """Yield presentation time in seconds (None if unknown) and content of each frame of a stream.

    Damaged parts are skipped with a note. Where the clock of the container starts again, times continue: a frame
    follows the previous one, which lasts `duration(frame)` seconds. Raises ValueError if there is no frame.
    """
    wrong, last = [0, 0], [-math.inf, -math.inf]  # number of wrong presentation and decoding times, and the last ones
    shift, expected = 0.0, (container.start_time or 0) / av.time_base
    longest_gap = _MAX_JUMP
    if container.format.name not in _RESTARTING:
        longest_gap += (container.duration or _MAX_DURATION) / av.time_base
    packets, unit = container.demux(stream), stream.time_base
    ended, empty, damage = False, True, None
    while not ended:
        frames = []
        try:
            packet = next(packets, None)
            ended = packet is None
            if ended or packet.size:  # an empty packet, such as a dropped frame of AVI, would end decoding
                frames = stream.codec_context.decode(packet)
        except av.EOFError:
            ended = True
        except IndexError:  # PyAV stops at a stream that appears later, as in FLV
            packets = container.demux(stream)
        except (av.FFmpegError, OSError, MemoryError) as error:
            damage = damage or getattr(error, "strerror", "out of memory")
        for frame in frames:
            # As in FFmpeg: where presentation times are missing or go back, as in AVI, those of decoding are used.
            for index, value in enumerate((frame.pts, frame.dts)):
                wrong[index] += value is None or value <= last[index]
                last[index] = last[index] if value is None else value
            pts = frame.pts if wrong[0] <= wrong[1] else frame.dts
            time = None if pts is None else pts * unit.numerator / unit.denominator + shift
            if time is not None and not -1 <= time - expected <= longest_gap:
                shift += expected - time
                time = expected
            expected = (expected if time is None else time) + duration(frame)
            empty = False
            yield time, frame
    if empty:
        raise ValueError(f"the {stream.type} stream is empty, or its {stream.name} codec cannot be decoded")
    if damage:
        notes.append(f"damaged {stream.type} ({damage})")


def filter_frames(
    frames: Iterable[av.VideoFrame | av.AudioFrame], filters: Callable[[], list[tuple[str, str]]], batch: int = 1
) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """Pass frames through filters, set up again whenever the format of the frames changes.

    `filters` returns their names and arguments. Output is pulled once for every `batch` frames.
    """
    for arguments, group in itertools.groupby(frames, _buffer_arguments):
        graph = av.filter.Graph()
        if "layout" in arguments:
            source, sink = graph.add_abuffer(**arguments), "abuffersink"
        else:
            source, sink = graph.add_buffer(**arguments, time_base=Fraction(1, 1000)), "buffersink"
        graph.link_nodes(source, *[graph.add(*each) for each in (*filters(), (sink,))]).configure()
        for count, frame in enumerate(itertools.chain(group, [None]), 1):
            graph.push(frame)
            if frame is not None and count % batch:
                continue
            with contextlib.suppress(av.BlockingIOError, av.EOFError):
                while True:
                    yield graph.pull()


def _buffer_arguments(frame: av.VideoFrame | av.AudioFrame) -> dict:
    if isinstance(frame, av.AudioFrame):
        return {"format": frame.format.name, "layout": frame.layout.name, "sample_rate": frame.sample_rate}
    return {"format": frame.format.name, "width": frame.width, "height": frame.height}
