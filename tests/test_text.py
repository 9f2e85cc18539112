import shlex

import pytest

from grokfast import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain ĝ = λ·x [/red] :smile:", "plain ĝ = λ·x [/red] :smile:"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x9b31m", r"\x9b31m"),  # of one byte in some terminals
        ("txt.\u202egpj", r"txt.\u202egpj"),  # written from right to left
        ("\udcff", r"\udcff"),
        (3, "3"),
    ],
)
def test_what_cannot_be_printed_is_escaped(value, shown):
    assert text.shown(value) == shown
    assert text.shown(text.shown(value)) == shown


def test_a_message_of_several_lines_is_one():
    assert text.one_line(ValueError("first\n  second\x1b")) == r"first second\x1b"


@pytest.mark.parametrize("out", ["my runs", "a;rm -rf *", "it's", "$(x)", ""])
def test_a_command_can_be_copied(out):
    words = ["grokfast", "run", "--out", out]
    assert shlex.split(text.command(*words)) == words


@pytest.mark.parametrize("value", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_what_a_spreadsheet_would_run_is_a_text(value):
    assert text.cell(value)[0] in "'\\"


@pytest.mark.parametrize("value", ["", "quick-3fa9c1", "-1.5", "+3", "-1e-3", "ema lamb=1", "(0.9,0.98)"])
def test_other_cells_stay_as_they_are(value):
    assert text.cell(value) == value
