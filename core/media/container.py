"""Opening videos with PyAV: files, streams, decoding and filters."""

import contextlib
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import av

from core.runtime.errors import InputError

# Containers are recognised by content, whatever the suffix. Playlists, which refer to other files, are not among them.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,mxf,dv"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv")
MAX_FRAME_PIXELS = 100_000_000  # three times 8K
_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none", "max_pixels": str(MAX_FRAME_PIXELS)}
_RESTARTING = ("mpegts", "mpeg")  # containers whose clock may restart within the file
_MAX_JUMP = 10.0  # seconds; a longer jump of such a clock is a restart
logging.getLogger("libav").addHandler(logging.NullHandler())
_MAX_GAP = 4 * 3600.0  # seconds; a longer gap in any container is damage


@contextlib.contextmanager
def open_container(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a video. No other file is opened, whatever its name or content. Raises ValueError."""
    if not path.is_file():  # opening a named pipe would block forever
        raise ValueError("not a regular file")
    # A file object without a name: FFmpeg could read a name as a protocol or guess the container from it.
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb", buffering=0) as file:
        try:
            container = av.open(file, options=_OPTIONS, buffer_size=1 << 18, metadata_errors="replace")
        except (av.FFmpegError, OverflowError) as error:
            raise ValueError(f"cannot be opened as a video ({getattr(error, 'strerror', error)})") from None
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
        others = f" and {len(ignored) - 3} more" if len(ignored) > 3 else ""
        print(f"note: not videos, ignored: {', '.join(ignored[:3])}{others}")
    return videos


def _has_video(path: Path) -> bool:
    try:
        with open_container(path) as container:
            return any(not _is_picture(stream) for stream in container.streams.video)
    except (ValueError, OSError):
        return False


def _is_picture(stream: av.VideoStream) -> bool:
    picture = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    return bool(stream.disposition & picture)


def choose_stream(
    container: av.container.InputContainer, kind: str, number: int | None, notes: list[str]
) -> av.VideoStream | av.AudioStream:
    """Return the stream of a kind, "video" or "audio", with this number (from 0), or the one that players choose.

    That is the stream flagged as default, else the largest video or the first audio, of those that can be decoded. The
    others are named in `notes`, and disabled. Raises ValueError if there is none.
    """
    streams = [s for s in container.streams if s.type == kind and not (kind == "video" and _is_picture(s))]
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not streams or (number is not None and number >= len(streams)):
        raise ValueError(f"no {kind} stream" if number is None else f"no {kind} stream {number}")

    def rank(stream: av.VideoStream | av.AudioStream) -> tuple:
        pixels = stream.width * stream.height if kind == "video" else 0
        return stream.frames != 1, bool(stream.disposition & av.stream.Disposition.default), pixels

    chosen = streams[number] if number is not None else max(decodable, key=rank, default=streams[0])
    if chosen.codec_context is None:
        raise ValueError(f"its {kind} codec cannot be decoded: {_codec_name(container, chosen)}")
    for stream in container.streams:
        if stream is not chosen:
            stream.discard = av.stream.Discard.all
    if len(streams) > 1 and number is None:
        names = [f"{i} ({'no decoder' if s not in decodable else s.name})" for i, s in enumerate(streams)]
        used = streams.index(chosen)
        notes.append(f"{len(streams)} {kind} streams: {names.pop(used)} is used, not {', '.join(names)}")
    return chosen


def _codec_name(container: av.container.InputContainer, stream: av.stream.Stream) -> str:
    """Return the name of a codec for which there is no decoder. PyAV only logs it."""
    av.logging.set_level(av.logging.INFO)
    text = container.dumps_format()
    av.logging.set_level(None)
    found = re.search(rf"Stream #\d+:{stream.index}\b.*?: \w+: ([^,\n]*)", text)
    return found[1] if found else "unknown codec"


def decode(
    container: av.container.InputContainer,
    stream: av.VideoStream | av.AudioStream,
    duration: Callable[[av.frame.Frame], float],
    notes: list[str],
) -> Iterator[tuple[float | None, av.VideoFrame | av.AudioFrame]]:
    """Yield presentation time in seconds (None if unknown) and content of each frame of a stream.

    Damaged parts are skipped with a note. Where the clock of the container restarts, times continue: a frame follows
    the previous one, which lasts `duration(frame)` seconds.
    """
    limit = (container.start_time or 0) / av.time_base + (container.duration or 0) / av.time_base + _MAX_JUMP
    restarting, shift, expected, damage = container.format.name in _RESTARTING, 0.0, None, None
    wrong, last = [0, 0], [-math.inf, -math.inf]  # number of wrong presentation and decoding times, and the last ones
    packets, unit = container.demux(stream), stream.time_base
    ended = False
    while not ended:
        frames = []
        try:
            packet = next(packets, None)
            ended = packet is None
            if ended or packet.size:  # an empty packet, such as a dropped frame of AVI, would end decoding
                frames = stream.codec_context.decode(packet)
        except av.EOFError:
            ended = True
        except (av.FFmpegError, MemoryError) as error:
            damage = damage or getattr(error, "strerror", None) or "out of memory"
        for frame in frames:
            # As in FFmpeg: where presentation times are missing or go back, as in AVI, those of decoding are used.
            for index, value in enumerate((frame.pts, frame.dts)):
                wrong[index] += value is None or value <= last[index]
                last[index] = last[index] if value is None else value
            pts = frame.pts if wrong[0] <= wrong[1] else frame.dts
            time = None if pts is None else pts * unit.numerator / unit.denominator + shift
            if time is not None and expected is not None:
                jump = time - expected
                impossible = restarting or (container.duration and time > limit) or jump > _MAX_GAP
                if jump < -1 or (jump > _MAX_JUMP and impossible):
                    shift -= jump
                    time = expected
            if time is not None or expected is not None:
                expected = (expected if time is None else time) + duration(frame)
            yield time, frame
    if damage:
        notes.append(f"damaged {stream.type} ({damage})")


def build_graph(source: str, arguments: dict[str, object], filters: Iterable[tuple[str, str]]) -> av.filter.Graph:
    """Return a chain of filters, from a source ("buffer" or "abuffer") to its sink."""
    graph = av.filter.Graph()
    graph.threads = 1
    nodes = [graph.add(source, **{name: str(value) for name, value in arguments.items()})]
    nodes += [graph.add(*each) for each in filters]
    graph.link_nodes(*nodes, graph.add(f"{source}sink")).configure()
    return graph


def video_graph(frame: av.VideoFrame, *filters: tuple[str, str]) -> av.filter.Graph:
    """Return a chain of filters for frames like this one."""
    arguments = {
        "video_size": f"{frame.width}x{frame.height}",
        "pix_fmt": frame.format.name,
        "time_base": "1/1000",  # not used
        "colorspace": int(frame.colorspace),
        "range": int(frame.color_range),
    }
    return build_graph("buffer", arguments, filters)


def run_graph(graph: av.filter.Graph, frame: av.frame.Frame | None) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """Push a frame into a graph, or None at the end, and yield the frames that come out."""
    graph.push(frame)
    return pull_all(graph)


def pull_all(graph):
    with contextlib.suppress(av.BlockingIOError, av.EOFError):
        while True:
            yield graph.pull()
