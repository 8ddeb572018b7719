"""Audio of videos and of face tracks, written as wavs."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from core.config import MAX_MISSING_SECONDS, MAX_START_OFFSET_SECONDS, SAMPLE_RATE, SEEK_GAP_SECONDS
from core.formats.annotations import FaceTable
from core.formats.clips import read_wav, slice_bounds, wav_length, wav_path, write_wav
from core.media.container import SEEKABLE, choose_stream, decode, filter_frames, open_container
from core.media.reader import WHOLE, VideoReader
from core.runtime.jobs import Outcome

_BLOCK_SAMPLES = 1 << 14
_SILENCE = 8  # of 32768; the peak of digital silence, possibly with dither
_BATCH = 64  # decoded frames between two reads from the filters, which is faster than a read for each
_MAX_PADDING = 0.13  # seconds; 1024 samples at 8 kHz
_CHECKED = 8  # one in this many decoded frames is checked for inverted channels


def iter_audio(
    video: Path,
    notes: list[str] | None = None,
    offset: float = 0.0,
    stream: int | None = None,
    layout: str = "mono",
    rate: int = SAMPLE_RATE,
    energy: np.ndarray | None = None,
    left_only: bool = False,
) -> Iterator[np.ndarray]:
    """Yield the audio of a video from `offset` on, in seconds from the start of the container, as arrays (n,) int16.

    Late starts and gaps are filled with silence. Samples follow the timestamps, also where the clock of the audio
    drifts. `stream` is the number of the audio stream. Channels are mixed to `layout`; those of "stereo" alternate.
    Damage is added to `notes`, and the energy of the left and the right channel and their mean to `energy` (3,) if
    there are two. Raises ValueError if the file is not a video or has no audio.
    """
    notes = [] if notes is None else notes
    produced = 0

    def filters() -> list[tuple[str, str]]:
        return [
            *([("pan", "mono|c0=c0")] if left_only else []),
            # Gaps of 0.03 s are filled with silence, smaller drifts are stretched away.
            ("aresample", f"async=1000:min_hard_comp=0.03:first_pts={produced}"),
            ("aformat", f"sample_fmts=s16:channel_layouts={layout}:sample_rates={rate}"),
            ("asetnsamples", f"n={_BLOCK_SAMPLES}:p=0"),
        ]

    with open_container(video) as container:
        chosen = choose_stream(container, "audio", stream, notes)
        start = (container.start_time or 0) / av.time_base + offset

        def timed_frames() -> Iterator[av.AudioFrame]:
            unit, expected = float(chosen.time_base), None
            frames = decode(container, chosen, lambda frame: frame.samples / frame.sample_rate, notes)
            for count, (time, frame) in enumerate(frames):
                if energy is not None and frame.layout.nb_channels == 2 and count % _CHECKED == 0:
                    channels = frame.to_ndarray().astype(np.float32)
                    left, right = channels if frame.format.is_planar else channels.reshape(-1, 2).T
                    energy[:] += [left @ left, right @ right, np.square((left + right) / 2).sum()]
                exact = (expected or 0) if time is None else (time - start) * frame.sample_rate
                # Rounded timestamps must not move samples that follow each other.
                if expected is None or abs(exact - expected) > unit * frame.sample_rate / 2 + 1:
                    expected = round(exact)
                frame.pts, frame.time_base = expected, Fraction(1, frame.sample_rate)
                expected += frame.samples
                yield frame

        if offset > SEEK_GAP_SECONDS and container.format.name in SEEKABLE:
            with contextlib.suppress(av.FFmpegError):
                container.seek(int((start - 1) / chosen.time_base), stream=chosen)
        held: list[np.ndarray] = []  # the last two blocks, which padding may end in
        for block in filter_frames(timed_frames(), filters, _BATCH):
            held.append(block.to_ndarray().ravel())
            produced += block.samples
            if len(held) > 2:
                yield held.pop(0)
        seconds, declared = offset + produced / rate, float((chosen.duration or 0) * chosen.time_base)
        # FFmpeg before version 9 keeps the padding at the end of AAC in mp4, less than a frame.
        padding = seconds - declared if container.format.name.startswith("mov") else 0.0
        end = np.concatenate(held)
        if 0 < padding < _MAX_PADDING:
            end = end[: max(len(end) - round(padding * rate) * (2 if layout == "stereo" else 1), 0)]
        yield end
        declared = declared or (container.duration or 0) / av.time_base
        if seconds < declared - MAX_MISSING_SECONDS:
            notes.append(f"audio ends at {seconds:.1f} s of {declared:.1f} s")


def extract_audio(
    video: Path,
    wav: Path,
    align: bool,
    outcome: Outcome,
    on_samples: Callable[[int], None],
    min_seconds: float = 0.0,
    stream: int | None = None,
    video_stream: int | None = None,
    part: tuple[float, float] = WHOLE,
) -> None:
    """Write the audio of a video as a wav of at least `min_seconds`; with `align` it starts at the first frame.

    `stream` and `video_stream` are numbers of streams. The wav is silent before the `part`, in seconds, and ends
    shortly after it. `on_samples` is called with the length of each decoded chunk. An unaligned start, damage and
    missing audio are added to the notes of the outcome. Raises ValueError if the file is not a video or has no audio.
    """
    try:
        with VideoReader(video, video_stream) as reader:
            offset = reader.start_offset
    except ValueError:  # only audio
        offset = 0.0
    notes: list[str] = []
    if abs(offset) >= MAX_START_OFFSET_SECONDS and not align:
        order = "after" if offset > 0 else "before"
        notes.append(f"video starts {abs(offset):.2f} s {order} the audio; --align aligns them")
    peak, energy = 0, np.zeros(3)

    def chunks(**options) -> Iterator[np.ndarray]:
        nonlocal peak
        written = round(part[0] * SAMPLE_RATE)
        yield np.zeros(written, np.int16)
        for samples in iter_audio(video, offset=(offset if align else 0.0) + part[0], stream=stream, **options):
            on_samples(len(samples))
            peak = max(peak, int(samples.max(initial=0)), -int(samples.min(initial=0)))
            written += len(samples)
            yield samples
            if written >= part[1] * SAMPLE_RATE:
                break
        yield np.zeros(max(round(min_seconds * SAMPLE_RATE) - written, 0), np.int16)

    write_wav(wav, chunks(notes=notes, energy=energy))
    if energy[2] < 0.01 * energy[:2].max():
        write_wav(wav, chunks(left_only=True))
        notes.append("the channels cancel each other (one is inverted): the left one is used")
    if peak <= _SILENCE:
        notes.append("no audible audio, only digital silence")
    outcome.done += 1
    outcome.notes += [f"{video.name}: {note}" for note in notes]


def slice_track_audio(
    table: FaceTable,
    video: int,
    wav: Path,
    output_dir: Path,
    existing: Collection[str],
    outcome: Outcome,
    advance: Callable[[int], None],
) -> None:
    """Cut the audio of each track of a video from the video's wav. A track that the wav does not cover is a failure.

    Slices named in `existing` are kept if their length is right. Others are removed, also if they cannot be cut again.
    """
    outputs = {
        track: wav_path(output_dir, table.entity_ids[track])
        for track in np.unique(table.entity[table.rows_of_video(video)])
    }
    for output in outputs.values():
        if output.name not in existing:
            output.unlink(missing_ok=True)
    length = wav_length(wav)
    for track, output in outputs.items():
        entity_id = table.entity_ids[track]
        first, last = table.timestamp[table.rows_of_track(track)[[0, -1]]]
        start, stop = slice_bounds(first, last)
        size = 44 + 2 * (min(stop, length) - start)  # bytes of header and samples
        if output.name in existing and output.stat().st_size == size:
            outcome.skipped += 1
        elif not 0 <= start < max(length, 1) or stop - length > MAX_MISSING_SECONDS * SAMPLE_RATE:
            outcome.failures.append(f"{entity_id}: {first} to {last} s, but {wav} ends at {length / SAMPLE_RATE:.2f} s")
        else:
            write_wav(output, [read_wav(wav, start, stop)])
            outcome.done += 1
        advance(1)
