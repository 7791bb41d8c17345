"""Elements of an HTML page, and plots as inline SVG. Whatever text goes in comes out as text: the tree is built of
elements and strings, and one place turns it into characters.
"""

import math
from collections.abc import Sequence
from xml.etree import ElementTree

from data_prep.scripts_of_text import visible

_WIDTH = 640
_LABEL_WIDTH, _VALUE_WIDTH = 160, 140
_BAR_PITCH, _BAR_HEIGHT = 22, 14
_CURVE_HEIGHT, _MARGIN_LEFT, _MARGIN_BOTTOM, _MARGIN = 360, 76, 44, 14

Content = str | ElementTree.Element


def element(tag: str, *content: Content, **attributes: str | float) -> ElementTree.Element:
    """An element with its content in order. `class_` is the attribute class, `text_anchor` is text-anchor."""
    made = ElementTree.Element(tag)
    for name, value in attributes.items():
        text = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else visible(str(value))
        made.set(name.rstrip("_").replace("_", "-"), text)
    for part in content:
        if isinstance(part, ElementTree.Element):
            made.append(part)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + visible(part)
        else:
            made.text = (made.text or "") + visible(part)
    return made


def number(value: int | float, shown: str | None = None) -> ElementTree.Element:
    """A number as people read it, with its value for machines."""
    return element("data", shown or f"{value:,}", value=repr(value))


def html_of(page: ElementTree.Element) -> str:
    """The document of an `html` element."""
    return "<!DOCTYPE html>\n" + ElementTree.tostring(page, encoding="unicode", method="html") + "\n"


def bars(title: str, entries: Sequence[tuple[str, float, str]]) -> ElementTree.Element:
    """Horizontal bars from (label, length, what is written behind it); lengths are at least 0."""
    longest = max(length for _, length, _ in entries) or 1.0
    room = _WIDTH - _LABEL_WIDTH - _VALUE_WIDTH
    drawn = []
    for row, (label, length, value) in enumerate(entries):
        top, width = row * _BAR_PITCH, max(1.0, room * length / longest)  # the smallest is seen as well
        if not length:
            width = 0.0
        baseline = top + _BAR_HEIGHT - 2.0
        drawn += [
            element("text", label, x=_LABEL_WIDTH - 10.0, y=baseline, text_anchor="end"),
            element("rect", x=_LABEL_WIDTH, y=top, width=width, height=_BAR_HEIGHT, class_="bar"),
            element("text", value, x=_LABEL_WIDTH + width + 8, y=baseline, class_="soft"),
        ]
    return _svg(title, len(entries) * _BAR_PITCH, drawn)


def rank_frequency_curve(title: str, points: Sequence[Sequence[int]]) -> ElementTree.Element:
    """How often the piece of each rank occurs, (rank, times) with ranks ascending, both axes logarithmic; dashed,
    times in proportion to 1 / rank from the first point on."""
    decades_across = max(1, math.ceil(math.log10(points[-1][0])))
    decades_up = max(1, math.ceil(math.log10(points[0][1])))
    bottom = _CURVE_HEIGHT - _MARGIN_BOTTOM

    def x_of(rank: float) -> float:
        return _MARGIN_LEFT + (_WIDTH - _MARGIN_LEFT - _MARGIN) * math.log10(rank) / decades_across

    def y_of(times: float) -> float:
        return bottom - (bottom - _MARGIN) * math.log10(times) / decades_up

    drawn = []
    for power in range(decades_across + 1):
        x = x_of(10**power)
        drawn.append(element("line", x1=x, x2=x, y1=_MARGIN, y2=bottom, class_="grid"))
        anchor = "end" if power == decades_across else "middle"
        drawn.append(element("text", f"{10**power:,}", x=x, y=bottom + 16.0, text_anchor=anchor, class_="soft"))
    for power in range(decades_up + 1):
        y = y_of(10**power)
        drawn.append(element("line", x1=_MARGIN_LEFT, x2=_WIDTH - _MARGIN, y1=y, y2=y, class_="grid"))
        label = f"{10**power:,}"
        drawn.append(element("text", label, x=_MARGIN_LEFT - 6.0, y=y + 4, text_anchor="end", class_="soft"))
    middle = (_MARGIN_LEFT + _WIDTH) / 2
    drawn.append(element("text", "rank of the piece", x=middle, y=_CURVE_HEIGHT - 6.0, text_anchor="middle"))
    drawn.append(element("text", "times in the sample", x=_MARGIN_LEFT + 8.0, y=_MARGIN + 14.0))
    first_rank, first_times = points[0]
    last = min(10**decades_across, first_rank * first_times)
    guide = [(first_rank, first_times), (last, first_times * first_rank / last)]
    for curve, name in ((guide, "guide"), (points, "curve")):
        places = " ".join(f"{x_of(rank):.1f},{y_of(times):.1f}" for rank, times in curve)
        drawn.append(element("polyline", points=places, class_=name))
    return _svg(title, _CURVE_HEIGHT, drawn)


def _svg(title: str, height: int, drawn: list[ElementTree.Element]) -> ElementTree.Element:
    return element(
        "svg", element("title", title), *drawn, viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=title
    )
