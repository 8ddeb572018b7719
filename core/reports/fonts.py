"""Text in figures and marked videos, drawn with the installed fonts that have its characters."""

import logging
from bisect import bisect_right
from functools import cache, lru_cache

import numpy as np
from matplotlib.font_manager import findfont, fontManager, get_font

_FAMILIES = (  # in order of preference; the first is part of matplotlib
    *("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "PingFang SC"),
    *("Hiragino Sans GB", "Heiti TC", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic"),
    *("WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "Arial Unicode MS", "Noto Emoji"),
    *("Segoe UI Emoji", "Segoe UI Symbol", "Symbola", "Noto Sans Devanagari", "Noto Sans Thai", "FreeSans"),
)
FAMILIES = [name for name in _FAMILIES if name in fontManager.get_font_names()]

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it warns of fonts without a normal weight


@cache
def _font_files() -> list[str]:
    return [findfont(name) for name in FAMILIES]


@cache
def _characters() -> set[str]:
    return {chr(code) for file in _font_files() for code in get_font(file).get_charmap()}


def drawable(text: str) -> str:
    """Return a text in which the characters that no font has are replaced by their code points, such as [4e2d]."""
    return "".join(character if character in _characters() else f"[{ord(character):x}]" for character in text)


def _set_text(text: str, size: int):
    font = get_font(_font_files())
    font.set_size(size, 72)
    font.set_text(text, 0.0)
    return font


@lru_cache(4096)
def text_width(text: str) -> float:
    """Return the width of a text in em."""
    return _set_text(text, 64).get_width_height()[0] / 64 / 64  # from 26.6 fixed point


@lru_cache(4096)
def cut(text: str, width: float) -> str:
    """Return a text, with its middle replaced by an ellipsis if it is wider than `width` em."""

    def shortened(length: int) -> str:
        return f"{text[: (length + 1) // 2]}…{text[len(text) - length // 2 :]}"

    if text_width(text) <= width:
        return text
    fitting = bisect_right(range(1, len(text)), width, key=lambda length: text_width(shortened(length)))
    return shortened(max(1, fitting))


@lru_cache(4096)
def text_mask(text: str, size: int) -> np.ndarray:
    """Return the coverage of pixels by a line of text, of a font size in pixels, with some padding: (h, w) uint8."""
    font = _set_text(text, size)
    font.draw_glyphs_to_bitmap(antialiased=True)
    glyphs = np.asarray(font.get_image())
    padding, ascent, height = round(0.16 * size), round(0.94 * size), round(1.19 * size)
    mask = np.zeros((height, glyphs.shape[1] + 2 * padding), np.uint8)
    top = ascent + round(font.get_descent() / 64) - len(glyphs)
    glyphs, top = glyphs[max(0, -top) :], max(0, top)
    glyphs = glyphs[: height - top]
    mask[top : top + len(glyphs), padding : padding + glyphs.shape[1]] = glyphs
    return mask
