"""The page: figures in sections, escaped, alone."""

import re

import pytest
from markupsafe import Markup

from grokfast.report.page import Figure, Section, render
from tests.report.pages import asked_for, figures, notes

FIGURE = Figure("Norms", Markup("<p>drawn</p>"), "They fall.", "step,norm\n0,2\n10,1.5\n", "How large weights are.")


def page(*sections, **changes):
    said = {"title": "run-1", "lead": "It learned.", "command": "grokfast run quick", **changes}
    return render(sections=sections, **said)


def test_a_page_has_its_sections_and_figures():
    html = page(Section("norms", "Norms", "Of weights.", [FIGURE, FIGURE]), Section("more", "More", "", []))
    assert html.startswith("<!doctype html>")
    assert html.count("<figure ") == 2
    ids = re.findall(r' id="([^"]+)"', html)
    assert len({*ids}) == len(ids)
    for name in re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', html) + re.findall(r'href="#([^"]+)"', html):
        assert name in ids
    shown = figures(html)["Norms"]
    assert shown.alt == "They fall."
    assert shown.data == {"step": ["0", "10"], "norm": ["2", "1.5"]}
    assert "<figcaption>How large weights are.</figcaption>" in shown.html
    assert 'data-download="norms-2.csv"' in shown.html


def test_a_page_asks_for_nothing():
    html = page(Section("norms", "Norms", "", [FIGURE]))
    assert asked_for(html) == []
    assert "default-src 'none'" in html
    assert len(html) < 40_000


def test_texts_are_escaped_and_bodies_are_not():
    hostile = "<script>alert(1)</script>\x1b[2J"
    figure = Figure(hostile, Markup("<b>x</b>"), hostile, f"a\n{hostile}\n", hostile)
    html = page(Section("a", hostile, hostile, [figure]), title=hostile, lead=hostile, command=hostile, notes=[hostile])
    assert "<script>alert" not in html
    assert "\x1b" not in html
    assert "<b>x</b>" in html
    assert notes(html) == ["<script>alert(1)</script>\\x1b[2J"]


def test_without_notes_nothing_is_left_out():
    assert "Left out" not in page(Section("norms", "Norms", "", [FIGURE]))
    assert notes(page(notes=["maps: no transformer"])) == ["maps: no transformer"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Figure("t", "<p>", "alt", "a\n"), TypeError, "body must be Markup"),
        (lambda: Figure(" ", Markup(""), "alt", "a\n"), ValueError, "title must say something"),
        (lambda: Figure("t", Markup(""), "", "a\n"), ValueError, "alt must say something"),
        (lambda: Figure("t", Markup(""), "alt", ""), ValueError, "csv must say something"),
        (lambda: Section("Norms 1", "t"), ValueError, "id must be small letters, digits and '-'"),
        (lambda: page(Section("a", "t"), Section("a", "u")), ValueError, "sections must have an id each, 'a' is there"),
    ],
)
def test_bad_input_is_told(make, error, message):
    with pytest.raises(error, match=message):
        make()
