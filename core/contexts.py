"""Rows that make up a clip and rows that make up a context, computed by index arithmetic only.

Contexts are drawn by hashing instead of a stateful random generator: the draw of a row is a pure function of its key,
so it does not depend on batch size, order of rows or number of workers.
"""

import hashlib

import numpy as np

from core.formats.annotations import FaceTable

_ROW_SECONDS = 0.04  # row interval of AVA
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def window(position: np.ndarray, track_length: np.ndarray, length: int, stride: int = 1) -> np.ndarray:
    """Positions `clamp(position + k * stride, 0, track_length - 1)` for k = -length//2 .. length//2.

    position and track_length are integers of any common shape (...). Returns (..., length) int64: with stride 1 the
    crops of a clip, with a larger stride the steps of a context.
    """
    offsets = (np.arange(length) - length // 2) * stride
    last = np.asarray(track_length)[..., None] - 1
    return np.clip(np.asarray(position)[..., None] + offsets, 0, last)


def row_interval(times: np.ndarray) -> float:
    """Median seconds between the rows of a track with timestamps (n,); AVA's interval if there is only one row."""
    return float(np.median(np.diff(times))) if len(times) > 1 else _ROW_SECONDS


def starts_after_gap(times: np.ndarray) -> np.ndarray:
    """Mask (n,) of the first row of a track and of each row after a gap of more than two row intervals."""
    return np.append(True, np.diff(times) > 2 * row_interval(times))


def mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijective hash of uint64."""
    with np.errstate(over="ignore"):
        value = np.asarray(value, np.uint64) + _GOLDEN
        value = (value ^ (value >> np.uint64(30))) * _MIX_1
        value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of the contexts of one training epoch."""
    return int(mix(np.uint64(seed)) >> np.uint64(1)) + 1 + epoch


def name_keys(names: list[str]) -> np.ndarray:
    """(len(names),) uint64 hash of each name, the same on every machine."""
    hashes = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(hashes, "<u8").astype(np.uint64)


def draw_keys(seed: int, video_key: np.ndarray, entity_key: np.ndarray, timestamp: np.ndarray) -> np.ndarray:
    """Key of each row's draws, a pure function of (seed, video, entity, timestamp): uint64 of the common shape."""
    timestamp_bits = np.asarray(timestamp, np.float64).view(np.uint64)
    return mix(mix(mix(mix(np.uint64(seed)) ^ video_key) ^ entity_key) ^ timestamp_bits)


def draw_speakers(row_key: np.ndarray, candidate_key: np.ndarray, present: np.ndarray, num_speakers: int) -> np.ndarray:
    """Draw the other speakers of each context.

    row_key (B,) and candidate_key (B, C) are uint64; present (B, C) bool marks the real candidates. Returns
    (B, num_speakers - 1) indices of candidates: a random subset in random order. If there are too few candidates, all
    of them come first, followed by uniform draws among them; rows without candidates get -1.
    """
    batch, num_candidates = candidate_key.shape
    num_others = num_speakers - 1
    count = present.sum(axis=1)
    if not num_candidates or not num_others:
        return np.full((batch, num_others), -1, np.int64)
    priority = mix(row_key[:, None] ^ candidate_key)
    # Candidates in a random order that depends on their identity, not on their column. Absent ones come last.
    order = np.lexsort((priority, ~present), axis=1)
    slots = np.arange(num_others)
    refill = mix(mix(row_key)[:, None] + slots.astype(np.uint64)) % np.maximum(count, 1)[:, None].astype(np.uint64)
    slot = np.where(slots < count[:, None], slots, refill.astype(np.int64))
    chosen = np.take_along_axis(order, slot, axis=1)
    return np.where(count[:, None] > 0, chosen, -1)


class Contexts:
    """Contexts of L steps x S speakers (section 3.2), as row indices into a table."""

    def __init__(self, table: FaceTable, context_length: int, context_stride: int, num_speakers: int):
        self.table = table
        self.context_length, self.context_stride, self.num_speakers = context_length, context_stride, num_speakers
        self._video_keys = name_keys(table.video_ids)
        self._entity_keys = name_keys(table.entity_ids)
        self._track_length = np.diff(table.track_offsets)
        self._frame_rows = np.argsort(table.frame_id, kind="stable")  # rows sorted by frame
        self._frame_offsets = np.searchsorted(
            table.frame_id[self._frame_rows], np.arange(table.frame_id.max() + 2)
        )  # where each frame starts in _frame_rows

    def draw(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """Rows (B, L, S) of the contexts of the given rows (B,), each the reference speaker (s = 0) of its context.

        The draw of a row depends on the seed and on its video, entity and timestamp only.
        """
        table = self.table
        keys = draw_keys(
            seed, self._video_keys[table.video[rows]], self._entity_keys[table.entity[rows]], table.timestamp[rows]
        )
        start = self._frame_offsets[table.frame_id[rows]]
        count = self._frame_offsets[table.frame_id[rows] + 1] - start
        slots = np.arange(count.max())
        candidates = self._frame_rows[np.minimum(start[:, None] + slots, len(table) - 1)]  # (B, C), all faces in frame
        present = (slots < count[:, None]) & (candidates != rows[:, None])
        candidate_keys = self._entity_keys[table.entity[candidates]]
        chosen = draw_speakers(keys, candidate_keys, present, self.num_speakers)
        others = np.where(chosen < 0, rows[:, None], np.take_along_axis(candidates, chosen, axis=1))
        speakers = np.concatenate((rows[:, None], others), axis=1)  # (B, S)
        entity = table.entity[speakers]
        positions = window(
            table.position[speakers], self._track_length[entity], self.context_length, self.context_stride
        )  # (B, S, L)
        return table.track_rows[table.track_offsets[entity][..., None] + positions].transpose(0, 2, 1)
