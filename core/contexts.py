"""Index arithmetic: which rows of a track make a clip, a time window, a context. No files, no tensors.

Contexts are drawn by hashing, not by a running generator: what a row draws is a pure function of its key, so it is
the same whatever the batch size, the order of the rows or the number of workers.
"""

import hashlib

import numpy as np

from core.formats.annotations import FaceTable

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def window(position: np.ndarray, track_length: np.ndarray, length: int, stride: int = 1) -> np.ndarray:
    """Positions `clamp(position + k * stride, 0, track_length - 1)` for k = -length//2 .. length//2.

    position and track_length are whole numbers of any common shape (...); returns (..., length) int64. With stride 1
    these are the crops of a clip, with a stride the moments of a context.
    """
    offsets = (np.arange(length) - length // 2) * stride
    last = np.asarray(track_length)[..., None] - 1
    return np.clip(np.asarray(position)[..., None] + offsets, 0, last)


def mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of uint64 that scatters its input."""
    with np.errstate(over="ignore"):
        value = np.asarray(value, np.uint64) + _GOLDEN
        value = (value ^ (value >> np.uint64(30))) * _MIX_1
        value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


def name_keys(names: list[str]) -> np.ndarray:
    """(len(names),) uint64 hash of each name, the same on every machine."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def draw_keys(seed: int, video_key: np.ndarray, entity_key: np.ndarray, timestamp: np.ndarray) -> np.ndarray:
    """Key of each row's draws: a pure function of (seed, video, entity, timestamp), uint64 of the common shape."""
    moment = np.asarray(timestamp, np.float64).view(np.uint64)
    return mix(mix(mix(mix(np.uint64(seed)) ^ video_key) ^ entity_key) ^ moment)


def draw_speakers(row_key: np.ndarray, candidate_key: np.ndarray, present: np.ndarray, speakers: int) -> np.ndarray:
    """Choose the other speakers of each context.

    row_key (B,) and candidate_key (B, C) are uint64, present (B, C) bool marks the real candidates. Returns
    (B, speakers - 1) indices into the candidates, -1 throughout where a row has none: a random choice in random order;
    where there are fewer than places, all of them and then uniform draws among them.
    """
    batch, width = candidate_key.shape
    places = speakers - 1
    count = present.sum(axis=1)
    chosen = np.full((batch, places), -1, np.int64)
    if not width or not places:
        return chosen
    priority = mix(row_key[:, None] ^ candidate_key)
    # Candidates in a random order that depends on who they are, not on where they stand; absent ones last.
    order = np.lexsort((priority, ~present), axis=1)
    slots = np.arange(places)
    refill = mix(mix(row_key)[:, None] + slots.astype(np.uint64)) % np.maximum(count, 1)[:, None].astype(np.uint64)
    slot = np.where(slots < count[:, None], slots, refill.astype(np.int64))
    chosen = np.take_along_axis(order, slot, axis=1)
    return np.where(count[:, None] > 0, chosen, -1)


class Contexts:
    """Contexts of L moments by S speakers as arrays of row indices into a feature table."""

    def __init__(self, table: FaceTable, clips: int, stride: int, speakers: int):
        self.table, self.clips, self.stride, self.speakers = table, clips, stride, speakers
        self._video_keys = name_keys(table.video_ids)
        self._entity_keys = name_keys(table.entity_ids)
        self._track_length = np.diff(table.track_offsets)
        self._moment_rows = np.argsort(table.frame_id, kind="stable")
        self._moment_start = np.searchsorted(table.frame_id[self._moment_rows], np.arange(table.frame_id.max() + 2))

    def draw(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """(B, L, S) rows of the contexts of the given rows (B,), a pure function of the seed and who they are."""
        table = self.table
        keys = draw_keys(
            seed, self._video_keys[table.video[rows]], self._entity_keys[table.entity[rows]], table.timestamp[rows]
        )
        start = self._moment_start[table.frame_id[rows]]
        count = self._moment_start[table.frame_id[rows] + 1] - start
        slots = np.arange(count.max())
        at = np.minimum(start[:, None] + slots, len(table) - 1)
        candidates = self._moment_rows[at]  # (B, C) rows of everybody at that moment
        present = (slots < count[:, None]) & (candidates != rows[:, None])
        candidate_keys = self._entity_keys[table.entity[candidates]]
        chosen = draw_speakers(keys, candidate_keys, present, self.speakers)
        others = np.where(chosen < 0, rows[:, None], np.take_along_axis(candidates, chosen, axis=1))
        people = np.concatenate((rows[:, None], others), axis=1)  # (B, S)
        entity = table.entity[people]
        positions = window(table.position[people], self._track_length[entity], self.clips, self.stride)
        return table.track_rows[table.track_offsets[entity][..., None] + positions].transpose(0, 2, 1)
