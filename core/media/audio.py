"""The sound of films and of face tracks, as wavs."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from core.config import MAX_MISSING_SECONDS, MAX_START_OFFSET_SECONDS, SAMPLE_RATE
from core.formats.annotations import FaceTable
from core.formats.clips import read_wav, slice_bounds, wav_length, wav_path, write_wav
from core.media.ffmpeg import iter_audio, video_start_offset
from core.runtime.jobs import Outcome


def shift_audio(pieces: Iterable[np.ndarray], seconds: float, until: float = 0.0) -> Iterator[np.ndarray]:
    """Sound in pieces (n,) int16 from some seconds on; where they are negative, after as much silence.

    Silence follows where it would end before `until`, in seconds of what is given out.
    """
    samples = round(seconds * SAMPLE_RATE)
    missing = round(until * SAMPLE_RATE) - max(-samples, 0)
    if samples < 0:
        yield np.zeros(-samples, np.int16)
    for piece in pieces:
        cut = min(max(samples, 0), len(piece))
        samples -= cut
        missing -= len(piece) - cut
        yield piece[cut:]
    while missing > 0:
        yield np.zeros(min(missing, 60 * SAMPLE_RATE), np.int16)
        missing -= 60 * SAMPLE_RATE


def extract_audio(
    film: Path, wav: Path, align: bool, outcome: Outcome, heard: Callable[[int], None], seconds: float = 0.0
) -> None:
    """Write the sound of a film, of at least so many seconds; with `align` it begins with the film's first frame.

    `heard` is told how many samples come, and may end it all by raising. What should be known of the film becomes a
    note of the outcome. Raises ValueError where there is no sound or no film.
    """

    def watched(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for piece in pieces:
            heard(len(piece))
            yield piece

    delay = video_start_offset(film)
    if abs(delay) >= MAX_START_OFFSET_SECONDS and not align:
        apart = f"{abs(delay):.2f} s {'after' if delay > 0 else 'before'} its sound"
        outcome.notes.append(f"{film.name}: its picture begins {apart}; --align puts them together")
    complaints: list[str] = []
    with closing(iter_audio(film, complaints)) as sound:  # ends ffmpeg, whatever happens
        write_wav(wav, watched(shift_audio(sound, delay if align else 0.0, seconds)))
    outcome.done += 1
    outcome.notes += [f"{film.name}: its sound is damaged ({complaint})" for complaint in complaints]


def slice_track_audio(
    table: FaceTable,
    video: int,
    wav: Path,
    output_dir: Path,
    existing: Collection[str],
    outcome: Outcome,
    advance: Callable[[int], None],
) -> None:
    """Cut the sound of every track of one video out of the film's wav; a track that it does not cover is a failure.

    Slices named in `existing` are kept, unless they are of another length.
    """
    length = wav_length(wav)
    for track in np.unique(table.entity[table.rows_of_video(video)]):
        target = wav_path(output_dir, table.entity_ids[track])
        first, last = table.timestamp[table.rows_of_track(track)[[0, -1]]]
        start, stop = slice_bounds(first, last)
        size = 44 + 2 * (min(stop, length) - start)  # a slice of another size is of another span
        if target.name in existing and target.stat().st_size == size:
            outcome.skipped += 1
        elif not 0 <= start < max(length, 1) or (stop > start and length == 0):
            outcome.failures.append(f"{table.entity_ids[track]}: begins at {first} s, outside the sound of {wav}")
        elif stop - length > MAX_MISSING_SECONDS * SAMPLE_RATE:
            heard = f"the sound of {wav} ends at {length / SAMPLE_RATE:.2f} s"
            outcome.failures.append(f"{table.entity_ids[track]}: ends at {last} s, but {heard}")
        else:
            write_wav(target, [read_wav(wav, start, stop)])
            outcome.done += 1
        advance(1)
