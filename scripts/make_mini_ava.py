"""Make a small synthetic AVA-ActiveSpeaker: drawn faces, synthetic voices, official annotations in the official layout.

AVA's films are not ours to hand out, so this stands in for them: every stage runs on it unchanged, and the task is the
real one, whose mouth moves with the voice that is heard. In a minority of rows a short clip is not enough: a hand or a
microphone hides the mouth, a head is turned, someone chews or talks unheard, a voice comes from outside the picture.

    python scripts/make_mini_ava.py --root mini_ava --videos 12 --seconds 12 --seed 0

writes, about two thirds of the films for training and the rest for validation,

    <root>/videos/trainval/<video_id>.mp4                       640 x 360 H.264 at 25 frames a second, AAC
    <root>/csv/{train,val}/<video_id>-activespeaker.csv         official annotations
    <root>/mini_ava_cfg.json                                    what it was made with

With --hard mouths are out of sight for seconds, and who else talks, and what came just before, tells the answer. The
same arguments give the same films. Finished films are kept: the same command goes on after an interruption.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from scipy.io import wavfile
from scipy.signal import lfilter, sosfilt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.formats.annotations import LABELS
from core.media.ffmpeg import encode_video
from core.runtime.cli import Parser, launch, positive_float, positive_int, seed
from core.runtime.errors import InputError, RunError
from core.runtime.files import list_files, write_bytes, write_json
from core.runtime.progress import progress

FPS = 25
SEGMENT_SECONDS = 60  # AVA numbers tracks within segments of this length: <video_id>_0900_0960:3
HEAD_HEIGHT = 1.32  # in head units, which faces are drawn in: origin at the centre, x right, y down, 1 = the width
MOUTH_Y = 0.29
# ffmpeg with one thread and no version strings: the same arguments give the same bytes.
SAME_BYTES = ("-threads", "1", "-flags:v", "+bitexact", "-b:a", "96k", "-flags:a", "+bitexact", "-fflags", "+bitexact")
ID_LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
VOWELS = np.array(  # formants 1 to 3 in Hz, how far the mouth opens (0 to 1), how wide it spreads (1 = at rest)
    [
        (730, 1090, 2440, 1.00, 1.00),  # a
        (530, 1840, 2480, 0.70, 1.15),  # e
        (300, 2290, 3010, 0.45, 1.30),  # i
        (570, 840, 2410, 0.80, 0.70),  # o
        (320, 870, 2240, 0.50, 0.55),  # u
    ]
)
BANDWIDTHS = np.array([80.0, 100.0, 140.0])  # Hz, of the three formants
Colour = tuple[int, ...]  # BGR


@dataclass(frozen=True)
class Scenario:
    """What happens in the films. Pairs are the ends of a uniform range; fours are for 1, 2, 3 and 4 faces."""

    size: tuple[int, int] = (640, 360)  # pixels, width and height
    shot_seconds: tuple[float, float] = (2.0, 5.0)
    faces_weight: tuple[float, ...] = (0.35, 0.40, 0.17, 0.08)
    face_width: tuple[float, float] = (30.0, 160.0)  # pixels, uniform in the logarithm
    turn_seconds: tuple[float, float] = (0.7, 2.5)
    gap_seconds: tuple[float, float] = (0.1, 0.4)
    overlap_probability: float = 0.25  # that a turn starts before the last one ends
    outside_weight: float = 0.30  # of a turn by a voice outside the picture, where a visible person's is 1
    silence_weight: tuple[float, ...] = (0.9, 0.1, 0.0, 0.0)  # of silence: else a lone face would give the label away
    unheard_probability: float = 0.18  # per stretch without own turns: talks and is not heard
    chewing_probability: float = 0.25  # per stretch without own turns
    hidden_probability: float = 0.35  # per track: the mouth is out of sight for a while
    hidden_seconds: tuple[float, float] = (0.6, 1.6)
    jaw: float = 1.0  # how far the chin goes along with the mouth: it shows even where a hand hides the lips


# For --hard: mouths are out of sight or chew for seconds, faces are small, and the chin tells nothing. But turns are
# longer, and who is heard is mostly in the picture: what came just before, and who else talks, tells what a mouth does
# not. Whether a mouth is hidden, where a face is and how large have nothing to do with who talks.
HARD = Scenario(
    shot_seconds=(3.0, 6.0),
    faces_weight=(0.0, 0.5, 0.4, 0.1),
    face_width=(24.0, 130.0),
    turn_seconds=(1.0, 3.0),
    overlap_probability=0.1,
    outside_weight=0.1,
    unheard_probability=0.05,
    chewing_probability=0.3,
    hidden_probability=0.7,
    hidden_seconds=(1.5, 3.5),
    jaw=0.0,
)


@dataclass
class Person:
    """One of a film's cast."""

    pitch: float  # Hz
    tract: float  # factor on all formants: low for a long vocal tract
    breath: float  # noise in the voice, relative to its pulses
    syllable_seconds: float
    level: float  # root mean square of the voice, full scale = 1
    skin: Colour
    hair: Colour
    cloth: Colour


@dataclass
class Turn:
    """One person talks from start to end, in seconds of the film."""

    person: int
    start: float
    end: float
    syllables: np.ndarray  # (N, 4): start and length in seconds, vowel, loudness
    heard: bool = True


@dataclass
class FacePlan:
    """One face through a shot: frames first to last; times in seconds of the film, lengths in pixels."""

    person: int
    first: int
    last: int
    centre: tuple[float, float]
    width: float
    phases: np.ndarray  # (8,) of the slow movements
    blinks: np.ndarray
    turns: list[Turn]
    chewing: list[tuple[float, float]] = field(default_factory=list)
    hidden: tuple[str, float, float] = ("", 0.0, 0.0)  # by what, start, end

    @property
    def times(self) -> np.ndarray:
        return np.arange(self.first, self.last + 1) / FPS


@dataclass
class ShotPlan:
    """Frames first to last, both included; the turns are those heard, of people in the picture and outside."""

    first: int
    last: int
    tracks: list[FacePlan]
    turns: list[Turn]


@dataclass
class VideoPlan:
    """One film in the making. Everything random in it is drawn from `rng`, in one order."""

    rng: np.random.Generator
    scenario: Scenario
    cast: list[Person] = field(default_factory=list)
    shots: list[ShotPlan] = field(default_factory=list)


# ---- Scene plan


def plan_cast(rng: np.random.Generator) -> list[Person]:
    """Five people, one more than a picture ever shows, so that there is always a voice outside it."""
    cast = []
    for _ in range(5):
        pitch = rng.uniform(90, 240)
        tract = 0.85 + 0.3 * (pitch - 90) / 150 + rng.uniform(-0.05, 0.05)
        skin = rng.uniform(0.55, 1.0) * np.array([rng.uniform(140, 165), rng.uniform(178, 195), 235])
        looks = (skin, rng.uniform(0.1, 0.8) * np.array([60, 110, 170]), rng.uniform(20, 200, 3))
        voice = (pitch, tract, rng.uniform(0.02, 0.15), rng.uniform(0.15, 0.21), rng.uniform(0.06, 0.12))
        cast.append(Person(*voice, *map(_colour, looks)))
    return cast


def plan_shots(film: VideoPlan, frames: int) -> list[ShotPlan]:
    """Cut so many frames into shots and fill each."""
    shortest, longest = (round(seconds * FPS) for seconds in film.scenario.shot_seconds)
    shots, first = [], 0
    while first < frames:
        left = frames - first
        length = left if left <= longest else int(film.rng.integers(shortest, min(longest, left - shortest) + 1))
        shots.append(plan_shot(film, first, first + length - 1))
        first += length
    return shots


def plan_shot(film: VideoPlan, first: int, last: int) -> ShotPlan:
    """People side by side, of any size, who talk in turns and now and then chew, talk unheard or hide their mouths."""
    rng, scenario = film.rng, film.scenario
    weights = np.array(scenario.faces_weight)
    faces = 1 + int(rng.choice(len(weights), p=weights / weights.sum()))
    people = rng.permutation(len(film.cast)).tolist()
    start, end = first / FPS, (last + 1) / FPS
    turns = plan_dialogue(film, people[: faces + 1], start, end)
    spare = max(0, min(5, (last + 1 - first - round(scenario.shot_seconds[0] * FPS)) // 2))
    slot, tracks = scenario.size[0] / faces, []
    for place, person in enumerate(people[:faces]):
        width = min(float(np.exp(rng.uniform(*np.log(scenario.face_width)))), 0.78 * slot)
        reach = 0.62 * width  # from the base of the head's movement to the box's furthest side
        x = rng.uniform(place * slot + reach, (place + 1) * slot - reach)
        y = rng.uniform(HEAD_HEIGHT * reach, 0.65 * scenario.size[1])
        late, early = rng.integers(0, spare + 1, 2).tolist()  # frames that the face tracker misses at the ends
        phases, blinks = rng.uniform(0, 2 * np.pi, 8), start - 1.0 + np.cumsum(rng.uniform(0.8, 4.0, 6))
        own = [turn for turn in turns if turn.person == person]
        track = FacePlan(person, first + late, last - early, (x, y), width, phases, blinks, own)
        fill_silence(film, track, start, end)
        if rng.random() < scenario.hidden_probability:
            seconds = rng.uniform(*scenario.hidden_seconds)
            begin = rng.uniform(start - seconds / 3, end - seconds * 2 / 3)
            track.hidden = (str(rng.choice(["hand", "microphone", "turned"])), begin, begin + seconds)
        tracks.append(track)
    return ShotPlan(first, last, tracks, turns)


def plan_dialogue(film: VideoPlan, people: list[int], start: float, end: float) -> list[Turn]:
    """Turns of the people of a shot, the last of whom is outside the picture; the first turn may begin before it."""
    rng, scenario, visible = film.rng, film.scenario, len(people) - 1
    weights = np.array([1.0] * visible + [scenario.outside_weight, scenario.silence_weight[visible - 1]])
    turns, previous = [], -1
    time = start - rng.uniform(0, scenario.turn_seconds[1])
    while time < end:
        chances = weights * (np.arange(len(weights)) != (previous if visible > 1 else -1))
        taker = int(rng.choice(len(weights), p=chances / chances.sum()))
        until = time + rng.uniform(*scenario.turn_seconds)
        begin, stop = max(time, start), min(until, end)
        if taker < len(people) and stop - begin > 0.25:
            turns.append(plan_turn(film, people[taker], begin, stop))
        overlaps = visible > 1 and rng.random() < scenario.overlap_probability
        time = until + (-rng.uniform(0.15, 0.35) if overlaps else rng.uniform(*scenario.gap_seconds))
        previous = taker
    return turns


def plan_turn(film: VideoPlan, person: int, start: float, end: float) -> Turn:
    """Syllables of 120 to 250 ms in words, words in sentences; the last syllable ends with the turn."""
    rng = film.rng
    syllables, time, in_word, loudness = [], start, 0, rng.uniform(0.75, 1.25)
    while end - time > 0.1:
        length = float(np.clip(film.cast[person].syllable_seconds * rng.uniform(0.75, 1.3), 0.12, 0.25))
        if end - time - length < 0.1:
            length = end - time
        syllables.append((time, length, rng.integers(len(VOWELS)), loudness * rng.uniform(0.7, 1.1)))
        time, in_word = time + length, in_word + 1
        if rng.random() < 0.3 * in_word:
            time += rng.uniform(0.2, 0.35) if rng.random() < 0.12 else rng.uniform(0.03, 0.12)
            in_word = 0
    return Turn(person, start, sum(syllables[-1][:2]), np.array(syllables, dtype=float))


def fill_silence(film: VideoPlan, track: FacePlan, start: float, end: float) -> None:
    """Between the track's own turns: talk that is not heard, chewing, or nothing."""
    rng, scenario = film.rng, film.scenario
    edges = [start - 0.15, *(edge for turn in track.turns for edge in (turn.start, turn.end)), end + 0.15]
    for earlier, later in zip(edges[::2], edges[1::2], strict=True):
        room = later - earlier - 0.3
        if room < 0.6:
            continue
        length = min(rng.uniform(0.8, 2.2), room)
        begin = earlier + 0.15 + rng.uniform(0, 1) * (room - length)
        chance = rng.random() - scenario.unheard_probability
        if chance < 0:
            turn = plan_turn(film, track.person, begin, begin + length)
            turn.heard = False
            track.turns = [*track.turns, turn]
        elif chance < scenario.chewing_probability:
            track.chewing.append((begin, begin + length))


# ---- Voices


def make_sound(film: VideoPlan, sample_rate: int) -> np.ndarray:
    """The film's sound (samples,) in [-1, 1]: what is heard of all turns, over quiet noise and sometimes music."""
    rng, samples = film.rng, (film.shots[-1].last + 1) * sample_rate // FPS
    sound = lfilter([0.1], [1, -0.9], rng.standard_normal(samples)) * rng.uniform(0.004, 0.012)
    for shot in film.shots:
        for turn in shot.turns:
            add_voice(rng, sound, film.cast[turn.person], turn, sample_rate)
        if rng.random() < 0.4:
            begin, end = (frame * sample_rate // FPS for frame in (shot.first, shot.last + 1))
            time = np.arange(end - begin) / sample_rate
            notes = rng.choice([110, 131, 165, 196, 220, 262, 330, 392], 3, replace=False)
            beat = rng.uniform(0.002, 0.006) * np.exp(-3 * (time % rng.uniform(0.3, 0.6)))
            sound[begin:end] += beat * np.sin(2 * np.pi * np.outer(notes, time)).sum(axis=0)
    return sound / max(1.0, np.abs(sound).max() / 0.95)


def add_voice(rng: np.random.Generator, sound: np.ndarray, speaker: Person, turn: Turn, sample_rate: int) -> None:
    """Add a turn to the sound in place: pulses and breath through three resonators, syllable by syllable."""
    for start, length, vowel, loudness in turn.syllables:
        begin = int(start * sample_rate)
        count = min(int(length * sample_rate), len(sound) - begin)
        position = np.linspace(0, 1, count)  # within the syllable
        falling = 1.1 - 0.25 * (start + length * position - turn.start) / max(turn.end - turn.start, 1.0)
        pulses = np.diff(np.floor(np.cumsum(speaker.pitch * falling) / sample_rate), prepend=0.0)
        source = lfilter([1], [1, -0.9], pulses) + speaker.breath * rng.standard_normal(count)
        voice = sosfilt(resonators(VOWELS[int(vowel), :3] * speaker.tract, sample_rate), source)
        voice *= np.sin(np.pi * position**0.8) ** 0.7 / max(np.sqrt(np.mean(voice**2)), 1e-9)
        hiss = np.diff(rng.standard_normal(count + 1)) * np.exp(-(((position - 0.08) / 0.06) ** 2))
        sound[begin : begin + count] += speaker.level * loudness * (voice + 0.25 * hiss)


def resonators(formants: np.ndarray, sample_rate: int) -> np.ndarray:
    """Second-order sections (3, 6) that resonate at these frequencies in Hz."""
    radius = np.exp(-np.pi * BANDWIDTHS / sample_rate)
    middle = -2 * radius * np.cos(2 * np.pi * formants / sample_rate)
    ones, zeros = np.ones(3), np.zeros(3)
    return np.stack([1 + middle + radius**2, zeros, zeros, ones, middle, radius**2], axis=1)


# ---- Drawing


class Pen:
    """Draws on an image in the units of one head, rolled by an angle in degrees."""

    def __init__(self, image: np.ndarray, centre: np.ndarray, width: float, roll: float):
        self.image, self.centre, self.width, self.roll = image, centre, width, roll
        self.cos, self.sin = np.cos(np.radians(roll)), np.sin(np.radians(roll))

    def point(self, x: float, y: float) -> tuple[int, int]:
        """In sixteenths of a pixel, which cv2 calls shift 4: slow movement stays smooth."""
        offset = np.array([x * self.cos - y * self.sin, x * self.sin + y * self.cos]) * self.width
        return tuple(np.rint((self.centre + offset) * 16).astype(int).tolist())

    def ellipse(self, x: float, y: float, half_width: float, half_height: float, colour: Colour) -> None:
        axes = (round(half_width * self.width * 16), round(half_height * self.width * 16))
        cv2.ellipse(self.image, self.point(x, y), axes, self.roll, 0, 360, colour, -1, cv2.LINE_AA, 4)

    def line(self, x1: float, y1: float, x2: float, y2: float, thickness: float, colour: Colour) -> None:
        pixels = max(1, round(thickness * self.width))
        cv2.line(self.image, self.point(x1, y1), self.point(x2, y2), colour, pixels, cv2.LINE_AA, 4)


def draw_face(pen: Pen, person: Person, yaw: float, mouth: np.ndarray, jaw: float, eyelid: float) -> None:
    """A head turned by `yaw` (radians, 0 = to the camera); `mouth` as in `mouth_shapes`; `jaw` as in `Scenario`;
    `eyelid` 1 = closed."""
    openness, spread, shift = mouth
    drop = jaw * openness
    shade, light = _colour(0.72 * np.array(person.skin)), (235, 240, 240)
    front = max(np.cos(yaw), 0.0)
    pen.ellipse(0, 1.15, 0.85, 0.55, person.cloth)
    pen.ellipse(0, 0.6, 0.24, 0.3, shade)
    pen.ellipse(0, 0, 0.5, HEAD_HEIGHT / 2, person.hair)
    x = (0.05 + 0.31 * (1 - front)) * np.sin(yaw)
    pen.ellipse(x, 0.07 + 0.02 * drop, 0.13 + 0.3 * front, 0.42 + 0.14 * front + 0.03 * drop, person.skin)
    for angle in (-0.48, 0.48):
        x, facing = 0.4 * np.sin(angle + yaw), np.cos(angle + yaw)
        if facing > 0.15:
            pen.ellipse(x, -0.13, 0.1 * facing, 0.055 * (1 - 0.9 * eyelid), light if eyelid < 0.6 else shade)
            if eyelid < 0.6:
                pen.ellipse(x + 0.03 * np.sin(yaw), -0.13, 0.045 * facing, 0.05 * (1 - eyelid), (50, 40, 30))
            pen.line(x - 0.11 * facing, -0.24, x + 0.11 * facing, -0.245, 0.03, person.hair)
    if front > 0.15:
        x = 0.4 * np.sin(yaw)
        pen.ellipse(x, 0.05, 0.055 * front, 0.075, shade)
        x, half_width, half_height = x + shift, 0.2 * spread * front, 0.015 + 0.15 * openness
        pen.ellipse(x, MOUTH_Y, half_width + 0.03, half_height + 0.03, (85, 75, 165))
        if openness > 0.04:
            pen.ellipse(x, MOUTH_Y, half_width, half_height, (25, 15, 35))
            pen.ellipse(x, MOUTH_Y - 0.6 * half_height, 0.7 * half_width, 0.3 * half_height, light)
            pen.ellipse(x, MOUTH_Y + 0.6 * half_height, 0.6 * half_width, 0.3 * half_height, (70, 60, 150))


def draw_cover(pen: Pen, person: Person, what: str, amount: float) -> None:
    """A hand or a microphone that comes up before the mouth as `amount` goes from 0 to 1."""
    y = MOUTH_Y + 1.2 * (1 - amount)
    if what == "hand":
        shade = _colour(0.8 * np.array(person.skin))
        pen.line(0.1, y + 0.15, 0.5, y + 1.1, 0.22, shade)
        pen.ellipse(0, y, 0.33, 0.22, shade)
        for finger in range(4):
            pen.line(-0.3, y - 0.13 + 0.09 * finger, 0.22, y - 0.15 + 0.09 * finger, 0.075, person.skin)
    else:
        pen.line(0, y, 0.2, y + 0.7, 0.12, (40, 40, 40))
        pen.ellipse(0, y, 0.27, 0.25, (60, 55, 55))
        pen.ellipse(-0.06, y - 0.07, 0.1, 0.08, (110, 105, 105))


def mouth_shapes(track: FacePlan) -> np.ndarray:
    """How the mouth looks, (frames, 3): openness 0 to 1, spread (1 = at rest), shift sideways in head units."""
    times = track.times
    openness, shift = np.zeros(len(times)), np.zeros(len(times))
    spread = 1 + 0.06 * np.sin(0.9 * times + track.phases[0])
    for turn in track.turns:
        start, length, vowel, loudness = turn.syllables.T[:, :, None]
        inside = np.clip((times - start + 0.02) / (length + 0.04), 0, 1)  # lips lead the voice a little
        rise = np.sin(np.pi * inside**0.8)
        opens, spreads = VOWELS[vowel[:, 0].astype(int), 3:].T[:, :, None]
        openness = np.maximum(openness, (rise * np.minimum(loudness, 1.1) * opens).max(axis=0))
        spread += (rise * (spreads - 1)).sum(axis=0)
    for start, end in track.chewing:
        chews = 2 * np.pi * (1.3 + 0.1 * track.phases[1]) * (times - start)
        strength = _ramp(times, start, end)
        openness = np.maximum(openness, strength * 0.22 * (1 - np.cos(chews)))
        shift += strength * 0.05 * np.sin(chews)
        spread -= strength * 0.15
    return np.stack([openness, spread, shift], axis=1)


def head_poses(track: FacePlan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres (frames, 2) in pixels, roll in degrees and yaw in radians (frames,)."""
    waves = np.sin(np.outer(track.times, [1.1, 1.4, 0.9, 0.7]) + track.phases[2:6])
    yaw = 0.3 * waves[:, 3]
    if track.hidden[0] == "turned":
        yaw += _ramp(track.times, *track.hidden[1:]) * (1.75 * np.sign(np.cos(track.phases[6])) - yaw)
    return np.array(track.centre) + waves[:, :2] * (0.06 * track.width), 5 * waves[:, 2], yaw


def make_background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A wall with a gradient, boxes, blotches and grain, (height, width, 3) uint8, bluish so that skin stands out."""

    def tints(*shape: int) -> np.ndarray:
        return rng.uniform(30, 200, (*shape, 1)) * np.array([1.0, rng.uniform(0.8, 1.0), rng.uniform(0.6, 0.9)])

    wall = cv2.resize(tints(2, 2).astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    for _ in range(6):
        corner, sides = rng.uniform(0, size), rng.uniform(30, 200, 2)
        cv2.rectangle(wall, corner.astype(int).tolist(), (corner + sides).astype(int).tolist(), tints().tolist(), -1)
    blotches = cv2.resize(rng.normal(0, 12, (9, 16)), size, interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, 5, (size[1], size[0]))
    return np.clip(cv2.GaussianBlur(wall, (0, 0), 6) + (blotches + grain)[:, :, None], 0, 255).astype(np.uint8)


def draw_frames(film: VideoPlan) -> Iterator[np.ndarray]:
    """Yield the film's frames, BGR (height, width, 3) uint8."""
    for shot in film.shots:
        background = make_background(film.rng, film.scenario.size)
        # Faces are drawn through the whole shot, also where the face tracker misses them.
        seen = [replace(track, first=shot.first, last=shot.last) for track in shot.tracks]
        poses = [(track, *head_poses(track), mouth_shapes(track)) for track in seen]
        for frame in range(shot.first, shot.last + 1):
            image, time, moment = background.copy(), frame / FPS, frame - shot.first
            for track, centres, rolls, yaws, mouths in poses:
                person, pen = film.cast[track.person], Pen(image, centres[moment], track.width, rolls[moment])
                eyelid = float(np.clip(1.4 - np.abs(track.blinks - time).min() / 0.08, 0, 1))
                draw_face(pen, person, yaws[moment], mouths[moment], film.scenario.jaw, eyelid)
                what, start, end = track.hidden
                if what in ("hand", "microphone") and start < time < end:
                    draw_cover(pen, person, what, float(_ramp(time, start, end)))
            yield image


# ---- Films and annotations


def label_frames(track: FacePlan) -> np.ndarray:
    """(frames,) of indices into LABELS."""
    labels, times = np.zeros(len(track.times), dtype=int), track.times
    for turn in track.turns:
        labels[(times >= turn.start) & (times < turn.end)] = 1 if turn.heard else 2
    return labels


def face_boxes(track: FacePlan, size: tuple[int, int]) -> np.ndarray:
    """(frames, 4) x1, y1, x2, y2 in [0, 1]: round the head whatever the jaw does, wobbling as a detector's do."""
    wobble = 1 + 0.03 * np.sin(np.outer(track.times, [1.3, 1.7]) + track.phases[6:8])
    half, centres = wobble * track.width * np.array([0.5, HEAD_HEIGHT / 2]), head_poses(track)[0]
    return np.clip(np.concatenate([centres - half, centres + half], axis=1) / np.tile(size, 2), 0, 1)


def annotation_lines(video_id: str, film: VideoPlan) -> Iterator[str]:
    """The official csv, track by track. A timestamp is its frame's exact time: a 25th of a second has two decimals."""
    tracks_of_segment: Counter[int] = Counter()
    for track in (track for shot in film.shots for track in shot.tracks):
        start = track.first // FPS // SEGMENT_SECONDS * SEGMENT_SECONDS
        tracks_of_segment[start] += 1
        entity_id = f"{video_id}_{start:04d}_{start + SEGMENT_SECONDS:04d}:{tracks_of_segment[start]}"
        rows = zip(track.times, face_boxes(track, film.scenario.size), label_frames(track), strict=True)
        for time, box, label in rows:
            timestamp = f"{time:.2f}".rstrip("0").rstrip(".")
            yield ",".join([video_id, timestamp, *(f"{edge:.6f}" for edge in box), LABELS[label], entity_id]) + "\n"


def make_video(path: Path, csv: Path, film: VideoPlan, frames: int) -> None:
    """One film and its csv, which comes last: it says that the film is whole."""
    film.cast = plan_cast(film.rng)
    film.shots = plan_shots(film, frames)
    sample_rate = int(film.rng.choice([16000, 44100, 48000]))
    sound = make_sound(film, sample_rate)
    with tempfile.TemporaryDirectory() as directory:
        wav = Path(directory, "sound.wav")
        wavfile.write(wav, sample_rate, np.rint(sound * 32767).astype(np.int16))
        try:
            encode_video(path, draw_frames(film), film.scenario.size, FPS, ("-i", f"file:{wav}"), *SAME_BYTES)
        except ValueError as error:
            raise RunError(f"{path}: {error}") from None
    write_bytes(csv, "".join(annotation_lines(path.stem, film)).encode())


def draw_video_id(rng: np.random.Generator, index: int) -> str:
    """11 characters like YouTube's; every fourth id starts with a dash, as some of AVA's do."""
    video_id = "".join(rng.choice(ID_LETTERS, 11))
    return f"-{video_id[1:]}" if index % 4 == 1 else video_id


def claim_root(root: Path, settings: dict) -> None:
    """Lay claim to a new root, or check that what lies there was made with the same settings. Raises InputError."""
    record, settings = root / "mini_ava_cfg.json", json.loads(json.dumps(settings))
    if record.is_file():
        try:
            found = dict(json.loads(record.read_text()))
            scenario = dict(found.get("scenario", {}))
        except (ValueError, TypeError):
            raise InputError(f"{record}: not the settings of this script; choose another --root") from None
        found = {"hard": False, **found, "scenario": {"jaw": Scenario.jaw, **scenario}}  # of before there were these
        differing = [name for name in settings if found.get(name) != settings[name]]
        if differing:
            raise InputError(f"{root} was made with different arguments ({', '.join(differing)}): see {record}")
    elif root.is_file() or (root / "videos").exists() or (root / "csv").exists():
        raise InputError(f"{root} is not of this script's making: choose another --root")
    write_json(record, settings)


def report(root: Path, films: int) -> None:
    """Print what lies there now and what to do next."""
    csvs = [csv.read_text().splitlines() for csv in sorted(root.glob("csv/*/*-activespeaker.csv"))]
    rows = [line.split(",") for lines in csvs for line in lines]
    labels, tracks = Counter(row[6] for row in rows), len({row[7] for row in rows})
    print(f"{root}: {films} films, {tracks} tracks, {len(rows)} rows")
    print(", ".join(f"{label} {labels[label] / len(rows):.1%}" for label in LABELS))
    print(f"next: ASC_DATA_ROOT={root} python data/extract_audio_tracks.py")


def _colour(values: np.ndarray) -> Colour:
    return tuple(int(value) for value in values)


def _ramp(times: np.ndarray | float, start: float, end: float) -> np.ndarray:
    """1 between start and end, 0 outside, with edges of 0.2 s."""
    return np.clip(np.minimum(times - start, end - times) / 0.2, 0, 1)


def get_args_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--root", required=True, help="directory to make, laid out as ASC_DATA_ROOT is")
    parser.add_argument("--videos", type=positive_int, default=12, help="films, at least 2; a third is for validation")
    parser.add_argument("--seconds", type=positive_float, default=12.0, help="length of each film, 2 to 3600")
    parser.add_argument("--seed", type=seed, default=0, help="all is drawn from it")
    parser.add_argument("--hard", action="store_true", help="mouths are out of sight for seconds: context is needed")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.videos < 2:
        raise InputError("--videos must be at least 2: one to train on and one to validate on")
    if not 2 <= args.seconds <= 3600:
        raise InputError("--seconds must be between 2 and 3600")
    scenario, root = HARD if args.hard else Scenario(), Path(args.root)
    settings = {name: value for name, value in vars(args).items() if name != "root"}
    claim_root(root, settings | {"scenario": asdict(scenario)})
    video_dir, train_films = root / "videos" / "trainval", args.videos - max(1, round(args.videos / 3))
    films = list_files(video_dir)
    for index in progress(range(args.videos), desc="films", unit="film"):
        rng = np.random.default_rng([args.seed, index])
        path = video_dir / f"{draw_video_id(rng, index)}.mp4"
        csv = root / "csv" / ("train" if index < train_films else "val") / f"{path.stem}-activespeaker.csv"
        if path.name not in films or not csv.exists():
            make_video(path, csv, VideoPlan(rng, scenario), round(args.seconds * FPS))
    report(root, args.videos)


if __name__ == "__main__":
    launch(main, get_args_parser())
