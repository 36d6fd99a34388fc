"""Draw pictures of a data set: a contact sheet, and an animation of each class, with labels and augmentations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from stagedkd.errors import printable

Pixels = npt.NDArray[np.uint8]
CELL, GAP, LINE = 96, 4, 18  # pixels: least longer side of a picture, gap between pictures, height of a line of text
COLUMNS = 6
INK, PAPER, GREY = (20, 20, 20), (255, 255, 255), (110, 110, 110)


@dataclass(frozen=True)
class PreviewClip:
    """A clip of a preview: its class, a text about its label, and its frames (T, H, W, 3), original and augmented."""

    label: str
    text: str
    plain: Pixels
    augmented: Pixels


def contact_sheet(clips: Sequence[PreviewClip], path: Path, title: str) -> None:
    """Draw a row for each clip: frames evenly spaced in time, on the left original, on the right augmented."""
    tall, wide = _cell(clips)
    count = min(COLUMNS, len(clips[0].plain))
    half = count * (wide + GAP)
    page = Image.new("RGB", (2 * half + 5 * GAP, 2 * LINE + len(clips) * (LINE + tall + 2 * GAP) + GAP), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    draw.text((GAP, GAP), title, INK, font)
    draw.text((GAP, LINE), "original", GREY, font)
    draw.text((half + 4 * GAP, LINE), "augmented, as a network sees them in training", GREY, font)
    top = 2 * LINE + GAP
    for clip in clips:
        label = _one_line(clip.label)
        draw.text((GAP, top), label, INK, font)
        draw.text((GAP + draw.textlength(label + "  ", font), top), clip.text, GREY, font)
        for left, frames in ((GAP, clip.plain), (half + 4 * GAP, clip.augmented)):
            for column in range(count):
                picture = frames[(2 * column + 1) * len(frames) // (2 * count)]
                page.paste(_scaled(picture, tall, wide), (left + column * (wide + GAP), top + LINE))
        top += LINE + tall + 2 * GAP
    page.save(path)


def animation(clips: Sequence[PreviewClip], path: Path, fps: float) -> None:
    """Draw the clips of one class side by side, the augmented ones below, as an endlessly repeated WebP."""
    tall, wide = _cell(clips)
    frames = max(len(clip.plain) for clip in clips)
    pages: list[Image.Image] = []
    font = ImageFont.load_default(13)
    for index in range(frames):
        page = Image.new("RGB", (len(clips) * (wide + GAP) + GAP, 2 * (tall + GAP) + LINE + GAP), PAPER)
        draw = ImageDraw.Draw(page)
        draw.text((GAP, 1), f"{_one_line(clips[0].label)}   below: augmented", INK, font)
        for column, clip in enumerate(clips):
            left = GAP + column * (wide + GAP)
            page.paste(_scaled(clip.plain[index % len(clip.plain)], tall, wide), (left, LINE))
            augmented = clip.augmented[index % len(clip.augmented)]
            page.paste(_scaled(augmented, tall, wide), (left, LINE + tall + GAP))
        pages.append(page)
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=round(1000 / fps), loop=0, quality=85)


def _one_line(label: str) -> str:
    """Return a class name as one line of text, and no longer than can be drawn."""
    return " ".join(printable(label).split())[:100]


def _cell(clips: Sequence[PreviewClip]) -> tuple[int, int]:
    """Return height and width of a drawn picture: small pictures are enlarged by a whole number."""
    height, width = clips[0].plain.shape[1:3]
    times = max(1, -(-CELL // max(height, width)))
    return height * times, width * times


def _scaled(picture_HWC: Pixels, tall: int, wide: int) -> Image.Image:
    return Image.fromarray(picture_HWC).resize((wide, tall), Image.Resampling.NEAREST)
