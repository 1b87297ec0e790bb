"""Where pictures are painted: matplotlib figures, as SVG in the colours of the page's theme or as PNG files."""

import dataclasses
import io
import re
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from chopjax.report.markup import Markup, element, escape, join
from chopjax.report.style import LIGHT

# Dots of a PNG file for each inch of its figure; matplotlib's own unit is a point, of which an inch has 72.
PNG_DPI = 200
POINTS = 72
# Inches across a picture: its text can be read in one column of a phone and in one of two on a wide page.
WIDTH = 4.8


@dataclasses.dataclass(frozen=True)
class Palette:
    """The colours that a picture is painted in, by their names in the page's style sheet."""

    ink: str
    soft: str
    line: str
    card: str
    first: str
    second: str
    third: str


NAMES = tuple(field.name for field in dataclasses.fields(Palette))
# matplotlib draws in these colours, each of which stands for one of the page's.
THEMED = Palette(*(f"#01020{number}" for number in range(1, len(NAMES) + 1)))
THEME = {getattr(THEMED, name): f"var(--{name})" for name in NAMES}
PRINTED = Palette(**{name: LIGHT[name] for name in NAMES})


@dataclasses.dataclass(frozen=True)
class Spot:
    """A part of a picture that tells its numbers when pointed at.

    Attributes:
        axes: where it lies.
        x: from and to, as data.
        y: the same; None for the whole height.
        text: what is told.
        pad: points added on all sides, for marks that have no size as data.
    """

    axes: Axes
    x: tuple[float, float]
    y: tuple[float, float] | None
    text: str
    pad: float = 0


# Keyword arguments of matplotlib that several marks share.
Look = dict[str, Any]

Paint = Callable[[Figure, Palette], Iterable[Spot]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture that is painted for the page and, the same again, as a file.

    Attributes:
        name: of the file, and what distinguishes ids on the page; letters, digits and underscores.
        reason: a sentence on what it says about the choice.
        description: the picture in words, for those who do not see it.
        height: in inches.
        paint: paints it on an empty figure and gives the spots that tell numbers.
        width: in inches.
    """

    name: str
    reason: str
    description: str
    height: float
    paint: Paint
    width: float = WIDTH

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        return self.width, self.height


def svg(picture: Picture) -> Markup:
    """The picture as an element of the page, which says its description and its spots' numbers."""
    file = io.StringIO()
    with matplotlib.rc_context(_settings(THEMED)):
        figure = Figure(figsize=picture.size, dpi=POINTS, layout="constrained")
        FigureCanvasSVG(figure)
        spots = list(picture.paint(figure, THEMED))
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
        overlay = [_spot(figure, spot) for spot in spots]
    return _inline(file.getvalue(), picture, element("g", *overlay, class_="spots") if overlay else Markup())


def png(picture: Picture) -> bytes:
    """The picture as a PNG file in the page's light colours."""
    file = io.BytesIO()
    with matplotlib.rc_context(_settings(PRINTED)):
        figure = Figure(figsize=picture.size, dpi=PNG_DPI, layout="constrained", facecolor=PRINTED.card)
        FigureCanvasAgg(figure)
        list(picture.paint(figure, PRINTED))
        metadata = {"Software": None, "Title": picture.name, "Description": picture.description}
        figure.savefig(file, format="png", metadata=metadata, bbox_inches="tight", pad_inches=0.15)
    return file.getvalue()


def _settings(palette: Palette) -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",  # text stays text: it can be read, searched, and follows the page's font
        "svg.hashsalt": "chopjax",  # the same run gives the same bytes
        "font.size": 11,
        "legend.fontsize": 10,
        "legend.frameon": False,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "axes.edgecolor": palette.line,
        "axes.labelcolor": palette.ink,
        "axes.axisbelow": True,
        "text.color": palette.ink,
        "xtick.color": palette.ink,
        "ytick.color": palette.ink,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "grid.color": palette.line,
        "grid.linewidth": 0.6,
    }


def _spot(figure: Figure, spot: Spot) -> Markup:
    """A transparent rectangle, in the units of the SVG element, which count from the top."""
    low, high = spot.axes.get_ylim()
    y = spot.y or (low, high)
    corners = spot.axes.transData.transform([(spot.x[0], y[0]), (spot.x[1], y[1])])
    (left, bottom), (right, top) = figure.transFigure.inverted().transform(corners)
    width, height = (inches * POINTS for inches in figure.get_size_inches())
    x0, x1 = sorted((left * width, right * width))
    y0, y1 = sorted(((1 - bottom) * height, (1 - top) * height))
    x0, x1, y0, y1 = x0 - spot.pad, x1 + spot.pad, y0 - spot.pad, y1 + spot.pad
    outline = f"M{x0:.1f} {y0:.1f}h{x1 - x0:.1f}v{y1 - y0:.1f}h{x0 - x1:.1f}z"
    return element("path", element("title", spot.text), d=outline)


def _inline(svg: str, picture: Picture, overlay: Markup) -> Markup:
    """matplotlib's file as an element of a page: no prologue, ids of its own, colours of the theme."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="', f'id="{picture.name}-', svg)
    svg = re.sub(r'href="#', f'href="#{picture.name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{picture.name}-", svg)
    for attribute in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {attribute}="[^"]*"', r"\1", svg, count=1)
    for colour, variable in THEME.items():
        svg = svg.replace(colour, variable)
    label = f'<svg class="chart" role="img" aria-label="{escape(picture.description)}"'
    start, end, rest = svg.replace("<svg", label, 1).rpartition("</svg>")
    return join(Markup(start), overlay, Markup(end + rest))
