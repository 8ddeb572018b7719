"""Text in figures and marked videos, drawn with the installed fonts that have its characters."""

import logging
import re
import unicodedata
from bisect import bisect_right
from functools import cache, lru_cache
from itertools import groupby

import numpy as np
from matplotlib.font_manager import findfont, fontManager, get_font

_FAMILIES = (  # in order of preference; the first is part of matplotlib
    *("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "PingFang SC"),
    *("Hiragino Sans GB", "Heiti TC", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic"),
    *("WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "Arial Unicode MS", "Noto Emoji"),
    *("Segoe UI Emoji", "Segoe UI Symbol", "Symbola", "Noto Sans Devanagari", "Noto Sans Thai", "FreeSans"),
)
FAMILIES = [name for name in _FAMILIES if name in fontManager.get_font_names()]
TEXT_SIZE = 64  # pixels per em of `text_mask`
_ASCENT, _DESCENT, _PADDING = 60, 16, 10  # pixels; more than most letters need

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it warns of fonts without a normal weight


@cache
def _font_files() -> list[str]:
    return [findfont(name) for name in FAMILIES]


@cache
def _characters() -> set[str]:
    return {chr(code) for file in _font_files() for code in get_font(file).get_charmap()}


def drawable(text: str) -> str:
    """Return a text in which the characters that no font has are replaced by their Unicode names in brackets.

    Examples: [party popper], [han gug eo] for syllables, [4e2d 6587] for Chinese characters, whose names are numbers.
    """
    result = ""
    for missing, characters in groupby(text, key=lambda character: character not in _characters()):
        if not missing:
            result += "".join(characters)
        elif names := " ".join(filter(None, map(_name, characters))):
            result += f"[{names}]"
    return result


def _name(character: str) -> str:
    """Return the Unicode name of a character, the last word of it for letters."""
    if unicodedata.category(character) in ("Cf", "Mn", "Me"):  # only modifies the characters next to it
        return ""
    name = unicodedata.name(character, f"{ord(character):x}").lower()
    return re.split("[ -]", name)[-1] if unicodedata.category(character)[0] in "LM" else name


def _set_text(text: str):
    font = get_font(_font_files())
    font.set_size(TEXT_SIZE, 72)
    font.set_text(text, 0.0)
    return font


@lru_cache(4096)
def text_width(text: str) -> float:
    """Return the width of a text in em."""
    return _set_text(text).get_width_height()[0] / 64 / TEXT_SIZE  # from 26.6 fixed point


@lru_cache(4096)
def cut(text: str, width: float) -> str:
    """Return a text, with its middle replaced by an ellipsis if it is wider than `width` em."""

    def shortened(length: int) -> str:
        return f"{text[: (length + 1) // 2]}…{text[len(text) - length // 2 :]}"

    if text_width(text) <= width:
        return text
    fitting = bisect_right(range(1, len(text)), width, key=lambda length: text_width(shortened(length)))
    return shortened(max(1, fitting))


@lru_cache(1024)
def text_mask(text: str) -> np.ndarray:
    """Return the coverage of pixels by a text on one line, with padding on both sides: (76, w) uint8."""
    font = _set_text(text)
    font.draw_glyphs_to_bitmap(antialiased=True)
    glyphs = np.asarray(font.get_image())
    mask = np.zeros((_ASCENT + _DESCENT, glyphs.shape[1] + 2 * _PADDING), np.uint8)
    top = _ASCENT + round(font.get_descent() / 64) - len(glyphs)
    glyphs, top = glyphs[max(0, -top) :], max(0, top)
    glyphs = glyphs[: len(mask) - top]
    mask[top : top + len(glyphs), _PADDING:-_PADDING] = glyphs
    return mask
