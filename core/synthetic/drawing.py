"""Frames of a synthetic video: faces, mouths that move with speech, and objects in front of them.

Faces are drawn in head units: the origin is the centre of the head, x points right, y down, and 1 is its width.
"""

from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np

from core.synthetic.plan import FPS, HEAD_HEIGHT, Colour, Person, TrackPlan, VideoPlan, to_colour

MOUTH_Y = 0.29
MOUTHS = np.array(  # openness (0 to 1) and spread (1: at rest) for each vowel
    [
        (1.00, 1.00),  # a
        (0.70, 1.15),  # e
        (0.45, 1.30),  # i
        (0.80, 0.70),  # o
        (0.50, 0.55),  # u
    ]
)


class Canvas:
    """An image to draw on in head units, rolled by an angle in degrees."""

    def __init__(self, image: np.ndarray, centre: np.ndarray, width: float, roll: float):
        self.image, self.centre, self.width, self.roll = image, centre, width, roll
        self.cos, self.sin = np.cos(np.radians(roll)), np.sin(np.radians(roll))

    def point(self, x: float, y: float) -> tuple[int, int]:
        """Return a point in sixteenths of a pixel (`shift` 4 of OpenCV), so that slow movement is smooth."""
        offset = np.array([x * self.cos - y * self.sin, x * self.sin + y * self.cos]) * self.width
        return tuple(np.rint((self.centre + offset) * 16).astype(int).tolist())

    def ellipse(self, x: float, y: float, half_width: float, half_height: float, colour: Colour) -> None:
        axes = (round(half_width * self.width * 16), round(half_height * self.width * 16))
        cv2.ellipse(self.image, self.point(x, y), axes, self.roll, 0, 360, colour, -1, cv2.LINE_AA, 4)

    def line(self, x1: float, y1: float, x2: float, y2: float, thickness: float, colour: Colour) -> None:
        pixels = max(1, round(thickness * self.width))
        cv2.line(self.image, self.point(x1, y1), self.point(x2, y2), colour, pixels, cv2.LINE_AA, 4)


def draw_face(canvas: Canvas, person: Person, yaw: float, mouth: np.ndarray, jaw: float, eyelid: float) -> None:
    """Draw a head.

    Args:
        yaw: rotation in radians; 0 faces the camera
        mouth: (3,) openness, spread and shift as in `mouth_shapes`
        jaw: movement of the chin as in `Scenario`
        eyelid: 0 is open, 1 is closed
    """
    openness, spread, shift = mouth
    drop = jaw * openness
    shade, light = to_colour(0.72 * np.array(person.skin)), (235, 240, 240)
    front = max(np.cos(yaw), 0.0)
    canvas.ellipse(0, 1.15, 0.85, 0.55, person.clothes)
    canvas.ellipse(0, 0.6, 0.24, 0.3, shade)
    canvas.ellipse(0, 0, 0.5, HEAD_HEIGHT / 2, person.hair)
    x = (0.05 + 0.31 * (1 - front)) * np.sin(yaw)
    canvas.ellipse(x, 0.07 + 0.02 * drop, 0.13 + 0.3 * front, 0.42 + 0.14 * front + 0.03 * drop, person.skin)
    for angle in (-0.48, 0.48):
        x, facing = 0.4 * np.sin(angle + yaw), np.cos(angle + yaw)
        if facing > 0.15:
            canvas.ellipse(x, -0.13, 0.1 * facing, 0.055 * (1 - 0.9 * eyelid), light if eyelid < 0.6 else shade)
            if eyelid < 0.6:
                canvas.ellipse(x + 0.03 * np.sin(yaw), -0.13, 0.045 * facing, 0.05 * (1 - eyelid), (50, 40, 30))
            canvas.line(x - 0.11 * facing, -0.24, x + 0.11 * facing, -0.245, 0.03, person.hair)
    if front > 0.15:
        x = 0.4 * np.sin(yaw)
        canvas.ellipse(x, 0.05, 0.055 * front, 0.075, shade)
        x, half_width, half_height = x + shift, 0.2 * spread * front, 0.015 + 0.15 * openness
        canvas.ellipse(x, MOUTH_Y, half_width + 0.03, half_height + 0.03, (85, 75, 165))
        if openness > 0.04:
            canvas.ellipse(x, MOUTH_Y, half_width, half_height, (25, 15, 35))
            canvas.ellipse(x, MOUTH_Y - 0.6 * half_height, 0.7 * half_width, 0.3 * half_height, light)
            canvas.ellipse(x, MOUTH_Y + 0.6 * half_height, 0.6 * half_width, 0.3 * half_height, (70, 60, 150))


def draw_cover(canvas: Canvas, person: Person, kind: str, amount: float) -> None:
    """Draw a hand or a microphone, which rises in front of the mouth as `amount` goes from 0 to 1."""
    y = MOUTH_Y + 1.2 * (1 - amount)
    if kind == "hand":
        shade = to_colour(0.8 * np.array(person.skin))
        canvas.line(0.1, y + 0.15, 0.5, y + 1.1, 0.22, shade)
        canvas.ellipse(0, y, 0.33, 0.22, shade)
        for finger in range(4):
            canvas.line(-0.3, y - 0.13 + 0.09 * finger, 0.22, y - 0.15 + 0.09 * finger, 0.075, person.skin)
    else:
        canvas.line(0, y, 0.2, y + 0.7, 0.12, (40, 40, 40))
        canvas.ellipse(0, y, 0.27, 0.25, (60, 55, 55))
        canvas.ellipse(-0.06, y - 0.07, 0.1, 0.08, (110, 105, 105))


def mouth_shapes(track: TrackPlan) -> np.ndarray:
    """Return (frames, 3): openness from 0 to 1, spread (1: at rest) and sideways shift in head units."""
    times = track.times
    openness, shift = np.zeros(len(times)), np.zeros(len(times))
    spread = 1 + 0.06 * np.sin(0.9 * times + track.phases[0])
    for turn in track.turns:
        start, length, vowel, loudness = turn.syllables.T[:, :, None]
        position = np.clip((times - start + 0.02) / (length + 0.04), 0, 1)  # lips move 20 ms ahead of the voice
        rise = np.sin(np.pi * position**0.8)
        vowel_openness, vowel_spread = MOUTHS[vowel[:, 0].astype(int)].T[:, :, None]
        openness = np.maximum(openness, (rise * np.minimum(loudness, 1.1) * vowel_openness).max(axis=0))
        spread += (rise * (vowel_spread - 1)).sum(axis=0)
    for start, end in track.chewing:
        chews = 2 * np.pi * (1.3 + 0.1 * track.phases[1]) * (times - start)
        strength = _ramp(times, start, end)
        openness = np.maximum(openness, strength * 0.22 * (1 - np.cos(chews)))
        shift += strength * 0.05 * np.sin(chews)
        spread -= strength * 0.15
    return np.stack([openness, spread, shift], axis=1)


def head_poses(track: TrackPlan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return centres (frames, 2) in pixels, roll (frames,) in degrees and yaw (frames,) in radians."""
    waves = np.sin(np.outer(track.times, [1.1, 1.4, 0.9, 0.7]) + track.phases[2:6])
    yaw = 0.3 * waves[:, 3]
    if track.hidden[0] == "turned":
        yaw += _ramp(track.times, *track.hidden[1:]) * (1.75 * np.sign(np.cos(track.phases[6])) - yaw)
    return np.array(track.centre) + waves[:, :2] * (0.06 * track.width), 5 * waves[:, 2], yaw


def draw_background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return a wall (height, width, 3) uint8 with a gradient, boxes, blotches and grain; bluish, unlike skin."""

    def draw_tints(*shape: int) -> np.ndarray:
        return rng.uniform(30, 200, (*shape, 1)) * np.array([1.0, rng.uniform(0.8, 1.0), rng.uniform(0.6, 0.9)])

    wall = cv2.resize(draw_tints(2, 2).astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    for _ in range(6):
        corner, sides = rng.uniform(0, size), rng.uniform(30, 200, 2)
        opposite = (corner + sides).astype(int).tolist()
        cv2.rectangle(wall, corner.astype(int).tolist(), opposite, draw_tints().tolist(), -1)
    blotches = cv2.resize(rng.normal(0, 12, (9, 16)), size, interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, 5, (size[1], size[0]))
    return np.clip(cv2.GaussianBlur(wall, (0, 0), 6) + (blotches + grain)[:, :, None], 0, 255).astype(np.uint8)


def draw_frames(video: VideoPlan) -> Iterator[np.ndarray]:
    """Yield all frames as BGR images (height, width, 3) uint8."""
    for shot in video.shots:
        background = draw_background(video.rng, video.scenario.size)
        # Tracks may be shorter than the shot, but faces are visible throughout.
        faces = [replace(track, first=shot.first, last=shot.last) for track in shot.tracks]
        poses = [(face, *head_poses(face), mouth_shapes(face)) for face in faces]
        for index in range(shot.last - shot.first + 1):
            image, time = background.copy(), (shot.first + index) / FPS
            for face, centres, rolls, yaws, mouths in poses:
                person, canvas = video.cast[face.person], Canvas(image, centres[index], face.width, rolls[index])
                eyelid = float(np.clip(1.4 - np.abs(face.blinks - time).min() / 0.08, 0, 1))
                draw_face(canvas, person, yaws[index], mouths[index], video.scenario.jaw, eyelid)
                kind, start, end = face.hidden
                if kind in ("hand", "microphone") and start < time < end:
                    draw_cover(canvas, person, kind, float(_ramp(time, start, end)))
            yield image


def _ramp(times: np.ndarray | float, start: float, end: float) -> np.ndarray:
    """Return 1 between start and end and 0 outside, with linear edges of 0.2 s."""
    return np.clip(np.minimum(times - start, end - times) / 0.2, 0, 1)
