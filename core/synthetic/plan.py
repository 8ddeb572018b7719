"""Plan of a synthetic video: people, shots, tracks and dialogue.

Everything random in a video is drawn from one generator in a fixed order: first the plan, then the audio, then the
frames. A changed or added draw therefore changes all that follow.
"""

from dataclasses import dataclass, field

import numpy as np

FPS = 25
HEAD_HEIGHT = 1.32  # head units: 1 is the width of a head
VOWELS = "aeiou"  # formants in voice.py, mouth shapes in drawing.py
Colour = tuple[int, ...]  # BGR


@dataclass(frozen=True)
class Scenario:
    """Settings of the generator. Pairs are bounds of a uniform distribution; four values are for 1 to 4 faces."""

    size: tuple[int, int] = (640, 360)  # width and height of a frame in pixels
    shot_seconds: tuple[float, float] = (2.0, 5.0)
    faces_weight: tuple[float, ...] = (0.35, 0.40, 0.17, 0.08)  # relative frequency of shots
    face_width: tuple[float, float] = (30.0, 160.0)  # pixels, uniform in the logarithm
    turn_seconds: tuple[float, float] = (0.7, 2.5)
    gap_seconds: tuple[float, float] = (0.1, 0.4)  # between two turns
    overlap_probability: float = 0.25  # per turn: it starts before the previous one ends
    outside_weight: float = 0.30  # relative frequency of off-screen speakers; each visible person has 1
    silence_weight: tuple[float, ...] = (0.9, 0.1, 0.0, 0.0)  # nobody speaks; otherwise a face alone would mean speech
    unheard_probability: float = 0.18  # per pause of a person: inaudible speech
    chewing_probability: float = 0.25  # per pause of a person
    hidden_probability: float = 0.35  # per track: the mouth is hidden for some time
    hidden_seconds: tuple[float, float] = (0.6, 1.6)
    jaw: float = 1.0  # movement of the chin with the mouth; it is visible even if the lips are hidden


# --hard: mouths are hidden or chewing for seconds, faces are smaller, and chins do not move. In exchange, turns are
# longer and most speakers are on screen, so other speakers and earlier frames determine the label where the mouth
# cannot. Position, size and occlusion of a face do not depend on who speaks.
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
    """Voice and colours of one person."""

    pitch: float  # Hz
    formant_scale: float  # factor on all formants: smaller for a longer vocal tract
    breath: float  # amplitude of the noise in the voice relative to its pulses
    syllable_seconds: float
    level: float  # root mean square of the voice; full scale is 1
    skin: Colour
    hair: Colour
    clothes: Colour


@dataclass
class Turn:
    """Uninterrupted speech of one person. Times are seconds from the start of the video."""

    person: int  # index into the cast
    start: float
    end: float
    syllables: np.ndarray  # (N, 4): start and length in seconds, index of the vowel, loudness
    audible: bool = True


@dataclass
class TrackPlan:
    """One face in one shot. Times are seconds from the start of the video, lengths are pixels."""

    person: int  # index into the cast
    first: int  # frame
    last: int  # frame, included
    centre: tuple[float, float]
    width: float
    phases: np.ndarray  # (8,) radians, offsets of the slow movements
    blinks: np.ndarray  # times
    turns: list[Turn]
    chewing: list[tuple[float, float]] = field(default_factory=list)  # start, end
    hidden: tuple[str, float, float] = ("", 0.0, 0.0)  # "hand", "microphone" or "turned"; start, end

    @property
    def times(self) -> np.ndarray:
        return np.arange(self.first, self.last + 1) / FPS


@dataclass
class ShotPlan:
    """Frames `first` to `last`, both included, with the audible turns of people on and off screen."""

    first: int
    last: int
    tracks: list[TrackPlan]
    turns: list[Turn]


@dataclass
class VideoPlan:
    """One video. Its audio and its frames are drawn from the same `rng`."""

    rng: np.random.Generator
    scenario: Scenario
    cast: list[Person]
    shots: list[ShotPlan] = field(default_factory=list)

    @property
    def num_frames(self) -> int:
        return self.shots[-1].last + 1


def plan_video(rng: np.random.Generator, scenario: Scenario, num_frames: int) -> VideoPlan:
    """Draw the cast, then one shot after another until `num_frames` are filled."""
    video = VideoPlan(rng, scenario, plan_cast(rng))
    shortest, longest = (round(seconds * FPS) for seconds in scenario.shot_seconds)
    first = 0
    while first < num_frames:
        left = num_frames - first
        length = left if left <= longest else int(rng.integers(shortest, min(longest, left - shortest) + 1))
        video.shots.append(plan_shot(video, first, first + length - 1))
        first += length
    return video


def plan_cast(rng: np.random.Generator) -> list[Person]:
    """Draw five people. A shot shows at most four, so there is always an off-screen voice."""
    cast = []
    for _ in range(5):
        pitch = rng.uniform(90, 240)
        formant_scale = 0.85 + 0.3 * (pitch - 90) / 150 + rng.uniform(-0.05, 0.05)
        skin = rng.uniform(0.55, 1.0) * np.array([rng.uniform(140, 165), rng.uniform(178, 195), 235])
        colours = (skin, rng.uniform(0.1, 0.8) * np.array([60, 110, 170]), rng.uniform(20, 200, 3))
        voice = (pitch, formant_scale, rng.uniform(0.02, 0.15), rng.uniform(0.15, 0.21), rng.uniform(0.06, 0.12))
        cast.append(Person(*voice, *map(to_colour, colours)))
    return cast


def plan_shot(video: VideoPlan, first: int, last: int) -> ShotPlan:
    """Draw a shot: faces side by side, their dialogue, pauses and occlusions."""
    rng, scenario = video.rng, video.scenario
    weights = np.array(scenario.faces_weight)
    num_faces = 1 + int(rng.choice(len(weights), p=weights / weights.sum()))
    people = rng.permutation(len(video.cast)).tolist()
    start, end = first / FPS, (last + 1) / FPS
    turns = plan_dialogue(video, people[: num_faces + 1], start, end)
    max_trim = max(0, min(5, (last + 1 - first - round(scenario.shot_seconds[0] * FPS)) // 2))
    slot_width, tracks = scenario.size[0] / num_faces, []
    for slot, person in enumerate(people[:num_faces]):
        width = min(float(np.exp(rng.uniform(*np.log(scenario.face_width)))), 0.78 * slot_width)
        margin = 0.62 * width  # half of the largest box, plus the movement of the head
        x = rng.uniform(slot * slot_width + margin, (slot + 1) * slot_width - margin)
        y = rng.uniform(HEAD_HEIGHT * margin, 0.65 * scenario.size[1])
        trim_start, trim_end = rng.integers(0, max_trim + 1, 2).tolist()  # frames that a face tracker would miss
        phases, blinks = rng.uniform(0, 2 * np.pi, 8), start - 1.0 + np.cumsum(rng.uniform(0.8, 4.0, 6))
        own_turns = [turn for turn in turns if turn.person == person]
        track = TrackPlan(person, first + trim_start, last - trim_end, (x, y), width, phases, blinks, own_turns)
        plan_pauses(video, track, start, end)
        if rng.random() < scenario.hidden_probability:
            seconds = rng.uniform(*scenario.hidden_seconds)
            begin = rng.uniform(start - seconds / 3, end - seconds * 2 / 3)
            track.hidden = (str(rng.choice(["hand", "microphone", "turned"])), begin, begin + seconds)
        tracks.append(track)
    return ShotPlan(first, last, tracks, turns)


def plan_dialogue(video: VideoPlan, people: list[int], start: float, end: float) -> list[Turn]:
    """Draw the audible turns of a shot. The last of the people is off screen."""
    rng, scenario, num_visible = video.rng, video.scenario, len(people) - 1
    weights = np.array([1.0] * num_visible + [scenario.outside_weight, scenario.silence_weight[num_visible - 1]])
    turns, previous = [], -1
    time = start - rng.uniform(0, scenario.turn_seconds[1])  # a turn may be under way when the shot starts
    while time < end:
        allowed = weights * (np.arange(len(weights)) != (previous if num_visible > 1 else -1))
        speaker = int(rng.choice(len(weights), p=allowed / allowed.sum()))  # the last index is silence
        turn_end = time + rng.uniform(*scenario.turn_seconds)
        begin, stop = max(time, start), min(turn_end, end)
        if speaker < len(people) and stop - begin > 0.25:
            turns.append(plan_turn(video, people[speaker], begin, stop))
        overlaps = num_visible > 1 and rng.random() < scenario.overlap_probability
        time = turn_end + (-rng.uniform(0.15, 0.35) if overlaps else rng.uniform(*scenario.gap_seconds))
        previous = speaker
    return turns


def plan_turn(video: VideoPlan, person: int, start: float, end: float) -> Turn:
    """Draw syllables of 120 to 250 ms, grouped into words and sentences. The turn ends with its last syllable."""
    rng = video.rng
    syllables, time, in_word, loudness = [], start, 0, rng.uniform(0.75, 1.25)
    while end - time > 0.1:
        length = float(np.clip(video.cast[person].syllable_seconds * rng.uniform(0.75, 1.3), 0.12, 0.25))
        if end - time - length < 0.1:
            length = end - time
        syllables.append((time, length, rng.integers(len(VOWELS)), loudness * rng.uniform(0.7, 1.1)))
        time, in_word = time + length, in_word + 1
        if rng.random() < 0.3 * in_word:
            time += rng.uniform(0.2, 0.35) if rng.random() < 0.12 else rng.uniform(0.03, 0.12)
            in_word = 0
    return Turn(person, start, sum(syllables[-1][:2]), np.array(syllables, dtype=float))


def plan_pauses(video: VideoPlan, track: TrackPlan, start: float, end: float) -> None:
    """Fill the pauses between a track's own turns with inaudible speech, chewing or nothing."""
    rng, scenario = video.rng, video.scenario
    edges = [start - 0.15, *(edge for turn in track.turns for edge in (turn.start, turn.end)), end + 0.15]
    for pause_start, pause_end in zip(edges[::2], edges[1::2], strict=True):
        available = pause_end - pause_start - 0.3
        if available < 0.6:
            continue
        length = min(rng.uniform(0.8, 2.2), available)
        begin = pause_start + 0.15 + rng.uniform(0, 1) * (available - length)
        chance = rng.random() - scenario.unheard_probability
        if chance < 0:
            turn = plan_turn(video, track.person, begin, begin + length)
            turn.audible = False
            track.turns = [*track.turns, turn]
        elif chance < scenario.chewing_probability:
            track.chewing.append((begin, begin + length))


def to_colour(values: np.ndarray) -> Colour:
    return tuple(int(value) for value in values)
