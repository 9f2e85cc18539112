"""Bodies of figures: drawings in the theme's colours, cursors where the curves are, pictures of arrays, tables."""

import base64
import csv as csv_module
import io
import json
import math
import re

import numpy as np
import pytest
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from grokfast.report.figures import (
    Axis,
    Told,
    category_map,
    csv,
    curves,
    heat_map,
    legend,
    matrix_csv,
    slider,
    svg,
    table,
)

X, Y = Axis("b", 0, 2), Axis("a", 0, 1)


def pixels(html):
    """[Y, X, 4] of the picture, as it is stored."""
    (found,) = re.findall(r"data:image/png;base64,([^\"]+)", html)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found))).convert("RGBA"))


def drawn(label="loss"):
    figure = Figure(figsize=(6, 3))
    axes = figure.subplots()
    axes.plot([0, 1, 4], [3, 2, 1], color="#0072B2", label=label)
    axes.axhline(2, color="0.5")
    axes.legend()
    return figure


def test_csv_can_be_read_back():
    columns = {
        "step": np.array([0, 1_000_000]),
        "loss, mean": np.array([0.123456789, np.nan]),
        "word": ["=1+1", 'a "b", c'],
        "none": [None, 3.0],
    }
    names, *rows = csv_module.reader(io.StringIO(csv(columns)))
    assert names == ["step", "loss, mean", "word", "none"]
    assert rows == [["0", "0.123457", "'=1+1", ""], ["1000000", "", 'a "b", c', "3"]]
    assert csv_module.reader(io.StringIO(csv({"x": [0.125]}, digits=2))).__next__() == ["x"]


def test_a_matrix_has_its_names():
    text = matrix_csv(np.array([[0.5, 1], [2, 3]]), y="neuron", x="frequency", ys=[4, 9], xs=[1, 2])
    assert text == "neuron \\ frequency,1,2\n4,0.5,1\n9,2,3\n"


def test_a_drawing_is_themed_text_without_anything_of_the_web():
    html = svg(drawn())
    assert isinstance(html, Markup)
    assert "http" not in html
    assert "<style" not in html
    assert ">loss</text>" in html
    assert "stroke: var(--c0)" in html
    assert "color-mix(in srgb, currentColor 50%, var(--surface))" in html
    assert not re.search(r"#[0-9a-f]{6}[;\"]", html)


def test_two_drawings_share_no_id():
    one, two = svg(drawn("one")), svg(drawn("two"))
    ids = [re.findall(r' id="([^"]+)"', html) for html in (one, two)]
    assert all(ids)
    assert not {*ids[0]} & {*ids[1]}
    for html, own in zip((one, two), ids):
        assert {*re.findall(r'href="#([^"]+)"', html)} | {*re.findall(r"url\(#([^)]+)\)", html)} <= {*own}


def test_colours_of_images_stay():
    html = svg(drawn(), has_images=True)
    assert "#0072b2" in html
    assert "currentColor" in html


def test_the_cursor_of_curves_stands_at_the_values():
    figure = drawn()
    html = curves(figure, [0, 1, 4])
    at = json.loads(re.search(r'data-at="([^"]+)"', html)[1])
    left, width = figure.axes[0].get_position().x0 * 6 * 72, figure.axes[0].get_position().width * 6 * 72
    low, high = figure.axes[0].get_xlim()
    assert at == pytest.approx([left + width * (x - low) / (high - low) for x in (0, 1, 4)], abs=0.06)
    (path,) = re.findall(r'<path d="M ([^"]+)" clip-path[^>]*stroke: var\(--c0\)', html)
    assert [float(x) for x in re.findall(r"([\d.]+) [\d.]+", path)] == pytest.approx(at, abs=0.06)
    assert html.count('class="cursor"') == 1
    assert 'max="2" value="2"' in html
    assert "<output>step 4</output>" in html


def test_a_heat_map_has_a_pixel_for_each_entry():
    values = np.array([[0.0, 0.5, 1.0], [np.nan, 1.0, 0.0]])
    html = heat_map(values, x=X, y=Y, name="head <1>", value="weight")
    found = pixels(html)
    assert found.shape == (2, 3, 4)
    upper, lower = found  # y upwards
    assert upper[0, 3] == 0
    assert (upper[1:, 3] == 255).all()
    assert (lower[2] == upper[1]).all()
    assert (lower[0] == upper[2]).all()
    assert not (lower[0] == lower[1]).all()
    assert "head &lt;1&gt;" in html
    assert "weight 0<" in html
    assert "<span>1</span></p>" in html


def test_heat_maps_of_one_scale_have_one_colour_for_a_value():
    one, two = (heat_map(np.array(own), x=X, y=Y, low=0, high=2) for own in ([[0, 1, 2]], [[1, 1, 9]]))
    assert (pixels(one)[0, 1] == pixels(two)[0, 0]).all()
    assert (pixels(one)[0, 2] == pixels(two)[0, 2]).all()
    assert 'class="bar"' not in one


def test_categories_have_their_colours():
    html = category_map(np.array([[0, 1, -1]]), colors=["#ff0000", "#00ff0080"], x=X, y=Y)
    assert pixels(html).tolist() == [[[255, 0, 0, 255], [0, 255, 0, 128], [0, 0, 0, 0]]]
    assert "background: #ff0000" in legend({"wrong": "#ff0000"})


def test_a_slider_shows_the_last_frame():
    html = slider([("0", Markup("<b>0</b>")), ("1,000", Markup("<b>1</b>"))])
    frames = re.findall(r'<div class="frame" data-label="([^"]+)"( hidden)?>', html)
    assert frames == [("step 0", " hidden"), ("step 1,000", "")]
    assert '<input type="range" min="0" max="1" value="1" aria-label="step"' in html
    assert "<input" not in slider([("0", Markup("<b>0</b>"))])


def test_a_table_says_its_values():
    columns = {"name": ["a<b", Markup('<a href="#x">c</a>')], "n": [1234, 5], "loss": [0.123456, float("nan")]}
    html = table(columns, sortable=True)
    assert '<th scope="row">a&lt;b</th>' in html
    assert '<a href="#x">c</a>' in html
    assert '<td class="number" data-value="1234">1,234</td>' in html
    assert '<td class="number" data-value="0.123456">0.1235</td>' in html
    assert "–</td>" in html
    assert html.count("<button") == 3
    assert "<button" not in table(columns)


def test_a_table_is_sorted_by_numbers_that_it_does_not_show():
    html = table({"run": ["a", "b"], "step": [Told.of("<never>", math.inf), Told.of("1,200", 1200)]}, sortable=True)
    assert ' data-value="1200">1,200</td>' in html
    (never,) = re.findall(r'data-value="([^"]+)">&lt;never&gt;</td>', html)
    assert 1e200 < float(never) < math.inf, "the last, and a number for a browser"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: curves(drawn(), []), "figure must have axes, and x values, got 1 and 0"),
        (lambda: curves(Figure(), [0]), "figure must have axes, and x values, got 0 and 1"),
        (lambda: heat_map(np.zeros(3), x=X, y=Y), r"values must be \[Y, X\] with a finite entry, got \[3\]"),
        (lambda: heat_map(np.full((2, 2), np.nan), x=X, y=Y), "values must be"),
        (lambda: slider([]), "frames must be at least one, got none"),
    ],
)
def test_bad_input_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()
