"""Audio of videos and of face tracks, written as wavs."""

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from core.config import MAX_MISSING_SECONDS, MAX_START_OFFSET_SECONDS, SAMPLE_RATE, SEEK_GAP_SECONDS
from core.formats.annotations import FaceTable
from core.formats.clips import read_wav, slice_bounds, wav_length, wav_path, write_wav
from core.media.container import SEEKABLE, FilterChain, choose_stream, decode, open_container
from core.media.reader import WHOLE, VideoReader
from core.runtime.jobs import Outcome

MONO = "sample_fmts=s16:channel_layouts=mono"
_BLOCK_SAMPLES = 1 << 14
_SILENCE = 8  # of 32768; the peak of digital silence, possibly with dither
_BATCH = 64  # decoded frames between two reads from the filters, which is faster than a read for each
_CHECKED = 8  # one in this many decoded frames is checked for inverted channels


def audio_frames(
    video: Path,
    notes: list[str],
    offset: float = 0.0,
    stream: int | None = None,
    form: str = MONO,
    rate: int = SAMPLE_RATE,
    energy: np.ndarray | None = None,
    left_only: bool = False,
) -> Iterator[av.AudioFrame]:
    """Yield the audio of a video from `offset` on, in seconds from the start of the container.

    Late starts and gaps are filled with silence. Samples follow the timestamps, also where the clock of the audio
    drifts. `stream` is the number of the audio stream; `form` and `rate` describe the samples. Damage is added to
    `notes`, and the energy of the left and the right channel and their mean to `energy` (3,) if there are two.
    Raises ValueError if the file is not a video or has no audio.
    """
    with open_container(video) as container:
        chosen = choose_stream(container, "audio", stream, notes)
        start = (container.start_time or 0) / av.time_base
        if offset > SEEK_GAP_SECONDS and container.format.name in SEEKABLE:
            with contextlib.suppress(av.FFmpegError):
                container.seek(int((start + offset - 1) / chosen.time_base), stream=chosen)
        declared = float(chosen.duration * chosen.time_base) if chosen.duration else None
        frames = decode(container, chosen, lambda frame: frame.samples / frame.sample_rate, notes)
        if declared and container.format.name.startswith("mov"):
            frames = _without_padding(frames, declared)
        unit, expected, produced = float(chosen.time_base), None, 0

        def filters() -> list[tuple[str, str]]:
            return [
                *([("pan", "mono|c0=c0")] if left_only else []),
                # Gaps of 0.03 s are filled with silence, smaller drifts are stretched away.
                ("aresample", f"async=1000:min_hard_comp=0.03:first_pts={produced}"),
                ("aformat", f"{form}:sample_rates={rate}"),
                ("asetnsamples", f"n={_BLOCK_SAMPLES}:p=0"),
            ]

        chain = FilterChain(filters, _BATCH)
        for count, (time, frame) in enumerate(itertools.chain(frames, [(None, None)])):
            if frame is not None:
                if energy is not None and frame.layout.nb_channels == 2 and count % _CHECKED == 0:
                    channels = frame.to_ndarray().astype(np.float32)
                    left, right = channels if frame.format.is_planar else channels.reshape(-1, 2).T
                    energy += [left @ left, right @ right, np.square((left + right) / 2).sum()]
                exact = (expected or 0) if time is None else (time - start - offset) * frame.sample_rate
                # Rounded timestamps must not move samples that follow each other.
                if expected is None or abs(exact - expected) > unit * frame.sample_rate / 2 + 1:
                    expected = round(exact)
                frame.pts, frame.time_base = expected, Fraction(1, frame.sample_rate)
                expected += frame.samples
            for block in chain.run(frame):
                produced += block.samples
                yield block
        if expected is None:
            raise ValueError(f"the audio stream is empty, or its {chosen.name} audio cannot be decoded")
        declared = declared or (container.duration or 0) / av.time_base
        if offset + produced / rate < declared - MAX_MISSING_SECONDS:
            notes.append(f"audio ends at {offset + produced / rate:.1f} s of {declared:.1f} s")


def _without_padding(
    frames: Iterator[tuple[float | None, av.AudioFrame]], end: float
) -> Iterator[tuple[float | None, av.AudioFrame]]:
    """Cut the last frame at `end` seconds. The encoder filled it up, and FFmpeg before version 9 keeps the padding."""
    time, last = next(frames, (None, None))
    for following in frames:
        yield time, last
        time, last = following
    kept = 0 if time is None else round((end - time) * last.sample_rate)
    if 0 < kept < last.samples:
        samples = last.to_ndarray()[:, : kept if last.format.is_planar else kept * last.layout.nb_channels]
        cut = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), last.format.name, last.layout.name)
        cut.sample_rate, cut.time_base = last.sample_rate, last.time_base
        last = cut
    if last is not None:
        yield time, last


def iter_audio(video: Path, notes: list[str] | None = None, **options) -> Iterator[np.ndarray]:
    """Yield the audio of a video in chunks (n,) int16, 16 kHz mono. Takes the options of `audio_frames`."""
    for frame in audio_frames(video, [] if notes is None else notes, **options):
        yield frame.to_ndarray().ravel()


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

    def silence(length: int) -> Iterator[np.ndarray]:
        for start in range(0, length, 60 * SAMPLE_RATE):
            yield np.zeros(min(length - start, 60 * SAMPLE_RATE), np.int16)

    def chunks(**options) -> Iterator[np.ndarray]:
        nonlocal peak
        written = round(part[0] * SAMPLE_RATE)
        yield from silence(written)
        for samples in iter_audio(video, offset=(offset if align else 0.0) + part[0], stream=stream, **options):
            on_samples(len(samples))
            peak = max(peak, int(samples.max()), -int(samples.min()))
            written += len(samples)
            yield samples
            if written >= part[1] * SAMPLE_RATE:
                break
        yield from silence(round(min_seconds * SAMPLE_RATE) - written)

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
        elif not 0 <= start < max(length, 1) or (stop > start and length == 0):
            outcome.failures.append(f"{entity_id}: starts at {first} s, outside the audio of {wav}")
        elif stop - length > MAX_MISSING_SECONDS * SAMPLE_RATE:
            outcome.failures.append(f"{entity_id}: ends at {last} s, but {wav} ends at {length / SAMPLE_RATE:.2f} s")
        else:
            write_wav(output, [read_wav(wav, start, stop)])
            outcome.done += 1
        advance(1)
