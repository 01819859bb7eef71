"""What the pictures of all environments share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lorasa_jax.files import whole

COLOURS = 64
LAST_FRAME_MS = 1500
SHARP = 3
"""Everything is drawn this many times larger, then reduced, for smooth edges."""


def save_gif(frames: Sequence[Any], path: str | Path, fps: float = 10) -> None:
    """Leaves a looping GIF of the pictures at `path`, whole or not at all.

    Frames share one palette and no dithering, so that what stands still costs nothing. The
    last frame stays a little; equal neighbours are stored once and shown for longer.

    Args:
        frames: Pillow pictures of one size.
        path: the file; one that is there is replaced.
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
    """Writes a line of text, in pixels of the reduced picture; returns where it ends."""
    font = _font(round(size * SHARP))
    pen.text((x * SHARP, y * SHARP), text, fill, font, anchor)
    return x + font.getlength(text) / SHARP


@cache
def _font(size: int) -> Any:
    """Returns the font that comes with Pillow: the same picture on every machine."""
    from PIL import ImageFont

    return ImageFont.load_default(size)
