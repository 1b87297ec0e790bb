"""A plan drawn over the source model as SVG: one column a source layer, what stays filled, what goes hollow."""

import base64
import dataclasses
import io
from collections.abc import Iterator, Sequence

import matplotlib.image
import numpy as np
from jaxtyping import Float, UInt8

from chopjax.chop.apply import mask
from chopjax.chop.plan import Plan
from chopjax.report import words
from chopjax.report.markup import Markup, element, join

# In SVG units; the drawing is scaled to the width of the page.
WIDTH = 1000
GUTTER = 128
WIDEST_COLUMN = 44
GAP = 16
STRIP_HEIGHT = 30
BARCODE_HEIGHT = 22
HEADS_HEIGHT = 150
MLP_HEIGHT = 140

# Neurons and channels are drawn in at most so many cells, so that the page stays small however wide the model is.
MLP_CELLS = 96
BARCODE_CELLS = 288
# Pixels in which a column is drawn, the last of them empty so that columns stand apart.
COLUMN_PIXELS = 10
# Reads on white and on black alike; a cell of which less is kept is more transparent.
KEPT_COLOUR = (13, 148, 136)

# The axes that a plan can cut, as they are called on the page.
AXES = {
    "layers": "layers",
    "kv_heads": "key/value heads",
    "q_per_kv": "query heads a key/value head",
    "mlp": "MLP neurons",
    "embed": "residual channels",
    "vocab": "vocabulary rows",
}

Block = tuple[Markup, float]


@dataclasses.dataclass(frozen=True)
class _Columns:
    """Where source layers lie from left to right."""

    count: int

    @property
    def pitch(self) -> float:
        return min(WIDEST_COLUMN, (WIDTH - GUTTER) / self.count)

    @property
    def width(self) -> float:
        """Of a cell, the space between columns taken off."""
        return self.pitch * (1 - 1 / COLUMN_PIXELS)

    @property
    def numbered_every(self) -> int:
        return next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if step * self.pitch >= 22)

    def left(self, layer: int) -> float:
        return GUTTER + layer * self.pitch


def draw(plan: Plan) -> Markup:
    """The plan as one SVG element: layers, and where they are cut, heads, MLP neurons, channels and vocabulary."""
    columns = _Columns(plan.source["layers"])
    blocks = list(_blocks(plan, columns))
    placed, top = [], 0.0
    for content, height in blocks:
        placed.append(element("g", content, transform=f"translate(0 {top:.6g})"))
        top += height + GAP
    return element(
        "svg",
        element("title", describe(plan)),
        *placed,
        class_="plan",
        role="img",
        viewBox=f"0 0 {WIDTH} {top - GAP:.6g}",
    )


def describe(plan: Plan) -> str:
    """The drawing in words, for those who do not see it."""
    source, layers = plan.source["layers"], plan.layers
    removed = [layer for layer in range(source) if layer not in set(layers)]
    text = f"Of {source} layers, {len(layers)} stay ({words.ranges(layers)}) and {len(removed)} go"
    text += f" ({words.ranges(removed)})." if removed else "."
    widths = [
        f"{plan.sizes[axis]:,} of {plan.source[axis]:,} {title}"
        for axis, title in AXES.items()
        if axis in plan.kept and axis != "layers"
    ]
    return f"{text} Widths that stay: {', '.join(widths)}." if widths else text


def shares(kept: Sequence[int] | np.ndarray, size: int, cells: int) -> Float[np.ndarray, " cells"]:
    """The share that is kept of each of at most `cells` runs of neighbours, together all of `size` indices."""
    cells = min(cells, size)
    totals = np.bincount(np.arange(size) * cells // size, minlength=cells)
    return np.bincount(np.asarray(kept, np.int64) * cells // size, minlength=cells) / totals


def _blocks(plan: Plan, columns: _Columns) -> Iterator[Block]:
    yield _layer_strip(plan, columns)
    if "kv_heads" in plan.kept or "q_per_kv" in plan.kept:
        yield _head_grid(plan, columns)
    if "mlp" in plan.kept:
        yield _mlp_map(plan, columns)
    for axis, title in (("embed", "channels"), ("vocab", "vocabulary")):
        if axis in plan.kept:
            yield _barcode(plan, axis, title)


def _layer_strip(plan: Plan, columns: _Columns) -> Block:
    student = {source: number for number, source in enumerate(plan.layers)}
    top, bottom = 20, 20 + STRIP_HEIGHT
    parts = [_label("source layer", 13), _label("student layer", bottom + 16)]
    if len(student) < columns.count:
        parts.append(_label("stays or goes", top + STRIP_HEIGHT / 2 + 5))
    for layer in range(columns.count):
        parts.append(_layer_cell(columns, layer, student.get(layer), top))
        middle = columns.left(layer) + columns.width / 2
        if layer % columns.numbered_every == 0:
            parts.append(_number(layer, middle, 13))
        if layer in student and student[layer] % columns.numbered_every == 0:
            parts.append(_number(student[layer], middle, bottom + 16))
    return join(*parts), bottom + 20


def _layer_cell(columns: _Columns, layer: int, student: int | None, top: float) -> Markup:
    left, width = columns.left(layer), columns.width
    note = f"layer {layer}: removed" if student is None else f"layer {layer}: kept, layer {student} of the student"
    cell = element(
        "rect", x=left, y=top, width=width, height=STRIP_HEIGHT, rx=2, class_="gone" if student is None else "kept"
    )
    # The cross says "removed" without colour.
    cross = f"M{left:.6g} {top}l{width:.6g} {STRIP_HEIGHT}m0 {-STRIP_HEIGHT}l{-width:.6g} {STRIP_HEIGHT}"
    return element(
        "g", element("title", note), cell, element("path", d=cross, class_="gone") if student is None else None
    )


def _head_grid(plan: Plan, columns: _Columns) -> Block:
    """A square for each query head, from top to bottom in groups that share a key/value head."""
    kept = mask(plan, "q_per_kv")
    _, groups, queries = kept.shape
    # A group is followed by the space of a third of a head.
    pitch = min(16, HEADS_HEIGHT / (groups * (queries + 1 / 3)))
    paths: dict[bool, list[str]] = {True: [], False: []}
    for layer in plan.layers:
        for group, query in np.ndindex(groups, queries):
            top = (group * (queries + 1 / 3) + query) * pitch
            corner = f"M{columns.left(layer):.5g} {top:.4g}"
            side = f"h{columns.width:.4g}v{pitch * 0.85:.3g}h-{columns.width:.4g}z"
            paths[bool(kept[layer, group, query])].append(corner + side)
    height = groups * (queries + 1 / 3) * pitch
    drawn = [element("path", d="".join(paths[True]), class_="kept")]
    if pitch > 5:  # outlines of smaller heads would run together, and a gap says it as well
        drawn.append(element("path", d="".join(paths[False]), class_="gone"))
    note = f"{plan.sizes['kv_heads']} × {plan.sizes['q_per_kv']} of {groups} × {queries}"
    return join(*_labels(("query heads", "by key/value head", note), height), *drawn), height


def _mlp_map(plan: Plan, columns: _Columns) -> Block:
    size = plan.source["mlp"]
    cells = min(MLP_CELLS, size)
    picture = np.zeros((cells, columns.count))
    for layer, row in zip(plan.layers, plan.kept["mlp"], strict=True):
        picture[:, layer] = shares(row, size, cells)
    pixels = np.repeat(picture, COLUMN_PIXELS, axis=1)
    pixels[:, COLUMN_PIXELS - 1 :: COLUMN_PIXELS] = 0
    # The last column's share of empty pixels is drawn too, so the picture is `count` whole columns wide.
    image = _image(pixels, columns.left(0), columns.count * columns.pitch, MLP_HEIGHT)
    gone = sorted(set(range(columns.count)) - set(plan.layers))
    frames = [
        element("rect", x=columns.left(layer), y=0, width=columns.width, height=MLP_HEIGHT, class_="gone")
        for layer in gone
    ]
    lines = ("MLP neurons", f"{plan.sizes['mlp']:,} of {size:,}", _cell_note(size, cells))
    return join(*_labels(lines, MLP_HEIGHT), image, *frames), MLP_HEIGHT


def _barcode(plan: Plan, axis: str, title: str) -> Block:
    size = plan.source[axis]
    cells = min(BARCODE_CELLS, size)
    width = WIDTH - GUTTER
    frame = element("rect", x=GUTTER, y=0, width=width - 1, height=BARCODE_HEIGHT, class_="gone")
    image = _image(shares(plan.kept[axis], size, cells)[None], GUTTER, width - 1, BARCODE_HEIGHT)
    lines = (title, f"{plan.sizes[axis]:,} of {size:,}")
    return join(*_labels(lines, BARCODE_HEIGHT), frame, image), BARCODE_HEIGHT + 4


def _cell_note(size: int, cells: int) -> str:
    return "a cell each" if cells == size else f"about {round(size / cells)} a cell"


def _image(kept: Float[np.ndarray, "height width"], left: float, width: float, height: float) -> Markup:
    """Shares as a picture that the browser stretches; a share of 1 is opaque and one of 0 is transparent."""
    pixels: UInt8[np.ndarray, "height width 4"] = np.empty((*kept.shape, 4), np.uint8)
    pixels[..., :3] = KEPT_COLOUR
    pixels[..., 3] = np.round(kept * 255)
    file = io.BytesIO()
    matplotlib.image.imsave(file, pixels, format="png")
    data = base64.b64encode(file.getvalue()).decode()
    return element(
        "image",
        x=left,
        y=0,
        width=width,
        height=height,
        preserveAspectRatio="none",
        href=f"data:image/png;base64,{data}",
    )


def _labels(lines: Sequence[str], height: float) -> list[Markup]:
    """Lines of text beside a block, centred on its height, the first of them strong."""
    first = height / 2 + 5 - (len(lines) - 1) * 8
    return [_label(line, first + 16 * i, "label" if i == 0 else "note") for i, line in enumerate(lines)]


def _label(text: str, baseline: float, kind: str = "label") -> Markup:
    return element("text", text, x=GUTTER - 12, y=baseline, text_anchor="end", class_=kind)


def _number(value: int, middle: float, baseline: float) -> Markup:
    return element("text", value, x=middle, y=baseline, text_anchor="middle", class_="note")
