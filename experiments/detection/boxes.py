"""Draws boxes into a picture."""

from collections.abc import Sequence
from typing import Any

COLOURS = {"RBC": (220, 60, 40), "WBC": (40, 90, 220), "Platelets": (20, 140, 60)}


def outline(picture: Any, boxes: Sequence[tuple[Sequence[float], str, float]]) -> Any:
    """A copy of a PIL picture with an outline around each (box, class, score), in the colour of the class."""
    from PIL import ImageDraw

    picture = picture.copy()
    pen, width = ImageDraw.Draw(picture), max(1, max(picture.size) // 200)
    for (left, top, right, bottom), name, _ in boxes:
        pen.rectangle([left, top, max(left, right), max(top, bottom)], outline=COLOURS[name], width=width)
    return picture
