"""Bodies of figures: drawings, curves with a cursor, heat maps, a slider over snapshots, tables; and data as CSV."""

from __future__ import annotations

import csv as csv_module
import hashlib
import io
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape

from grokfast.plots.axes import COLORS
from grokfast.text import cell, shown

_STOPS, _SHADES = 12, 255  # colours of a bar, and of a picture
_COLOR = re.compile(r"(?<=[:\"] )#[0-9a-f]{6}(?=[;\"])|(?<=\")#[0-9a-f]{6}(?=\")")
_LEFT_OUT = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->| xmlns(:\w+)?=\"[^\"]*\"", re.DOTALL)
_NUMBER = re.compile(r"-?[\d,.]+(e[-+]?\d+)?%?")


def csv(columns: Mapping[str, Sequence[Any] | np.ndarray], digits: int = 6) -> str:
    """Columns of one length as CSV: real numbers to so many digits, NaN and None empty, texts as spreadsheets may have
    them (`text.cell`)."""
    file = io.StringIO()
    writer = csv_module.writer(file, lineterminator="\n")
    writer.writerow(map(cell, columns))
    writer.writerows(zip(*([_cell(own, digits) for own in _plain(column)] for column in columns.values())))
    return file.getvalue()


def matrix_csv(values: np.ndarray, *, y: str, x: str, ys: Sequence[Any], xs: Sequence[Any]) -> str:
    """An array [Y, X] as CSV: a row for each y, whose name is in the first column, four digits a number."""
    return csv({f"{y} \\ {x}": ys} | {str(own): column for own, column in zip(xs, np.asarray(values).T)}, digits=4)


def svg(figure: Any, *, has_images: bool = False) -> Markup:
    """A matplotlib figure as inline SVG: its text is text, its ids are of nothing else on the page, and black, white,
    greys and the colours of `plots` are the theme's; of one that `has_images`, in which these colours are, too, the
    colours stay."""
    return Markup('<div class="plot scroll">{}</div>').format(_drawn(figure, has_images))


def curves(figure: Any, x: Sequence[float] | np.ndarray, *, name: str = "step") -> Markup:
    """A matplotlib figure of curves, as `svg`, over which a cursor moves along x [N], with the pointer or, by the range
    below it, with arrow keys: the values there are those of the figure's CSV, which must have a row for each x.

    Raises ValueError where x is empty, or the figure has no axes.
    """
    places = np.asarray(x, dtype=np.float64)
    if not len(places) or not figure.axes:
        raise ValueError(f"figure must have axes, and x values, got {len(figure.axes)} and {len(places)}")
    drawn = _drawn(figure)  # it is then laid out
    width, height = figure.get_size_inches() * 72
    scale = 72 / figure.dpi
    first = figure.axes[0]
    at = first.transData.transform(np.stack([places, np.full_like(places, first.get_ylim()[0])], 1))[:, 0] * scale
    at = np.clip(np.nan_to_num(at), 0, width)
    boxes = [axes.get_window_extent() for axes in figure.axes]
    lines = Markup("").join(
        Markup('<line class="cursor" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
            f"{at[-1]:.1f}", f"{height - box.y1 * scale:.1f}", f"{height - box.y0 * scale:.1f}"
        )
        for box in boxes
    )
    drawn = drawn[: -len("</svg>")] + lines + Markup("</svg>")
    control = range_of(len(places), name, f"{name} {places[-1]:g}")
    return Markup(
        '<div class="curves" data-at="[{}]"><div class="plot scroll">{}</div>{}<dl class="readout"></dl></div>'
    ).format(",".join(f"{own:.1f}" for own in at), drawn, control)


class Told(Markup):
    """What stands in a table, text or a link, where it is sorted by a number that it does not show."""

    by: float

    @classmethod
    def of(cls, said: Any, by: float) -> Told:
        """`by` may be infinite: such rows are the last."""
        told = cls(escape(said))
        told.by = min(by, 1e300)
        return told


class Axis(NamedTuple):
    """An axis of a picture: what is along it, and what is at its first and its last pixel."""

    name: str
    first: Any
    last: Any


def heat_map(
    values: np.ndarray,
    *,
    x: Axis,
    y: Axis,
    name: str = "",
    value: str = "",
    cmap: str = "viridis",
    low: float | None = None,
    high: float | None = None,
) -> Markup:
    """A picture of an array [Y, X], a pixel an entry and y upwards, above its axes and, where `value` says what it is,
    a bar of the colours between low and high, which are the least and the largest entry unless they are given.

    NaN is transparent. Raises ValueError where values are not [Y, X], or none of them is finite.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not np.isfinite(array).any():
        raise ValueError(f"values must be [Y, X] with a finite entry, got {list(array.shape)}")
    low = float(np.nanmin(array)) if low is None else low
    high = float(np.nanmax(array)) if high is None else high
    colors = colormaps[cmap]
    ramp = ",".join(to_hex(colors(i / (_STOPS - 1))) for i in range(_STOPS))
    shades = (np.clip((array - low) / max(high - low, 1e-300), 0, 1) * (_SHADES - 1)).round()
    palette = [*colors(np.linspace(0, 1, _SHADES)), (0, 0, 0, 0)]
    image = _png(np.where(np.isnan(array), _SHADES, shades), palette)
    bar = Markup("")
    if value:
        bar = Markup(
            '<p class="bar"><span>{} {:.3g}</span><span class="ramp" style="background: linear-gradient(90deg, {})">'
            "</span><span>{:.3g}</span></p>"
        ).format(value, low, ramp, high)
    return _map(image, array.shape, x, y, name, bar)


def category_map(values: np.ndarray, *, colors: Sequence[str], x: Axis, y: Axis, name: str = "") -> Markup:
    """A picture of an array [Y, X] of indices into colours "#rrggbb" or "#rrggbbaa", -1 transparent; see `legend`."""
    from matplotlib.colors import to_rgba

    array = np.asarray(values)
    image = _png(np.where(array < 0, len(colors), array), [*map(to_rgba, colors), (0, 0, 0, 0)])
    return _map(image, array.shape, x, y, name, Markup(""))


def legend(colors: Mapping[str, str]) -> Markup:
    """What colours mean: names to "#rrggbb"."""
    one = Markup('<li><span style="background: {}"></span>{}</li>')
    return Markup('<ul class="legend">{}</ul>').format(
        Markup("").join(one.format(color, name) for name, color in colors.items())
    )


def side_by_side(bodies: Sequence[Markup]) -> Markup:
    """Pictures beside each other, as many as there is room for."""
    return Markup('<div class="maps">{}</div>').format(Markup("").join(bodies))


def slider(frames: Sequence[tuple[str, Markup]], *, name: str = "step") -> Markup:
    """One of several bodies, each with its label; a range input, by pointer or keyboard, chooses which. The last is
    shown first. A single one has no input. Raises ValueError where there is none."""
    if not frames:
        raise ValueError("frames must be at least one, got none")
    one = Markup('<div class="frame" data-label="{}"{}>{}</div>')
    last = len(frames) - 1
    bodies = Markup("").join(
        one.format(f"{name} {label}", Markup("" if i == last else " hidden"), body)
        for i, (label, body) in enumerate(frames)
    )
    control = range_of(len(frames), name, f"{name} {frames[-1][0]}") if last else Markup("")
    return Markup('<div class="slider">{}{}</div>').format(bodies, control)


def table(columns: Mapping[str, Sequence[Any] | np.ndarray], *, sortable: bool = False) -> Markup:
    """Columns of one length as a table; the first one names the rows. Numbers stand to the right; Markup, such as a
    link, stays as it is. sortable: a click on a column's name sorts by it."""
    plain = {name: _plain(column) for name, column in columns.items()}
    is_number = [
        i > 0 and all(_NUMBER.fullmatch(_said(own)) or _said(own) in ("", "–") for own in column)
        for i, column in enumerate(plain.values())
    ]
    kinds = [Markup(' class="number"') if own else Markup("") for own in is_number]
    label = Markup('<button type="button">{}</button>') if sortable else Markup("{}")
    head = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(kind, label.format(shown(name))) for name, kind in zip(plain, kinds)
    )
    rows = Markup("")
    for values in zip(*plain.values()):
        cells = [
            Markup("<{0}{1}{2}>{3}</{4}>").format(
                Markup('th scope="row"' if i == 0 else "td"),
                kinds[i],
                _value(own),
                _said(own),
                Markup("td" if i else "th"),
            )
            for i, own in enumerate(values)
        ]
        rows += Markup("<tr>{}</tr>").format(Markup("").join(cells))
    return Markup('<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(
        head, rows
    )


def _plain(column: Any) -> list[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else list(column)


def _cell(value: Any, digits: int) -> Any:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return value if isinstance(value, int) else cell(str(value))


def _said(value: Any) -> Any:
    """A value in a table."""
    if isinstance(value, Markup):
        return value
    if value is None or value != value:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else shown(value)


def _value(value: Any) -> Markup:
    """What a table is sorted by, where that is not what is said."""
    value = value.by if isinstance(value, Told) else value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    return Markup(' data-value="{}"').format(value) if is_number else Markup("")


def range_of(n: int, name: str, label: str) -> Markup:
    return Markup(
        '<div class="control"><input type="range" min="0" max="{0}" value="{0}" aria-label="{1}" aria-valuetext="{2}">'
        "<output>{2}</output></div>"
    ).format(n - 1, name, label)


def _drawn(figure: Any, has_images: bool = False) -> Markup:
    """The <svg> alone."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "grokfast"}):
        figure.savefig(file, format="svg", transparent=True)
    found = file.getvalue()
    found = _LEFT_OUT.sub("", found[found.index("<svg") :]).replace("xlink:href", "href")
    mark = f"s{hashlib.sha256(found.encode()).hexdigest()[:8]}-"
    used = {*re.findall(r"href=\"#([^\"]+)\"|url\(#([^)]+)\)", found)}
    names = {one or other for one, other in used}
    found = re.sub(r" id=\"([^\"]*)\"", lambda own: f' id="{mark}{own[1]}"' if own[1] in names else "", found)
    found = found.replace('href="#', f'href="#{mark}').replace("url(#", f"url(#{mark}")
    width, height = figure.get_size_inches() * 72
    size = f"min-width: min(30rem, {width:.0f}px); max-width: {1.25 * width:.0f}px"
    head = f'<svg viewBox="0 0 {width:g} {height:g}" style="{size}" aria-hidden="true">'
    found = re.sub(r"^<svg [^>]*>", head, found)
    found = re.sub(r"<text[^>]*>", lambda text: _COLOR.sub(lambda color: _themed(color[0], False), text[0]), found)
    found = _COLOR.sub(lambda color: _themed(color[0], has_images), found)
    return Markup(re.sub(r"\s*\n\s*", "\n", found).strip())


def _themed(color: str, has_images: bool) -> str:
    if color in _THEME and not (has_images and color != "#000000"):
        return _THEME[color]
    red, green, blue = (color[i : i + 2] for i in (1, 3, 5))
    if not red == green == blue:
        return color
    share = 100 - 100 * int(red, 16) / 255
    return f"color-mix(in srgb, currentColor {share:.0f}%, var(--surface))"


_THEME = {color.lower(): f"var(--c{i})" for i, color in enumerate(COLORS)} | {"#000000": "currentColor"}


def _png(values: np.ndarray, palette: Sequence[Any]) -> bytes:
    """Indices [Y, X], y upwards, into at most 256 colours, RGBA in [0, 1], as a PNG of a byte a pixel."""
    from PIL import Image

    image = Image.fromarray(values[::-1].astype(np.uint8), "P")
    image.putpalette((np.array(palette) * 255).round().astype(np.uint8).tobytes(), "RGBA")
    file = io.BytesIO()
    image.save(file, format="png", optimize=True)
    return file.getvalue()


def _map(image: bytes, shape: Sequence[int], x: Axis, y: Axis, name: str, below: Markup) -> Markup:
    """A PNG of shape [Y, X] with what is along its axes."""
    height, width = shape
    is_wide = width > 2 * height
    ratio = f"{width} / {height}" if max(height, width) <= 2 * min(height, width) else "5 / 2" if is_wide else "2 / 3"
    title = Markup('<p class="name">{}</p>').format(name) if name else Markup("")
    return Markup(
        '<div class="map{}">{}<div class="area"><span class="y">{}</span>'
        '<span class="y-ends"><span>{}</span><span>{}</span></span>'
        '<img alt="" width="{}" height="{}" style="aspect-ratio: {}" src="data:image/png;base64,{}">'
        '<span class="x-ends"><span>{}</span><span>{}</span><span>{}</span></span></div>{}</div>'
    ).format(
        " wide" if is_wide else "", title, y.name, shown(y.last), shown(y.first), width, height, ratio,
        b64encode(image).decode(), shown(x.first), x.name, shown(x.last), below,
    )  # fmt: skip
