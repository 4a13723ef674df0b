"""Images: nothing is cut off, and one point has its spread."""

from __future__ import annotations

import io
import random

import pytest
from PIL import Image

from fd_async.viewer.figures.curves import Curve
from fd_async.viewer.figures.drawing import Axes, draw


def axes(*curves: Curve) -> Axes:
    """Make a pair of axes."""
    return Axes(title="Accuracy", x_name="gradient step", unit="share", curves=curves)


def margins(data: bytes) -> list[tuple[int, ...]]:
    """Return the colours of the first and the last three columns of an image."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    columns = [*range(3), *range(image.width - 3, image.width)]
    return [image.getpixel((x, y)) for x in columns for y in range(image.height)]


@pytest.mark.parametrize("num_axes", [1, 2, 3])
@pytest.mark.parametrize("num_labels", [1, 5, 7])
def test_legend_and_note_end_before_the_edge(num_axes: int, num_labels: int) -> None:
    """Labels of any length, wide letters too, and a note longer than a line."""
    chance = random.Random(num_axes * 10 + num_labels)
    labels = [("FWM, graM" * 9)[: chance.randrange(4, 60)] for _ in range(num_labels)]
    curve = Curve(label="x", colour=0, x=[1, 2], y=[0.1, 0.2])
    note = "Lines: means over runs. Nothing to draw of: MiniF2F accuracy. " * 4
    named = [(label, place) for place, label in enumerate(labels)]
    image = draw("A title", [axes(curve)] * num_axes, named, "png", note=note)
    assert set(margins(image)) == {(255, 255, 255)}


def test_seeds_at_one_step_show_their_spread() -> None:
    """A band over one point has no width, so there is a line: more ink than without it."""
    one = {"label": "x", "colour": 0, "x": [48], "y": [0.5], "num_runs": 2, "marks": True}
    dark = []
    for ends in ({"low": [0.5], "high": [0.5]}, {"low": [0.1], "high": [0.9]}):
        other = Curve(label="y", colour=1, x=[1, 2], y=[0.0, 1.0], low=[0.0, 0.0], high=[1.0, 1.0])
        image = Image.open(io.BytesIO(draw("t", [axes(Curve(**one, **ends), other)], [("x", 0)], "png"))).convert("RGB")
        colours = image.getcolors(1 << 20) or []
        dark.append(sum(num for num, colour in colours if colour == (0, 114, 178)))
    assert dark[1] > dark[0] + 100
