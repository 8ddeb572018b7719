"""Audio of videos and of face tracks, written as wavs."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from core.config import MAX_MISSING_SECONDS, MAX_START_OFFSET_SECONDS, SAMPLE_RATE
from core.formats.annotations import FaceTable
from core.formats.clips import read_wav, slice_bounds, wav_length, wav_path, write_wav
from core.media.ffmpeg import iter_audio, video_start_offset
from core.runtime.jobs import Outcome


def shift_audio(chunks: Iterable[np.ndarray], offset: float, min_seconds: float = 0.0) -> Iterator[np.ndarray]:
    """Yield audio chunks (n,) int16 from `offset` seconds on; a negative offset adds silence before them.

    An output of less than `min_seconds` is padded with silence.
    """
    to_skip = round(offset * SAMPLE_RATE)
    missing = round(min_seconds * SAMPLE_RATE) - max(-to_skip, 0)
    if to_skip < 0:
        yield np.zeros(-to_skip, np.int16)
    for chunk in chunks:
        skipped = min(max(to_skip, 0), len(chunk))
        to_skip -= skipped
        missing -= len(chunk) - skipped
        yield chunk[skipped:]
    while missing > 0:
        yield np.zeros(min(missing, 60 * SAMPLE_RATE), np.int16)
        missing -= 60 * SAMPLE_RATE


def extract_audio(
    video: Path, wav: Path, align: bool, outcome: Outcome, on_samples: Callable[[int], None], min_seconds: float = 0.0
) -> None:
    """Write the audio of a video as a wav of at least `min_seconds`; with `align` it starts at the first frame.

    `on_samples` is called with the length of each decoded chunk and may raise to stop. An unaligned start and damaged
    audio are added to the notes of the outcome. Raises ValueError if the file is not a video or has no audio.
    """

    def report_samples(chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for chunk in chunks:
            on_samples(len(chunk))
            yield chunk

    offset = video_start_offset(video)
    if abs(offset) >= MAX_START_OFFSET_SECONDS and not align:
        order = "after" if offset > 0 else "before"
        outcome.notes.append(f"{video.name}: video starts {abs(offset):.2f} s {order} the audio; --align aligns them")
    decoder_warnings: list[str] = []
    with closing(iter_audio(video, decoder_warnings)) as audio:  # ends ffmpeg in any case
        write_wav(wav, report_samples(shift_audio(audio, offset if align else 0.0, min_seconds)))
    outcome.done += 1
    outcome.notes += [f"{video.name}: damaged audio ({warning})" for warning in decoder_warnings]


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
