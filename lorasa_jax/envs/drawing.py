"""Functions for the pictures of all environments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lorasa_jax.files import whole

COLOURS = 64
LAST_FRAME_MS = 1500
SHARP = 3
"""Factor by which pictures are drawn larger and then reduced, for smooth edges."""


def save_gif(frames: Sequence[Any], path: str | Path, fps: float = 10) -> None:
    """Writes a looping GIF of the pictures to `path` atomically.

    Frames share one palette without dithering, so unchanged areas take no space. The last
    frame is shown longer. Equal neighbouring frames are stored once and shown longer.

    Args:
        frames: Pillow pictures of one size.
        path: the file; an existing file is replaced.
        fps: frames per second, kept to a hundredth of a second per frame.
    """
    from PIL import Image

    width, height = frames[0].size
    samples = frames[:: max(1, len(frames) // 8)]
    sheet = Image.new("RGB", (width, height * len(samples)))
    for i, frame in enumerate(samples):
        sheet.paste(frame, (0, i * height))
    palette = sheet.quantize(COLOURS)
    first, *rest = [frame.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(100 / fps) * 10] * len(rest) + [LAST_FRAME_MS]
    with whole(Path(path)) as file:
        first.save(file, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)


def write(pen: Any, x: float, y: float, text: str, size: float, fill: str, anchor: str) -> float:
    """Writes a line of text at a position in pixels of the reduced picture; returns its right end."""
    font = _font(round(size * SHARP))
    pen.text((x * SHARP, y * SHARP), text, fill, font, anchor)
    return x + font.getlength(text) / SHARP


@cache
def _font(size: int) -> Any:
    """Returns the font that comes with Pillow, so pictures are the same on every machine."""
    from PIL import ImageFont

    return ImageFont.load_default(size)
